"""A metric of a set of clips with each group of clips left out, at little more than the price of one.

Knows sides and tables of features, no metric by name. What a delete-group jack-knife is made of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.gaussian import Gaussian
from dragon.intervals import Floats
from dragon.measure.moments import Moments
from dragon.measure.sides import Clips, Side
from dragon.rewards.frechet_sets import root_traces

_BLOCK_NUMBERS = 1 << 22  # kernel entries of one block (32 MiB)


def frechet_without(side: Side, target: Gaussian) -> Floats | None:
    """(g,) Frechet distances with each group left out, by taking its frames' scatter off that of all.

    The trace term comes from eigenvalues here, exact to about 3e-7 of the traces: enough for a standard error.
    """
    whole = Moments(side.gaussian.n, side.gaussian.mean, side.gaussian.covariance * (side.gaussian.n - 1))
    found: list[float] = []
    for group in side.groups if len(side.groups) > 1 else ():
        rest = _without(whole, side.embedded.sums([int(clip) for clip in group]))
        if rest.n < 2:
            return None
        covariance = rest.scatter / (rest.n - 1)
        inner = target.factor @ covariance @ target.factor.mT
        roots = float(root_traces((inner + inner.mT) / 2))
        spread = max(float(covariance.trace()) + target.trace - 2 * roots, 0.0)
        found.append(float((rest.mean - target.mean).square().sum()) + spread)
    return np.array(found) if found else None


def _without(whole: Moments, part: Moments) -> Moments:
    """Of the frames of `whole` that are not in `part`; the reverse of `Moments.merged`."""
    n = whole.n - part.n
    if n == 0:
        return Moments.none(len(whole.mean))
    mean = whole.mean + (whole.mean - part.mean) * (part.n / n)
    step = part.mean - mean
    return Moments(n, mean, whole.scatter - part.scatter - torch.outer(step, step) * (n * part.n / whole.n))


def kernel_without(x: Tensor, labels: Tensor, groups: int, y: Tensor, h: float) -> tuple[float, Floats | None]:
    """100 times the unbiased squared discrepancy, and (g,) the same without each group of x's rows.

    Kernel sums within and between groups give all of them at the price of one.
    """
    centre = y.to(torch.float64).mean(dim=0)
    x, y = x.to(torch.float64) - centre, y.to(torch.float64) - centre
    member = torch.nn.functional.one_hot(labels, groups).to(torch.float64)
    within = torch.zeros(groups, groups, dtype=torch.float64)
    across = torch.zeros(groups, dtype=torch.float64)
    m = len(y)
    rows = max(1, _BLOCK_NUMBERS // max(len(x), m))
    for part, own in zip(x.split(rows), member.split(rows), strict=True):
        within += own.mT @ (_kernel(part, x, h) @ member)
        across += own.mT @ _kernel(part, y, h).sum(dim=1)
    reference = sum(float(_kernel(part, y, h).sum()) for part in y.split(rows))
    reference = (reference - m) / (m * (m - 1))  # the diagonal is m ones

    def value(keep: Tensor) -> float:
        n = float((member.sum(dim=0) * keep).sum())
        inside = (float(keep @ within @ keep) - n) / (n * (n - 1))
        return 100 * (inside + reference - 2 * float(across @ keep) / (n * m))

    every, alone = torch.ones(groups, dtype=torch.float64), torch.eye(groups, dtype=torch.float64)
    if groups < 2 or float(len(x) - member.sum(dim=0).max()) < 2:
        return value(every), None
    return value(every), np.array([value(every - alone[group]) for group in range(groups)])


def _kernel(x: Tensor, y: Tensor, h: float) -> Tensor:
    return torch.cdist(x, y).square_().div_(-2 * h * h).exp_()


def left_out(side: Side, estimate: Callable[[Clips], float | Floats]) -> Floats | None:
    """(g, ...) the estimate of all clips outside each group; None where these are too few for it."""
    if len(side.groups) < 2:
        return None
    try:
        return np.array([estimate(kept) for kept in side.kept])
    except (ShapeError, ConfigError):  # all clips were enough for the metric; all but a group are not
        return None
