"""Frechet distance at infinitely many generated frames, by extrapolation, with an interval.

Knows features only. A Frechet distance of n frames is too large by about b / n, because the covariance of few frames is
uneven. Chong & Forsyth (2020, arXiv 1911.07023) fit a + b / n to the distances of sub-samples and take a; Gui et al.
(2024, arXiv 2311.01616) do so for audio. Ours differs in three points:

* Sub-samples are drawn without replacement, and all rows are used: each draw shuffles the rows and deals them into
  disjoint sub-samples of one size. The means over them then vary little with the seed.
* Sizes are no smaller than twice the features: below, the next term of the bias, of order 1 / n^2, bends the line. On
  Gaussians with equal spreads about five sixths of the bias go at that limit, and more with more frames.
* The interval is a delete-group jack-knife of the whole procedure. Residuals of the fit tell nothing of the error:
  sub-samples of one table share its rows, so all of them may lie on one line and be wrong together.

What the finite reference adds, about as much for as many rows, stays in the value: take a large reference, or compare
only values with the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.features import Features, as_features
from dragon.exemplars.gaussian import Gaussian
from dragon.rewards.frechet import Reference, per_song_frechet, reference_gaussian

_PARTS = 3  # default sizes: n, n / 2, n / 3; more and smaller ones bend the line
_LEAST = 8  # rows of a sub-sample, however few the features
_LEVEL = 0.95


@dataclass(frozen=True)
class FrechetInfinityResult:
    """The intercept (value; of either sign, because it is an estimate) with its 95 % interval, and the line.

    slope: b of a + b / n. sizes, distances: rows of the sub-samples and the mean distance at each size. r_squared: of
    the line through these (1 of two sizes). n, reference_n: rows of either side, 0 where only moments were given.
    """

    value: float
    low: float
    high: float
    slope: float
    r_squared: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    draws: int
    groups: int
    seed: int
    n: int
    reference_n: int
    d: int
    ddof: int = 1

    def __float__(self) -> float:
        return self.value


def frechet_distance_infinity(
    generated: Features,
    reference: Reference,
    *,
    sizes: Sequence[int] | None = None,
    draws: int = 4,
    groups: int = 12,
    seed: int = 0,
) -> FrechetInfinityResult:
    """Squared Frechet distance extrapolated to infinitely many generated rows (n, d); its bias is of order 1 / n^2.

    sizes: rows of the sub-samples; None: n, n / 2, n / 3, evenly spaced in 1 / n. draws: shuffles of the rows a size.
    Interval: the rows fall, in their order, into `groups` blocks; each is left out in turn, everything is computed anew
    with the same shuffles and with sizes in proportion, and the spread of these values gives the standard error, for
    Student's t with groups - 1 degrees of freedom. Rows count as independent draws. Frames of one clip are not: keep
    them together, so that they are left out together and the interval stays honest; the value then still has the bias
    that comes with few clips. At a distance of 0 the interval is too wide rather than too narrow.

    Cost about (1 + 2 draws) (groups + 1) distances of n rows, with the reference factored once: n = 4096, d = 512 is
    about half a minute of one core.

    Raises:
        ShapeError: as `frechet_distance`; or fewer rows than the sizes need, with how many. NotFinite: with the row.
        ConfigError: sizes, draws or groups that cannot be.
    """
    gaussian = reference_gaussian(reference)
    table = as_features(generated, "generated", size=gaussian.size)
    n = len(table)
    wanted = _checked_sizes(sizes, n, gaussian)
    if draws < 1:
        raise ConfigError(f"draws is {draws}; expected at least 1")
    if not 4 <= groups <= n:
        raise ConfigError(f"groups is {groups}; expected 4 to {n}, the number of rows")
    gaussian = gaussian.on(table)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator) for _ in range(draws)]
    distances = _mean_distances(table, gaussian, orders, wanted)
    value, slope, r_squared = _line(wanted, distances)

    block = torch.arange(n) * groups // n
    left_out = []
    for group in range(groups):
        kept = [order[block[order] != group] for order in orders]
        scaled = [round(size * len(kept[0]) / n) for size in wanted]
        left_out.append(_line(scaled, _mean_distances(table, gaussian, kept, scaled))[0])
    half = _half_width(np.array(left_out))
    return FrechetInfinityResult(
        value,
        value - half,
        value + half,
        slope,
        r_squared,
        tuple(wanted),
        tuple(distances.tolist()),
        draws,
        groups,
        seed,
        n,
        gaussian.n,
        gaussian.size,
    )


def _checked_sizes(sizes: Sequence[int] | None, n: int, reference: Gaussian) -> list[int]:
    """Largest first, each at least twice the dimensions in which the reference has any spread."""
    spread = min(len(reference.factor), reference.size)
    least = max(2 * spread, _LEAST)
    if sizes is None:
        if n < _PARTS * least:
            raise ShapeError(
                f"generated: {n} rows; the extrapolation needs at least {_PARTS * least}: {_PARTS} sizes, the smallest "
                f"of {least} rows, for {spread} features; make more clips, take an encoder with fewer features, or, "
                f"from {2 * least} rows on, call frechet_distance_infinity with sizes=(n, n // 2)"
            )
        return [n // parts for parts in range(1, _PARTS + 1)]
    found = sorted({int(size) for size in sizes}, reverse=True)
    if len(found) < 2:
        raise ConfigError(f"sizes {tuple(sizes)}; expected at least two different ones for a line")
    if found[-1] < least:
        raise ConfigError(f"sizes: {found[-1]} is too small; expected at least {least} rows for {spread} features")
    if found[0] > n:
        raise ShapeError(f"generated: {n} rows; the largest of sizes needs {found[0]}")
    return found


def _mean_distances(table: Tensor, reference: Gaussian, orders: list[Tensor], sizes: Sequence[int]) -> np.ndarray:
    """(sizes,): the mean distance of the disjoint sub-samples of each size that the shuffled rows are dealt into."""
    means = []
    for size in sizes:
        parts = len(orders[0]) // size
        used = orders[:1] if size == len(orders[0]) else orders  # all rows at once: the order does not matter
        found = [per_song_frechet(table[order[: parts * size]].split(size), reference) for order in used]
        means.append(np.mean(found))
    return np.array(means)


def _line(sizes: Sequence[int], distances: np.ndarray) -> tuple[float, float, float]:
    """Intercept, slope and r^2 of the least-squares line over 1 / size."""
    inverse = 1 / np.array(sizes, np.float64)
    x, y = inverse - inverse.mean(), distances - distances.mean()
    slope = float(x @ y / (x @ x))
    spread = float(y @ y)
    r_squared = 1 - float(np.square(y - slope * x).sum()) / spread if spread > 0 else 1.0
    return float(distances.mean() - slope * inverse.mean()), slope, r_squared


def _half_width(left_out: np.ndarray) -> float:
    """Of the interval, from the values with one of the groups left out each."""
    from scipy.special import stdtrit

    groups = len(left_out)
    error = np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum())
    return float(stdtrit(groups - 1, (1 + _LEVEL) / 2) * error)
