"""Frechet distances of many sets of clips to one reference, and sums of square roots of eigenvalues.

Knows tables of frames and Gaussian statistics. Frames Y (about any common centre) are projected by the reference's
factor L once, Z = Y L^T. The trace term of a set of N frames is then tr M^(1/2), M = Z^T H Z / (N - 1) with the
centring H; or by the Gram matrix H Z Z^T H / (N - 1), whose nonzero eigenvalues are the same: whichever is smaller.
Where a matrix changes by a low rank, A' = A + W^T C W, its trace term changes by

    tr A'^(1/2) - tr A^(1/2) = (1/pi) * integral over s of e^s log det(I + C W (A + e^(2s))^(-1) W^T) ds,

which follows from sqrt(a) = (1/pi) * integral of e^s log(1 + a e^(-2s)) ds, a > 0. The integrand is analytic for
|Im s| < pi/2, so that the trapezoid rule of step h errs by about e^(-pi^2 / h) only. Both are own derivations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dragon.errors import ShapeError
from dragon.exemplars.gaussian import Gaussian

BLOCK_NUMBERS = 1 << 22  # numbers of one batch of matrices (32 MiB)
OUTLIER = 1e-3  # where taking clips off leaves less of a scatter than this share, it is added up anew
_EPS = torch.finfo(torch.float64).eps
_STEP = 0.4  # e^(-pi^2 / h) is 2e-11
_LOW = math.log(1e-11)  # below this s in units of the largest eigenvalue, e^s is left out; above 9, e^(-3s)
_HIGH = 9.0
NODES = int((_HIGH - _LOW) / _STEP) + 1


@dataclass(frozen=True, eq=False)
class Frames:
    """Clips as a reference sees them, float64; the distance of any set of them follows from these.

    projected (b, s, r): frames about their common centre, times the reference's factor. sums (b, f) and squares (b,):
    over a clip's frames, of frame - centre and of its squared length. offset (f,): centre - the reference's mean.
    trace: of the reference's covariance.
    """

    projected: Tensor
    sums: Tensor
    squares: Tensor
    offset: Tensor
    trace: float

    @staticmethod
    def of(features: Tensor, reference: Gaussian) -> Frames:
        """From (b, s, f) float64. The median clip is the centre: no offset and no outlier costs digits."""
        centre = features.mean(dim=1).median(dim=0).values
        centred = features - centre
        factor = reference.factor[reference.factor.any(dim=1)]  # rows of zeros see nothing
        return Frames(
            centred @ factor.mT,
            centred.sum(dim=1),
            centred.square().sum(dim=(1, 2)),
            centre - reference.mean,
            reference.trace,
        )

    @property
    def each(self) -> int:
        """s, frames of a clip."""
        return self.projected.shape[1]

    @property
    def rank(self) -> int:
        """r, dimensions that the reference sees."""
        return self.projected.shape[2]

    @cached_property
    def inner(self) -> Tensor:
        """(b, r): sums of each clip's projected frames."""
        return self.projected.sum(dim=1)

    def score_sets(self, members: Tensor) -> Tensor:
        """(k,) float64 of members (k, n), rows; one may stand in a set more than once.

        Exact to 1e-9 of the covariances' traces. Where the eigenvalues of both span more than about 1e6, directions
        with less count as 0 in sets of more frames than r, which costs up to 3e-7.
        """
        n = self.count(members.shape[1])
        roots = self._roots_by_gram(members) if n <= self.rank else self._roots_by_covariance(members)
        chunk = max(1, BLOCK_NUMBERS // (members.shape[1] * self.sums.shape[1]))
        sums = torch.cat([self.sums[part].sum(dim=1) for part in members.split(chunk)])
        return self.scores(sums, self.squares[members].sum(dim=1), roots, n)

    def scores(self, sums: Tensor, squares: Tensor, roots: Tensor, n: int) -> Tensor:
        """(k,) from sums (k, f), squares (k,) and trace terms (k,) of sets of n frames."""
        mean = sums / n
        spread = (squares - n * mean.square().sum(dim=1)) / (n - 1)
        return -(self.offset + mean).square().sum(dim=1) - (spread + self.trace - 2 * roots).clamp(min=0.0)

    def count(self, clips: int) -> int:
        """Frames of a set of so many clips, at least 2."""
        if clips * self.each < 2:
            raise ShapeError(f"a set of {clips * self.each} frames has no covariance; expected at least 2 frames")
        return clips * self.each

    def scatter(self, rows: Tensor) -> Tensor:
        """(r, r) Z^T Z of the projected frames of these rows."""
        table = self.projected[rows].flatten(0, 1)
        return table.mT @ table

    def _roots_by_gram(self, members: Tensor) -> Tensor:
        """(k,) tr M^(1/2) of sets of at most r frames."""
        n, found = members.shape[1] * self.each, []
        for part in members.split(max(1, BLOCK_NUMBERS // (n * (n + self.rank)))):
            frames = self.projected[part].flatten(1, 2)
            frames = frames - frames.mean(dim=1, keepdim=True)
            found.append(root_traces(frames @ frames.mT / (n - 1)))
        return torch.cat(found)

    def _roots_by_covariance(self, members: Tensor) -> Tensor:
        """(k,) the same by r x r matrices. Of sets that lack few clips, those are taken off the scatter of all."""
        b, n = len(self.projected), members.shape[1]
        every = torch.arange(b)
        whole = self.scatter(every) if b <= 2 * n else None
        found = []
        for rows in members:
            surplus = torch.bincount(rows, minlength=b).double() - 1
            changed = surplus.nonzero().squeeze(1)
            scatter = None
            if whole is not None and len(changed) < n:
                table = self.projected[changed]
                weighed = table * surplus[changed, None, None]
                scatter = whole + weighed.flatten(0, 1).mT @ table.flatten(0, 1)
                if scatter.trace() < OUTLIER * whole.trace():
                    scatter = None
            scatter = self.scatter(rows) if scatter is None else scatter
            found.append(root_traces(covariances(scatter, self.inner[rows].sum(dim=0), n * self.each)))
        return torch.stack(found)


def covariances(scatters: Tensor, sums: Tensor, n: int) -> Tensor:
    """(..., r, r) about the mean, ddof 1, from Z^T Z (..., r, r) and sums (..., r) of n rows."""
    return (scatters - sums[..., :, None] * sums[..., None, :] / n) / (n - 1)


def root_traces(matrices: Tensor) -> Tensor:
    """(...,) sums of the square roots of the eigenvalues of (..., m, m) symmetric matrices."""
    return above_rounding(torch.linalg.eigvalsh(matrices)).sqrt().sum(dim=-1)


def above_rounding(values: Tensor) -> Tensor:
    """Ascending eigenvalues (..., m); those that rounding explains are 0, since the root of a 1e-16 would be 1e-8."""
    return torch.where(values > values.shape[-1] * _EPS * values[..., -1:], values, 0.0)


def root_trace_changes(values: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    """(c,) tr (A + W^T C W)^(1/2) - tr A^(1/2), exact to about 1e-10 of the root of A's largest eigenvalue.

    In A's eigenbasis: values (m,) >= 0, W `vectors` (c, q, m), symmetric C `weights` (c or 1, q, q); the sum must have
    no negative eigenvalue. Cost O(q^2 m + q^3) times 86 nodes, as one matrix product over all of them.
    """
    q, m = vectors.shape[1:]
    chunk = max(1, BLOCK_NUMBERS // (q * q * max(m, NODES)))
    every = weights.expand(len(vectors), q, q)
    parts = zip(vectors.split(chunk), every.split(chunk), strict=True)
    return torch.cat([_changes(values, part, weight) for part, weight in parts])


def _changes(values: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    q = vectors.shape[1]
    reach = float((vectors.square().sum(dim=(1, 2)) * weights.square().sum(dim=(1, 2)).sqrt()).max())
    unit = max(float(values.max()), 1e-6 * reach)
    if unit == 0:
        return torch.zeros(len(vectors), dtype=torch.float64)
    high = _HIGH + 2 / 3 * math.log(max(1.0, reach / unit))
    s = torch.arange(_LOW, high, _STEP, dtype=torch.float64)
    t = (2 * s).exp()
    i, j = torch.triu_indices(q, q)
    resolvent = 1 / (values[:, None] / unit + t) / unit  # (m, nodes)
    entries = ((vectors[:, i] * vectors[:, j]) @ resolvent).mT  # (c, nodes, q (q + 1) / 2)
    forms = entries.new_empty(*entries.shape[:2], q, q)
    forms[..., i, j] = entries
    forms[..., j, i] = entries
    # For large s the integrand falls like e^(-s) only: slope e^s / (e^(2s) + 1), whose integral is known, is taken off
    slope = (weights * (vectors @ vectors.mT)).sum(dim=(1, 2)) / unit
    rest = _log_dets(weights, forms) - slope[:, None] / (t + 1)
    return unit**0.5 * (_STEP / math.pi * (rest @ s.exp()) + slope / 2)


def _log_dets(weights: Tensor, forms: Tensor) -> Tensor:
    """(c, nodes) log |det(I + C B)| of C (c, q, q) and B (c, nodes, q, q)."""
    if forms.shape[-1] != 2:
        eye = torch.eye(forms.shape[-1], dtype=torch.float64)
        return torch.linalg.slogdet(eye + weights[:, None] @ forms).logabsdet
    # of small matrices, arithmetic is faster than a call each
    a, b, d = weights[:, 0, 0, None], weights[:, 0, 1, None], weights[:, 1, 1, None]
    x, y, z = forms[..., 0, 0], forms[..., 0, 1], forms[..., 1, 1]
    det = (1 + a * x + b * y) * (1 + b * y + d * z) - (a * y + b * z) * (b * x + d * y)
    return det.abs().log()
