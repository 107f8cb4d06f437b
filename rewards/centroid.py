"""Cosine of a clip with the centroid of an exemplar set: the simplest "sounds like these files (or captions)".

Knows encoders and exemplar sets by their protocol. Unlike a distance of distributions it asks every clip to be like the
average exemplar, so the same clip over and over would be perfect: cheap and stable, and blind to variety.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec
from dragon.errors import ConfigError
from dragon.exemplars.features import as_features
from dragon.exemplars.sets import ExemplarSet, load, load_with_encoder
from dragon.media import Media
from dragon.protocols import JointEncoder
from dragon.rewards.clap import unit_rows

_SMALL = 1e-6


class Centroid:
    """Reward: cosine of a clip's vector with the mean of an exemplar set. In [-1, 1], higher is better.

    exemplars: a set (of clips, or of captions embedded by a joint encoder), the name of a shipped one, or the path of a
    set file. encoder: name, {name, options} or object; None: the one that the set names. Another one is refused.

    centre: a set of generic clips of the same encoder, whose mean is the origin from which directions are taken. Most
    encoders put all clips near one direction, where cosines differ in the third digit and loudness or noise decides;
    a centre mends that. None: the origin is 0, which is right for an encoder that centres by itself, as `mini-shared`
    does (0 is a generic clip, or caption).
    device: where a named encoder runs. name: what reports call it.

    Raises:
        ConfigError: a centre of another encoder or of captions, or where the encoder centres by itself; exemplars
            whose mean is the origin and so has no direction.
    """

    abstains = False

    def __init__(
        self,
        exemplars: str | ExemplarSet,
        encoder: EncoderSpec | None = None,
        centre: str | ExemplarSet | None = None,
        *,
        device: str = "cpu",
        name: str = "centroid",
    ) -> None:
        self._name = name
        self.exemplars, self.encoder = load_with_encoder(exemplars, encoder, device)
        self._origin = torch.zeros(self.exemplars.size, dtype=torch.float64)
        if centre is not None:
            self._origin = self._mean_of(load(centre) if isinstance(centre, str) else centre)
        towards = self.exemplars.mean.double() - self._origin
        spread = float(self.exemplars.mean.double().norm() + self.exemplars.cov.double().trace().sqrt())
        if float(towards.norm()) <= _SMALL * spread:
            raise ConfigError(
                f"{name}: the mean of exemplars {self.exemplars.name!r} is the origin itself, so it has no direction; "
                "take a centre that differs from them"
            )
        self._direction = towards / towards.norm()

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64.

        Raises:
            ShapeError: a clip whose vector is the origin. Otherwise as the encoder does.
        """
        if self.exemplars.modality == "text" and isinstance(self.encoder, JointEncoder):
            vectors = self.encoder.embed_clips(media)  # captions lie in the space of clips, not of frames
        else:
            vectors = self.encoder.embed_media(media).mean(dim=1)  # as the set's mean is one of frames
        table = as_features(vectors, f"{self.name}: embeddings", size=self.exemplars.size).cpu()
        return unit_rows(table - self._origin, f"{self.name}: embeddings less their centre") @ self._direction

    def _mean_of(self, centre: ExemplarSet) -> Tensor:
        if hasattr(self.encoder, "gap"):
            raise ConfigError(f"{self.name}: encoder {self.encoder.name!r} centres by itself; leave centre out")
        centre.check_encoder(self.encoder)
        if centre.modality == "text" or self.exemplars.modality == "text":
            raise ConfigError(
                f"{self.name}: centre {centre.name!r} ({centre.modality}) for exemplars {self.exemplars.name!r} "
                f"({self.exemplars.modality}); clips and captions have different centres: build both with encoder "
                "'mini-shared', or another dragon.encoders.shared.SharedEncoder, which centres each"
            )
        return centre.mean.double()
