"""Count, mean and scatter of frames that come piece by piece: float64, centred, merged.

Knows tables of numbers only. Two pieces merge by Chan, Golub & LeVeque (1979), "Updating formulae and a pairwise
algorithm for computing sample variances": no sum of squares, whose difference from the squared mean loses digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.errors import ShapeError
from dragon.exemplars.features import Features, as_features
from dragon.exemplars.gaussian import Gaussian


@dataclass(frozen=True, eq=False)
class Moments:
    """n frames with mean (f,) and scatter (f, f) = sum of (x - mean)(x - mean)^T, float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def none(size: int) -> Moments:
        """Of no frames of `size` features."""
        return Moments(0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64))

    @staticmethod
    def of_frames(frames: Features, what: str = "features") -> Moments:
        """Of (n, f) frames, n >= 1. Cost O(n f^2)."""
        table = as_features(frames, what)
        mean = table.mean(dim=0)
        centred = table - mean
        return Moments(len(table), mean, centred.mT @ centred)

    def merged(self, other: Moments) -> Moments:
        """Of the frames of both."""
        n = self.n + other.n
        if n == 0:
            return self
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), self.scatter + other.scatter + between)

    def gaussian(self, what: str = "features") -> Gaussian:
        """Mean and covariance with ddof 1.

        Raises:
            ShapeError: fewer than two frames.
        """
        if self.n < 2:
            raise ShapeError(f"{what}: {self.n} frames; a covariance needs at least 2")
        return Gaussian.of_moments(self.mean, self.scatter / (self.n - 1), what, self.n)
