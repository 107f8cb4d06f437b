"""Configuration -> the objects of a run: the only place that knows names and classes both.

Everything that can be checked without weights is checked first, and all of it is said at once: names, options
against the constructors' signatures, prompt files, the device. Then the small parts are built (a missing exemplar
set shows there), the policy last.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from dragon.batching import out_of_memory
from dragon.collect import Collected, Progress
from dragon.config import RewardSpec, Spec, TrainConfig, trackers
from dragon.contrast import Credit
from dragon.errors import ConfigError, DragonError, PluginError
from dragon.evaluate import Evaluation, evaluate
from dragon.intervals import SMALLEST_SPLIT
from dragon.loading import Problem
from dragon.processes import Alone, Processes
from dragon.prompts import PromptSet, load_prompts
from dragon.protocols import Callback, InstanceReward, JointEncoder, Objective, Policy, SetReward
from dragon.registry import nearest, resolve
from dragon.scoring import WeightedReward
from dragon.signatures import converted
from dragon.texts import raised
from dragon.trainer import Trainer, TrainSettings


@dataclass(frozen=True)
class Run:
    """All that a run needs, built and checked. `watch` rewards are measured and never trained on."""

    config: TrainConfig
    policy: Policy
    rewards: tuple[WeightedReward, ...]
    watch: tuple[InstanceReward | SetReward, ...]
    diversity: JointEncoder | None
    prompts: PromptSet
    eval_prompts: PromptSet
    contrast: Any
    credit: Credit
    objective: Objective
    settings: TrainSettings
    callbacks: tuple[Callback, ...] = ()

    def trainer(self, processes: Processes = Alone()) -> Trainer:
        """A new trainer at step 0, one of `processes`."""
        return Trainer(
            self.policy,
            self.rewards,
            self.prompts.prompts,
            contrast=self.contrast,
            objective=self.objective,
            settings=self.settings,
            columns=self.prompts.columns,
            credit=self.credit,
            processes=processes,
        )

    def evaluate(
        self,
        prompts: PromptSet,
        weights: Mapping[str, Tensor] | None,
        *,
        samples_per_prompt: int,
        set_size: int,
        keep: int,
        same_seed: bool = True,
        base: Collected | None = None,
        progress: Progress | None = None,
        processes: Processes = Alone(),
    ) -> Evaluation:
        """`weights` (None: the policy's own) against the start, on `prompts`; the rest as the configuration says."""
        wanted, rollout = self.config.evaluation, self.config.rollout
        return evaluate(
            self.policy,
            self.evaluated(),
            {weighted.reward.name for weighted in self.rewards},
            prompts.prompts,
            samples_per_prompt=samples_per_prompt,
            steps=wanted.steps,
            guidance=wanted.guidance,
            seed=wanted.seed,
            tuned_weights=weights,
            diversity=self.diversity,
            columns=prompts.columns,
            batch_size=rollout.batch_size,
            keep=keep,
            same_seed=same_seed,
            set_size=set_size,
            progress=progress,
            base=base,
            reward_timeout=rollout.reward_timeout,
            processes=processes,
        )

    def evaluated(self) -> dict[str, InstanceReward | SetReward]:
        """Every reward that is measured, by name: those trained on first."""
        return {reward.name: reward for reward in (*(w.reward for w in self.rewards), *self.watch)}


def build_run(config: TrainConfig) -> Run:
    """The objects that `config` names.

    Raises:
        ConfigError: every problem of names, options, prompt files and device at once; or, those being right, every
            problem that the parts themselves found (exemplars that do not exist, an option out of range).
    """
    _raise(plugin_problems(config))
    problems: list[Problem] = []

    def built(kind: str, path: str, spec: Spec | RewardSpec, **supplied: object) -> Any:
        try:
            return build(kind, spec, device=config.device, **supplied)
        except DragonError as error:
            problems.append(Problem(path, str(error)))
            return None

    contrast = built("contrast", "contrast", config.contrast)
    credit = built("credit", "credit", config.credit)
    objective = built("objective", "objective", config.objective)
    rewards = [built("reward", f"rewards.{i}", spec) for i, spec in enumerate(config.rewards)]
    watch = [built("reward", f"evaluation.watch.{i}", spec) for i, spec in enumerate(config.evaluation.watch)]
    diversity = None
    if config.evaluation.diversity is not None:
        diversity = built("encoder", "evaluation.diversity", config.evaluation.diversity)
        if diversity is not None and not isinstance(diversity, JointEncoder):
            name = config.evaluation.diversity.name
            problems.append(Problem("evaluation.diversity", f"{name!r} gives no unit vector a clip (embed_clips)"))
    eval_prompts = load_prompts(config.eval_prompts).first(config.evaluation.prompts)
    problems += _reward_problems(rewards, watch) + _set_problems(config, [*rewards, *watch], len(eval_prompts))
    if credit is not None and any(isinstance(reward, SetReward) for reward in rewards):
        problems += _credit_problems(config, credit)
    watched = {reward.name: reward for reward in watch if isinstance(reward, InstanceReward | SetReward)}
    given = {
        "watch": watched,
        "batch_size": config.rollout.batch_size,
        "reward_timeout": config.rollout.reward_timeout,
    }
    callbacks = [built("callback", f"callbacks.{i}", spec, **given) for i, spec in enumerate(config.callbacks)]
    _raise(problems)
    return Run(
        config=config,
        policy=build_policy(config),
        rewards=tuple(WeightedReward(r, spec.weight) for r, spec in zip(rewards, config.rewards, strict=True)),
        watch=tuple(watch),
        diversity=diversity,
        prompts=load_prompts(config.prompts),
        eval_prompts=eval_prompts,
        contrast=contrast,
        credit=credit,
        objective=objective,
        settings=train_settings(config),
        callbacks=tuple(callbacks),
    )


def build_policy(config: TrainConfig) -> Policy:
    """The model of `config`, with its adapter (or all its weights) ready for training."""
    tuning = config.tuning
    supplied = {"tuning": tuning.kind, "rank": tuning.rank, "alpha": tuning.alpha, "targets": tuning.targets}
    policy: Policy = build("policy", config.policy, device=config.device, **supplied)
    return policy


def build(kind: str, spec: Spec | RewardSpec, **supplied: object) -> Any:
    """The plug-in that `spec` names; `supplied` arguments are passed where its constructor takes them.

    A reward that is a plain function becomes a `FunctionReward`, a callback that is one stays it; options are bound.
    """
    plugin = resolve(kind, spec.name)
    if not callable(plugin):
        raise PluginError(f"{kind} {spec.name!r} is {plugin!r}; expected a class or a function")
    reserved = _reserved(kind, plugin, ())
    by_position = _by_position(kind, plugin)
    # which columns a reward's function finds is known to `plugin_problems`; here every argument may be one
    is_reward = kind == "reward" and by_position > 0
    options, problems = _fitting(plugin, spec.options, reserved, skip=by_position, all_given=is_reward)
    _raise([Problem(f"{spec.name}.{p.path}", p.text) for p in problems])
    if by_position:
        function = functools.update_wrapper(functools.partial(plugin, **options), plugin) if options else plugin
        if not is_reward:
            return function
        from dragon.rewards.function import FunctionReward

        return FunctionReward(function, spec.name.rpartition(":")[2])
    taken = inspect.signature(plugin).parameters
    try:
        return plugin(**({key: value for key, value in supplied.items() if key in taken} | options))
    except DragonError:
        raise
    except Exception as error:  # a plug-in may raise anything; its author needs to see what
        if out_of_memory(error):
            raise
        raise PluginError(f"{kind} {spec.name!r} cannot be made: {raised(error)}") from error


def plugin_problems(config: TrainConfig) -> list[Problem]:
    """What is wrong with names, options, prompt files and device, found without loading weights."""
    problems: list[Problem] = []
    columns: set[str] | None = None
    for path in ("prompts", "eval_prompts"):
        try:
            found = set(load_prompts(getattr(config, path)).columns)
            columns = found if columns is None else columns & found
        except DragonError as error:
            problems.append(Problem(path, str(error)))
    specs: list[tuple[str, str, Spec | RewardSpec]] = [
        ("policy", "policy", config.policy),
        *(("reward", f"rewards.{i}", spec) for i, spec in enumerate(config.rewards)),
        ("contrast", "contrast", config.contrast),
        ("credit", "credit", config.credit),
        ("objective", "objective", config.objective),
        *(("reward", f"evaluation.watch.{i}", spec) for i, spec in enumerate(config.evaluation.watch)),
        *(("callback", f"callbacks.{i}", spec) for i, spec in enumerate(config.callbacks)),
    ]
    if config.evaluation.diversity is not None:
        specs.append(("encoder", "evaluation.diversity", config.evaluation.diversity))
    for kind, path, spec in specs:
        try:
            plugin = resolve(kind, spec.name)
        except DragonError as error:
            problems.append(Problem(f"{path}.name", str(error)))
            continue
        by_position = _by_position(kind, plugin)
        reserved = _reserved(kind, plugin, columns or ())
        # with a prompt file that cannot be read, nothing is known about its columns
        all_given = kind == "reward" and by_position > 0 and columns is None
        _, wrong = _fitting(plugin, spec.options, reserved, skip=by_position, all_given=all_given)
        problems += [Problem(f"{path}.options.{p.path}", p.text) for p in wrong]
    if "wandb" in trackers(config) and importlib.util.find_spec("wandb") is None:
        problems.append(Problem("report_to", "wandb is not installed: pip install 'dragon-media[wandb]'"))
    return problems + _device_problems(config.device)


def train_settings(config: TrainConfig) -> TrainSettings:
    """The numbers that training needs, flat."""
    values: dict[str, Any] = {}
    for part in (config, config.rollout, config.update):
        values |= {f.name: getattr(part, f.name) for f in fields(part)}
    values["rollout_steps"] = config.rollout.steps
    return TrainSettings(**{f.name: values[f.name] for f in fields(TrainSettings) if f.name in values})


def _reserved(kind: str, plugin: object, columns: Iterable[str]) -> dict[str, str]:
    """Arguments that are no options: name -> where they come from."""
    if kind == "policy":
        return {"device": "set by device", "tuning": "set by tuning.kind"} | {
            key: f"set by tuning.{key}" for key in ("rank", "alpha", "targets")
        }
    if kind == "callback":
        shared = {key: f"set by rollout.{key}" for key in ("batch_size", "reward_timeout")}
        return {} if _by_position(kind, plugin) else {"watch": "set by evaluation.watch", **shared}
    return dict.fromkeys(columns, "a column of the prompt files") if _by_position(kind, plugin) else {}


def _fitting(
    plugin: Callable[..., Any],
    options: Mapping[str, object],
    reserved: Mapping[str, str],
    skip: int = 0,
    all_given: bool = False,
) -> tuple[dict[str, object], list[Problem]]:
    """Options converted to the types of the signature, and those that do not fit it.

    skip: leading parameters that are passed by position. all_given: no required argument counts as missing.
    """
    parameters = dict(list(inspect.signature(plugin).parameters.items())[skip:])
    named = {k: p for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fitting: dict[str, object] = {}
    problems: list[Problem] = []
    for key, value in options.items():
        if key in reserved:
            problems.append(Problem(key, f"is {reserved[key]}; leave it out here"))
        elif key in named:
            try:
                fitting[key] = converted(plugin, named[key], value)
            except ConfigError as error:
                problems.append(Problem(key, str(error)))
        elif takes_all:
            fitting[key] = value
        else:
            settable = [k for k in named if k not in reserved]
            near = nearest(key, settable)
            hint = f"did you mean {near}?" if near else f"known here: {', '.join(settable) or 'none'}"
            problems.append(Problem(key, f"unknown option; {hint}"))
    for key, parameter in named.items():
        if parameter.default is parameter.empty and not all_given and key not in {*options, *reserved, "device"}:
            more = ", here or as a column of both prompt files" if skip == _BY_POSITION["reward"] else ""
            problems.append(Problem(key, f"is missing and has no default; give it{more}"))
    return fitting, problems


_BY_POSITION = {"reward": 2, "callback": 1}
"""Kinds of which a plain function may be the plug-in itself: (audio, prompts), (report)."""


def _by_position(kind: str, plugin: object) -> int:
    """Arguments that such a function is called with; 0 for what is made by calling it."""
    return _BY_POSITION.get(kind, 0) if inspect.isfunction(plugin) else 0


def _reward_problems(rewards: list[Any], watch: list[Any]) -> list[Problem]:
    """Parts that are no rewards, and names that stand twice (results are filed by name)."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    named = [(f"rewards.{i}", r) for i, r in enumerate(rewards)]
    named += [(f"evaluation.watch.{i}", r) for i, r in enumerate(watch)]
    for path, reward in named:
        if reward is None:
            continue
        if not isinstance(reward, InstanceReward | SetReward):
            text = (
                f"{type(reward).__name__} is no reward; expected name, abstains and score(media), or for a reward of "
                "sets name, embed(media) and score_sets(features, members) (dragon/protocols.py)"
            )
            problems.append(Problem(path, text))
        elif reward.name in seen:
            text = f"is called {reward.name!r} like {seen[reward.name]}; "
            other = "every reward that is trained on is evaluated anyway: leave it out"
            problems.append(Problem(path, text + (other if path.startswith("eval") else "give one another name")))
        else:
            seen[reward.name] = path
    return problems


def _set_problems(config: TrainConfig, rewards: Iterable[Any], prompts: int) -> list[Problem]:
    """What set rewards need, said before hours of training rather than after."""
    sets = [reward.name for reward in rewards if isinstance(reward, SetReward)]
    size = config.evaluation.set_size
    if not sets or prompts >= size * SMALLEST_SPLIT:
        return []
    fitting = prompts // SMALLEST_SPLIT
    text = (
        f"{size} is too large for {prompts} held-out prompts: the win rate of {sets[0]!r} compares at least "
        f"{SMALLEST_SPLIT} disjoint subsets; {f'use {fitting} or less, or' if fitting else 'use'} more held-out prompts"
    )
    return [Problem("evaluation.set_size", text)]


def _credit_problems(config: TrainConfig, credit: Credit) -> list[Problem]:
    """A queue that would not be full enough before the run ends: nothing would ever be learnt."""
    seen = config.rollout.prompts_per_step * config.num_generations * config.max_steps
    if config.contrast.name == "swap" or credit.minimum <= seen:
        return []
    text = (
        f"needs {credit.minimum} clips before it gives a credit, and the whole run draws {seen}; "
        "lower credit.options.minimum, or draw more prompts, samples or steps"
    )
    return [Problem("credit", text)]


def check_device(device: str) -> None:
    """Raises ConfigError unless this machine has such a device."""
    for problem in _device_problems(device):
        raise ConfigError(f"device {problem.text}")


def _device_problems(device: str) -> list[Problem]:
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError:
        return [Problem("device", f"{device!r} is none; expected cpu, cuda or cuda:NUMBER")]
    if asked.type == "mps" and not torch.backends.mps.is_available():
        return [Problem("device", f"{device!r} is not there; use cpu")]
    if asked.type != "cuda" or (asked.index or 0) < torch.cuda.device_count():
        return []
    count = torch.cuda.device_count()
    return [Problem("device", f"{device!r} is not there: this machine has {count} CUDA devices; use cpu or another")]


def _raise(problems: list[Problem]) -> None:
    if problems:
        lines = "\n".join(f"  {problem.path}: {problem.text}" for problem in problems)
        raise ConfigError(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration:\n{lines}")
