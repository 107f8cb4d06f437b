"""From any clip to what an encoder hears: mono, at its rate, in windows of its length.

Knows audio, no model. `Windows` states length, hop and what happens to short clips and to the rest of a long one; it is
part of every encoder's settings and so of its fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dragon import audio
from dragon.errors import AudioError, ConfigError, NotFinite, ShapeError
from dragon.media import Media

WINDOW_RULE = "zeros after a short clip, their frames cut; windows without overlap; rest >= half: one at the end"
BATCH = 32
"""Windows a model sees at once: bounds memory, changes no result."""


def mono(media: Media, rate: int, encoder: str) -> Tensor:
    """(b, t) float32 at `rate`, the mean of the channels.

    Raises:
        AudioError: not audio, or empty. NotFinite: a clip holds NaN or infinity.
    """
    if media.rate is None or media.tensor.ndim != 3:
        raise AudioError(
            f"encoder {encoder!r} got media of shape {tuple(media.tensor.shape)} with rate {media.rate}; "
            "expected audio: (b, channels, samples) with a rate in Hz"
        )
    if media.tensor.shape[1] == 0 or media.tensor.shape[2] == 0:
        raise AudioError(f"encoder {encoder!r} got empty audio of shape {tuple(media.tensor.shape)}")
    audio.check_finite(media)
    return audio.resample(audio.to_mono(media.tensor.detach().float()), media.rate, rate)


@dataclass(frozen=True)
class Windows:
    """Windows of `samples`, one every `hop` (0: no overlap), at the encoder's rate.

    tail, the rest after the last whole window of a long clip. "end": a rest of at least half a hop gives one more
    window that ends with the clip, a shorter one is left out; "pad": any rest gives one more window, with zeros after
    it; "drop": left out. short, a clip that fills no window: "zeros" after it, or "repeat": whole copies, then zeros.
    Frames that lie wholly in zeros are left out.
    """

    samples: int
    hop: int = 0
    tail: Literal["end", "pad", "drop"] = "end"
    short: Literal["zeros", "repeat"] = "zeros"

    def __post_init__(self) -> None:
        if self.hop == 0:
            object.__setattr__(self, "hop", self.samples)
        if not 0 < self.hop <= self.samples or self.tail not in ("end", "pad", "drop"):
            raise ConfigError(f"{self}; expected samples above 0, a hop of 1 to samples, tail end, pad or drop")
        if self.short not in ("zeros", "repeat"):
            raise ConfigError(f"{self}; expected short: zeros or repeat")

    @property
    def rule(self) -> str | dict[str, object]:
        """For an encoder's settings."""
        if self == Windows(self.samples):
            return WINDOW_RULE  # as fingerprints of stored exemplar sets have it
        return {"samples": self.samples, "hop": self.hop, "tail": self.tail, "short": self.short}

    def cut(self, wave: Tensor) -> Tensor:
        """(b, t) -> (b, w, samples)."""
        total = wave.shape[-1]
        if total <= self.samples:
            if self.short == "repeat":
                wave = wave.repeat(1, self.samples // total)
            return torch.nn.functional.pad(wave, (0, self.samples - wave.shape[-1]))[:, None]
        found = wave.unfold(-1, self.samples, self.hop)
        rest = self._rest(total)
        if self.tail == "end" and 2 * rest >= self.hop:
            found = torch.cat([found, wave[:, None, -self.samples :]], dim=1)
        elif self.tail == "pad" and rest:
            last = wave[:, found.shape[1] * self.hop :]
            found = torch.cat([found, torch.nn.functional.pad(last, (0, self.samples - last.shape[-1]))[:, None]], 1)
        return found

    def zeros(self, total: int) -> int:
        """How many samples at the end of the last window are zeros, for a clip of `total` samples."""
        if total <= self.samples:
            return self.samples % total if self.short == "repeat" else self.samples - total
        rest = self._rest(total)
        return self.hop - rest if self.tail == "pad" and rest else 0

    def _rest(self, total: int) -> int:
        """Samples after the last whole window."""
        return (total - self.samples) % self.hop


def frames_of_windows(wave: Tensor, windows: Windows, frames: Callable[[Tensor], Tensor]) -> Tensor:
    """(b, s, f): `frames` (n, samples) -> (n, s', f) over all windows of each clip, one after another."""
    return without_zeros(_apply(windows.cut(wave), frames), windows, wave.shape[-1])


def without_zeros(found: Tensor, windows: Windows, total: int) -> Tensor:
    """(b, w, s', f) frames of the windows of clips of `total` samples -> (b, s, f): the last one's without those that
    lie wholly in zeros."""
    each, heard = found.shape[2], windows.samples - windows.zeros(total)
    flat = found.flatten(1, 2)
    return flat[:, : flat.shape[1] - (each - math.ceil(each * heard / windows.samples))]


def clips_of_windows(wave: Tensor, windows: Windows, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """(b, f): the mean of the windows' unit vectors, made a unit vector again."""
    return torch.nn.functional.normalize(_apply(windows.cut(wave), embed).mean(dim=1), dim=-1)


def checked(features: Tensor, media: Media, encoder: str) -> Tensor:
    """The features, float32; NotFinite names the encoder and the first clip that gave NaN or infinity."""
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if len(features) != len(media):
        raise ShapeError(f"encoder {encoder!r} gave {len(features)} rows for {len(media)} clips")
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"encoder {encoder!r} made NaN or infinity of clip {row} (prompt {media.prompts[row]!r})")
    return features.float()


def _apply(cut: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    clips, count = cut.shape[:2]
    with torch.no_grad():
        found = torch.cat([function(part) for part in cut.flatten(0, 1).split(BATCH)])
    return found.reshape(clips, count, *found.shape[1:])
