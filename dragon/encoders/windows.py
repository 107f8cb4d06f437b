"""From any clip to what an encoder hears: mono, at its rate, in windows of its length.

Knows audio, no model. The rule for length is stated here once for all encoders that hear windows:
a shorter clip is padded with zeros at its end, and frames that lie wholly in the padding are left out;
a longer clip gives consecutive windows, a rest of at least half a window gives one more that ends with the clip,
and a shorter rest is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dragon import audio
from dragon.errors import AudioError, NotFinite, ShapeError
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


def cut(wave: Tensor, samples: int) -> Tensor:
    """(b, t) -> (b, w, samples) by the rule above."""
    total = wave.shape[-1]
    if total <= samples:
        return torch.nn.functional.pad(wave, (0, samples - total))[:, None]
    windows = wave.unfold(-1, samples, samples)
    if 2 * (total % samples) >= samples:
        windows = torch.cat([windows, wave[:, None, -samples:]], dim=1)
    return windows


def frames_of_windows(wave: Tensor, samples: int, frames: Callable[[Tensor], Tensor]) -> Tensor:
    """(b, s, f): `frames` (n, samples) -> (n, s', f) over all windows of each clip, one after another."""
    found = _apply(cut(wave, samples), frames)  # (b, w, s', f)
    if wave.shape[-1] < samples:
        found = found[:, :, : math.ceil(found.shape[2] * wave.shape[-1] / samples)]
    return found.flatten(1, 2)


def clips_of_windows(wave: Tensor, samples: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """(b, f): the mean of the windows' unit vectors, made a unit vector again."""
    return torch.nn.functional.normalize(_apply(cut(wave, samples), embed).mean(dim=1), dim=-1)


def checked(features: Tensor, media: Media, encoder: str) -> Tensor:
    """The features, float32; NotFinite names the encoder and the first clip that gave NaN or infinity."""
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if len(features) != len(media):
        raise ShapeError(f"encoder {encoder!r} gave {len(features)} rows for {len(media)} clips")
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"encoder {encoder!r} made NaN or infinity of clip {row} (prompt {media.prompts[row]!r})")
    return features.float()


def fingerprint(**settings: object) -> str:
    """16 hexadecimal digits that identify settings (anything JSON holds)."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _apply(windows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    clips, count = windows.shape[:2]
    with torch.no_grad():
        found = torch.cat([function(part) for part in windows.flatten(0, 1).split(BATCH)])
    return found.reshape(clips, count, *found.shape[1:])
