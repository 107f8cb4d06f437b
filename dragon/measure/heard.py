"""One batch of clips through an encoder: frames and one vector a clip, checked.

Knows encoders by their protocol. A joint encoder says itself what a clip's vector is; for any other it is the mean of
the clip's frames.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dragon.errors import NotFinite, ShapeError
from dragon.media import Media
from dragon.protocols import Encoder, JointEncoder


@runtime_checkable
class OnePassEncoder(JointEncoder, Protocol):
    """A joint encoder that gives frames and clip vectors by one run of its model; optional, for speed."""

    def embed_both(self, media: Media) -> tuple[Tensor, Tensor]:
        """What `embed_media` and `embed_clips` give: (b, s, f) and (b, f)."""
        ...


def run_encoder(encoder: Encoder, media: Media) -> list[tuple[Tensor, Tensor]]:
    """Frames (s, f) and vector (f,) of each clip, float32 on the CPU.

    Raises:
        ShapeError: the encoder broke its contract. NotFinite: it made NaN or infinity, with the clip's name.
    """
    vectors: Tensor | None = None
    with torch.no_grad():
        if isinstance(encoder, OnePassEncoder):
            frames, vectors = encoder.embed_both(media)
        else:
            frames = encoder.embed_media(media)
            if isinstance(encoder, JointEncoder):
                vectors = encoder.embed_clips(media)
    b, f = len(media), encoder.features
    if frames.ndim != 3 or frames.shape[0] != b or frames.shape[1] == 0 or frames.shape[2] != f:
        raise ShapeError(f"encoder {encoder.name!r} gave frames {tuple(frames.shape)}; expected ({b}, frames, {f})")
    frames = frames.to("cpu", torch.float32)
    vectors = frames.double().mean(dim=1) if vectors is None else vectors.to("cpu")
    if vectors.shape != (b, f):
        raise ShapeError(f"encoder {encoder.name!r} gave clip vectors {tuple(vectors.shape)}; expected ({b}, {f})")
    vectors = vectors.float()
    finite = torch.isfinite(frames).flatten(1).all(dim=1) & torch.isfinite(vectors).all(dim=1)
    if not bool(finite.all()):
        name = media.prompts[int((~finite).nonzero()[0, 0])]
        raise NotFinite(f"encoder {encoder.name!r} made NaN or infinity of {name}; find the part of it that does")
    return list(zip(frames, vectors, strict=True))
