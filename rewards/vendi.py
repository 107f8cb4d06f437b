"""Vendi score: how many different items a set holds, as the effective number of eigenvalues of its kernel.

Knows features and kernels only. Friedman & Dieng (2023, arXiv 2210.02410) for order 1, Pasarkar & Dieng (2024, arXiv
2310.12952) for order q. With l the eigenvalues of K / n, which sum to 1 because the kernel has K_ii = 1:

    score = exp H_q(l),    H_q = log(sum l^q) / (1 - q),    H_1 = -sum l log l,    H_inf = -log max l

1 when all items are equal, n when no two have anything in common; it falls as q grows. Small orders count rare items
as much as frequent ones, order inf sees the most frequent alone. It pays for noise as well as for variety.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.exemplars.features import Features, as_features, float64, numbers
from dragon.rewards.clap import unit_rows

_KERNEL_TOLERANCE = 1e-6  # what a kernel computed in float32 may be off: symmetry, diagonal, least eigenvalue of K / n


@dataclass(frozen=True)
class VendiResult:
    """Vendi score of order q (value, in [1, n]) of n items with d features; d is 0 where a kernel was given."""

    value: float
    q: float
    n: int
    d: int

    def __float__(self) -> float:
        return self.value


def vendi_score(features: Features, q: float = 1.0, weights: Features | None = None) -> VendiResult:
    """Vendi score of (n, d) features under the cosine kernel; rows need not have length 1.

    q: order, 0 to inf; 0 is the rank. weights: (n,) shares of the items, of any sum; None: equal ones. An item of
    weight 2 counts as two equal items of weight 1. Cost O(n d min(n, d)).

    Raises:
        ShapeError: not (n, d), a row of zeros, or weights that are no shares. NotFinite: NaN or infinity, with the row.
        ConfigError: q below 0.

    >>> round(float(vendi_score(np.eye(3))), 9)
    3.0
    """
    order = checked_order(q)
    units = unit_rows(as_features(features, "features"), "features")
    n, d = units.shape
    table = units * _shares(weights, units).sqrt()[:, None]
    gram = table @ table.mT if n <= d else table.mT @ table
    return VendiResult(float(effective_number(spectrum(gram, max(n, d)), order)), order, n, d)


def vendi_score_from_kernel(kernel: Features, q: float = 1.0, weights: Features | None = None) -> VendiResult:
    """Vendi score of a kernel (n, n): symmetric, positive semi-definite, ones on the diagonal.

    q, weights: as `vendi_score`. What counts as rounding noise goes by the kernel's type, float64 or float32.

    Raises:
        ShapeError: not such a kernel, with what to do. NotFinite, ConfigError: as `vendi_score`.
    """
    order = checked_order(q)
    given = numbers(kernel, "kernel")
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not len(given):
        raise ShapeError(f"kernel of shape {tuple(given.shape)}; expected (n, n), n at least 1")
    if given.is_floating_point() and given.dtype.itemsize < 4:
        raise ShapeError(f"kernel of type {given.dtype}, whose rounding hides its spectrum; compute it in float32")
    table, n = as_features(given, "kernel"), len(given)
    if float((table - table.mT).abs().max()) > _KERNEL_TOLERANCE:
        raise ShapeError("the kernel is not symmetric; expected K[i, j] = K[j, i]; take (K + K.T) / 2")
    off = (table.diagonal() - 1).abs()
    if float(off.max()) > _KERNEL_TOLERANCE:
        row = int(off.argmax())
        raise ShapeError(
            f"kernel: entry [{row}, {row}] is {float(table[row, row]):g}; expected ones on the diagonal: normalise it "
            "to K[i, j] / sqrt(K[i, i] K[j, j])"
        )
    least = float(torch.linalg.eigvalsh((table + table.mT) / 2 / n)[0])
    if least < -_KERNEL_TOLERANCE:
        raise ShapeError(
            f"the kernel has eigenvalue {least * n:.3g}; expected none below 0: it is no inner product of features"
        )
    root = _shares(weights, table).sqrt()
    noise = torch.finfo(torch.float32 if given.dtype.itemsize < 8 else torch.float64).eps
    found = spectrum((table + table.mT) / 2 * root[:, None] * root, n, noise)
    return VendiResult(float(effective_number(found, order)), order, n, 0)


def checked_order(q: float) -> float:
    """q as a float. Raises ConfigError unless it is an order: 0 to inf."""
    try:
        order = float(q)
    except (TypeError, ValueError):
        order = math.nan
    if not order >= 0:
        raise ConfigError(f"Vendi order q is {q!r}; expected 0 or more, inf included")
    return order


def spectrum(gram: Tensor, size: int, eps: float = torch.finfo(torch.float64).eps) -> Tensor:
    """(..., r) eigenvalues of (..., r, r) Grams as probabilities, ascending; rounding noise becomes exactly 0.

    size: the larger side of the table that the Gram is of; eigenvalues below size * eps * the largest are noise.
    """
    values = torch.linalg.eigvalsh(gram)
    values = torch.where(values > size * eps * values[..., -1:], values, 0.0)
    return values / values.sum(dim=-1, keepdim=True)


def effective_number(probabilities: Tensor, q: float) -> Tensor:
    """(...) exp of the Renyi entropy of order q of (..., r) probabilities; those that are 0 do not count.

    Accurate at every order, near 1 as well, where the definition divides a rounded 0 by a small number.
    """
    p = probabilities
    if q == 0:
        return (p > 0).sum(dim=-1).to(p.dtype)
    if q == 1:
        return (-torch.xlogy(p, p).sum(dim=-1)).exp()
    if math.isinf(q):
        return 1 / p.amax(dim=-1)
    logs = torch.where(p > 0, p, 1.0).log()
    if abs(q - 1) < 0.5:  # sum p^q = 1 + sum p (p^(q-1) - 1)
        return ((p * torch.expm1((q - 1) * logs)).sum(dim=-1).log1p() / (1 - q)).exp()
    powers = torch.where(p > 0, q * logs, -torch.inf)
    return (powers.logsumexp(dim=-1) / (1 - q)).exp()


def _shares(weights: Features | None, items: Tensor) -> Tensor:
    """(n,) float64 that sum to 1, on the device of the items."""
    n = len(items)
    if weights is None:
        return items.new_full((n,), 1 / n)
    table = float64(weights, like=items, what="weights")
    if table.shape != (n,):
        raise ShapeError(f"weights of shape {tuple(table.shape)}; expected ({n},), one an item")
    if not bool(table.isfinite().all()):
        raise NotFinite(f"weights: entry {int((~table.isfinite()).nonzero()[0, 0])} is NaN or infinite")
    if bool((table < 0).any()):
        row = int((table < 0).nonzero()[0, 0])
        raise ShapeError(f"weights: entry {row} is {float(table[row]):g}; expected none below 0")
    if not bool((table > 0).any()):
        raise ShapeError("weights are all 0; expected at least one above 0")
    table = table / table.max()  # no sum overflows
    return table / table.sum()
