"""Best-of-k fine-tuning: the plain denoising loss on each prompt's best sample; the losers are ignored.

Knows the winner's predictions. The baseline of every contrast; known from language models as active
inheritance (arXiv 2407.01490): data generation steered toward a reward without a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dragon.objectives.gains import checked_weight, no_beta, squared_error
from dragon.protocols import Terms


@dataclass(frozen=True)
class BestOfK:
    """`|v_w - target_w|^2 + anchor * |v_w - ref_w|^2`, means over event dimensions.

    anchor: pull to the frozen start. It is its own winner term, so it has no `winner` weight.
    """

    name: ClassVar[str] = "best_of_k"
    beta: ClassVar[None] = None
    needs_old: ClassVar[bool] = False
    needs_z0: ClassVar[bool] = False
    paired: ClassVar[bool] = True

    anchor: float = 0.0

    def __post_init__(self) -> None:
        checked_weight("anchor", self.anchor)

    def with_beta(self, beta: float) -> BestOfK:
        """Never possible: best-of-k has no beta.

        Raises:
            ConfigError: always.
        """
        raise no_beta(self.name)

    def __call__(self, terms: Terms) -> Tensor:
        """(b,) loss of each pair."""
        side = terms.positive
        loss = squared_error(side.target, side.policy)
        if self.anchor:
            loss = loss + self.anchor * squared_error(side.reference.detach(), side.policy)
        return loss
