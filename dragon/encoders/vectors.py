"""One vector a clip and one a caption, by any encoder.

Knows encoders by their protocol. What a clip's vector is stands here alone: rewards of vectors agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dragon.media import Media
from dragon.protocols import Encoder, JointEncoder

CAPTIONS = 64
"""Captions a model reads at once: bounds memory."""


def clip_vectors(encoder: Encoder, media: Media) -> Tensor:
    """(b, f): the clip embedding of a joint encoder, else the mean of the frames; as dragon.measure.heard has it."""
    if isinstance(encoder, JointEncoder):
        return encoder.embed_clips(media)
    return encoder.embed_media(media).mean(dim=1)


def caption_vectors(prompts: Sequence[str], embed: Callable[[list[str]], Tensor], at_once: int = CAPTIONS) -> Tensor:
    """(b, f) float32, without gradient: `embed` (n captions -> (n, f)) of each prompt; equal ones are embedded once."""
    distinct = list(dict.fromkeys(prompts))  # k samples share a prompt
    with torch.no_grad():
        rows = torch.cat([embed(distinct[i : i + at_once]) for i in range(0, len(distinct), at_once)])
    place = {prompt: row for row, prompt in enumerate(distinct)}
    return rows[torch.tensor([place[prompt] for prompt in prompts], device=rows.device)].float()
