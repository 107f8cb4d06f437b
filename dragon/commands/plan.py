"""dragon plan CONFIG.yaml [--hours N] [--json] [--key value ...]"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from dragon.commands.train import configured
from dragon.errors import ConfigError

if TYPE_CHECKING:
    from dragon.config import TrainConfig
    from dragon.plan import Plan


def run(arguments: list[str]) -> None:
    rest, as_json = [word for word in arguments if word != "--json"], "--json" in arguments
    hours = _taken(rest, "--hours")
    config = configured(rest, "plan")
    from dragon.plan import plan

    found = plan(config, hours=hours, say=lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(_lines(config, found)))


def _taken(arguments: list[str], flag: str) -> float:
    """The number after `flag`, both taken out of the arguments; 0 where it is not given."""
    if flag not in arguments:
        return 0.0
    place = arguments.index(flag)
    text = "".join(arguments[place + 1 : place + 2])
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ConfigError(f"{flag} is {text!r}; expected a number of hours above 0")
    del arguments[place : place + 2]
    return value


def _lines(config: TrainConfig, found: Plan) -> list[str]:
    from dragon.files import readable

    made, seconds, disk = found.generations, found.seconds, found.disk
    stages = ", ".join(f"{name} {value:.2f} s" for name, value in found.step_seconds.items())
    memory = f"{readable(found.memory['process'])}, the peak of two steps"
    if "gpu" in found.memory:
        memory = f"{readable(found.memory['gpu'])} on {config.device} and {memory}"
    if found.memory["replay"]:
        memory += f"; replayed pairs will add {readable(found.memory['replay'])}"
        memory += f" on {config.device}" if "gpu" in found.memory else ""
    return [
        f"steps        {found.steps}: {found.prompts:,} prompts, each {found.epochs:.3g} times; "
        f"{found.updates:,} updates",
        f"samples      {made['total']:,}: training {made['training']:,}, probes {made['probes']:,}, "
        f"evaluation {made['evaluation']:,}",
        f"one step     {stages}",
        f"time         {_time(seconds['total'])}: "
        + ", ".join(f"{name} {_time(value)}" for name, value in seconds.items() if name != "total")
        + "; of one process on this machine, as busy as it is now",
        f"memory       {memory}",
        f"disk         {readable(disk['total'])}: "
        + ", ".join(f"{name} {readable(value)}" for name, value in disk.items() if name != "total")
        + f"; {readable(found.free)} free",
        *(f"warning: {text}" for text in found.warnings),
    ]


def _time(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
