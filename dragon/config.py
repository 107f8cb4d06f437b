"""The schema of a run: frozen dataclasses, and nothing else, say what a configuration may hold.

YAML files and the command line fill the same classes (`load`, `dragon.cli`); defaults live here only.
Knows no plug-in: names are resolved in `dragon.build`. Names that TRL users know keep their meaning.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ConfigDict

from dragon.errors import ConfigError
from dragon.loading import Problem, leaves, parse, plain, put, read_yaml, related
from dragon.texts import short, writable

_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Spec:
    """A plug-in by name, with the options its constructor takes."""

    __pydantic_config__ = _FORBID
    name: str
    """Registered name, or module:Name."""
    options: dict[str, object] = field(default_factory=dict)
    """Keyword arguments of the plug-in's constructor."""


@dataclass(frozen=True)
class RewardSpec:
    """A reward with its weight in the mixture that ranks samples."""

    __pydantic_config__ = _FORBID
    name: str
    """Registered name, or module:Name."""
    options: dict[str, object] = field(default_factory=dict)
    """Keyword arguments of the reward's constructor."""
    weight: float = 1.0
    """Weight after each reward (a set reward: its credit) was divided by its standard deviation within a prompt."""


@dataclass(frozen=True)
class TuningConfig:
    """Which weights are trained."""

    __pydantic_config__ = _FORBID
    kind: str = "lora"
    """lora (PEFT adapter on the denoiser) or full."""
    rank: int = 16
    """Rank of the LoRA matrices."""
    alpha: float = 16.0
    """LoRA scale: the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Module-name endings that get an adapter; empty: the policy's own list."""


@dataclass(frozen=True)
class RolloutConfig:
    """How samples are drawn while training."""

    __pydantic_config__ = _FORBID
    prompts_per_step: int = 16
    """m: prompts drawn at each step."""
    steps: int = 8
    """Solver steps of a demonstration."""
    guidance: float = 2.0
    """Classifier-free guidance scale; 1 switches it off."""
    batch_size: int = 32
    """Samples per denoiser call; changes speed and memory, not the samples."""
    overlap_scoring: bool = False
    """Each batch is decoded and scored while the next one is sampled; changes speed, not the scores."""
    reward_timeout: float = 0.0
    """Seconds that one reward may take for one batch before the run stops, saved; 0: no limit."""


@dataclass(frozen=True)
class UpdateConfig:
    """How the contrast is trained on."""

    __pydantic_config__ = _FORBID
    updates_per_step: int = 3
    """Optimiser steps after each roll-out."""
    pairs_per_update: int = 24
    """Pairs drawn (without replacement) from the fresh and replayed pairs at each update."""
    micro_batch_size: int = 24
    """Pairs per backward pass; gradients are accumulated, so the result does not depend on it."""
    replay_steps: int = 0
    """Pairs of that many earlier steps stay in the pool; 0: on-policy only."""
    old_decay: float = 0.8
    """Decay of the moving old policy, updated once a step (NFT only)."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    """Gradients are scaled down to that norm; 0: never."""
    max_skipped_updates: int = 10
    """An update with a NaN in loss or gradient is left out and said; after that many of a run it stops. 0: at once."""
    warmup_steps: int = 2
    """Learning rate rises linearly over that many steps."""
    ema_decay: float = 0.9
    """Decay of the weights that are evaluated and saved, updated once an optimiser step; 0: none."""
    beta_calibration_updates: int = 6
    """Updates over which beta is calibrated to a median |beta * gain| of `beta_target`, then frozen; 0: as stated."""
    beta_target: float = 1.0


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on held-out prompts, before and after."""

    __pydantic_config__ = _FORBID
    prompts: int = 128
    """Held-out prompts used (the first ones of the file)."""
    samples_per_prompt: int = 2
    """Independent samples a prompt, for base and tuned each."""
    steps: int = 8
    guidance: float = 2.0
    watch: tuple[Spec, ...] = ()
    """Rewards that are measured and never trained on (a judge, ...)."""
    set_size: int = 16
    """Prompts in each of the disjoint subsets that a set reward's win rate compares."""
    diversity: Spec | None = None
    """Encoder whose embedding diversity is reported (mean pairwise cosine distance)."""
    seed: int = 1_000_003
    keep_samples: int = 16
    """Samples a side written as audio."""


@dataclass(frozen=True)
class ResumeConfig:
    """What a resumed run may have that its checkpoint had not."""

    __pydantic_config__ = _FORBID
    allow: tuple[str, ...] = ()
    """Keys that may differ from the checkpoint's; a key covers all below it."""


@dataclass(frozen=True)
class TrainConfig:
    """One whole run."""

    __pydantic_config__ = _FORBID
    output_dir: str = "runs/mini"
    """Run folder; a new run into one that holds a run is refused."""
    prompts: str = "mini:train"
    """Training prompts: a .txt, .csv, .jsonl or .json file, a folder saved by `datasets`, or mini:train."""
    eval_prompts: str = "mini:test"
    """Held-out prompts, of the same kinds."""
    policy: Spec = field(default_factory=lambda: Spec("mini"))
    tuning: TuningConfig = field(default_factory=TuningConfig)
    rewards: tuple[RewardSpec, ...] = ()
    """At least one; their weighted sum ranks samples."""
    contrast: Spec = field(default_factory=lambda: Spec("best_worst"))
    """best_worst, all_pairs, random_labels; swap lets set rewards judge whole sets."""
    credit: Spec = field(default_factory=lambda: Spec("influence"))
    """How a set reward scores single clips for any contrast but swap: influence or leave_one_out."""
    objective: Spec = field(default_factory=lambda: Spec("nft"))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    num_generations: int = 4
    """k: samples of each prompt."""
    learning_rate: float = 2e-4
    max_steps: int = 40
    save_steps: int = 10
    """A checkpoint every that many steps; 0: only at the end and on interrupt."""
    eval_steps: int = 0
    """A short held-out evaluation every that many steps; 0: only at start and end."""
    save_total_limit: int = 3
    """Checkpoints kept."""
    seed: int = 0
    device: str = "cpu"
    """cpu, cuda, or cuda:N."""
    report_to: str = "tensorboard"
    """tensorboard, wandb, both with a comma between them, or none."""
    callbacks: tuple[Spec, ...] = ()
    """Called after every step; any of them may stop the run."""
    resume_from_checkpoint: str = ""
    """true or latest: the newest checkpoint of output_dir; best: the best one; a path: that one; empty: a new run."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    dry_run: bool = False
    """Check everything, print the filled configuration, and stop."""


Check = Callable[[TrainConfig], Sequence[Problem]]


def load(path: str | Path, overrides: Mapping[str, object] | None = None, checks: Sequence[Check] = ()) -> TrainConfig:
    """The configuration in a YAML file, with `overrides` ({"rollout.steps": 4}) winning over it.

    Raises:
        ConfigError: every problem at once: YAML that does not parse or repeats a key, unknown keys (with the nearest
            names), wrong types, values out of range, and what `checks` (plug-in names and options) add.
    """
    values = read_yaml(path)
    for key, value in (overrides or {}).items():
        put(values, key, value)
    return from_dict(values, checks, str(path))


def from_dict(values: Mapping[str, object], checks: Sequence[Check] = (), source: str = "configuration") -> TrainConfig:
    """The configuration in nested plain values, checked as `load` checks a file."""
    if isinstance(values.get("resume_from_checkpoint"), bool):  # YAML reads true as a boolean, the command line as text
        values = {**values, "resume_from_checkpoint": "true" if values["resume_from_checkpoint"] else ""}
    config, problems = parse(TrainConfig, values)
    broken = [problem.path for problem in problems]
    if config is not None:
        for check in (range_problems, *checks):
            # what a key that could not be read leaves behind is its default: nothing to complain of
            problems += [p for p in check(config) if not any(related(p.path, other) for other in broken)]
    if problems or config is None:
        lines = "\n".join(f"  {problem.path}: {problem.text}" for problem in problems[:_LISTED])
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ConfigError(f"{source} has {len(problems)} problem{'s' if len(problems) != 1 else ''}:\n{lines}{more}")
    return config


def to_dict(config: TrainConfig) -> dict[str, object]:
    """Nested plain values (dicts, lists, numbers, text) with all defaults written out."""
    return typing.cast("dict[str, object]", plain(config))


def to_yaml(config: TrainConfig) -> str:
    """The filled configuration as YAML that `load` reads back to an equal one."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    if any(mark in text for mark in "\x85\u2028\u2029"):  # PyYAML writes these as they are and reads them as line ends
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def trackers(config: TrainConfig) -> tuple[str, ...]:
    """The names in `report_to`, each once; () for none."""
    names = tuple(dict.fromkeys(name.strip() for name in config.report_to.split(",")))
    return () if names == ("none",) else names


def range_problems(config: TrainConfig) -> list[Problem]:
    """Values of the right type that cannot work, and combinations of them."""
    problems: list[Problem] = []
    flat = dict(leaves(to_dict(config)))
    for path, low, high in _RANGES:
        for key, value in flat.items():
            # a whole number may be too large for float(), which isfinite() needs; NaN lies in no range
            if key == path and isinstance(value, (int, float)) and not (low <= value <= high and value <= _HUGE):
                limit = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
                problems.append(Problem(path, f"{short(value)} is out of range; expected {limit}"))
    for key, value in flat.items():
        if isinstance(value, str) and not writable(value):
            problems.append(Problem(key, f"{short(value)} holds a NUL or half a character; expected text"))
    for path, choices in _CHOICES.items():
        if flat[path] not in choices:
            problems.append(
                Problem(path, f"{short(flat[path])} is unknown; expected {' or '.join(map(repr, choices))}")
            )
    for name in trackers(config):
        if name not in ("tensorboard", "wandb"):
            text = f"{name!r} is unknown; expected 'tensorboard', 'wandb', both with a comma between them, or 'none'"
            problems.append(Problem("report_to", text))
    if not config.rewards:
        problems.append(Problem("rewards", "none given; expected at least one, for example [{name: clap_score}]"))
    for index, reward in enumerate(config.rewards):
        if not (math.isfinite(reward.weight) and reward.weight > 0):
            # a negative weight would rank by a reward whose name says the opposite
            problems.append(Problem(f"rewards.{index}.weight", f"{reward.weight} is out of range; expected above 0"))
    for index, beta in enumerate(config.update.betas):
        if not 0 <= beta < 1:
            problems.append(Problem(f"update.betas.{index}", f"{beta} is out of range; expected from 0 to below 1"))
    if config.update.beta_calibration_updates == 1:
        text = "1 is too few: at the first update every gain is 0; expected 0, or at least 2"
        problems.append(Problem("update.beta_calibration_updates", text))
    for path in ("output_dir", "prompts", "eval_prompts"):
        if not str(flat[path]).strip():
            problems.append(Problem(path, "is empty; expected a path"))
    device = config.device
    if device not in ("cpu", "cuda") and not (device.startswith("cuda:") and device[5:].isdigit()):
        problems.append(Problem("device", f"{short(device)} is unknown; expected cpu, cuda or cuda:N"))
    return problems


_LISTED = 40  # problems that a message names
_INF = math.inf
_HUGE = 2**62  # torch counts and seeds with 64 bits
_BELOW_ONE = math.nextafter(1, 0)
_TINY = math.ulp(0)
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("tuning.rank", 1, _INF),
    ("tuning.alpha", _TINY, _INF),
    ("rollout.prompts_per_step", 1, _INF),
    ("rollout.steps", 1, _INF),
    ("rollout.guidance", 0, _INF),
    ("rollout.batch_size", 1, _INF),
    ("rollout.reward_timeout", 0, _INF),
    ("update.updates_per_step", 1, _INF),
    ("update.pairs_per_update", 1, _INF),
    ("update.micro_batch_size", 1, _INF),
    ("update.replay_steps", 0, _INF),
    ("update.old_decay", 0, _BELOW_ONE),
    ("update.weight_decay", 0, _INF),
    ("update.max_grad_norm", 0, _INF),
    ("update.max_skipped_updates", 0, _INF),
    ("update.warmup_steps", 0, _INF),
    ("update.ema_decay", 0, _BELOW_ONE),
    ("update.beta_calibration_updates", 0, _INF),
    ("update.beta_target", _TINY, _INF),
    ("evaluation.prompts", 2, _INF),  # an interval over prompts needs two
    ("evaluation.samples_per_prompt", 1, _INF),
    ("evaluation.steps", 1, _INF),
    ("evaluation.guidance", 0, _INF),
    ("evaluation.set_size", 2, _INF),
    ("evaluation.seed", 0, 2**62),
    ("evaluation.keep_samples", 0, _INF),
    ("num_generations", 2, _INF),  # one sample of a prompt has nothing to be ranked against
    ("learning_rate", _TINY, _INF),
    ("max_steps", 1, _INF),
    ("save_steps", 0, _INF),
    ("eval_steps", 0, _INF),
    ("save_total_limit", 1, _INF),
    ("seed", 0, 2**62),
)
_CHOICES = {"tuning.kind": ("lora", "full")}
