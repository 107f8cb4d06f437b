"""Diffusion-DPO: a pair's winner should gain more over the reference than its loser.

Knows two gains, nothing else. Wallace et al. (2023), "Diffusion Model Alignment Using Direct Preference
Optimization", eq. 14, with errors averaged (not summed) over event dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from dragon.objectives.gains import checked_beta, checked_weight, gain, winner_term
from dragon.protocols import Terms


@dataclass(frozen=True)
class DPO:
    """`-log sigmoid(beta/2 * (g_w - g_l)) + winner * error_w`.

    beta: 5000 is the published value, for epsilon; the trainer calibrates it. winner: weight of the plain
    denoising error of the winner (TangoFlux, arXiv 2412.21037), which keeps both likelihoods from falling.
    """

    name: ClassVar[str] = "dpo"
    needs_old: ClassVar[bool] = False
    needs_z0: ClassVar[bool] = False
    paired: ClassVar[bool] = True

    beta: float = 5000.0
    winner: float = 0.0

    def __post_init__(self) -> None:
        checked_beta(self.beta)
        checked_weight("winner", self.winner)

    def with_beta(self, beta: float) -> DPO:
        """The same objective at another beta."""
        return replace(self, beta=beta)

    def __call__(self, terms: Terms) -> Tensor:
        """(b,) loss of each pair; log 2 where the policy equals the reference (winner 0)."""
        positive, negative = terms.positive, terms.negative
        loss = -logsigmoid(self.beta / 2 * (gain(positive) - gain(negative)))
        return loss + winner_term(positive, self.winner)
