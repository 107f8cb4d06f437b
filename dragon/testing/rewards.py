"""check_reward: does a reward of clips or of sets keep its contract?"""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dragon.errors import PluginError
from dragon.faults import Faults
from dragon.media import Media
from dragon.protocols import InfluenceReward, InstanceReward, SetReward, SwappableReward
from dragon.testing.state import random_states_kept, untouched


@dataclass(frozen=True)
class Checked:
    """A reward that keeps its contract, and what was seen of it.

    kind: "clips" or "sets". clips: how many it was given. laws: what was checked, one sentence each. low, high: range
    of its scores (NaN: none). abstained: clips without opinion. clips_per_second: of its slowest method that sees
    clips, once warm. real_time: seconds of audio it judges in a second; None for images.
    """

    name: str
    kind: str
    clips: int
    laws: tuple[str, ...]
    low: float
    high: float
    abstained: int
    clips_per_second: float
    real_time: float | None


def check_reward(reward: InstanceReward | SetReward | Callable[..., Any], media: Media | None = None) -> Checked:
    """Checks a reward on `media` (default: `example_clips()`); a plain function as `dragon.rewards.FunctionReward`.

    Give clips of your own where the default ones mean nothing to the reward: at least 3, all different, with
    the columns that it reads.

    Raises:
        PluginError: everything that breaks the contract, one line a fault.
    """
    media = example_clips() if media is None else media
    if inspect.isroutine(reward) or isinstance(reward, functools.partial):
        from dragon.rewards.function import FunctionReward

        reward = FunctionReward(reward)
    if isinstance(reward, type):
        raise PluginError(f"check_reward got the class {reward.__name__}; give it a reward: {reward.__name__}(...)")
    faults = Faults(type(reward).__name__)
    if len(media) < 3:
        raise PluginError(f"check_reward got {len(media)} clips; expected at least 3, all different")
    name = getattr(reward, "name", None)
    faults.expect(isinstance(name, str) and name, "name", "is a non-empty string")
    of_sets = isinstance(reward, SetReward)
    if not of_sets and hasattr(reward, "score_sets"):
        lacking = [part for part in ("name", "embed") if not hasattr(reward, part)]
        faults.add("score_sets", f"comes with {' and '.join(lacking)}, as a reward of sets has all three")
        faults.report()
    with random_states_kept():
        if isinstance(reward, SetReward):
            scores, seconds = _check_set_reward(reward, media, faults)
        else:
            scores, seconds = _check_instance_reward(reward, media, faults)  # type: ignore[arg-type]
    faults.report()
    real_time = None if media.rate is None else len(media) * media.tensor.shape[-1] / media.rate / seconds
    if real_time is not None and real_time < 1:
        faults.warn(
            "embed" if of_sets else "score",
            f"judges {real_time:.2g} seconds of audio a second on this machine, slower than real time: a step of "
            "training will wait for it; embed all clips of a batch at once, or give it a GPU (`device`)",
        )
    opinions = scores[torch.isfinite(scores)]
    return Checked(
        name=str(name),
        kind="sets" if of_sets else "clips",
        clips=len(media),
        laws=_laws(reward),
        low=float(opinions.min()) if len(opinions) else float("nan"),
        high=float(opinions.max()) if len(opinions) else float("nan"),
        abstained=int(scores.isnan().sum()),
        clips_per_second=len(media) / seconds,
        real_time=real_time,
    )


def example_clips(
    seconds: float = 1.0, rate: int = 16_000, channels: int = 1, columns: Mapping[str, tuple[object, ...]] | None = None
) -> Media:
    """Four different clips: two tones, noise, a fading tone. columns: four values each.

    Raises:
        PluginError: no samples or channels.
    """
    length = round(seconds * rate) if math.isfinite(seconds) else 0
    if length < 1 or channels < 1:
        raise PluginError(f"example clips of {seconds} s at {rate} Hz, {channels} channels; expected all above 0")
    t = torch.arange(length) / rate
    noise = torch.randn(length, generator=torch.Generator().manual_seed(0))
    clips = [0.5 * torch.sin(880 * torch.pi * t), 0.3 * torch.sin(220 * torch.pi * t), 0.1 * noise]
    clips.append(clips[0] * torch.exp(-3 * t))
    tensor = torch.stack(clips)[:, None].repeat(1, channels, 1)
    return Media(tensor, ("a high tone", "a low tone", "noise", "a fading tone"), rate, columns or {})


_LEFT_ALONE = (
    "clips, gradient mode, random states, default dtype, threads, deterministic mode and working directory are left "
    "as they were"
)
_CLIP_LAWS = (
    "one float64 score a clip; no infinity, NaN only to abstain",
    "the same clips get the same scores",
    "a clip's score does not depend on the others of its batch",
    "scores keep the clips' order",
    _LEFT_ALONE,
    "speed, and what a blank clip gets",
)
_SET_LAWS = (
    "features (clips, frames, features), finite; one finite score a candidate set",
    "the same clips get the same features",
    "a clip's features do not depend on the others of its batch",
    "features keep the clips' order",
    "a set's score does not depend on its members' order, nor on other candidate sets",
    _LEFT_ALONE,
    "speed, and what a blank clip gets",
)
_SWAP_LAWS = ("swap_scorer agrees with score_sets after exchanges, and its bounds hold",)
_INFLUENCE_LAWS = ("influence is finite and averages to 0 over the queue's own clips",)


def _laws(reward: object) -> tuple[str, ...]:
    if not isinstance(reward, SetReward):
        return _CLIP_LAWS
    swaps = _SWAP_LAWS if isinstance(reward, SwappableReward) else ()
    return _SET_LAWS + swaps + (_INFLUENCE_LAWS if isinstance(reward, InfluenceReward) else ())


def _check_instance_reward(reward: InstanceReward, media: Media, faults: Faults) -> tuple[Tensor, float]:
    """The scores, and the seconds they took; no scores where there were none to read."""
    abstains = getattr(reward, "abstains", None)
    faults.expect(isinstance(abstains, bool), "abstains", f"is a bool, not {abstains!r}")
    score = _pure(reward, "score", media, faults)
    first = score(media)
    if first is None:
        faults.or_other("score", "gives a torch.Tensor, not None")
        return torch.empty(0), 1.0
    if not faults.shape("score", first, (len(media),), "one score a clip"):
        return torch.empty(0), 1.0
    faults.expect(first.dtype == torch.float64, "score", f"gives float64, not {first.dtype}")
    faults.expect(not torch.isinf(first).any(), "score", f"gives no infinity; it gave {first.tolist()}")
    faults.expect(
        bool(abstains) or not torch.isnan(first).any(),
        "score",
        f"gives NaN only where `abstains` is True; it gave {first.tolist()}",
    )
    start = time.perf_counter()
    again = score(media)
    seconds = max(time.perf_counter() - start, 1e-9)
    faults.same("score", first, again, "gives the same scores for the same clips (no unseeded randomness)")
    singles = [score(media.rows([row])) for row in range(len(media))]
    if all(s is not None and s.shape == (1,) for s in singles):
        joined = torch.cat([s for s in singles if s is not None])
        faults.same("score", first, joined, "does not depend on the other clips of the batch")
    backwards = list(reversed(range(len(media))))
    faults.same("score", first[backwards], score(media.rows(backwards)), "keeps the clips' order")
    opinions = first[torch.isfinite(first)]
    if abstains and len(opinions) == 0:
        faults.warn("score", "abstained on every clip given: nothing but the abstention was checked")
    elif len(opinions) > 1 and bool((opinions == opinions[0]).all()):
        faults.warn("score", f"is {opinions[0] + 0.0:g} for all of {len(opinions)} different clips: it ranks nothing")
    if not torch.isinf(first).any() and (abstains or not first.isnan().any()):
        _check_blank(reward, "score", media, faults, may_abstain=bool(abstains))
    return first, seconds


def _check_set_reward(reward: SetReward, media: Media, faults: Faults) -> tuple[Tensor, float]:
    """The scores of some sets, and the seconds that embedding took; no scores where there were none to read."""
    embed = _pure(reward, "embed", media, faults)
    features = embed(media)
    if features is None:
        faults.or_other("embed", "gives a torch.Tensor, not None")
        return torch.empty(0), 1.0
    if features.ndim != 3 or len(features) != len(media):
        faults.add("embed", f"gives (b, frames, features) for b clips, here b = {len(media)}; {tuple(features.shape)}")
        return torch.empty(0), 1.0
    faults.expect(torch.isfinite(features).all(), "embed", "gives finite features")
    start = time.perf_counter()
    again = embed(media)
    seconds = max(time.perf_counter() - start, 1e-9)
    faults.same("embed", features, again, "gives the same features for the same clips")
    singles = [embed(media.rows([row])) for row in range(len(media))]
    if all(s is not None and s.shape[1:] == features.shape[1:] for s in singles):
        joined = torch.cat([s for s in singles if s is not None])
        faults.same("embed", features, joined, "does not depend on the other clips of the batch")
    else:
        faults.add("embed", "gives as many frames for one clip as for the same clip in a batch")
    backwards = list(reversed(range(len(media))))
    faults.same("embed", features[backwards], embed(media.rows(backwards)), "keeps the clips' order")
    if torch.isfinite(features).all():
        _check_blank(reward, "embed", media, faults)
    with untouched("score_sets", faults):
        scores = _check_score_sets(reward, features, faults)
    if scores is None:
        return torch.empty(0), seconds
    if isinstance(reward, SwappableReward):
        with untouched("swap_scorer", faults):
            _check_swap_scorer(reward, features, faults)
    if isinstance(reward, InfluenceReward):
        with untouched("influence", faults):
            _check_influence(reward, features, faults)
    return scores, seconds


def _check_score_sets(reward: SetReward, features: Tensor, faults: Faults) -> Tensor | None:
    n = len(features)
    members = torch.stack([torch.arange(n - 1), torch.arange(1, n), torch.arange(n - 1).flip(0)])
    copy = features.clone()
    scores = faults.call("score_sets", lambda: reward.score_sets(features, members))
    if scores is not None and not isinstance(scores, Tensor):
        faults.add("score_sets", f"gives a torch.Tensor, not {type(scores).__name__}")
        return None
    if scores is None or not faults.shape("score_sets", scores, (3,), "one score a candidate set"):
        return None
    faults.expect(torch.equal(features, copy), "score_sets", "leaves the features it is given as they are")
    faults.expect(torch.isfinite(scores).all(), "score_sets", f"gives finite scores; it gave {scores.tolist()}")
    faults.same("score_sets", scores[:1], scores[2:], "does not depend on the order of a set's members")
    alone = faults.call("score_sets", lambda: torch.cat([reward.score_sets(features, m[None]) for m in members]))
    faults.same("score_sets", scores, alone, "scores a candidate set alike alone and among others")
    return scores


def _check_swap_scorer(reward: SwappableReward, features: Tensor, faults: Faults) -> None:
    """Of the set of all clips but the last: its neighbours, which let the last clip in."""
    n = len(features)
    scorer = faults.call("swap_scorer", lambda: reward.swap_scorer(features))
    if scorer is None:
        return
    inside, last = torch.arange(n - 1), torch.full((n - 1,), n - 1)
    sets = torch.where(torch.eye(n - 1, dtype=torch.bool), last, inside.repeat(n - 1, 1))
    expected = reward.score_sets(features, sets).double()
    faults.call("swap_scorer", lambda: scorer.start(inside))
    found = faults.call("swap_scorer", lambda: scorer.neighbours(inside, last))
    if found is None or not faults.shape("swap_scorer", found, (n - 1,), "neighbours gives one score an exchange"):
        return
    faults.same("swap_scorer", found, expected, "scores a set after an exchange as score_sets does")
    ends = faults.call("swap_scorer", lambda: scorer.bounds(inside, last))
    if ends is not None:
        slack = 1e-6 * (1 + expected.abs())
        inside_bounds = ((ends[0] <= expected + slack) & (expected <= ends[1] + slack)).all()
        faults.expect(inside_bounds, "swap_scorer", "gives bounds that hold the score")

    def swapped() -> Tensor:
        scorer.swap(0, n - 1)
        return torch.tensor([scorer.value], dtype=torch.float64)

    faults.same("swap_scorer", faults.call("swap_scorer", swapped), expected[:1], "keeps its value over a swap")


def _check_influence(reward: InfluenceReward, features: Tensor, faults: Faults) -> None:
    found = faults.call("influence", lambda: reward.influence(features, features))
    if found is None or not faults.shape("influence", found, (len(features),), "one number a clip"):
        return
    faults.expect(torch.isfinite(found).all(), "influence", f"gives finite numbers; it gave {found.tolist()}")
    # a mixture of the queue with itself is the queue
    small = abs(float(found.mean())) <= 1e-6 * (1 + float(found.abs().max()))
    faults.expect(
        small, "influence", f"averages to 0 over the queue's own clips; it averages to {float(found.mean()):g}"
    )


def _check_blank(reward: object, method: str, media: Media, faults: Faults, may_abstain: bool = False) -> None:
    """A warning where zeros break it: models make silent clips, most of all while they are trained."""
    blank = replace(media.rows([0]), tensor=torch.zeros_like(media.tensor[:1]))
    with untouched(method, faults):
        try:
            found = getattr(reward, method)(blank)
            bad = bool(torch.isinf(found).any()) or (bool(torch.isnan(found).any()) and not may_abstain)
            text = "gives NaN or infinity"
        except Exception as error:  # a plug-in may raise anything
            bad, text = True, f"raises {type(error).__name__} ({error})"
    if bad:
        faults.warn(method, f"{text} for a blank clip (all zeros); a model may make one, and the run would stop there")


def _pure(owner: object, method: str, media: Media, faults: Faults) -> Callable[[Media], Tensor | None]:
    """`owner.method` of a batch, checked to leave the clips and the process as they were."""

    def called(batch: Media) -> Tensor | None:
        copy = batch.tensor.clone()
        with untouched(method, faults):
            result = faults.call(method, lambda: getattr(owner, method)(batch))
        faults.expect(torch.equal(batch.tensor, copy), method, "leaves the clips it is given as they are")
        if result is not None and not isinstance(result, Tensor):
            faults.add(method, f"gives a torch.Tensor, not {type(result).__name__}")
            return None
        return None if result is None else result.detach()

    return called
