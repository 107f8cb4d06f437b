"""The metrics of `score`: each turns a set of clips, and a reference where it needs one, into numbers.

Knows sides (dragon.measure.sides) and the metric functions of dragon.rewards; neither files nor tables. A metric is a
frozen dataclass whose fields are its options. A metric of a whole set also gives its value with each group of clips
left out, for a jack-knife; a metric of clips gives one value a clip, for a bootstrap. The reference stays whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.gaussian import squared_parts
from dragon.intervals import Floats
from dragon.measure.leave_out import frechet_without, kernel_without, left_out
from dragon.measure.measured import Measured, Need
from dragon.measure.sides import Reference, Side
from dragon.protocols import JointEncoder
from dragon.rewards.clap import clap_score
from dragon.rewards.diversity import diversity
from dragon.rewards.frechet import per_song_frechet
from dragon.rewards.infinity import frechet_distance_infinity
from dragon.rewards.kernel import median_distance
from dragon.rewards.neighbours import prdc
from dragon.rewards.vendi import checked_order, vendi_score

_FORBID = ConfigDict(extra="forbid")
_SONGS = 64  # songs whose frames are held at once


@dataclass(frozen=True)
class Fad:
    """Frechet distance of all frames, pooled, to the reference's (dragon.rewards.frechet_distance)."""

    __pydantic_config__ = _FORBID
    name = "fad"
    needs = frozenset[Need](["reference"])

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        assert reference is not None
        whole, target = side.gaussian, reference.gaussian
        mean_part, covariance_part = squared_parts(whole, target)
        value = mean_part + covariance_part
        replicates = frechet_without(side, target)
        facts: dict[str, object] = {
            "n": whole.n,
            "reference_n": target.n,
            "d": whole.size,
            "ddof": 1,
            "mean_part": mean_part,
            "covariance_part": covariance_part,
        }
        warnings = [_few_frames(side.name, whole.n, whole.size)] if whole.n <= whole.size else []
        if 0 < target.n <= target.size:
            warnings.append(_few_frames(reference.name, target.n, target.size))
        if replicates is not None:
            # the bias of a Frechet distance falls as 1 / n, which is what a jack-knife's estimate of it assumes
            bias = (len(replicates) - 1) * (float(replicates.mean()) - value)
            facts["jackknife_bias"] = bias
            if bias > 0.1 * value > 0 and not warnings:
                share = f"about {bias:.3g} of its {value:.4g}" if bias < value else f"all of its {value:.4g}"
                warnings.append(
                    f"fad of {side.name!r}: {share} comes from having only {len(side)} "
                    "clips (jack-knife); compare sets of one size only, make more clips, or take kad"
                )
        return [
            Measured(
                "fad",
                value,
                "lower",
                replicates,
                bounds=(0, math.inf),
                grows=True,
                facts=facts,
                warnings=tuple(warnings),
            )
        ]


@dataclass(frozen=True)
class FadInfinity:
    """Frechet distance extrapolated to infinitely many frames (dragon.rewards.frechet_distance_infinity).

    draws: shuffles of the frames. frames: at most so many are used, from every clip its share.
    """

    __pydantic_config__ = _FORBID
    draws: int = 4
    frames: int = 32_768
    seed: int = 0
    name = "fad_inf"
    needs = frozenset[Need](["reference"])

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        from scipy.stats import t

        assert reference is not None
        rows, _ = side.frames(self.frames, self.seed)
        groups = max(4, min(12, len(side.groups)))
        found = frechet_distance_infinity(rows, reference.gaussian, draws=self.draws, groups=groups, seed=self.seed)
        error = ((found.high - found.low) / 2 / float(t.ppf(0.975, groups - 1)), groups - 1)
        keys = ("n", "reference_n", "d", "ddof", "sizes", "distances", "slope", "r_squared", "draws", "groups", "seed")
        facts = {key: getattr(found, key) for key in keys}
        # its blocks of rows then part the frames of a clip, which are no independent draws
        few = len(side) < groups
        return [Measured("fad_inf", found.value, "lower", error=None if few else error, facts=facts)]


@dataclass(frozen=True)
class SongFad:
    """Mean Frechet distance of each clip's own frames to the reference (dragon.rewards.per_song_frechet)."""

    __pydantic_config__ = _FORBID
    name = "song_fad"
    needs = frozenset[Need](["reference"])

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        assert reference is not None
        target, every = reference.gaussian, range(len(side))
        parts = [every[start : start + _SONGS] for start in range(0, len(every), _SONGS)]
        scores = np.concatenate([per_song_frechet([side.embedded.frames(i) for i in part], target) for part in parts])
        facts = {"n": len(scores), "reference_n": target.n, "d": target.size, "ddof": 1}
        return [Measured("song_fad", float(scores.mean()), "lower", scores=scores, facts=facts)]


@dataclass(frozen=True)
class Kad:
    """Kernel distance of frames to the reference's, times 100 (dragon.rewards.kernel_distance); may be negative.

    frames: at most so many a side, from every clip its share. bandwidth: None: the reference's (that of an exemplar
    set is stored in it, that of a folder is the median distance of its frames).
    """

    __pydantic_config__ = _FORBID
    frames: int = 8192
    bandwidth: float | None = None
    seed: int = 0
    name = "kad"
    needs = frozenset[Need](["reference", "reference frames"])

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        assert reference is not None
        other = reference.frames(self.frames, self.seed)
        assert other is not None
        rows, clips = side.frames(self.frames, self.seed)
        if min(len(rows), len(other)) < 2:
            raise ShapeError(f"{len(rows)} and {len(other)} frames; expected at least 2 a side: give more clips")
        h = reference.bandwidth if self.bandwidth is None else self.bandwidth
        h = median_distance(other) if h is None else h
        if not (h > 0 and np.isfinite(h)):
            cause = "expected above 0" if self.bandwidth is not None else "most frames of the reference are equal"
            raise ConfigError(f"bandwidth {h:g}: {cause}; give the option bandwidth")
        value, replicates = kernel_without(rows, side.labels[clips], len(side.groups), other, h)
        facts = {"n": len(rows), "reference_n": len(other), "d": rows.shape[1], "bandwidth": h, "seed": self.seed}
        return [Measured("kad", value, "lower", replicates, facts=facts)]


@dataclass(frozen=True)
class Vendi:
    """Effective number of different clips, by the cosines of their vectors (dragon.rewards.vendi_score)."""

    __pydantic_config__ = _FORBID
    q: float = 1.0
    name = "vendi"
    needs = frozenset[Need]()

    def __post_init__(self) -> None:
        checked_order(self.q)

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        found = vendi_score(side.clips, self.q)
        replicates = left_out(side, lambda kept: float(vendi_score(side.clips[torch.from_numpy(kept)], self.q)))
        facts = {"n": found.n, "d": found.d, "q": found.q}
        bounds = (1, float(found.n))
        return [Measured("vendi", found.value, "higher", replicates, bounds=bounds, grows=True, facts=facts)]


@dataclass(frozen=True)
class Diversity:
    """Mean cosine distance of two clips' vectors (dragon.rewards.diversity)."""

    __pydantic_config__ = _FORBID
    name = "diversity"
    needs = frozenset[Need]()

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        found = diversity(side.clips)
        replicates = left_out(side, lambda kept: float(diversity(side.clips[torch.from_numpy(kept)])))
        facts = {"n": found.n, "d": found.d}
        return [Measured("diversity", found.value, "higher", replicates, bounds=(0, 2), facts=facts)]


@dataclass(frozen=True)
class Prdc:
    """Precision, recall, density and coverage of the clips' vectors (dragon.rewards.prdc)."""

    __pydantic_config__ = _FORBID
    k: int = 5
    name = "prdc"
    needs = frozenset[Need](["reference", "reference clips"])

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"prdc: k is {self.k}; expected at least 1")

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        assert reference is not None and reference.clips is not None
        target, keys = reference.clips, ("precision", "recall", "density", "coverage")

        def four(clips: Tensor) -> Floats:
            found = prdc(clips, target, self.k)
            return np.array([getattr(found, key) for key in keys])

        values = four(side.clips)
        replicates = left_out(side, lambda kept: four(side.clips[torch.from_numpy(kept)]))
        facts = {"n": len(side), "reference_n": len(target), "d": target.shape[1], "k": self.k}
        return [
            Measured(
                key,
                float(values[i]),
                "higher",
                None if replicates is None else replicates[:, i],
                bounds=(0, math.inf if key == "density" else 1),
                grows=True,
                facts=facts,
            )
            for i, key in enumerate(keys)
        ]


@dataclass(frozen=True)
class Clap:
    """Mean cosine of a clip's vector with its caption's, by a joint encoder (dragon.rewards.clap_score)."""

    __pydantic_config__ = _FORBID
    name = "clap"
    needs = frozenset[Need](["captions"])

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]:
        encoder = side.embedded.encoder
        assert isinstance(encoder, JointEncoder) and side.captions is not None
        found = clap_score(side.clips, encoder.embed_text(list(side.captions)).cpu())
        facts = {"n": found.n, "d": found.d}
        return [Measured("clap", found.value, "higher", scores=np.asarray(found.scores, np.float64), facts=facts)]


METRICS: dict[str, type] = {made.name: made for made in (Fad, FadInfinity, SongFad, Kad, Vendi, Prdc, Clap, Diversity)}
"""Name -> class; anything else is looked up among the rewards."""


def _few_frames(name: str, n: int, d: int) -> str:
    return (
        f"fad of {name!r}: {n} frames for {d} features; its covariance is singular and the distance too large by much; "
        f"give more than {2 * d} frames, or take kad, or an encoder with fewer features"
    )
