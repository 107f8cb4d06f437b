"""What the rewards say of clips, one batch at a time, and whether they keep their contract in saying it.

Knows rewards by their protocols; neither policies nor pairs. A reward may raise, hang, return nothing or nonsense: each
is one error that names the reward and the clips it was asked about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dragon.aside import NotDone, within
from dragon.batching import Batching, out_of_memory
from dragon.errors import DragonError, NotFinite, PluginError
from dragon.media import Media
from dragon.processes import Processes
from dragon.protocols import InstanceReward, SetReward
from dragon.texts import raised, short

T = TypeVar("T")

SILENCE = 1e-4
"""A clip whose largest sample is below it (-80 dB of full scale) is silent."""


@dataclass(frozen=True)
class Verdicts:
    """What the rewards say of b clips.

    scores: (b,) float64 of each instance reward, NaN where it abstains. features: (b, s, f) on the CPU of each set
    reward. peaks: (b,) largest |sample| of audio, infinite for other media. seconds: of each reward.
    """

    scores: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    peaks: Tensor
    seconds: Mapping[str, float]

    def each(self, function: Callable[[Tensor], Tensor]) -> Verdicts:
        """`function` of every tensor."""
        return Verdicts(
            {name: function(rows) for name, rows in self.scores.items()},
            {name: function(rows) for name, rows in self.features.items()},
            function(self.peaks),
            self.seconds,
        )

    def gathered(self, processes: Processes) -> Verdicts:
        """Those of all processes' clips, by rank; seconds are this process's."""
        return self.each(processes.gather)

    @staticmethod
    def cat(parts: Sequence[Verdicts]) -> Verdicts:
        """Those of all batches, one after another.

        Raises:
            PluginError: a set reward gave features of another shape in another batch.
        """
        first = parts[0]
        for name, features in first.features.items():
            for part in parts:
                if part.features[name].shape[1:] != features.shape[1:]:
                    raise _features_error(name, part.features[name].shape, len(part.peaks))
        return Verdicts(
            {name: torch.cat([part.scores[name] for part in parts]) for name in first.scores},
            {name: torch.cat([part.features[name] for part in parts]) for name in first.features},
            torch.cat([part.peaks for part in parts]),
            {name: sum(part.seconds[name] for part in parts) for name in first.seconds},
        )


def verdicts(
    rewards: Mapping[str, InstanceReward | SetReward], media: Media, seeds: Sequence[int], *, timeout: float = 0.0
) -> Verdicts:
    """Every reward's word on each clip of one batch, by the names given, without gradient.

    seeds: of the clips, to name them in errors.

    timeout: seconds that one reward may take; 0: no limit.

    Raises:
        PluginError: a reward raised (other than a DragonError, which says itself what to do), took too long, or
            returned something else than one number a clip (a set reward: one table of features a clip).
        NotFinite: NaN or infinity, where it is no abstention.
    """
    scores: dict[str, Tensor] = {}
    features: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    clips = _Clips(media, seeds)
    for name, reward in rewards.items():
        start = time.perf_counter()
        if isinstance(reward, SetReward):
            features[name] = _features(name, reward, clips, timeout)
        else:
            scores[name] = _scores(name, reward, clips, timeout)
        seconds[name] = time.perf_counter() - start
    peaks = torch.full((len(media),), torch.inf, dtype=torch.float64)
    if media.rate is not None:
        peaks = media.tensor.detach().flatten(1).abs().amax(1).to("cpu", torch.float64)
    return Verdicts(scores, features, peaks, seconds)


def batched(
    rewards: Mapping[str, InstanceReward | SetReward],
    media: Media,
    seeds: Sequence[int],
    batching: Batching,
    *,
    timeout: float = 0.0,
) -> Verdicts:
    """`verdicts` of all clips, in batches.

    Raises:
        OutOfMemory: one clip does not fit. What `verdicts` raises.
    """

    def said(rows: range) -> Verdicts:
        return verdicts(rewards, media.rows(rows), seeds[rows.start : rows.stop], timeout=timeout)

    return Verdicts.cat(batching.run(len(media), said))


def set_scores(name: str, reward: SetReward, features: Tensor, sets: Sequence[Tensor]) -> list[float]:
    """Scores of sets of rows of `features` (b, s, f); the sets are of one size.

    Raises:
        PluginError: the reward raised. NotFinite: it gave something else than one finite score a set.
    """
    try:
        with torch.no_grad():
            values = torch.as_tensor(reward.score_sets(features, torch.stack(list(sets)))).double().cpu()
    except DragonError:
        raise
    except Exception as error:  # a reward may raise anything; its author needs to see what
        raise PluginError(
            f"set reward {name!r} raised {raised(error)} for {len(sets)} sets of {len(sets[0])} clips; mend the reward"
        ) from error
    if values.shape != (len(sets),) or not bool(values.isfinite().all()):
        raise NotFinite(
            f"set reward {name!r} gave {values.tolist()} for {len(sets)} sets of {len(sets[0])} clips; "
            "expected one finite score a set; mend the reward"
        )
    return [float(value) for value in values]


@dataclass(frozen=True)
class _Clips:
    """A batch, and how its clips are named in messages."""

    media: Media
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.media)

    def __str__(self) -> str:
        """All of them."""
        return f"{len(self)} clips, the first {self.of(0)}"

    def of(self, row: int) -> str:
        return f"for prompt {short(self.media.prompts[row])}, seed {self.seeds[row]}"


def _scores(name: str, reward: InstanceReward, clips: _Clips, timeout: float) -> Tensor:
    """(b,) float64; NaN only where the reward may abstain."""
    who, expected = f"reward {name!r}", f"a tensor of shape ({len(clips)},)"
    scores = _tensor(_asked(who, lambda: reward.score(clips.media), clips, timeout), who, expected, clips)
    scores = scores.to("cpu", torch.float64)
    if scores.shape != (len(clips),):
        raise PluginError(f"{who} returned scores of shape {tuple(scores.shape)} for {clips}; expected ({len(clips)},)")
    bad = scores.isinf() if reward.abstains else ~scores.isfinite()
    if bad.any():
        row = int(bad.nonzero()[0])
        wanted = "a finite number, or NaN to abstain" if reward.abstains else "a finite number"
        may = "" if reward.abstains else ", or set `abstains` for a reward that may have no opinion"
        raise NotFinite(f"{who} is {float(scores[row])} {clips.of(row)}; expected {wanted}; mend the reward{may}")
    return scores


def _features(name: str, reward: SetReward, clips: _Clips, timeout: float) -> Tensor:
    """(b, s, f) on the CPU, finite."""
    who, expected = f"set reward {name!r}", "features (clips, frames, features)"
    features = _tensor(_asked(who, lambda: reward.embed(clips.media), clips, timeout), who, expected, clips).cpu()
    if features.ndim != 3 or len(features) != len(clips):
        raise _features_error(name, features.shape, len(clips))
    bad = ~features.isfinite().flatten(1).all(1)
    if bad.any():
        clip = clips.of(int(bad.nonzero()[0]))
        raise NotFinite(f"{who} made NaN or infinity {clip}; expected finite features; mend the reward")
    return features


def _asked(who: str, function: Callable[[], T], clips: _Clips, timeout: float) -> T:
    """What the reward gives; out of memory is let through, since a smaller batch may fit."""

    def asked() -> T:
        with torch.no_grad():  # here, as gradients are switched for each thread
            return function()

    try:
        return within(timeout, asked)
    except DragonError:
        raise
    except NotDone as error:
        raise PluginError(
            f"{who} took more than {timeout:g} seconds for {clips}; mend the reward, or raise rollout.reward_timeout"
        ) from error
    except (Exception, SystemExit) as error:  # a reward may raise anything; its author needs to see what
        if out_of_memory(error):
            raise
        raise PluginError(f"{who} raised {raised(error)} for {clips}; mend the reward") from error


def _tensor(found: object, who: str, expected: str, clips: _Clips) -> Tensor:
    """A real tensor of whatever the reward returned."""
    if found is None:
        raise PluginError(f"{who} returned None for {clips}; expected {expected}: is a `return` missing?")
    try:
        tensor = torch.as_tensor(found).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(f"{who} returned {short(found)} for {clips}; expected {expected}") from error
    if tensor.is_complex():
        raise PluginError(f"{who} returned complex numbers for {clips}; expected {expected}")
    return tensor


def _features_error(name: str, shape: torch.Size, clips: int) -> PluginError:
    return PluginError(
        f"set reward {name!r} embedded {clips} clips as {tuple(shape)}; expected (clips, frames, features), with the "
        "same frames and features in every batch"
    )
