"""A set of clips by the matrix whose trace term its Frechet distance needs, and how an exchange of two changes it.

Knows `Frames` (dragon.rewards.frechet_sets). Few frames are held by their Gram matrix, many by their projected
covariance: the nonzero eigenvalues are the same. An exchange of two clips of s frames changes either by a rank of at
most 2 s. Own derivations.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dragon.rewards.frechet_sets import Frames, covariances

_STEEP = 1e-7  # a Gram matrix of eigenvalues further apart costs the quadrature its digits


class Form(Protocol):
    """A set by the matrix (m, m) of its trace term, and how an exchange of two clips changes that. Immutable."""

    @property
    def members(self) -> Tensor: ...

    @property
    def matrix(self) -> Tensor: ...

    def changed(self, leaving: Tensor, entering: Tensor) -> Tensor:
        """(c, m, m)."""
        ...

    def update(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """W (c, q, m) and C (c or 1, q, q): the changed matrix is the present one + W^T C W."""
        ...

    def exchanged(self, leaving: int, entering: int) -> Form: ...

    def gentle(self, values: Tensor) -> bool:
        """Whether nothing cancels in the quadrature's determinants, from the eigenvalues."""
        ...


class Gram:
    """Frames' inner products `gram` (n, n) about the common centre; the matrix is about the set's mean."""

    def __init__(self, frames: Frames, members: Tensor, gram: Tensor) -> None:
        self.frames, self.members, self.gram = frames, members, gram
        self.matrix = _centred(gram) / (len(gram) - 1)

    @staticmethod
    def of(frames: Frames, members: Tensor) -> Gram:
        rows = frames.projected[members].flatten(0, 1)
        return Gram(frames, members, rows @ rows.mT)

    def changed(self, leaving: Tensor, entering: Tensor) -> Tensor:
        return _centred(self._exchanged(leaving, entering)) / (len(self.gram) - 1)

    def update(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """With E the frames' places and D the change of their rows: E^T D + D^T E, less what both count, D's own."""
        at, products = self._products(leaving, entering)
        change = products - self.gram[at]
        own = change.gather(2, at[:, None, :].expand(-1, self.frames.each, -1))
        places = torch.nn.functional.one_hot(at, len(self.gram)).double()
        w = torch.cat([places, change], dim=1)
        eye = torch.eye(self.frames.each, dtype=torch.float64).expand_as(own)
        c = torch.cat([torch.cat([-own, eye], dim=2), torch.cat([eye, torch.zeros_like(own)], dim=2)], dim=1)
        return w - w.mean(dim=2, keepdim=True), c / (len(self.gram) - 1)

    def exchanged(self, leaving: int, entering: int) -> Gram:
        gram = self._exchanged(torch.tensor([leaving]), torch.tensor([entering]))[0]
        return Gram(self.frames, _swapped(self.members, leaving, entering), gram)

    def gentle(self, values: Tensor) -> bool:
        """The change of a row is large beside what it does to a small eigenvalue, the lowest of which is centring's."""
        return bool(values[1] > _STEEP * values[-1])

    def _exchanged(self, leaving: Tensor, entering: Tensor) -> Tensor:
        """(c, n, n)."""
        at, products = self._products(leaving, entering)
        each = torch.arange(len(at))[:, None]
        grams = self.gram.repeat(len(at), 1, 1)
        grams[each, at] = products
        grams.mT[each, at] = products
        return grams

    def _products(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """Places (c, s) of the leaving clip's frames, and the entering one's products (c, s, n) with the new set."""
        s = self.frames.each
        place = (self.members == leaving[:, None]).to(torch.uint8).argmax(dim=1)
        at = place[:, None] * s + torch.arange(s)
        new = self.frames.projected[entering]
        products = new @ self.frames.projected[self.members].flatten(0, 1).mT
        return at, products.scatter(2, at[:, None, :].expand(-1, s, -1), new @ new.mT)


class Covariance:
    """Projected frames' `scatter` Z^T Z (r, r) and `total` (r,) about the common centre."""

    def __init__(self, frames: Frames, members: Tensor, scatter: Tensor, total: Tensor) -> None:
        self.frames, self.members, self.scatter, self.total = frames, members, scatter, total
        self.n = len(members) * frames.each
        self.matrix = covariances(scatter, total, self.n)

    @staticmethod
    def of(frames: Frames, members: Tensor) -> Covariance:
        return Covariance(frames, members, frames.scatter(members), frames.inner[members].sum(dim=0))

    def changed(self, leaving: Tensor, entering: Tensor) -> Tensor:
        return covariances(*self._exchanged(leaving, entering), self.n)

    def update(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """About the present mean, which moves by the mean difference of the exchanged frames: q = 2 s suffices."""
        w = torch.cat([self.frames.projected[leaving], self.frames.projected[entering]], dim=1) - self.total / self.n
        sign = torch.ones(w.shape[1], dtype=torch.float64)
        sign[: self.frames.each] = -1
        return w, (sign.diag() - sign.outer(sign) / self.n)[None] / (self.n - 1)

    def exchanged(self, leaving: int, entering: int) -> Covariance:
        scatters, totals = self._exchanged(torch.tensor([leaving]), torch.tensor([entering]))
        return Covariance(self.frames, _swapped(self.members, leaving, entering), scatters[0], totals[0])

    def gentle(self, values: Tensor) -> bool:
        """Of any condition."""
        return True

    def _exchanged(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """(c, r, r) and (c, r)."""
        out, new = self.frames.projected[leaving], self.frames.projected[entering]
        scatters = self.scatter + torch.cat([-out, new], dim=1).mT @ torch.cat([out, new], dim=1)
        return scatters, self.total + self.frames.inner[entering] - self.frames.inner[leaving]


def _swapped(members: Tensor, leaving: int, entering: int) -> Tensor:
    return torch.where(members == leaving, entering, members)


def _centred(grams: Tensor) -> Tensor:
    """(..., n, n) inner products about the mean."""
    rows = grams.mean(dim=-1, keepdim=True)
    return grams - rows - rows.mT + rows.mean(dim=-2, keepdim=True)
