"""What pipelines of images share: the size of an image in latents, and its pixels.

Knows numbers and tensors, no pipeline.
"""

from __future__ import annotations

from torch import Tensor

from dragon.errors import ConfigError

CLIPPED = "clipped to [-1, 1]"
"""What `clipped` does, for `Family.loudness`."""


def in_latents(name: str, asked: int | None, own: int, latent: int, multiple: int, longest: int | None = None) -> int:
    """Height or width (`name`) in latents: of the pixels asked for, or of the pipeline's own number of them.

    latent: pixels a latent. multiple: of pixels, what the pipeline takes. longest: pixels at most; None: no limit.

    Raises:
        ConfigError: no such multiple, or out of range.
    """
    pixels = own if asked is None else asked
    if pixels < multiple or pixels % multiple or (longest is not None and pixels > longest):
        most = "" if longest is None else f" and at most {longest}"
        raise ConfigError(f"{name} is {pixels}; expected a multiple of {multiple} pixels, at least {multiple}{most}")
    return pixels // latent


def clipped(images: Tensor) -> Tensor:
    """Images without what lies outside [-1, 1], which no screen shows."""
    return images.clamp(-1, 1)
