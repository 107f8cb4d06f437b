"""A reward that knows nothing: the control that every claim about a reward is read against.

Training toward it shows what the loop does by itself (drift), since no sample is better than another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from dragon.exemplars.collect import content_hash
from dragon.media import Media


@dataclass(frozen=True)
class RandomReward:
    """Standard normal noise, a function of the clip's samples and the seed alone.

    The same clip gets the same score in any batch and with any prompt; clips that differ in one bit get independent
    scores.
    """

    seed: int = 0
    name: str = "random"

    @property
    def abstains(self) -> bool:
        return False

    def score(self, media: Media) -> Tensor:
        """(b,) float64."""
        clips = media.tensor.detach().to("cpu", torch.float32).numpy()
        return torch.tensor([self._normal(content_hash(clip, media.rate or 0)) for clip in clips], dtype=torch.float64)

    def _normal(self, key: str) -> float:
        digest = hashlib.blake2b(f"{self.seed} {key}".encode(), digest_size=8).digest()
        # 52 bits, and the middle of its interval: never 0 or 1, where the normal quantile is infinite
        uniform = ((int.from_bytes(digest, "little") >> 12) + 0.5) / (1 << 52)
        return NormalDist().inv_cdf(uniform)
