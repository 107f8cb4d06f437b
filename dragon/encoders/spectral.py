"""Log-mel bands as frames: an encoder without weights.

For tests, for quick looks and as a floor: it hears timbre and level, not music. Mel scale after
O'Shaughnessy (1987), 2595 log10(1 + f / 700); triangles of height 1; natural logarithm of the power.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.identity import fingerprint
from dragon.errors import ConfigError
from dragon.media import Media


@dataclass(frozen=True)
class Spectral:
    """(b, s, bands): natural log of the mel power, one frame a `hop`; s = 1 + (t - window) // hop, t at `rate`.

    No padding: a clip shorter than one window gives one frame with zeros after its end.
    floor: power added before the logarithm, so that silence is finite.
    """

    bands: int = 64
    rate: int = 16_000
    window: int = 1024
    hop: int = 1024
    floor: float = 1e-6
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.bands, self.rate, self.window, self.hop) < 1 or self.floor <= 0:
            raise ConfigError(f"{self}; expected all of them above 0")
        if int((mel_filters(self.bands, self.window, self.rate).sum(dim=1) == 0).sum()):
            raise ConfigError(
                f"spectral: {self.bands} bands are too many for a window of {self.window}: some are empty"
            )

    @property
    def name(self) -> str:
        return "spectral"

    @property
    def features(self) -> int:
        return self.bands

    @property
    def settings(self) -> dict[str, object]:
        return {
            "kind": "log-mel, version 1",
            "bands": self.bands,
            "rate": self.rate,
            "window": self.window,
            "hop": self.hop,
            "floor": self.floor,
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    def embed_media(self, media: Media) -> Tensor:
        wave = windows.mono(media, self.rate, self.name).to(self.device)
        missing = self.window - wave.shape[-1]
        if missing > 0:
            wave = torch.nn.functional.pad(wave, (0, missing))
        frames = wave.unfold(-1, self.window, self.hop) * torch.hann_window(self.window, device=wave.device)
        power = torch.fft.rfft(frames).abs().square() / self.window
        filters = mel_filters(self.bands, self.window, self.rate).to(power)
        return windows.checked((power @ filters.mT + self.floor).log(), media, self.name)


def mel_filters(bands: int, window: int, rate: int) -> Tensor:
    """(bands, window // 2 + 1) triangular filters of height 1, evenly spaced in mel from 0 Hz to half the rate."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, 1, bands + 2, dtype=torch.float64) * top / 2595) - 1)
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()
