"""Several rewards -> one score: a weighted sum, each reward in units of its own spread within a prompt.

Knows tables of scores only. Rewards differ by orders of magnitude (a cosine, a squared distance), and what
ranks the samples of a prompt is their spread INSIDE that prompt; so each reward is divided by its pooled
within-prompt standard deviation, an exponential average over steps (state of the run: part of checkpoints).
This project's choice; the paper tunes one reward at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError


class RewardMixture:
    """`combine` gives sum_i weight_i * r_i / sd_i; a single reward is only multiplied by its weight.

    momentum: share of the old variance kept at each step; the first step's variance starts it.

    Raises:
        ConfigError: no weights, a weight that is not finite, all weights 0, momentum outside [0, 1).
    """

    def __init__(self, weights: Sequence[float], momentum: float = 0.9) -> None:
        self.weights = tuple(float(w) for w in weights)
        self.momentum = momentum
        if not self.weights or not all(math.isfinite(w) for w in self.weights) or not any(self.weights):
            raise ConfigError(f"reward weights are {list(weights)}; expected finite numbers, at least one not 0")
        if not 0 <= momentum < 1:
            raise ConfigError(f"reward mixture momentum is {momentum}; expected 0 <= momentum < 1")
        self._variances: list[float | None] = [None] * len(self.weights)

    @property
    def sds(self) -> tuple[float | None, ...]:
        """Running within-prompt standard deviation of each reward; None before two samples of a prompt were seen."""
        return tuple(None if v is None else math.sqrt(v) for v in self._variances)

    def combine(self, scores: Sequence[Tensor]) -> Tensor:
        """(m, k) float64: the mixture. A sample on which any reward abstains (NaN) gets NaN.

        scores: one (m, k) table a reward. Updates the running variances first, so a step is scaled by itself too.
        A reward that never differed within a prompt adds 0: it cannot rank.

        Raises:
            ShapeError: another number of tables than weights, or tables of different shapes.
            NotFinite: an infinite score.
        """
        tables = self._checked(scores)
        self.observe([within_prompt_variance(table) for table in tables])
        # a factor of 0 keeps NaN: that sample is still left out
        return torch.stack([factor * table for factor, table in zip(self.factors, tables, strict=True)]).sum(0)

    def observe(self, variances: Sequence[float | None]) -> None:
        """Takes in a step's within-prompt variance of each reward (None: none was seen)."""
        for i, fresh in enumerate(variances):
            old = self._variances[i]
            if fresh is not None:
                self._variances[i] = fresh if old is None else self.momentum * old + (1 - self.momentum) * fresh

    @property
    def factors(self) -> tuple[float, ...]:
        """What each reward is multiplied by: weight / sd, 0 where it never differed; a single one: its weight."""
        if len(self.weights) == 1:
            return self.weights
        return tuple(w / math.sqrt(v) if v else 0.0 for w, v in zip(self.weights, self._variances, strict=True))

    def state_dict(self) -> dict[str, object]:
        """JSON values that `load_state_dict` reads."""
        return {"weights": list(self.weights), "variances": list(self._variances)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Takes over the running variances.

        Raises:
            ConfigError: the state belongs to other weights.
        """
        weights, variances = state.get("weights"), state.get("variances")
        if weights != list(self.weights) or not isinstance(variances, list) or len(variances) != len(self.weights):
            raise ConfigError(
                f"stored reward mixture has weights {weights}, this run has {list(self.weights)}; "
                "resume with the same rewards or start a new run"
            )
        self._variances = [None if v is None else float(v) for v in variances]

    def _checked(self, scores: Sequence[Tensor]) -> list[Tensor]:
        tables = [s.detach().to("cpu", torch.float64) for s in scores]
        shapes = [tuple(t.shape) for t in tables]
        if len(tables) != len(self.weights) or len(set(shapes)) != 1 or len(shapes[0]) != 2:
            raise ShapeError(f"score tables of shapes {shapes}; expected {len(self.weights)} of one shape (m, k)")
        for i, table in enumerate(tables):
            if table.isinf().any():
                raise NotFinite(f"reward {i} gave an infinite score; expected finite numbers, or NaN to abstain")
        return tables


def within_prompt_variance(table: Tensor) -> float | None:
    """Pooled variance of (m, k) scores around each prompt's mean, m (k - 1) degrees of freedom; NaN is left out.

    None where no prompt has two scores.

    >>> within_prompt_variance(torch.tensor([[0.0, 2.0], [10.0, 10.0]]))
    1.0
    """
    valid = ~table.isnan()
    count = valid.sum(1)
    freedom = int((count - 1).clamp(min=0).sum())
    if not freedom:
        return None
    filled = torch.where(valid, table, torch.zeros_like(table))
    mean = filled.sum(1, keepdim=True) / count.clamp(min=1)[:, None]
    squares = torch.where(valid, (filled - mean) ** 2, torch.zeros_like(table))
    return float(squares.sum()) / freedom
