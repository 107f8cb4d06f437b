"""Diffusion-KTO: winners should gain more than the batch does on average, losers less.

Knows the gains of both sides and the batch's zero point. Li et al. (2024), "Aligning Diffusion Models by
Optimizing Human Utility". Its gradient vanishes at both ends, so a mislabelled pair costs little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dragon.errors import ShapeError
from dragon.objectives.gains import checked_beta, checked_weight, gain, winner_term
from dragon.protocols import Terms


@dataclass(frozen=True)
class KTO:
    """`1 - sigmoid(s * beta * (g - z0))`, s = +1 on D+ and -1 on D-; mean of a pair's two sides, `+ winner * error_w`.

    paired: both sides of a pair share prompt and noise. False: they belong to different prompts and each has its
    own noise level and noise (the trainer's part); the loss is the same.
    """

    name: ClassVar[str] = "kto"
    needs_old: ClassVar[bool] = False
    needs_z0: ClassVar[bool] = True

    beta: float = 5000.0
    paired: bool = True
    winner: float = 0.0

    def __post_init__(self) -> None:
        checked_beta(self.beta)
        checked_weight("winner", self.winner)

    def with_beta(self, beta: float) -> KTO:
        """The same objective at another beta."""
        return replace(self, beta=beta)

    def __call__(self, terms: Terms) -> Tensor:
        """(b,) loss of each pair; 1 - sigmoid(0) = 1/2 where the policy equals the reference (winner 0).

        Raises:
            ShapeError: `terms.z0` is missing or no scalar. It is `zero_point` of the whole batch, which a
                micro-batch cannot know.
        """
        if terms.z0 is None or terms.z0.numel() != 1:
            shape = None if terms.z0 is None else tuple(terms.z0.shape)
            raise ShapeError(f"KTO got z0 of shape {shape}; expected a scalar: zero_point(gains of the whole batch)")
        z0 = terms.z0.detach().reshape(())
        liked = torch.sigmoid(self.beta * (gain(terms.positive) - z0))
        disliked = torch.sigmoid(-self.beta * (gain(terms.negative) - z0))
        return 1 - (liked + disliked) / 2 + winner_term(terms.positive, self.winner)
