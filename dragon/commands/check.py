"""dragon check REWARD ..., dragon check policy POLICY ..."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dragon.commands.arguments import parsed, positional
from dragon.config import TuningConfig
from dragon.errors import ConfigError

if TYPE_CHECKING:
    from dragon.protocols import Policy
    from dragon.testing import Checked, CheckedPolicy

USAGE = {
    "reward": "dragon check NAME|module:Name|file.py:Name [--options YAML ...]",
    "policy": "dragon check policy NAME|module:Name|file.py:Name [--options YAML ...]",
}
PLACEHOLDERS = ("a slow piano", "fast drums", "a choir")


@dataclass(frozen=True)
class CheckReward:
    """Check that a reward keeps its contract, on four clips: two tones, noise, a fading tone.

    `dragon check policy --help` tells how a model is checked.
    """

    options: dict[str, object] = field(default_factory=dict)
    """What the reward is made with, as in a configuration: --options '{encoder: mini}'."""
    columns: dict[str, object] = field(default_factory=dict)
    """Columns of the prompt file that it reads: a value for all clips, or a list of four: --columns '{bpm: 120}'."""
    seconds: float = 1.0
    """Length of the clips."""
    rate: int = 16_000
    """Their rate in Hz."""
    channels: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class CheckPolicy:
    """Check that a model keeps the contract of a policy: sampling, noising, prediction, adapter, saving.

    A pipeline, with a family of your own if it needs one: dragon check policy pipeline --options '{folder: my_model,
    family: mine.py:Mine}'. Weights are as before afterwards; nothing is trained.
    """

    options: dict[str, object] = field(default_factory=dict)
    """What the policy is made with, as in a configuration: --options '{folder: my_model}'."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Which weights are trained, as in a configuration: --tuning.kind full, --tuning.rank 4."""
    prompt: tuple[str, ...] = PLACEHOLDERS
    """At least two different prompts, of different lengths, that the model knows."""
    steps: int = 2
    """Solver steps of the samples that are checked."""
    guidance: float = 1.5
    """Their guidance."""
    listen: str = ""
    """New folder for one decoded sample a prompt, to hear or see; empty: none."""
    listen_steps: int = 50
    """Solver steps of those."""
    device: str = "cpu"


def run(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("policy", "reward"):
        kind, arguments = arguments[0], arguments[1:]
    else:
        kind = "reward"
    name, flags = positional(arguments, kind, USAGE[kind])
    if kind == "policy":
        _run_policy(name, parsed(CheckPolicy, flags, "dragon check policy POLICY"))
    else:
        _run_reward(name, parsed(CheckReward, flags, "dragon check REWARD"))


def _run_reward(name: str, wanted: CheckReward) -> None:
    from dragon.build import build, check_device
    from dragon.config import Spec
    from dragon.testing import check_reward, example_clips

    for key in ("options", "columns"):
        _check_keys(key, getattr(wanted, key))
    check_device(wanted.device)
    media = example_clips(wanted.seconds, wanted.rate, wanted.channels)
    media = example_clips(wanted.seconds, wanted.rate, wanted.channels, _columns(wanted.columns, len(media)))
    reward = build("reward", Spec(name, wanted.options), device=wanted.device)
    found = check_reward(reward, media)
    print(f"reward {found.name!r} of {found.kind} keeps its contract; checked on {found.clips} clips of ", end="")
    print(f"{wanted.seconds:g} s at {wanted.rate} Hz, {wanted.channels} channel{'s' if wanted.channels > 1 else ''}:")
    for law in found.laws:
        print(f"  {law}")
    print(_figures(found))


def _run_policy(name: str, wanted: CheckPolicy) -> None:
    from dragon.build import build_policy, check_device
    from dragon.config import Spec, TrainConfig
    from dragon.testing import check_policy

    _check_keys("options", wanted.options)
    _check_numbers(wanted)
    check_device(wanted.device)
    config = TrainConfig(policy=Spec(name, wanted.options), tuning=wanted.tuning, device=wanted.device)
    policy = build_policy(config)
    found = check_policy(policy, wanted.prompt, steps=wanted.steps, guidance=wanted.guidance)
    print(f"policy {found.name!r} keeps its contract; checked on {len(wanted.prompt)} prompts:")
    for law in found.laws:
        print(f"  {law}")
    print(_seen(found))
    if wanted.listen:
        for path in _decoded(policy, wanted):
            print(path)


def _check_keys(flag: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"--{flag} is {value!r}; expected YAML keys, such as '{{key: value}}'")


def _check_numbers(wanted: CheckPolicy) -> None:
    if len(set(wanted.prompt)) < 2:
        raise ConfigError(f"--prompt is {list(wanted.prompt)}; expected at least 2 different prompts")
    if wanted.steps < 1 or wanted.listen_steps < 1:
        raise ConfigError(f"--steps is {wanted.steps}, --listen_steps {wanted.listen_steps}; expected at least 1")
    if wanted.listen and Path(wanted.listen).exists():
        raise ConfigError(f"--listen {wanted.listen!r} exists; choose another folder")


def _columns(given: Mapping[str, object], clips: int) -> dict[str, tuple[object, ...]]:
    columns = {}
    for name, value in given.items():
        values = tuple(value) if isinstance(value, list) else (value,) * clips
        if len(values) != clips:
            raise ConfigError(f"--columns: {name} has {len(values)} values; expected one, or a list of {clips}")
        columns[str(name)] = values
    return columns


def _figures(found: Checked) -> str:
    what = "scores of sets" if found.kind == "sets" else "scores"
    scores = "no scores" if math.isnan(found.low) else f"{what} from {found.low + 0.0:.4g} to {found.high + 0.0:.4g}"
    abstained = f", {found.abstained} of {found.clips} without opinion" if found.abstained else ""
    speed = f"; {found.clips_per_second:.4g} clips a second"
    return scores + abstained + speed + ("" if found.real_time is None else f", {found.real_time:.4g} times real time")


def _seen(found: CheckedPolicy) -> str:
    clip = " x ".join(map(str, found.clip))
    if found.rate:
        clip = f"{clip} at {found.rate} Hz ({found.clip[-1] / found.rate:.4g} s)"
    return (
        f"latents {' x '.join(map(str, found.latent))}, clips {clip}\n"
        f"trained: {found.parameters:,} parameters in {found.tensors} tensors\n"
        f"{found.sample_seconds:.3g} s a sample of {found.steps} step{'s' if found.steps > 1 else ''}, "
        f"{found.step_seconds:.3g} s a training step of {found.rows} clips\n"
        f"the starting model explains {found.explained:.0%} of what it was trained to predict"
        + (_UNEXPLAINED if found.explained < 0.3 else "")
    )


_UNEXPLAINED = """: with random weights that is so; with trained ones sign,
time, scale or conditions are wrong here"""


def _decoded(policy: Policy, wanted: CheckPolicy) -> list[Path]:
    """One file a prompt."""
    from dragon.clips import write_clip
    from dragon.files import writing

    folder = Path(wanted.listen)
    media = policy.decode(
        policy.generate(
            wanted.prompt, list(range(len(wanted.prompt))), steps=wanted.listen_steps, guidance=wanted.guidance
        )
    )
    with writing("the samples", folder, "make room or allow it, or choose another --listen"):
        folder.mkdir(parents=True, exist_ok=True)
        return [write_clip(media, row, folder / f"{row:04d}").path for row in range(len(media))]
