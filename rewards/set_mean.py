"""How far the mean features of a whole set are from the exemplars' mean, as a reward: rates and proportions.

Knows features, exemplar sets and encoders by their protocol. Of a 0/1 column the mean is a rate: a model that ends too
few episodes, or plays one instrument too often, is told so by nothing that sees one sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec
from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.features import as_features
from dragon.exemplars.sets import ExemplarSet, load_with_encoder
from dragon.media import Media


class SetMean:
    """Set reward: minus the sum over features of ((mean of the set - mean of the exemplars) / their deviation)^2.

    exemplars, encoder, device, name: as for `SetFrechet`; all frames of a set's clips are pooled.

    Raises:
        ConfigError: a feature that never changes in the exemplars.
    """

    def __init__(
        self,
        exemplars: str | ExemplarSet,
        encoder: EncoderSpec | None = None,
        *,
        device: str = "cpu",
        name: str = "set_mean",
    ) -> None:
        self._name = name
        self.exemplars, self.encoder = load_with_encoder(exemplars, encoder, device)
        self._mean, self._deviation = self.exemplars.mean, self.exemplars.cov.diagonal().sqrt()
        if not bool((self._deviation > 0).all()):
            place = int((self._deviation <= 0).nonzero()[0])
            raise ConfigError(f"{name}: feature {place} never changes in exemplars {self.exemplars.name!r}")

    @property
    def name(self) -> str:
        return self._name

    def embed(self, media: Media) -> Tensor:
        """(b, s, f) float32 on the CPU: the encoder's frames."""
        return self.encoder.embed_media(media).to("cpu", torch.float32)

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        """(k,) float64.

        Raises:
            ShapeError: not (b, s, f) with the exemplars' f. NotFinite: with the clip.
        """
        means = self._away(features)
        return -means[members].mean(dim=1).square().sum(dim=1)

    def influence(self, queue: Tensor, features: Tensor) -> Tensor:
        """(b,) float64: -2 (mean of the queue) . (clip - mean of the queue), both in deviations from the exemplars."""
        middle = self._away(queue).mean(dim=0)
        return -2 * (self._away(features) - middle) @ middle

    def _away(self, features: Tensor) -> Tensor:
        """(b, f) float64: each clip's mean frame, in deviations from the exemplars' mean."""
        if features.ndim != 3 or features.shape[2] != self.exemplars.size:
            raise ShapeError(
                f"{self.name}: features of shape {tuple(features.shape)}; expected (clips, frames, "
                f"{self.exemplars.size})"
            )
        frames = as_features(features.flatten(1), f"{self.name}: features").view(features.shape)
        return (frames.mean(dim=1) - self._mean) / self._deviation
