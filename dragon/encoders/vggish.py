"""VGGish: a network of convolutions over log-mel spectrograms of 0.96 s, the encoder of the first Frechet distances.

Hershey et al. 2017, CNN Architectures for Large-Scale Audio Classification (arXiv 1609.09430); front end and windows
of the Frechet Audio Distance after Kilgour et al. 2019 (arXiv 1812.08466). The weights come from a file with the key
names of the torch port (torchvggish): features.0 ... features.13, embeddings.0, .2, .4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dragon.encoders import windows
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.pretrained import reading
from dragon.encoders.windows import Windows
from dragon.errors import ConfigError
from dragon.media import Media

RATE, WINDOW, HOP, FFT, BANDS = 16_000, 400, 160, 512, 64
LOWEST, HIGHEST, OFFSET = 125.0, 7500.0, 0.01
SPECTRA = 96
"""Spectra of one example: 0.96 s, of which the last one reaches 0.015 s further."""
EXAMPLE = (SPECTRA - 1) * HOP + WINDOW

_CONVOLUTIONS = (0, 3, 6, 8, 11, 13)
_POOLED = (0, 3, 8, 13)  # a maximum over 2 x 2 follows these
_LINEAR = (0, 2, 4)
_KEYS = tuple(
    f"{part}.{i}.{kind}"
    for part, places in (("features", _CONVOLUTIONS), ("embeddings", _LINEAR))
    for i in places
    for kind in ("weight", "bias")
)


class VGGish:
    """(b, s, f): one vector of 128 an example of 0.96 s.

    weights: a .pth or .safetensors file. protocol "plain": one example every 0.96 s, level as it is, as the network's
    authors use it. "fad": as the first Frechet Audio Distance does it: the clip divided by the largest of its samples,
    or by 0.1 if that is more (signed, so that turning the polarity can change it), then one example every 0.5 s, where
    a whole second must be left. A rest is left out; a clip shorter than one example is followed by zeros.
    relu: with the activation after the last layer, as the torch port has it; without, as the authors' present release.

    Raises:
        ConfigError: the file cannot be read, or is not a VGGish.
    """

    def __init__(
        self,
        weights: str,
        *,
        protocol: Literal["plain", "fad"] = "plain",
        relu: bool = False,
        device: str = "cpu",
    ) -> None:
        if protocol not in ("plain", "fad"):
            raise ConfigError(f"encoder 'vggish': protocol {protocol!r}; expected 'plain' or 'fad'")
        state = _weights(weights)
        self._state = {key: value.to(device) for key, value in state.items()}
        self._filters = mel_filters().float().to(device)
        self._protocol, self._relu, self._device = protocol, relu, device
        self._windows = (
            Windows(EXAMPLE, SPECTRA * HOP, tail="drop")
            if protocol == "plain"
            else Windows(RATE, RATE // 2, tail="drop")
        )
        self.settings = {
            "kind": "vggish, version 1",
            "weights": weights_hash(state),
            "relu": relu,
            "level": "as it is" if protocol == "plain" else "clip / max(0.1, largest sample)",
            "rate": RATE,
            "windows": self._windows.rule,
        }

    @property
    def name(self) -> str:
        return "vggish"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return int(self._state["embeddings.4.bias"].shape[0])

    def embed_media(self, media: Media) -> Tensor:
        wave = windows.mono(media, RATE, self.name).to(self._device)
        if self._protocol == "fad":
            wave = wave / wave.amax(dim=1, keepdim=True).clamp(min=0.1)
        return windows.checked(windows.frames_of_windows(wave, self._windows, self._example), media, self.name)

    def _example(self, wave: Tensor) -> Tensor:
        """(n, samples) -> (n, 1, f)."""
        found = run(self._state, log_mel(wave[:, :EXAMPLE], self._filters))
        return (found.relu() if self._relu else found)[:, None]


def mel_filters() -> Tensor:
    """(257, 64) float64: triangles of height 1 that are straight in mel, 1127 ln(1 + f / 700), from 125 to 7500 Hz.

    torchaudio and librosa draw them straight in Hz, which moves a weight by up to .0044.
    """
    edges = torch.linspace(_mel(LOWEST), _mel(HIGHEST), BANDS + 2, dtype=torch.float64)
    bins = torch.tensor([_mel(i * RATE / FFT) for i in range(FFT // 2 + 1)], dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def log_mel(wave: Tensor, filters: Tensor) -> Tensor:
    """(n, t) at 16 kHz -> (n, s, 64): ln(mel magnitude + 0.01) of Hann windows of 25 ms every 10 ms."""
    frames = wave.unfold(-1, WINDOW, HOP) * torch.hann_window(WINDOW, dtype=wave.dtype, device=wave.device)
    return (torch.fft.rfft(frames, FFT).abs() @ filters.to(wave.dtype) + OFFSET).log()


def run(state: Mapping[str, Tensor], spectra: Tensor) -> Tensor:
    """(n, 96, 64) log-mel -> (n, f), before the last activation."""
    x = spectra[:, None]
    for place in _CONVOLUTIONS:
        x = F.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1).relu()
        if place in _POOLED:
            x = F.max_pool2d(x, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # time, band, channel: the order of the weights' origin
    for place in _LINEAR:
        x = F.linear(
            x if place == 0 else x.relu(), state[f"embeddings.{place}.weight"], state[f"embeddings.{place}.bias"]
        )
    return x


def _mel(hertz: float) -> float:
    return float(1127 * np.log1p(hertz / 700))


def _weights(path: str) -> dict[str, Tensor]:
    """The network's tensors, float32; widths are the file's own, places and kernels are VGGish's."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"encoder 'vggish': no weights file {path!r}; expected a .pth of the torch port (torchvggish, "
            "vggish-10086976.pth) or the same tensors as .safetensors"
        )
    state = _read(file)
    missing = [key for key in _KEYS if not isinstance(state.get(key), Tensor)]
    if missing:
        raise ConfigError(
            f"encoder 'vggish': {path!r} lacks {', '.join(missing[:3])} ({len(missing)} of {len(_KEYS)} tensors); "
            "expected the key names of torchvggish: features.0.weight ... embeddings.4.bias"
        )
    state = {key: state[key].float() for key in _KEYS}
    try:
        run(state, torch.zeros(1, SPECTRA, BANDS))
    except RuntimeError as error:
        raise ConfigError(
            f"encoder 'vggish': the tensors of {path!r} do not fit each other ({str(error).splitlines()[0]}); expected "
            "3 x 3 convolutions from one channel and three linear layers"
        ) from error
    return state


def _read(file: Path) -> dict[str, Tensor]:
    def load() -> dict[str, Tensor]:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        return dict(torch.load(file, map_location="cpu", weights_only=True))

    return reading(load, str(file), "vggish", "weights (tensors only, no pickled objects)")
