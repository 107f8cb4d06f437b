"""One clip as a file: sound as WAV, a picture as PNG, anything else as an array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dragon import audio, image
from dragon.media import Media


@dataclass(frozen=True)
class ClipFile:
    """A written clip; `rate` (Hz) and `seconds` are None for what is not audio."""

    path: Path
    rate: int | None = None
    seconds: float | None = None


def write_clip(media: Media, row: int, stem: Path) -> ClipFile:
    """Writes clip `row` of `media` to `stem` with its kind's extension."""
    one = media.rows([row])
    if one.rate is not None:
        clip, path = audio.to_audio(one)[0], stem.with_suffix(".wav")
        audio.save(path, clip)
        return ClipFile(path, clip.rate, clip.seconds)
    if image.are_images(one):
        path = stem.with_suffix(image.EXTENSION)
        image.save(path, one.tensor[0])
        return ClipFile(path)
    path = stem.with_suffix(".npy")
    np.save(path, one.tensor[0].cpu().numpy())
    return ClipFile(path)
