"""Precision, recall, density and coverage of generated features against reference features.

Knows features only. Each set is a union of balls, one around each row, that reach to its k-th nearest neighbour:
precision and recall after Kynkaanniemi et al. (2019, arXiv 1904.06991), density and coverage after Naeem et al. (2020,
arXiv 2002.09797).

Ties: a row is no neighbour of itself, but an equal row is one, at distance 0. A point on the sphere is inside. So
duplicates lie in each other's balls, however small these are; with < in place of <= they would be outside everything.

Exact, and in blocks of rows: one matrix product gives all distances up to rounding, and the few whose comparison it
leaves open are computed from the differences of the rows, in one order of summation, so that ties stay ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.errors import ConfigError
from dragon.exemplars.features import Features, as_features, whole

_BLOCK_NUMBERS = 1 << 22  # numbers of one block (32 MiB)
_SPARE = 8  # neighbours looked at beyond k, because rounding may have put the k nearest out of order


@dataclass(frozen=True)
class PrdcResult:
    """Four numbers, each 0 where the sets have nothing in common; there is no single value.

    precision: share of generated rows inside any reference ball. recall: share of reference rows inside any generated
    ball. density: reference balls that a generated row is in, divided by k; 1 on average for equal laws, and it may be
    larger. coverage: share of reference balls that hold a generated row.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    n: int
    reference_n: int
    d: int


def prdc(generated: Features, reference: Features, k: int = 5) -> PrdcResult:
    """Precision, recall, density, coverage of two sets, each (n, d) with n > k, by balls to the k-th neighbour.

    All four depend on k and on both n: compare only results with the same. Cost O((n + reference n)^2 d).

    Raises:
        ShapeError, NotFinite: as `frechet_distance`. ConfigError: k below 1, or no k other rows in one of the sets.

    >>> line = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> found = prdc(line + 0.5, line, k=1)
    >>> found.precision, found.recall, found.density, found.coverage
    (1.0, 1.0, 1.75, 1.0)
    """
    y = as_features(reference, "reference", at_least=2, like=generated)
    x = as_features(generated, "generated", size=y.shape[1], at_least=2)
    n, m, k = len(x), len(y), whole(k, "k")
    if not 1 <= k < min(n, m):
        raise ConfigError(
            f"k is {k}; expected 1 to {min(n, m) - 1}, because each row needs k others ({n} generated, {m} reference)"
        )
    centre = y.mean(dim=0)
    fake, real = _Table(x, x - centre), _Table(y, y - centre)
    fake_radii, real_radii = fake.radii(k), real.radii(k)
    density, inside_real = 0, 0
    covered, recalled = y.new_zeros(m, dtype=torch.bool), y.new_zeros(m, dtype=torch.bool)
    for rows in fake.blocks(m):
        squared, error = fake.approximate(rows, real)
        in_real = fake.within(squared, error, rows, real, real_radii.expand_as(squared))
        in_fake = fake.within(squared, error, rows, real, fake_radii[rows, None].expand_as(squared))
        density += int(in_real.sum())
        inside_real += int(in_real.any(dim=1).sum())
        covered |= in_real.any(dim=0)
        recalled |= in_fake.any(dim=0)
    return PrdcResult(
        inside_real / n, int(recalled.sum()) / m, density / (k * n), int(covered.sum()) / m, k, n, m, y.shape[1]
    )


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows as given, for exact distances, and centred, for fast ones. All distances are squared."""

    rows: Tensor
    centred: Tensor

    def blocks(self, others: int) -> Iterator[slice]:
        step = max(1, _BLOCK_NUMBERS // others)
        return (slice(i, min(i + step, len(self.rows))) for i in range(0, len(self.rows), step))

    def approximate(self, rows: slice, other: _Table) -> tuple[Tensor, Tensor]:
        """(b, m) distances by a matrix product, and a bound of their error."""
        x, y = self.centred[rows], other.centred
        sizes = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
        bound = 4 * (x.shape[1] + 4) * torch.finfo(x.dtype).eps
        return torch.addmm(sizes, x, y.mT, alpha=-2), sizes * bound

    def within(self, squared: Tensor, error: Tensor, rows: slice, other: _Table, radii: Tensor) -> Tensor:
        """(b, m) whether a distance is at most its radius."""
        inside = squared <= radii
        i, j = ((squared - radii).abs() <= error).nonzero(as_tuple=True)
        step = max(1, _BLOCK_NUMBERS // self.rows.shape[1])
        for a, b in zip(i.split(step), j.split(step), strict=True):
            inside[a, b] = _exact(self.rows[rows][a], other.rows[b]) <= radii[a, b]
        return inside

    def radii(self, k: int) -> Tensor:
        """(n,) distance of each row to its k-th nearest other one."""
        n, d = self.rows.shape
        found = []
        count = min(k + _SPARE, n - 1)
        for rows in self.blocks(max(n, count * d)):
            squared, error = self.approximate(rows, self)
            own = torch.arange(n, device=squared.device)[rows]
            squared[torch.arange(len(own), device=squared.device), own] = torch.inf
            near, index = squared.topk(count, dim=1, largest=False)
            exact = _exact(self.rows[rows].repeat_interleave(count, dim=0), self.rows[index.flatten()])
            radius = exact.view(-1, count).kthvalue(k, dim=1).values
            # a row that was left out is farther than the farthest taken, less the error: mostly that settles it
            unsettled = (near[:, -1] - error.amax(dim=1) < radius) & (radius > 0) & (count < n - 1)
            for row in map(int, unsettled.nonzero()[:, 0]):
                whole = _exact(self.rows[rows][row].expand(n, d), self.rows)
                whole[own[row]] = torch.inf
                radius[row] = whole.kthvalue(k).values
            found.append(radius)
        return torch.cat(found)


def _exact(x: Tensor, y: Tensor) -> Tensor:
    """(p,) of each row of x to the same row of y; equal pairs of rows, in either order, give equal numbers.

    cdist sums each pair by itself, in an order that depends on d alone; a sum over an axis may depend on p as well.
    """
    pairs = torch.cdist(x[:, None], y[:, None], compute_mode="donot_use_mm_for_euclid_dist")
    return pairs[:, 0, 0].square()
