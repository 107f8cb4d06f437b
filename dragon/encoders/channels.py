"""Windows of mono or stereo sound, for codecs and other models that say how many channels they hear.

Knows audio, no model. A clip with the model's number of channels is taken as it is; any other is mixed to the mean of
its channels, which every channel of the model then hears.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dragon.encoders.windows import BATCH, Windows, mono, without_zeros
from dragon.errors import ConfigError
from dragon.media import Media

SAMPLES_AT_ONCE = 1 << 21
"""Samples of one channel that a model sees at once (48 s at 44.1 kHz): bounds memory, changes no result."""


def channels(media: Media, rate: int, count: int, encoder: str) -> Tensor:
    """(b, count, t) float32 at `rate`.

    Raises:
        AudioError: not audio, or empty. NotFinite: a clip holds NaN or infinity.
    """
    if media.tensor.ndim != 3 or media.tensor.shape[1] != count:
        return mono(media, rate, encoder)[:, None].expand(-1, count, -1)
    each = [replace(media, tensor=media.tensor[:, c : c + 1]) for c in range(count)]
    return torch.stack([mono(one, rate, encoder) for one in each], dim=1)


@dataclass(frozen=True)
class WholeFrames:
    """Windows of a model with one frame every `hop` samples: `frames` of them, without overlap, zeros after the last.

    A clip that fills no window is heard in one of its own length, to the next whole frame: no work for zeros.
    """

    frames: int
    hop: int

    @staticmethod
    def of(seconds: float, rate: int, hop: int, encoder: str) -> WholeFrames:
        """Windows of about `seconds`.

        Raises:
            ConfigError: no whole frame fits.
        """
        count = round(seconds * rate / hop) if seconds > 0 else 0
        if count < 1:
            raise ConfigError(
                f"encoder {encoder!r}: seconds {seconds:g}; expected at least one frame of {hop / rate:.4f} s"
            )
        return WholeFrames(count, hop)

    @property
    def rule(self) -> dict[str, object]:
        """For an encoder's settings."""
        samples = self.frames * self.hop
        return {"samples": samples, "hop": samples, "tail": "pad", "short": f"zeros to a multiple of {self.hop}"}

    def windows(self, total: int) -> Windows:
        """Those of a clip of `total` samples."""
        return Windows(min(self.frames, math.ceil(total / self.hop)) * self.hop, tail="pad")


def frames_of_channels(wave: Tensor, rule: Windows | WholeFrames, frames: Callable[[Tensor], Tensor]) -> Tensor:
    """(b, s, f): `frames` (n, c, samples) -> (n, s', f) over all windows of each clip (b, c, t), one after another.

    Frames that lie wholly in the zeros after a clip are left out.
    """
    clips, count, total = wave.shape
    windows = rule.windows(total) if isinstance(rule, WholeFrames) else rule
    cut = windows.cut(wave.flatten(0, 1)).unflatten(0, (clips, count)).transpose(1, 2)  # (b, w, c, samples)
    at_once = max(1, min(BATCH, SAMPLES_AT_ONCE // windows.samples))
    with torch.no_grad():
        found = torch.cat([frames(part) for part in cut.flatten(0, 1).split(at_once)])
    return without_zeros(found.unflatten(0, (clips, -1)), windows, total)
