"""dragon train CONFIG.yaml [--key value ...]"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dragon.commands.arguments import positional, with_flags
from dragon.commands.progress import Progress, print_evaluation


def run(arguments: list[str]) -> None:
    place, flags = positional(arguments, "configuration", "dragon train CONFIG.yaml [--key value ...]")
    from dragon.config import TrainConfig, from_dict, read_yaml, to_yaml
    from dragon.loading import parse

    values = read_yaml(place) if place else {}  # to ask for help none is needed
    given, problems = parse(TrainConfig, values)
    if problems or given is None:
        from dragon.build import plugin_problems

        from_dict(values, [plugin_problems], place)  # says these problems, and all others
    config = with_flags(given or TrainConfig(), flags, "dragon train CONFIG.yaml")

    from dragon import build, run, runfolder

    config = from_dict(dataclasses.asdict(config), [build.plugin_problems], place)
    if config.dry_run:
        runfolder.check_folder(config, print)
        for line in run.notices(build.build_run(config)):
            print(line)
        print(to_yaml(config), end="")
        return
    with Progress() as progress:
        result = run.train(config, say=progress.say, progress=progress)
    print_evaluation(result, Path(config.output_dir))
