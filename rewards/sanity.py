"""Faults of a clip as audio: too quiet or loud, silent stretches, clipping, an offset, too short or long.

Knows samples, neither prompts nor music. Every fault is graded from 0 (fine) to 1 (bad) along a straight line between
two stated values, so that a policy that makes broken audio finds a slope out of it. A guard beside another reward, or a
watch: sound audio all scores 0, and nothing is learnt from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dragon.audio import Audio, check_finite, to_audio
from dragon.errors import AudioError, ConfigError, NotFinite
from dragon.media import Media
from dragon.rewards.loudness import integrated_loudness

_STRETCH = 0.05  # seconds
_SILENT = 1e-3  # root mean square of a silent stretch: -60 dB of full scale
_FULL_SCALE = 0.99
_FLAT, _RUN = 1e-6, 3  # samples that differ by less, so many in a row, are a cut-off top


@dataclass(frozen=True)
class Limits:
    """Of each fault: the value up to which it is fine (grade 0), and the one from which it is bad (grade 1).

    quiet, loud: LUFS (BS.1770). silence: share of 50 ms stretches below -60 dB of full scale. clipping: share of
    samples. offset: largest mean of a channel. short, long: seconds. None: not looked at.

    Raises:
        ConfigError: not two different finite numbers.
    """

    quiet: tuple[float, float] | None = (-36.0, -60.0)
    loud: tuple[float, float] | None = (-6.0, 0.0)
    silence: tuple[float, float] | None = (0.2, 1.0)
    clipping: tuple[float, float] | None = (0.0001, 0.01)
    offset: tuple[float, float] | None = (0.01, 0.1)
    short: tuple[float, float] | None = (1.0, 0.0)
    long: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            pair = getattr(self, field.name)
            if pair is not None and (len(pair) != 2 or not all(map(math.isfinite, pair)) or pair[0] == pair[1]):
                raise ConfigError(
                    f"sanity: {field.name} is {pair}; expected [fine, bad], two different numbers, or null"
                )


@dataclass(frozen=True)
class SanityResult:
    """What was measured of a clip, and its faults: name -> grade in (0, 1], those above 0 only.

    value: minus the sum of the grades, 0 for a sound clip. loudness: LUFS, -inf for silence. silence, clipping: shares
    in [0, 1]. offset: largest mean of a channel. peak: largest sample.
    """

    value: float
    loudness: float
    silence: float
    clipping: float
    offset: float
    peak: float
    seconds: float
    faults: Mapping[str, float]

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        measured = (
            f"{self.loudness:.1f} LUFS, silence {100 * self.silence:.0f} %, clipping {100 * self.clipping:.2g} %, "
            f"offset {self.offset:.2g}, peak {self.peak:.2g}, {self.seconds:.2f} s"
        )
        faults = ", ".join(f"{name} {grade:.2f}" for name, grade in self.faults.items()) or "none"
        return f"{measured}; faults: {faults}"


def audio_sanity(audio: Audio, limits: Limits | None = None) -> SanityResult:
    """The faults of one clip.

    Raises:
        AudioError: empty, or as `dragon.rewards.loudness.integrated_loudness`. NotFinite: NaN or infinity.
    """
    limits = Limits() if limits is None else limits
    if audio.samples.size == 0:
        raise AudioError(f"clip of samples {audio.samples.shape} is empty; expected (channels, samples)")
    if not np.isfinite(audio.samples).all():
        raise NotFinite("clip holds NaN or infinity; find the part that made it")
    level, quiet = integrated_loudness(audio), silent_share(audio)
    clipped, offset = clipped_share(audio), float(np.abs(audio.samples.mean(axis=1, dtype=np.float64)).max())
    measured = {
        "quiet": level,
        "loud": level,
        "silence": quiet,
        "clipping": clipped,
        "offset": offset,
        "short": audio.seconds,
        "long": audio.seconds,
    }
    grades = {name: _grade(value, getattr(limits, name)) for name, value in measured.items()}
    faults = {name: grade for name, grade in grades.items() if grade > 0}
    return SanityResult(
        value=-sum(faults.values(), 0.0),
        loudness=level,
        silence=quiet,
        clipping=clipped,
        offset=offset,
        peak=float(np.abs(audio.samples).max()),
        seconds=audio.seconds,
        faults=faults,
    )


def silent_share(audio: Audio) -> float:
    """Share of 50 ms stretches whose root mean square over all channels is below -60 dB of full scale.

    A rest shorter than a stretch is left out, unless it is all there is.
    """
    length = min(audio.samples.shape[1], max(1, round(_STRETCH * audio.rate)))
    count = audio.samples.shape[1] // length
    stretches = audio.samples[:, : count * length].astype(np.float64).reshape(len(audio.samples), count, length)
    return float((np.sqrt(np.square(stretches).mean(axis=(0, 2))) < _SILENT).mean())


def clipped_share(audio: Audio) -> float:
    """Share of samples that are beyond [-1, 1], or part of a flat top: 3 or more equal ones in a row at full scale."""
    samples = audio.samples
    beyond = np.abs(samples) > 1
    high = np.abs(samples) >= _FULL_SCALE
    flat = np.zeros(samples.shape, bool)
    if samples.shape[1] >= _RUN:
        level = (np.abs(np.diff(samples, axis=1)) < _FLAT) & high[:, 1:]
        runs = np.lib.stride_tricks.sliding_window_view(level, _RUN - 1, axis=1).all(axis=2)
        for shift in range(_RUN):
            flat[:, shift : shift + runs.shape[1]] |= runs
    return float((beyond | flat).mean())


class AudioSanity:
    """Reward: minus the graded faults of a clip, at most 0. Costs about 1 ms a second of audio.

    quiet ... long: `Limits`, each [fine, bad] or null. name: what reports call it.

    Raises:
        ConfigError: limits that are not two different numbers.
    """

    abstains = False

    def __init__(
        self,
        *,
        quiet: tuple[float, float] | None = Limits.quiet,
        loud: tuple[float, float] | None = Limits.loud,
        silence: tuple[float, float] | None = Limits.silence,
        clipping: tuple[float, float] | None = Limits.clipping,
        offset: tuple[float, float] | None = Limits.offset,
        short: tuple[float, float] | None = Limits.short,
        long: tuple[float, float] | None = Limits.long,
        name: str = "sanity",
    ) -> None:
        self._name = name
        self.limits = Limits(quiet, loud, silence, clipping, offset, short, long)

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64, at most 0. Raises AudioError, NotFinite with the clip."""
        check_finite(media)
        return torch.tensor([audio_sanity(clip, self.limits).value for clip in to_audio(media)], dtype=torch.float64)


def _grade(value: float, limits: tuple[float, float] | None) -> float:
    if limits is None:
        return 0.0
    fine, bad = limits
    return min(max((value - fine) / (bad - fine), 0.0), 1.0)
