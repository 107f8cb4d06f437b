"""Metrics of a classifier's labels: KL divergence of paired clips, and the Inception score of a set.

Knows tables of class probabilities (n, c), not clips or classifiers: rows >= 0 that sum to 1, as a softmax gives them.
A classifier of many labels at once (AudioSet's) ends in sigmoids; take the softmax of its logits, as is the custom.
Float64, on the device of the generated table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.exemplars.features import Features, as_features, whole

_SUM_TOLERANCE = 1e-4  # what a softmax in float16 or float32 may be off
_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class KlResult:
    """Mean KL divergence in nats (value, >= 0; 0 is best) and that of each pair, (n,) float64."""

    value: float
    scores: np.ndarray
    eps: float
    n: int
    classes: int

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True, eq=False)
class InceptionResult:
    """Inception score (value, in [1, classes]; higher is better), the mean of `scores`, one a split, (splits,)."""

    value: float
    scores: np.ndarray
    splits: int
    seed: int
    n: int
    classes: int

    def __float__(self) -> float:
        return self.value


def kl_divergence(generated: Features, reference: Features, *, eps: float = _EPS) -> KlResult:
    """Mean over pairs of KL(reference || generated); row i of `generated` answers row i of `reference`, both (n, c).

    The direction is that of audio generation, Kreuk et al. (2023, AudioGen, arXiv 2209.15352): a class that the
    reference has and the generated clip lacks costs much, the reverse little.

    eps: floor of the probabilities of both sides, before each row is divided by its sum. Without it a single 0 in
    `generated` makes the mean infinite; with it a pair costs at most about -log eps, 13.8 by default. 0: no floor.

    Raises:
        ShapeError: tables of different size, or a row that is no distribution. ConfigError: eps not in [0, 1 / c).
        NotFinite: NaN or infinity, with the row; or, with eps = 0, an infinite divergence.

    >>> round(float(kl_divergence(np.array([[0.25, 0.75]]), np.array([[0.5, 0.5]]))), 6)  # log(2 / sqrt 3)
    0.143841
    """
    q = _probabilities(generated, "generated")
    classes = q.shape[1]
    p = _probabilities(reference, "reference", size=classes, like=generated)
    if len(p) != len(q):
        raise ShapeError(f"{len(q)} generated rows, {len(p)} of the reference; expected pairs")
    if not 0 <= eps < 1 / classes:
        raise ConfigError(f"eps is {eps:g}; expected 0 or more, and less than 1 / {classes}, an even share of a class")
    p, q = (table.clamp(min=eps) for table in (p, q))
    p, q = (table / table.sum(dim=1, keepdim=True) for table in (p, q))
    # a class that the reference lacks adds nothing, 0 log 0 = 0; a class that only the reference has, infinity
    scores = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=1)
    if not bool(scores.isfinite().all()):
        row = int((~scores.isfinite()).nonzero()[0, 0])
        raise NotFinite(
            f"pair {row}: a class has probability 0 in generated and not in reference, so that the divergence is "
            f"infinite; give an eps above 0, such as {_EPS:g}"
        )
    scores = scores.clamp(min=0.0)  # rounding
    return KlResult(float(scores.mean()), scores.cpu().numpy(), float(eps), *q.shape)


def inception_score(probabilities: Features, splits: int = 1, seed: int = 0) -> InceptionResult:
    """exp of the mean over rows of KL(p(y|x) || p(y)), p(y) being the mean row. Salimans et al. (2016, 1606.03498).

    1 when all rows are equal, c when they are sure and spread evenly over the c classes. It grows with n, so compare
    sets of one size. It needs no reference and sees no variety within a class.

    splits: the rows are shuffled by `seed`, dealt into so many parts, and the scores of the parts averaged; the
    classifier's own field took 10 parts of 5,000. 1: all rows at once, whatever the seed.

    Raises:
        ShapeError, NotFinite: as `kl_divergence`. ConfigError: splits below 1 or above n.

    >>> float(inception_score(np.eye(4)))
    4.0
    """
    table = _probabilities(probabilities, "probabilities")
    (n, classes), splits = table.shape, whole(splits, "splits")
    if not 1 <= splits <= n:
        raise ConfigError(f"splits is {splits}; expected 1 to {n}, the number of rows")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = [table[rows.sort().values] for rows in order.tensor_split(splits)]
    scores = np.exp([max(_entropy(part.mean(dim=0)) - _entropy(part) / len(part), 0.0) for part in parts])
    return InceptionResult(float(scores.mean()), scores, splits, seed, n, classes)


def _entropy(table: Tensor) -> float:
    return -float(torch.xlogy(table, table).sum())


def _probabilities(table: Features, what: str, *, size: int | None = None, like: Features | None = None) -> Tensor:
    """(n, c) float64, rows that sum to 1 exactly."""
    found = as_features(table, what, size=size, like=like)
    if bool((found < 0).any()):
        row = int((found < 0).any(dim=1).nonzero()[0, 0])
        raise ShapeError(
            f"{what}: row {row} holds {float(found[row].min()):g}; expected none below 0: apply softmax to logits first"
        )
    sums = found.sum(dim=1, keepdim=True)
    off = (sums[:, 0] - 1).abs()
    if float(off.max()) > _SUM_TOLERANCE:
        row = int((off > _SUM_TOLERANCE).nonzero()[0, 0])
        raise ShapeError(
            f"{what}: row {row} sums to {float(sums[row]):g}; expected 1: apply softmax to logits first (sigmoids of "
            "many labels are no distribution either)"
        )
    return found / sums
