"""Kernel distance of two sets of features: 100 times the unbiased squared maximum mean discrepancy.

Knows features only. Kernel Audio Distance, Chung et al. (2025, arXiv 2502.15602); the unbiased estimate is Gretton et
al. (2012, JMLR 13), Lemma 6. Kernel k(x, y) = exp(-|x - y|^2 / (2 h^2)). Float64, in blocks of rows, on the device of
the generated features. Distances are of rows about a mean, and where rounding would still show, of differences of rows:
far-off features and outliers cost no digits. Two equal laws give 0 on average, so values below 0 occur, are right, and
are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dragon.errors import ConfigError
from dragon.exemplars.features import LARGEST, Features, as_features

_BLOCK_NUMBERS = 1 << 22  # distances held at a time (32 MiB)
_SORT_PAIRS = 1 << 22  # up to so many pairs the median is taken of all of them at once
_BRACKET_ROWS = 1024  # rows whose distances bracket the median of a larger set
_ERROR = 1e-10  # of a kernel value, above which rows are compared difference by difference
_FAR = 10.0  # bandwidths; beyond, a kernel value is below 1e-21


@dataclass(frozen=True)
class KernelResult:
    """100 * unbiased MMD^2 (value, may be slightly negative), with the bandwidth h used and the sizes."""

    value: float
    bandwidth: float
    n: int
    reference_n: int
    d: int

    def __float__(self) -> float:
        return self.value


def kernel_distance(generated: Features, reference: Features, bandwidth: float | None = None) -> KernelResult:
    """Kernel distance of two sets, each (n, d) with n >= 2.

    bandwidth: h; None: the median distance of two rows (i < j) of the reference. To compare several generated sets,
    any h will do as long as it is the same one. Cost O((n + reference n)^2 d).

    Raises:
        ShapeError, NotFinite: as `frechet_distance`. ConfigError: h is not above 0 (most reference rows are equal).
    """
    y = as_features(reference, "reference", at_least=2, like=generated)
    x = as_features(generated, "generated", size=y.shape[1], at_least=2)
    centre = y.mean(dim=0)
    x, y = x - centre, y - centre
    h = median_distance(y) if bandwidth is None else float(bandwidth)
    if not (h > 0 and np.isfinite(h)):
        cause = "most rows of the reference are equal; give a bandwidth" if bandwidth is None else "expected above 0"
        raise ConfigError(f"kernel distance: bandwidth {h:g}; {cause}")
    reach = max(float(x.abs().max()), float(y.abs().max()))
    if reach > LARGEST * h:
        raise ConfigError(
            f"kernel distance: bandwidth {h:g} for features that lie {reach:g} from the reference's mean; expected one "
            "of the size of their distances"
        )
    x, y = x / h, y / h
    n, m = len(x), len(y)
    own = x - x.mean(dim=0)
    within_x = (_kernel_sum(own, own) - n) / (n * (n - 1))  # the diagonal is n ones
    within_y = (_kernel_sum(y, y) - m) / (m * (m - 1))
    value = 100 * (within_x + within_y - 2 * _kernel_sum(x, y) / (n * m))
    return KernelResult(value, h, n, m, x.shape[1])


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) exp(-|x - y|^2 / 2) of float64 rows (n, d) and (m, d), each exact to about 1e-10.

    By one matrix product, whose rounding grows with the rows' lengths: put the origin among them. Rows too long for it
    that have a row of nearly their length in `y` are compared difference by difference.
    """
    own, others = x.square().sum(dim=1)[:, None], y.square().sum(dim=1)
    squared = torch.addmm(own + others, x, y.mT, alpha=-2).clamp_(min=0)
    limit = _ERROR / (torch.finfo(torch.float64).eps * x.shape[1] ** 0.5)
    if float(own.max() + others.max()) > limit:
        rows = ((own + others > limit) & ((own.sqrt() - others.sqrt()).abs() < _FAR)).any(dim=1)
        squared[rows] = torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return squared.mul_(-0.5).exp_()


def median_distance(features: Features) -> float:
    """The exact median of the distances of all pairs i < j; the mean of the middle two where their number is even.

    Never holds more than a few million distances: for many rows, a sample brackets the median, and only what lies
    inside the bracket is sorted.
    """
    table = as_features(features, "features", at_least=2)
    table = table - table.mean(dim=0)
    pairs = len(table) * (len(table) - 1) // 2
    if pairs <= _SORT_PAIRS:
        whole = torch.cat(list(_pair_blocks(table)))
        return float(whole.kthvalue((pairs + 1) // 2).values + whole.kthvalue(pairs // 2 + 1).values) / 2
    some = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:_BRACKET_ROWS]
    sample = torch.cat(list(_pair_blocks(table[some]))).sort().values
    ranks = ((pairs - 1) // 2, pairs // 2)
    width = 0.03
    while True:
        low = float(sample[max(0, int((0.5 - width) * len(sample)))]) if width < 0.5 else -1.0
        high = float(sample[min(len(sample) - 1, int((0.5 + width) * len(sample)))]) if width < 0.5 else np.inf
        below, inside = 0, []
        for block in _pair_blocks(table):
            below += int((block < low).sum())
            inside.append(block[(block >= low) & (block <= high)])
        kept = torch.cat(inside).sort().values
        if below <= ranks[0] and ranks[1] < below + len(kept):
            return float((kept[ranks[0] - below] + kept[ranks[1] - below]) / 2)
        width *= 4


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    return sum(float(gaussian_kernel(rows, y).sum()) for rows in x.split(max(1, _BLOCK_NUMBERS // len(y))))


def _pair_blocks(table: Tensor) -> Iterator[Tensor]:
    """The distances of all pairs i < j, a block of rows i at a time."""
    rows = max(1, _BLOCK_NUMBERS // len(table))
    for start in range(0, len(table) - 1, rows):
        squared = _squared(table[start : start + rows], table[start + 1 :])
        yield squared[torch.ones_like(squared, dtype=torch.bool).triu()].sqrt_()  # row i against every j > i


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) squared distances by one matrix product; what is rounding noise of equal rows becomes exactly 0."""
    sizes = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    squared = sizes - 2 * (x @ y.mT)
    return torch.where(squared > 1e-14 * sizes, squared, 0.0)
