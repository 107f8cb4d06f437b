"""Image files and pixels: save and load PNG.

The only file that writes images with Pillow (imported where it is used). Knows no model and no reward.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.errors import DragonError, ShapeError
from dragon.media import Media

EXTENSION = ".png"


def are_images(media: Media) -> bool:
    """Whether `save` can write its clips: grey or coloured pictures, (b, 1 or 3, h, w) without a rate."""
    return media.rate is None and media.tensor.ndim == 4 and media.tensor.shape[1] in (1, 3)


def save(path: str | os.PathLike[str], image: Tensor) -> None:
    """Writes (c, h, w) in [-1, 1] as PNG of 8 bits; what lies outside is clipped.

    Raises:
        ShapeError: neither one channel nor three.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ShapeError(f"image of shape {tuple(image.shape)} for {os.fspath(path)}; expected (1 or 3, height, width)")
    pixels = as_bytes(image)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, format="PNG")


def as_bytes(image: Tensor) -> NDArray[np.uint8]:
    """(c, h, w) in [-1, 1] -> (h, w, c) from 0 to 255; what lies outside is clipped."""
    scaled = (255 * (image.detach().float().cpu().clamp(-1, 1) / 2 + 0.5)).round()
    return np.asarray(scaled.to(torch.uint8).permute(1, 2, 0).numpy(), np.uint8)


def load(path: str | os.PathLike[str]) -> Tensor:
    """(c, h, w) float32 in [-1, 1] of a picture file: one channel of a grey one, else three.

    Raises:
        DragonError: no such file, or no picture that Pillow reads.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.array(picture if picture.mode == "L" else picture.convert("RGB"))
    except (OSError, ValueError) as error:  # UnidentifiedImageError is an OSError
        raise DragonError(f"{os.fspath(path)}: cannot be read as a picture ({error}); write it again") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1) / 127.5 - 1
