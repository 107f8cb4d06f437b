"""Measuring a tuned policy against its frozen start on held-out prompts, with independent samples.

Knows protocols, not which policy, reward or encoder it is given. Two steps, so that one base can serve many
tuned models: `dragon.collect` samples one side and keeps scores, features and a few clips (never all clips);
`compare` turns two sides into win rates with intervals. `evaluate` does both.

Base and tuned get different seeds for the same prompts. Sharing seeds makes small shifts look large (0.1
standard deviations win 84 % of prompts with shared seeds and 53 % without), so the same-seed win rate is a
second column, from one extra tuned sample a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dragon import intervals
from dragon.collect import Collected, Progress, Seeds, collect, draw_seeds
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.intervals import Floats
from dragon.processes import Alone, Processes
from dragon.protocols import Encoder, InstanceReward, Policy, SetReward

VERSION = 1
SET_SIZE = 16


@dataclass(frozen=True)
class RewardResult:
    """One reward on both sides; the fields of evaluation.json. `gain_sd` is None where the base does not vary."""

    kind: str
    trained_on: bool
    base: float
    tuned: float
    gain_sd: float | None
    win_rate: float
    low: float
    high: float
    n: int
    same_seed_win_rate: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    def to_json(self) -> dict[str, object]:
        """The contract's keys: those of the difference belong to set rewards alone."""
        return {k: v for k, v in asdict(self).items() if self.kind == "set" or not k.startswith("difference")}


@dataclass(frozen=True)
class Evaluation:
    """Base and tuned compared. `sides` are "base", "tuned" and, where it was drawn, "same_seed"."""

    prompts: int
    samples_per_prompt: int
    settings: Mapping[str, object]
    rewards: Mapping[str, RewardResult]
    diversity: Mapping[str, float] | None
    seconds: Mapping[str, float]
    sides: Mapping[str, Collected] = field(repr=False)

    def to_json(self) -> dict[str, object]:
        """evaluation.json, version 1. `diversity` is null where no encoder was given."""
        return {
            "version": VERSION,
            "prompts": self.prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "settings": dict(self.settings),
            "rewards": {name: result.to_json() for name, result in self.rewards.items()},
            "diversity": dict(self.diversity) if self.diversity else None,
            "seconds": dict(self.seconds),
        }


def evaluate(
    policy: Policy,
    rewards: Mapping[str, InstanceReward | SetReward],
    trained_on: set[str],
    prompts: Sequence[str],
    *,
    samples_per_prompt: int = 2,
    steps: int = 8,
    guidance: float = 2.0,
    seed: int = 1_000_003,
    tuned_weights: Mapping[str, Tensor] | None = None,
    diversity: Encoder | None = None,
    columns: Mapping[str, Sequence[object]] | None = None,
    batch_size: int = 32,
    keep: int = 16,
    same_seed: bool = True,
    set_size: int = SET_SIZE,
    progress: Progress | None = None,
    base: Collected | None = None,
    reward_timeout: float = 0.0,
    processes: Processes = Alone(),
) -> Evaluation:
    """Samples the frozen start and the tuned policy on `prompts` and compares them.

    The base side runs inside `policy.reference()`, the tuned side with `tuned_weights` (for example the EMA's)
    or, where they are None, with the current ones. Costs m * (2 k + 1) samples; m * 2 k without `same_seed`; a
    `base` collected earlier with the same prompts, rewards, settings and seed saves its half.
    `set_size`: prompts in each of the disjoint subsets that set rewards are compared on. Several processes share the
    samples and all get the result.

    Raises:
        ConfigError: no rewards or prompts, fewer than 1 sample, an unknown name in `trained_on`, too few prompts
            for a set reward, a `base` of other prompts or rewards.
        NotFinite, PluginError, ShapeError: a clip or score that breaks its contract, with its prompt and seed.
    """
    _check(rewards, trained_on, prompts, samples_per_prompt, set_size, columns)
    began = time.perf_counter()

    def side(name: str, seeds: Seeds, model: AbstractContextManager[None]) -> Collected:
        extra = name == "same_seed"  # only its instance scores are read
        with model:
            return collect(
                policy,
                {n: r for n, r in rewards.items() if not (extra and isinstance(r, SetReward))},
                prompts,
                seeds,
                steps=steps,
                guidance=guidance,
                diversity=None if extra else diversity,
                columns=columns,
                batch_size=batch_size,
                keep=0 if extra else keep,
                side=name,
                progress=progress,
                reward_timeout=reward_timeout,
                processes=processes,
            )

    def tuned_model() -> AbstractContextManager[None]:
        return nullcontext() if tuned_weights is None else policy.weights(tuned_weights)

    base_seeds = draw_seeds(seed, "base", len(prompts), samples_per_prompt)
    if base is None:
        base = side("base", base_seeds, policy.reference())
    elif (base.prompts, base.seeds, base.steps, base.guidance) != (tuple(prompts), base_seeds, steps, guidance):
        raise ConfigError("the base collected earlier has other prompts, seeds, steps or guidance; collect it again")
    elif lacking := sorted(set(rewards) - set(base.scores) - set(base.features)):
        raise ConfigError(f"the base collected earlier lacks {lacking}; collect it again with these rewards")
    sides = {
        "base": base,
        "tuned": side("tuned", draw_seeds(seed, "tuned", len(prompts), samples_per_prompt), tuned_model()),
    }
    if same_seed:
        sides["same_seed"] = side("same_seed", tuple(row[:1] for row in base_seeds), tuned_model())
    settings = {
        "policy": policy.name,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "tuned_weights": "current" if tuned_weights is None else "given",
        "diversity_encoder": None if diversity is None else f"{diversity.name} {diversity.fingerprint}",
    }
    found = compare(sides, rewards, trained_on, seed=seed, set_size=set_size)
    return replace(
        found,
        settings={**settings, **found.settings},
        seconds={**found.seconds, "total": time.perf_counter() - began},
    )


def compare(
    sides: Mapping[str, Collected],
    rewards: Mapping[str, InstanceReward | SetReward],
    trained_on: set[str],
    *,
    seed: int = 0,
    set_size: int = SET_SIZE,
) -> Evaluation:
    """Win rates, gains and intervals of "tuned" over "base"; "same_seed" where that side is there."""
    base, tuned = sides["base"], sides["tuned"]
    paired = sides.get("same_seed")
    if base.prompts != tuned.prompts or base.samples != tuned.samples:
        raise ConfigError(
            f"base has {len(base.prompts)} prompts x {base.samples} samples and tuned {len(tuned.prompts)} x "
            f"{tuned.samples}; both sides need the same prompts and sample counts"
        )
    results = {}
    for name, reward in rewards.items():
        if isinstance(reward, SetReward):
            results[name] = _set_result(reward, name, sides, trained=name in trained_on, size=set_size, seed=seed)
        else:
            results[name] = _instance_result(
                name,
                base.scores[name],
                tuned.scores[name],
                None if paired is None else paired.scores[name],
                name in trained_on,
                seed,
            )
    spread = None
    if base.embeddings is not None and tuned.embeddings is not None:
        spread = {
            "base": intervals.mean_cosine_distance(base.embeddings.numpy()),
            "tuned": intervals.mean_cosine_distance(tuned.embeddings.numpy()),
        }
    settings: dict[str, object] = {"interval": intervals.LEVEL, "bootstrap_draws": intervals.DRAWS}
    if any(result.kind == "set" for result in results.values()):
        settings["set_size"] = set_size
    return Evaluation(
        prompts=len(base.prompts),
        samples_per_prompt=base.samples,
        settings=settings,
        rewards=results,
        diversity=spread,
        seconds={f"{side}_{stage}": s for side, got in sides.items() for stage, s in got.seconds.items()},
        sides=sides,
    )


def _instance_result(
    name: str, base: Floats, tuned: Floats, paired: Floats | None, trained: bool, seed: int
) -> RewardResult:
    try:
        wins = intervals.bootstrap_mean(intervals.win_shares(base, tuned), seed=seed)
    except NotFinite as error:
        raise NotFinite(f"reward {name!r} has an opinion on no pair of base and tuned samples of a prompt") from error
    same_seed = None
    if paired is not None:
        shares = intervals.win_shares(base[:, :1], paired)
        same_seed = float(np.nanmean(shares)) if np.isfinite(shares).any() else None
    return RewardResult(
        kind="instance",
        trained_on=trained,
        base=float(np.nanmean(base)),
        tuned=float(np.nanmean(tuned)),
        gain_sd=intervals.gain_in_sd(base, tuned),
        win_rate=wins.value,
        low=wins.low,
        high=wins.high,
        n=wins.n,
        same_seed_win_rate=same_seed,
    )


def _set_result(
    reward: SetReward, name: str, sides: Mapping[str, Collected], *, trained: bool, size: int, seed: int
) -> RewardResult:
    """Headline: the difference of both sides as whole sets; the sd of the gain is that of the base's subsets."""

    def scorer(side: Collected) -> intervals.SetScore:
        features = side.features[name]
        return lambda members: reward.score_sets(features, torch.as_tensor(members)).double().cpu().numpy()

    prompts, samples = len(sides["base"].prompts), sides["base"].samples
    both = scorer(sides["base"]), scorer(sides["tuned"])
    try:
        base, tuned, gap = intervals.set_difference(*both, prompts, samples, seed=seed)
        wins, subsets = intervals.set_win_rate(*both, prompts, samples, size=size, seed=seed)
    except (NotFinite, ShapeError) as error:
        raise type(error)(f"reward {name!r}: {error}") from error
    return RewardResult(
        kind="set",
        trained_on=trained,
        base=base,
        tuned=tuned,
        gain_sd=intervals.gain_in_sd(subsets, subsets + gap.value),
        win_rate=wins.value,
        low=wins.low,
        high=wins.high,
        n=prompts,
        difference=gap.value,
        difference_low=gap.low,
        difference_high=gap.high,
    )


def _check(
    rewards: Mapping[str, InstanceReward | SetReward],
    trained_on: set[str],
    prompts: Sequence[str],
    samples: int,
    set_size: int,
    columns: Mapping[str, Sequence[object]] | None,
) -> None:
    """All that can be wrong before anything is sampled."""
    if not rewards:
        raise ConfigError("no rewards to evaluate; give at least one")
    if not prompts:
        raise ConfigError("no held-out prompts; give at least one")
    if samples < 1:
        raise ConfigError(f"samples_per_prompt is {samples}; expected 1 or more")
    if unknown := sorted(trained_on - set(rewards)):
        raise ConfigError(f"trained_on names {unknown}, which are not among the rewards {sorted(rewards)}")
    for name, values in (columns or {}).items():
        if len(values) != len(prompts):
            raise ConfigError(f"column {name!r} has {len(values)} values for {len(prompts)} prompts; expected one each")
    sets = [name for name, reward in rewards.items() if isinstance(reward, SetReward)]
    if sets and len(prompts) < set_size * intervals.SMALLEST_SPLIT:
        raise ConfigError(
            f"{len(prompts)} prompts are too few for the set reward {sets[0]!r}: its win rate compares disjoint "
            f"subsets of {set_size}; use {set_size * intervals.SMALLEST_SPLIT} prompts or a smaller set_size"
        )
