"""Paired DiffusionNFT: fit the winner directly, and the loser through a prediction mirrored at the old policy.

Knows predictions of policy, old policy and reference at both sides of a pair. Zheng et al. (2025),
"DiffusionNFT", arXiv 2509.16117: implicit positive and negative policies
`v+ = (1-b) v_old + b v`, `v- = (1+b) v_old - b v`, here with optimality 1 for the winner and 0 for the
loser (hard pairs, shared noise: this project's choice), in the model's own parameterisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dragon.errors import ConfigError
from dragon.objectives.gains import checked_weight, no_beta, squared_error, winner_term
from dragon.protocols import Side, Terms


@dataclass(frozen=True)
class NFT:
    """Loss of a pair, w its winner and l its loser; v is the policy's prediction.

    `|v+ - target_w|^2 + |v- - target_l|^2 + anchor (|v_w - ref_w|^2 + |v_l - ref_l|^2) + winner |v_w - target_w|^2`.

    All squares are means over event dimensions. For fixed sides its minimiser at the winner is
    `(b target - b (1-b) old + a ref) / (b^2 + a)` and at the loser `(b (1+b) old - b target + a ref) / (b^2 + a)`;
    with b = 1, a = 0: the winner's target, and the loser's mirrored at the old policy.

    anchor: a, pull to the frozen start; without it an adaptive optimiser drifts on label noise.
    reference: v_old is the moving old policy ("old") or the frozen start ("start").
    strength: b > 0; larger b asks for a smaller step from the old policy.
    winner: weight of an extra plain denoising error of the winner.
    """

    name: ClassVar[str] = "nft"
    beta: ClassVar[None] = None
    needs_z0: ClassVar[bool] = False
    paired: ClassVar[bool] = True

    anchor: float = 0.5
    reference: Literal["old", "start"] = "old"
    strength: float = 1.0
    winner: float = 0.0

    def __post_init__(self) -> None:
        checked_weight("anchor", self.anchor)
        checked_weight("winner", self.winner)
        if self.reference not in ("old", "start"):
            raise ConfigError(f"reference is {self.reference!r}; expected 'old' (moving old policy) or 'start'")
        if not 0 < self.strength < float("inf"):
            raise ConfigError(f"strength is {self.strength}; expected a positive finite number (1 is the plain pair)")

    @property
    def needs_old(self) -> bool:
        return self.reference == "old"

    def with_beta(self, beta: float) -> NFT:
        """Never possible: NFT has no beta.

        Raises:
            ConfigError: always.
        """
        raise no_beta(self.name)

    def __call__(self, terms: Terms) -> Tensor:
        """(b,) loss of each pair."""
        positive, negative, b = terms.positive, terms.negative, self.strength
        liked = (1 - b) * self._old(positive) + b * positive.policy
        mirrored = (1 + b) * self._old(negative) - b * negative.policy
        loss = squared_error(positive.target, liked) + squared_error(negative.target, mirrored)
        if self.anchor:
            loss = loss + self.anchor * (_distance(positive) + _distance(negative))
        return loss + winner_term(positive, self.winner)

    def _old(self, side: Side) -> Tensor:
        return (side.old if self.needs_old else side.reference).detach()


def _distance(side: Side) -> Tensor:
    return squared_error(side.reference.detach(), side.policy)
