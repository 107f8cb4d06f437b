"""Diversity of a set of clips: the mean cosine distance of two of them.

Knows embeddings only. 0 when all point the same way, about 1 when they have nothing in common. Embeddings of clips that
answer different prompts differ anyway, so compare only sets made from the same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

from dragon.exemplars.features import Features, as_features
from dragon.rewards.clap import unit_rows


@dataclass(frozen=True)
class DiversityResult:
    """Mean of 1 - cosine over all pairs i < j (value, in [0, 2]), of n embeddings of d features."""

    value: float
    n: int
    d: int

    def __float__(self) -> float:
        return self.value


def diversity(embeddings: Features) -> DiversityResult:
    """Mean pairwise cosine distance of (n, d) embeddings, n >= 2. Cost O(n d).

    Raises:
        ShapeError: not (n, d), fewer than two rows, or a row of zeros. NotFinite: NaN or infinity, with the row.

    >>> float(diversity(np.eye(3)))
    1.0
    """
    units = unit_rows(as_features(embeddings, "embeddings", at_least=2), "embeddings")
    n = len(units)
    # the sum over i != j of u_i . u_j is |sum u|^2 - sum |u_i|^2
    cosines = float(units.sum(dim=0).square().sum() - units.square().sum())
    return DiversityResult(max(1 - cosines / (n * (n - 1)), 0.0), n, units.shape[1])
