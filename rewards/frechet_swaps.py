"""Frechet distance of a set of clips while one clip after another is exchanged: neighbours, bounds, tracking.

Knows `Frames` (dragon.rewards.frechet_sets) and the two forms that a set's matrix may have. A neighbour's trace term
is found by the eigenvalues of the changed matrix or by the quadrature of its low-rank change, whichever is cheaper.
tr M^(1/2) is concave in M: it lies below its tangents, and rises by no more than that of what is added (Rotfel'd,
1969), which bounds it from both sides. The use of these for swaps is this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.rewards.frechet_forms import Covariance, Form, Gram
from dragon.rewards.frechet_sets import (
    BLOCK_NUMBERS,
    NODES,
    OUTLIER,
    Frames,
    above_rounding,
    root_trace_changes,
    root_traces,
)

_CALL = 1e6  # what a call of the quadrature costs besides its arithmetic, in multiplications
_PATIENCE = 3  # eigenvectors cost about as much as so many neighbours without them
_REFRESH = 8  # a tangent serves for n / 8 swaps
_FLOOR = 1e-12  # of the largest eigenvalue: below it, tangents would be too steep to be of use
_SLACK = 1e-9  # rounding of a bound, relative to the traces


class FrechetScorer:
    """SwapScorer of minus the squared Frechet distance of a set's pooled frames.

    `neighbours` and `value` are exact to 1e-9 of the covariances' traces, the larger of those before and after a swap,
    where `Frames.score_sets` is. A neighbour costs the eigenvalues of one matrix; with one frame a clip far less, once
    several are asked for.
    """

    _set: _Set
    _sums: Tensor  # (f,) and (), over the set's frames
    _squares: Tensor
    _now: tuple[float, float] | None  # (score, trace term) of the set, None: not asked for yet
    _known: dict[tuple[int, int], tuple[float, float]]  # the same of its neighbours
    _swaps: int

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._tangent: _Tangent | None = None
        self._age = 0

    @property
    def value(self) -> float:
        return self._settled()[0]

    def start(self, members: Tensor) -> None:
        self._tangent = None
        self._make(members.clone())

    def neighbours(self, leaving: Tensor, entering: Tensor) -> Tensor:
        roots = self._set.roots(leaving, entering)
        scores = self._scores(leaving, entering, roots)
        keys = zip(leaving.tolist(), entering.tolist(), strict=True)
        self._known.update(zip(keys, zip(scores.tolist(), roots.tolist(), strict=True), strict=True))
        return scores

    def bounds(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """Lower: the trace term falls by at most that of the frames that leave. Upper: the tangent at a set of at most
        a few swaps ago; infinite for sets of no more frames than dimensions, of which a tangent knows nothing."""
        frames, n = self._frames, self._set.n
        slack = _SLACK * (frames.trace + (self._squares + frames.squares[entering]) / (n - 1))
        least = (self._settled()[1] - self._set.loss(leaving, entering)).clamp(min=0.0)
        low = self._scores(leaving, entering, least) - slack
        if isinstance(self._set.form, Gram):
            return low, torch.full_like(low, torch.inf)
        if self._tangent is None or self._age >= len(self._set.members) / _REFRESH:
            self._tangent = _Tangent.at(*self._set.spectrum, frames.projected)
            self._age = 0
        most = self._tangent.above(self._set.members, leaving, entering, n)
        return low, self._scores(leaving, entering, most) + slack

    def swap(self, leaving: int, entering: int) -> None:
        before, form = self._set.form, self._set.form.exchanged(leaving, entering)
        self._age += 1
        if self._swaps + 1 >= len(form.members) or form.matrix.trace() < OUTLIER * before.matrix.trace():
            self._make(form.members)  # anew, so that rounding does not add up
            return
        self._now, self._known = self._known.get((leaving, entering)), {}
        self._set, self._swaps = _Set(self._frames, form), self._swaps + 1
        self._sums = self._sums + self._frames.sums[entering] - self._frames.sums[leaving]
        self._squares = self._squares + self._frames.squares[entering] - self._frames.squares[leaving]

    def _make(self, members: Tensor) -> None:
        frames = self._frames
        few = frames.count(len(members)) <= frames.rank
        self._set = _Set(frames, Gram.of(frames, members) if few else Covariance.of(frames, members))
        self._sums, self._squares = frames.sums[members].sum(dim=0), frames.squares[members].sum()
        self._now, self._known, self._swaps = None, {}, 0

    def _settled(self) -> tuple[float, float]:
        if self._now is None:
            roots = root_traces(self._set.form.matrix)[None]
            score = self._frames.scores(self._sums[None], self._squares[None], roots, self._set.n)
            self._now = float(score), float(roots)
        return self._now

    def _scores(self, leaving: Tensor, entering: Tensor, roots: Tensor) -> Tensor:
        frames = self._frames
        sums = self._sums + frames.sums[entering] - frames.sums[leaving]
        squares = self._squares + frames.squares[entering] - frames.squares[leaving]
        return frames.scores(sums, squares, roots, self._set.n)


class _Set:
    """The present set: what is found of it once, and its neighbours' trace terms."""

    def __init__(self, frames: Frames, form: Form) -> None:
        self.frames, self.form = frames, form
        self._asked = 0
        self._spectrum: tuple[Tensor, Tensor] | None = None

    @property
    def members(self) -> Tensor:
        return self.form.members

    @property
    def n(self) -> int:
        """Frames of the set."""
        return len(self.members) * self.frames.each

    @property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,) and eigenvectors (m, m), found when first asked for."""
        if self._spectrum is None:
            values, vectors = torch.linalg.eigh(self.form.matrix)
            self._spectrum = above_rounding(values), vectors
        return self._spectrum

    def roots(self, leaving: Tensor, entering: Tensor) -> Tensor:
        """(c,) trace terms after each exchange."""
        if self._low_rank(len(leaving)):
            values, vectors = self.spectrum
            chunk = max(1, BLOCK_NUMBERS // (2 * self.frames.each * len(values)))
            parts = zip(leaving.split(chunk), entering.split(chunk), strict=True)
            changes = [root_trace_changes(values, w @ vectors, c) for w, c in (self.form.update(*p) for p in parts)]
            return values.sqrt().sum() + torch.cat(changes)
        chunk = max(1, BLOCK_NUMBERS // self.form.matrix.numel())
        parts = zip(leaving.split(chunk), entering.split(chunk), strict=True)
        return torch.cat([root_traces(self.form.changed(*part)) for part in parts])

    def loss(self, leaving: Tensor, entering: Tensor) -> Tensor:
        """(c,) bound of what the trace term loses: that of a rank-one matrix z z^T is |z|."""
        frames = self.frames
        mean = frames.inner[self.members].sum(dim=0) / self.n
        out = (frames.projected[leaving] - mean).norm(dim=2).sum(dim=1)
        shift = (frames.inner[entering] - frames.inner[leaving]).norm(dim=1) / math.sqrt(self.n)
        return (out + shift) / math.sqrt(self.n - 1)

    def _low_rank(self, count: int) -> bool:
        """Whether the quadrature is cheaper. Eigenvectors are found once a set was asked for a few neighbours."""
        self._asked += count
        if self._spectrum is None and self._asked <= _PATIENCE:
            return False
        m, q = len(self.form.matrix), 2 * self.frames.each
        cheaper = _CALL + count * NODES * q * (q + 1) * m < count * m**3
        return cheaper and self.form.gentle(self.spectrum[0])


@dataclass(frozen=True, eq=False)
class _Tangent:
    """tr M^(1/2) <= (tr B^(-1) + tr B M) / 2 for any B > 0, an equality at M = B^(-2). level: tr B^(-1).

    forms (b,): sum of z^T B z over each clip's frames z; sums (b, r): of B^(1/2) z.
    """

    level: Tensor
    forms: Tensor
    sums: Tensor

    @staticmethod
    def at(values: Tensor, vectors: Tensor, projected: Tensor) -> _Tangent:
        floor = max(_FLOOR * float(values.max()), torch.finfo(torch.float64).tiny)
        roots = values.clamp(min=floor).sqrt()
        seen = projected @ (vectors / roots.sqrt())
        return _Tangent(roots.sum(), seen.square().sum(dim=(1, 2)), seen.sum(dim=1))

    def above(self, members: Tensor, leaving: Tensor, entering: Tensor, n: int) -> Tensor:
        """(c,) upper bounds of the trace terms of neighbours of n frames."""
        forms = self.forms[members].sum() + self.forms[entering] - self.forms[leaving]
        sums = self.sums[members].sum(dim=0) + self.sums[entering] - self.sums[leaving]
        return (self.level + (forms - sums.square().sum(dim=1) / n) / (n - 1)) / 2
