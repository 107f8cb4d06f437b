"""dragon plan CONFIG.yaml [--hours N] [--json] [--key value ...]
dragon plan CONFIG.yaml --estimate [--processes N] [--sharded] [--json] [--key value ...]

--estimate: the memory of a pipeline without its weights and without the device; nothing is run."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING

from dragon.commands.train import configured
from dragon.errors import ConfigError

if TYPE_CHECKING:
    from dragon.config import TrainConfig
    from dragon.estimate import Estimate
    from dragon.plan import Plan


def run(arguments: list[str]) -> None:
    flags = {flag: flag in arguments for flag in ("--json", "--estimate", "--sharded")}
    rest, as_json = [word for word in arguments if word not in flags], flags["--json"]
    hours, processes = _taken(rest, "--hours", "hours"), _taken(rest, "--processes", "processes")
    _check(flags, hours, processes)
    config = configured(rest, "plan", elsewhere=flags["--estimate"])
    if flags["--estimate"]:
        from dragon.estimate import estimate

        told = estimate(config, processes=int(processes) or 1, sharded=flags["--sharded"])
        print(json.dumps(told.to_json(), indent=1) if as_json else "\n".join(_memory(config, told)))
        return
    from dragon.plan import plan

    found = plan(config, hours=hours, say=lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(_lines(config, found)))


def _check(flags: dict[str, bool], hours: float, processes: float) -> None:
    """Raises ConfigError for words that go with the other kind of plan."""
    if flags["--estimate"] and hours:
        raise ConfigError("--hours goes with a plan of real steps; --estimate tells memory, not time: leave one out")
    if (flags["--sharded"] or processes) and not flags["--estimate"]:
        raise ConfigError("--processes and --sharded go with --estimate; real steps are made by one process here")
    if processes != int(processes):
        raise ConfigError(f"--processes is {processes}; expected a whole number")
    if flags["--sharded"] and processes < 2:
        raise ConfigError("--sharded shares weights out over processes; give their number, for example --processes 8")


def _taken(arguments: list[str], flag: str, unit: str) -> float:
    """The number after `flag`, both taken out of the arguments; 0 where it is not given."""
    if flag not in arguments:
        return 0.0
    place = arguments.index(flag)
    text = "".join(arguments[place + 1 : place + 2])
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise ConfigError(f"{flag} is {text!r}; expected a number of {unit} above 0")
    del arguments[place : place + 2]
    return value


def _memory(config: TrainConfig, found: Estimate) -> list[str]:
    from dragon.estimate import LEFT_OUT
    from dragon.files import readable

    shared = f", one of {found.processes} processes" if found.processes > 1 else ""
    parts = ", ".join(f"{name} {readable(size)}" for name, size in found.parts.items())
    kept = ", ".join(f"{name} {readable(size)}" for name, size in found.kept.items())
    rows = found.rows
    calls = {"roll-out": f"{rows['roll-out']} samples a call", "training": f"{rows['training']} rows a micro-batch"}
    return [
        f"{found.policy} on {config.device}{shared}{', weights sharded' if found.sharded else ''}: the most at once",
        *(
            f"{name:12} {readable(size)}{f' ({calls[name]})' if name in calls else ''}"
            for name, size in found.stages.items()
        ),
        f"weights      {parts}",
        f"kept         {kept}",
        f"sizes        {found.source}",
        LEFT_OUT,
    ]


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
