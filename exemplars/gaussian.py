"""Gaussian statistics of frames, held as mean and a factor of the covariance, and the distance of two of them.

Knows tables of numbers only. Everything is float64 with ddof 1, on the device of the frames. The covariance S is held
as F with F^T F = S, because the trace term of the Frechet distance is then a sum of singular values,

    tr (S1 S2)^(1/2) = || F1 F2^T ||_*          (nuclear norm),

with neither a matrix square root nor the eigenvalues of a product: those turn the exact zeros of a singular
product into +-1e-16, whose square roots bias the distance low (dragon.rewards.frechet).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.errors import NotFinite, ShapeError
from dragon.exemplars.features import Features, as_features, float64

_QR_ROWS = 1 << 15  # rows factored at a time, so that a long table needs no second copy of itself


@dataclass(frozen=True, eq=False)
class Gaussian:
    """mean (f,), factor (r, f) with factor^T factor = covariance, n frames (0: not known)."""

    mean: Tensor
    factor: Tensor
    n: int = 0

    @property
    def size(self) -> int:
        """f."""
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """(f, f)."""
        return self.factor.mT @ self.factor

    @property
    def trace(self) -> float:
        """Of the covariance."""
        return float(self.factor.square().sum())

    def on(self, like: Tensor) -> Gaussian:
        """The same on the device of another tensor."""
        return Gaussian(float64(self.mean, like), float64(self.factor, like), self.n)

    @staticmethod
    def of_frames(frames: Features, what: str = "features") -> Gaussian:
        """Statistics of (n, f) frames, n >= 2. Cost O(n f min(n, f))."""
        table = as_features(frames, what, at_least=2)
        mean = table.mean(dim=0)
        n, size = table.shape
        if n <= size:
            return Gaussian(mean, (table - mean) / (n - 1) ** 0.5, n)
        factor = table.new_zeros(0, size)
        for rows in table.split(max(_QR_ROWS, size)):  # R of stacked rows: exact where a Cholesky factor is not
            factor = torch.linalg.qr(torch.cat([factor, rows - mean]), mode="r").R
        return Gaussian(mean, factor / (n - 1) ** 0.5, n)

    @staticmethod
    def of_moments(mean: Features, covariance: Features, what: str = "moments", n: int = 0) -> Gaussian:
        """From a mean (f,) and a covariance (f, f), which must be symmetric and have no negative eigenvalue.

        A singular covariance is allowed; its null directions are then known to about 1e-8 of the largest spread.
        """
        mu = float64(mean, what=f"{what}: mean")
        cov = float64(covariance, like=mu, what=f"{what}: covariance")
        if mu.ndim != 1 or len(mu) == 0 or cov.shape != (len(mu), len(mu)):
            raise ShapeError(f"{what}: mean {tuple(mu.shape)}, covariance {tuple(cov.shape)}; expected (f,) and (f, f)")
        if not bool(torch.isfinite(mu).all()):
            raise NotFinite(f"{what}: mean, entry {int((~mu.isfinite()).nonzero()[0, 0])} is NaN or infinite")
        if not bool(torch.isfinite(cov).all()):
            raise NotFinite(f"{what}: covariance, row {int((~cov.isfinite()).nonzero()[0, 0])} holds NaN or infinity")
        scale = float(cov.abs().max())
        if float((cov - cov.mT).abs().max()) > 1e-6 * scale:
            raise ShapeError(f"{what}: the covariance is not symmetric; expected (f, f) with cov[i, j] = cov[j, i]")
        cov = (cov + cov.mT) / 2
        lower, info = torch.linalg.cholesky_ex(cov)
        if int(info) == 0:
            return Gaussian(mu, lower.mT.contiguous(), n)
        values, vectors = torch.linalg.eigh(cov)
        if float(values[0]) < -1e-6 * scale:
            raise ShapeError(
                f"{what}: smallest eigenvalue {float(values[0]):.3g} of the covariance; expected none below 0"
            )
        values = torch.where(values > len(mu) * torch.finfo(cov.dtype).eps * values[-1], values, 0.0)
        return Gaussian(mu, values.sqrt()[:, None] * vectors.mT, n)


def squared_parts(first: Gaussian, second: Gaussian) -> tuple[float, float]:
    """The two parts of the squared Frechet distance: |mean difference|^2 and that of the covariances, both >= 0.

    Computed on the first one's device.
    """
    second = second.on(first.mean)
    mean_part = float((first.mean - second.mean).square().sum())
    nuclear = float(torch.linalg.svdvals(first.factor @ second.factor.mT).sum())
    # equal covariances leave rounding noise of about 1e-15 of the trace, of either sign
    return mean_part, max(first.trace + second.trace - 2 * nuclear, 0.0)
