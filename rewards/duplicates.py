"""Share of clips that have a near twin in their set: a guard against a policy that repeats itself.

Knows embeddings, and encoders by their protocol. Two clips are twins if the cosine of their embeddings reaches a stated
threshold. What a cosine means depends on the encoder: those whose embeddings all point one way need a higher threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec, get_encoder
from dragon.encoders.vectors import clip_vectors
from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.features import Features, as_features
from dragon.media import Media
from dragon.protocols import Encoder
from dragon.rewards.clap import unit_rows

THRESHOLD = 0.98
"""With `mini`, samples of one prompt reach .94, and an MP3 copy of a clip stays above .99 with it."""
_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True, eq=False)
class DuplicatesResult:
    """Share of clips with a twin (value, in [0, 1]), of n embeddings of d features.

    twins: (n,) each clip's nearest other clip. cosines: (n,) float64, how near it is.
    """

    value: float
    twins: np.ndarray
    cosines: np.ndarray
    n: int
    d: int
    threshold: float

    def __float__(self) -> float:
        return self.value


def duplicate_share(embeddings: Features, threshold: float = THRESHOLD) -> DuplicatesResult:
    """The nearest other clip of each of (n, d) embeddings, n >= 2, and how many have one at `threshold` or nearer.

    Cost O(n^2 d), in blocks of rows.

    Raises:
        ConfigError: a threshold outside (-1, 1]. ShapeError: not (n, d), fewer than two rows, or a row of zeros.
        NotFinite: NaN or infinity, with the row.

    >>> float(duplicate_share(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])))
    0.5
    """
    _check_threshold(threshold)
    units = unit_rows(as_features(embeddings, "embeddings", at_least=2), "embeddings")
    n = len(units)
    nearest, found = [], []
    for rows in torch.arange(n, device=units.device).split(max(1, _BLOCK_NUMBERS // n)):
        cosines = units[rows] @ units.mT
        cosines[torch.arange(len(rows), device=units.device), rows] = -torch.inf  # a clip is not its own twin
        best = cosines.max(dim=1)
        nearest.append(best.values)
        found.append(best.indices)
    cosine = torch.cat(nearest).clamp(-1, 1)
    share = float(_near(cosine, threshold).double().mean())
    return DuplicatesResult(
        share, torch.cat(found).cpu().numpy(), cosine.cpu().numpy(), n, units.shape[1], float(threshold)
    )


class Duplicates:
    """Set reward: minus the share of a set's clips that have a near twin in it, from -1 to 0.

    Sets of one size only can be compared: the more clips, the more chances of a twin. Clips that answer one prompt are
    nearer to each other than those of different prompts. Alone it says nothing of quality: mix it with a reward of
    prompt fit.

    encoder: name, {name, options} or object; the clip embedding of a joint encoder, else the mean over frames.
    threshold: cosine from which two clips are twins. device: where a named encoder runs. name: what reports call it.

    Raises:
        ConfigError: a threshold outside (-1, 1].
    """

    def __init__(
        self,
        encoder: EncoderSpec = "mini",
        threshold: float = THRESHOLD,
        *,
        device: str = "cpu",
        name: str = "duplicates",
    ) -> None:
        _check_threshold(threshold)
        self._name, self.threshold = name, threshold
        self.encoder: Encoder = get_encoder(encoder, device=device)

    @property
    def name(self) -> str:
        return self._name

    def embed(self, media: Media) -> Tensor:
        """(b, 1, f) one unit vector a clip.

        Raises:
            ShapeError: an embedding of zeros. Otherwise as the encoder does.
        """
        return unit_rows(clip_vectors(self.encoder, media), f"{self.name}: embeddings")[:, None]

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        """(k,) float64. Cost O(b^2 f) once, then O(n^2) a set.

        Raises:
            ShapeError: features are not (b, 1, f), or a row is all zeros. NotFinite: with the row.
        """
        if features.ndim != 3 or features.shape[1] != 1:
            raise ShapeError(f"{self.name}: features of shape {tuple(features.shape)}; expected (clips, 1, features)")
        rows, members = members.unique(return_inverse=True)
        table = as_features(features[rows, 0].cpu(), f"{self.name}: features")
        units = unit_rows(table, f"{self.name}: features")
        near = _near(units @ units.mT, self.threshold)
        near.fill_diagonal_(True)
        chunk = max(1, _BLOCK_NUMBERS // members.shape[1] ** 2)
        shares = [
            (near[part[:, :, None], part[:, None, :]].sum(dim=2) > 1).double().mean(dim=1)  # one is the clip itself
            for part in members.split(chunk)
        ]
        return -torch.cat(shares)


def _near(cosines: Tensor, threshold: float) -> Tensor:
    # equal vectors may round to a cosine just below 1
    return cosines >= threshold - 1e-12


def _check_threshold(threshold: float) -> None:
    if not (math.isfinite(threshold) and -1 < threshold <= 1):
        raise ConfigError(f"duplicates: threshold is {threshold}; expected a cosine above -1, at most 1")
