"""dragon train CONFIG.yaml [--key value ...]"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dragon.commands.arguments import positional, with_flags
from dragon.commands.progress import Progress, print_evaluation
from dragon.errors import ConfigError

if TYPE_CHECKING:
    from dragon.config import Check, TrainConfig


def run(arguments: list[str]) -> None:
    config = configured(arguments, "train")
    import torch

    from dragon import build, run, runfolder
    from dragon.config import to_yaml
    from dragon.processes import launched

    _check_launch()
    processes = launched(config.device)
    if config.dry_run:
        if not processes.main:
            return
        runfolder.check_folder(config, print)
        for line in run.notices(build.build_run(config)):
            print(line)
        print(to_yaml(config), end="")
        return
    with Progress() as progress:
        result = run.train(config, say=progress.say, progress=progress, processes=processes)
    if processes.main:
        print_evaluation(result, Path(config.output_dir))
    if processes.count > 1:
        torch.distributed.destroy_process_group()  # NCCL warns of one that is left


def configured(arguments: list[str], command: str, *, elsewhere: bool = False) -> TrainConfig:
    """The configuration that a command was given: its file, the flags winning over it, both checked.

    elsewhere: the run is not for this machine, whose devices do not matter then.

    Raises:
        ConfigError: all problems at once.
    """
    usage = f"dragon {command} CONFIG.yaml [--key value ...]"
    place, flags = positional(arguments, "configuration", usage)
    from dragon.config import TrainConfig, from_dict, read_yaml
    from dragon.loading import parse

    values = read_yaml(place) if place else {}  # to ask for help none is needed
    given, problems = parse(TrainConfig, values)
    if problems or given is None:
        from_dict(values, [_problems(elsewhere)], place)  # says these problems, and all others
    config = with_flags(given or TrainConfig(), flags, f"dragon {command} CONFIG.yaml")
    return from_dict(dataclasses.asdict(config), [_problems(elsewhere)], place)


def _problems(elsewhere: bool) -> Check:
    from dragon.build import plugin_problems  # after --help, which needs no torch

    if not elsewhere:
        return plugin_problems
    return lambda config: [problem for problem in plugin_problems(config) if problem.path != "device"]


def _check_launch() -> None:
    """`accelerate launch --cpu --num_processes 8` starts one process and says nothing.

    Raises:
        ConfigError: that is how this process was started.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # accelerate names the main process's address where it was asked for more than one, and numbers those it starts
    if on_cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate launch --cpu starts one process, whatever --num_processes says; several on a CPU come by "
            "`accelerate launch --multi_gpu --num_processes N -m dragon train ... --device cpu`, one by dragon train"
        )
