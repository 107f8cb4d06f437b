"""dragon check REWARD [--options YAML ...]"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dragon.commands.arguments import parsed, positional
from dragon.errors import ConfigError

if TYPE_CHECKING:
    from dragon.testing import Checked

USAGE = "dragon check NAME|module:Name|file.py:Name [--options YAML ...]"


@dataclass(frozen=True)
class CheckReward:
    """Check that a reward keeps its contract, on four clips: two tones, noise, a fading tone."""

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


def run(arguments: list[str]) -> None:
    name, flags = positional(arguments, "reward", USAGE)
    wanted = parsed(CheckReward, flags, "dragon check REWARD")
    from dragon.build import build, check_device
    from dragon.config import Spec
    from dragon.testing import check_reward, example_clips

    for key in ("options", "columns"):
        if not isinstance(getattr(wanted, key), Mapping):
            raise ConfigError(f"--{key} is {getattr(wanted, key)!r}; expected YAML keys, such as '{{key: value}}'")
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
