"""dragon evaluate RUN [--evaluation.prompts 64 ...]"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dragon.commands.arguments import positional, with_flags
from dragon.commands.progress import Progress, print_evaluation


def run(arguments: list[str]) -> None:
    place, flags = positional(arguments, "run folder", "dragon evaluate RUN [--evaluation.prompts 64 ...]")
    from dragon import build, run
    from dragon.config import TrainConfig, from_dict

    # to ask for help no run is needed
    given = dataclasses.replace(run.read_run(Path(place)), output_dir=place) if place else TrainConfig()
    config = with_flags(given, flags, "dragon evaluate RUN")
    config = from_dict(dataclasses.asdict(config), [build.plugin_problems], place)
    folder = Path(place)
    with Progress() as progress:
        result = run.reevaluate(config, folder, say=progress.say, progress=progress)
    print_evaluation(result, Path(config.output_dir))
