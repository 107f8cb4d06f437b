"""Frechet distance between generated frames and reference frames: of whole sets, and of each song by itself.

The distances know features and their Gaussian statistics, not audio; only the reward `SongFrechet`, last in this file,
meets clips and an encoder. Kilgour et al. (2019, arXiv 1812.08466); the closed form is Dowson & Landau's (1982); per
song as in Bai et al. (2025, arXiv 2504.15217):

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

with covariances of ddof 1, in float64, the trace term by the nuclear norm (dragon.exemplars.gaussian), on the device of
the generated frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec
from dragon.errors import ShapeError
from dragon.exemplars.features import Features, as_features, float64
from dragon.exemplars.gaussian import Gaussian, squared_parts
from dragon.exemplars.sets import ExemplarSet, load_with_encoder
from dragon.media import Media

Reference: TypeAlias = Features | Gaussian | ExemplarSet

_FEW_FRAMES = 16  # below, a song's covariance is mostly noise
_CHUNK_NUMBERS = 1 << 22  # numbers of one padded batch of songs (32 MiB)


@dataclass(frozen=True)
class FrechetResult:
    """A squared Frechet distance (value, >= 0), its two parts, and what it was computed from.

    n, reference_n: frames of either side, 0 where only moments were given. d: features.
    """

    value: float
    mean_part: float
    covariance_part: float
    n: int
    reference_n: int
    d: int
    ddof: int = 1

    def __float__(self) -> float:
        return self.value


def frechet_distance(generated: Features, reference: Reference) -> FrechetResult:
    """Squared Frechet distance of two sets of frames, each (n, d) with n >= 2; fewer frames than features are fine.

    Cost O(n d min(n, d)) for the statistics and O(min(n, d)^3) for the distance.

    Raises:
        ShapeError: not (n, d), fewer than two rows, or d differs. NotFinite: NaN or infinity, with the row.

    >>> float(frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])))
    9.0
    """
    return _distance(Gaussian.of_frames(generated, "generated"), reference_gaussian(reference))


def frechet_distance_from_moments(
    mean: Features, cov: Features, reference_mean: Features, reference_cov: Features
) -> FrechetResult:
    """The same from means (d,) and covariances (d, d)."""
    return _distance(
        Gaussian.of_moments(mean, cov, "generated"), Gaussian.of_moments(reference_mean, reference_cov, "reference")
    )


def per_song_frechet(songs: Sequence[Features], reference: Reference) -> np.ndarray:
    """(number of songs,) float64: squared Frechet distance of each song's frames to the reference.

    songs: (m_i, d) each, of any lengths. A song of one frame has no covariance: |x - mean|^2 + tr S of the reference.
    The reference is factored once (not at all if it is a Gaussian); songs of similar length share a batch. A song's
    value does not depend on the others. All run on the first song's device. 64 songs of 80 frames x 64 features take
    about 20 ms of one core.

    Raises:
        ShapeError: no songs, a song that is not (m, d), or d differs. NotFinite: NaN or infinity, with song and row.
    """
    gaussian = reference_gaussian(reference)
    if len(songs) == 0:
        raise ShapeError("no songs; expected at least one (frames, features) array")
    tables = [as_features(song, f"song {i}", size=gaussian.size, like=songs[0]) for i, song in enumerate(songs)]
    gaussian = gaussian.on(tables[0])
    values = np.empty(len(tables))
    order = sorted(range(len(tables)), key=lambda i: len(tables[i]))  # little padding, and bounded memory
    while order:
        longest = len(tables[order[-1]])
        count = max(1, _CHUNK_NUMBERS // (longest * max(gaussian.size, len(gaussian.factor))))
        batch, order = order[-count:], order[:-count]
        values[batch] = _song_distances([tables[i] for i in batch], gaussian).cpu().numpy()
    return values


class SongFrechet:
    """Reward: minus the squared Frechet distance of a clip's frames to an exemplar set. At most 0; 0 is best.

    exemplars: a set, the name of a shipped one, or the path of a set file. encoder: a name, {name, options} or an
    object; None: the one that made the set. An encoder other than the set's is refused. device: where a named encoder
    runs. name: what reports call it, where one run has two of them.
    """

    abstains = False

    def __init__(
        self,
        exemplars: str | ExemplarSet,
        encoder: EncoderSpec | None = None,
        *,
        device: str = "cpu",
        name: str = "song_frechet",
    ) -> None:
        self._name = name
        self.exemplars, self.encoder = load_with_encoder(exemplars, encoder, device)
        self._reference = self.exemplars.gaussian()  # factored once
        self._warned = False

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64.

        Raises:
            NotFinite: a clip or its features hold NaN or infinity. AudioError: not audio.
        """
        frames = self.encoder.embed_media(media)
        if frames.shape[1] < _FEW_FRAMES and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name}: encoder {self.encoder.name!r} gives {frames.shape[1]} frames a clip; with fewer than "
                f"{_FEW_FRAMES} the distance is little more than that to the exemplars' mean. Use longer clips or "
                "another encoder",
                stacklevel=2,
            )
        self._reference = self._reference.on(frames)  # moved once
        return torch.from_numpy(-per_song_frechet(list(frames), self._reference))


def reference_gaussian(reference: Reference) -> Gaussian:
    """The statistics of whatever stands for a reference: frames (n, d), an exemplar set, or statistics themselves."""
    if isinstance(reference, Gaussian):
        return reference
    if isinstance(reference, ExemplarSet):
        return reference.gaussian()
    return Gaussian.of_frames(reference, "reference")


def _distance(generated: Gaussian, reference: Gaussian) -> FrechetResult:
    if generated.size != reference.size:
        raise ShapeError(
            f"generated has {generated.size} features, reference {reference.size}; embed both with the same encoder"
        )
    mean_part, covariance_part = squared_parts(generated, reference)
    return FrechetResult(
        mean_part + covariance_part, mean_part, covariance_part, generated.n, reference.n, generated.size
    )


def _song_distances(tables: list[Tensor], reference: Gaussian) -> Tensor:
    """(b,) distances of songs padded to one length; zero rows change neither a trace nor a nuclear norm."""
    lengths = float64(torch.tensor([len(table) for table in tables]), like=tables[0])
    frames = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)  # (b, m, d)
    inside = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
    mean = frames.sum(dim=1) / lengths[:, None]
    factors = (frames - mean[:, None]) * inside[..., None] / (lengths - 1).clamp(min=1).sqrt()[:, None, None]
    nuclear = torch.linalg.svdvals(factors @ reference.factor.mT).sum(dim=-1)
    covariance_part = factors.square().sum(dim=(1, 2)) + reference.trace - 2 * nuclear
    return (mean - reference.mean).square().sum(dim=1) + covariance_part.clamp(min=0.0)
