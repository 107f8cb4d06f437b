"""What a training iteration of the built-in model costs, and where the time goes: docs/training_cost.md.

    python benchmarks/training_cost.py                   # some 8 CPU minutes
    python benchmarks/training_cost.py --parts launches  # only that part anew: stages, launches

Claims: keeping a run safe (log, TensorBoard, the copy that a whole step needs, checkpoints) costs less than 3 % of its
CPU time; what two processes and overlapped scoring save is whatever the page says.

Every figure comes from an ordinary `dragon train` of configs/mini_objectives.yaml, one thread a process. `stages`: one
run each of an adapter and of all weights that saves after every step, with a clock around saving, logging and copying;
stages are those of log.jsonl. `launches`: runs of one process, of two, and of one that scores while it samples, in
turn; a step's time is that between two lines of progress, its CPU time that of all processes. What comes but once a
run is left out with its first step (`stages`: two). Finished parts lie as JSON in benchmarks/results/training_cost; the
page is made of all that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from seeded_runs import ROOT, processor

from dragon.config import load, to_yaml

CONFIG = ROOT / "configs" / "mini_objectives.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "training_cost"
KINDS = {"lora": "LoRA", "full": "all weights"}
STAGE_STEPS, SKIPPED = 7, 2  # of the five logs that are counted one writes clips to TensorBoard, as one in five does
LAUNCH_STEPS, ROUNDS = 3, 2
LAUNCHES = {"one": "one process", "two": "two processes", "overlap": "one process, scoring while sampling"}
LIMIT = 0.03
SAVE_STEPS = 10  # the default of a run

Spent = tuple[float, float]
"""CPU and wall-clock seconds."""


# ---- stages, memory and what safety costs: one run in this process


class Clock:
    """Seconds spent inside the functions it was put around, and how they stood at each mark."""

    def __init__(self) -> None:
        self.totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
        self.marks: list[dict[str, Any]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its CPU seconds, wall-clock seconds and calls added to `totals[name]`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                for i, value in enumerate((*(b - a for a, b in zip(began, now(), strict=True)), 1)):
                    self.totals[name][i] += value

        return call

    def marking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a mark before each call."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.mark()
            return function(*args, **kwargs)

        return call

    def mark(self) -> None:
        spent = {name: list(values) for name, values in self.totals.items()}
        self.marks.append({"now": now(), "spent": spent, "peak_mb": peak_mb()})


def stages(kind: str, place: Path) -> dict[str, Any]:
    """Trains in this process with a clock around what keeps the run safe."""
    import torch

    from dragon import checkpoint, run, track, trainer

    torch.set_num_threads(1)
    clock = Clock()
    checkpoint.save = clock.timed("save", checkpoint.save)
    trainer.Trainer.state_dict = clock.timed("copy", trainer.Trainer.state_dict)  # type: ignore[method-assign]
    for tracker in (track.JsonLines, track.TensorBoard, track.ProgressLine):
        tracker.log = clock.timed("log", tracker.log)  # type: ignore[method-assign]
    # a line of the log ends a step; what follows it up to the next line is the next step's
    track.JsonLines.log = clock.marking(track.JsonLines.log)  # type: ignore[method-assign]
    config = load(CONFIG, changes(place / "run", STAGE_STEPS) | {"tuning.kind": kind, "save_steps": 1})
    trainer.Trainer.run = clock.marking(trainer.Trainer.run)  # type: ignore[method-assign]  # first: all is loaded
    run.train(config, say=lambda line: None)
    loaded, *ends = clock.marks
    if len(ends) != STAGE_STEPS or any(clock.totals[name][2] < STAGE_STEPS for name in ("save", "copy", "log")):
        raise SystemExit(f"the clock saw {dict(clock.totals)} in {len(ends)} steps: what it times has moved")
    lines = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()][SKIPPED:]
    newest = max((place / "run" / "checkpoints").glob("step-*"))
    return settings() | {
        "steps": len(lines),
        "seconds": {stage: fmean(line["seconds"][stage] for line in lines) for stage in lines[0]["seconds"]},
        "loaded_mb": loaded["peak_mb"],
        "step_mb": ends[0]["peak_mb"],  # before anything was saved
        "run_mb": ends[-1]["peak_mb"],
        "checkpoint_mb": sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) / 1e6,
        **safety(ends[SKIPPED - 1], ends[-1], len(lines)),
    }


def safety(first: Mapping[str, Any], last: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Of the steps between two marks: CPU and wall-clock seconds of a bare step, a log line, a copy, a checkpoint.

    Between them every step was saved and logged. The state is copied before each step and for each checkpoint.
    """
    spent = {
        name: [b - a for a, b in zip(first["spent"].get(name, (0, 0, 0)), values, strict=True)]
        for name, values in last["spent"].items()
    }
    found: dict[str, Spent] = {}
    for name in ("log", "save", "copy"):
        cpu, wall, calls = spent[name]
        count = calls if name == "copy" else steps  # a line of the log is one call to each tracker
        found[name] = (cpu / count, wall / count)
    bare = []
    for i, (a, b) in enumerate(zip(first["now"], last["now"], strict=True)):
        bare.append((b - a - sum(values[i] for values in spent.values())) / steps)
    return {"step": bare, **found}


def share(found: Mapping[str, Any], every: int, clock: int = 0) -> float:
    """Log, copies and a checkpoint every so many steps, as a share of a whole step's time (0: CPU, 1: wall clock)."""
    log, copy, save, step = (found[name][clock] for name in ("log", "copy", "save", "step"))
    extra = log + copy + (save + copy) / every
    return float(extra / (step + extra))


def now() -> Spent:
    return time.process_time(), time.perf_counter()


def peak_mb() -> float:
    """The largest memory this process has held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# ---- launches: whole runs from outside


def launches(place: Path) -> dict[str, Any]:
    """Seconds of each step but the first, of each kind of run, in turn."""
    found: dict[str, list[list[Spent]]] = {kind: [] for kind in LAUNCHES}
    load_before = os.getloadavg()[0]
    for number in range(ROUNDS):
        for kind in LAUNCHES:
            found[kind].append(launch(kind, place / f"{kind}_{number}"))
            print(f"{LAUNCHES[kind]}: {found[kind][-1]}", flush=True)
    return settings() | {"runs": found, "cores": os.cpu_count(), "load": load_before}


def launch(kind: str, place: Path) -> list[Spent]:
    """One run: (CPU of all its processes, wall clock) of each step but the first."""
    place.mkdir(parents=True)
    config = load(
        CONFIG,
        changes(place / "run", LAUNCH_STEPS)
        | {"save_steps": 0, "report_to": "none", "rollout.batch_size": 16}  # four batches, so that there is an overlap
        | {"rollout.overlap_scoring": kind == "overlap"},
    )
    (place / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if kind == "two" else []
    call = [sys.executable, *launcher, "-m", "dragon", "train", str(place / "config.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    said, ends = [], []
    with subprocess.Popen(
        call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if re.match(r"step \d+/\d+ ", line):
                ends.append((cpu_of(process.pid), time.perf_counter()))
    if process.returncode or len(ends) != LAUNCH_STEPS:
        raise SystemExit(f"{' '.join(call)} ended with {process.returncode}:\n{''.join(said[-20:])}")
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]


def cpu_of(process: int) -> float:
    """CPU seconds so far of a process and all that it started and that still run; NaN where there is no /proc."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        number = int(stat.parent.name)
        parents[number] = int(fields[1])
        seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return sum(seconds[n] for n in descendants(process, parents)) if process in seconds else float("nan")


def descendants(process: int, parents: Mapping[int, int]) -> set[int]:
    """The process and all below it."""
    found, more = {process}, {process}
    while more:
        more = {number for number, parent in parents.items() if parent in more} - found
        found |= more
    return found


def ratios(runs: Mapping[str, Sequence[Sequence[Sequence[float]]]], kind: str, clock: int) -> list[float]:
    """Of each round: this kind's time a step over that of one process (0: CPU of all processes, 1: wall clock)."""
    return [
        fmean(step[clock] for step in its) / fmean(step[clock] for step in one)
        for its, one in zip(runs[kind], runs["one"], strict=True)
    ]


# ---- both


def changes(folder: Path, steps: int) -> dict[str, object]:
    """Short, and with hardly any evaluation."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "evaluation.prompts": 2,
        "evaluation.samples_per_prompt": 1,
        "evaluation.watch": [],
        "evaluation.keep_samples": 0,
    }


def settings() -> dict[str, str]:
    names = ("torch", "diffusers", "peft", "numpy")
    return {"machine": processor(), "versions": ", ".join(f"{name} {version(name)}" for name in names)}


def keep(name: str, found: dict[str, Any]) -> None:
    """Prints a finished part and keeps it."""
    print(json.dumps(found), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def page(kept: Mapping[str, dict[str, Any]]) -> str:
    """docs/training_cost.md of the parts that are there."""
    some, config = next(iter(kept.values())), load(CONFIG)
    rollout, update = config.rollout, config.update
    lines = [
        "# What a training iteration costs",
        "",
        f"Made by `python benchmarks/training_cost.py` on {some['machine']}, one thread a process; "
        f"{some['versions']}. Runs of `{CONFIG.relative_to(ROOT)}`: {rollout.prompts_per_step} prompts, "
        f"{config.num_generations} samples each, {rollout.steps} solver steps with guidance, {update.updates_per_step} "
        f"updates of {update.pairs_per_update} pairs, network in float32. The start of a run is left out: its first "
        "step, where stages are timed its first two.",
    ]
    found = {kind: kept[f"stages_{kind}"] for kind in KINDS if f"stages_{kind}" in kept}
    if found:
        lines += stage_lines(found)
    if "launches" in kept:
        lines += launch_lines(kept["launches"])
    return "\n".join(lines) + "\n"


def stage_lines(found: Mapping[str, dict[str, Any]]) -> list[str]:
    heads, runs = [KINDS[kind] for kind in found], list(found.values())
    totals = [sum(run["seconds"].values()) for run in runs]
    worst = max(share(run, SAVE_STEPS) for run in runs)
    return [
        "",
        "## Stages and memory",
        "",
        f"Mean of {runs[0]['steps']} steps: wall-clock seconds of each stage and its share; CPU seconds of the step; "
        "the largest memory the process has held (resident, with libraries and weights).",
        "",
        f"| | {' | '.join(heads)} |",
        "| --- |" + " --- |" * len(heads),
        *(
            f"| {stage} | "
            + " | ".join(
                f"{r['seconds'][stage]:.2f} s, {r['seconds'][stage] / t:.1%}" for r, t in zip(runs, totals, strict=True)
            )
            + " |"
            for stage in runs[0]["seconds"]
        ),
        f"| whole step | {' | '.join(f'{total:.2f} s' for total in totals)} |",
        f"| whole step, CPU | {' | '.join('{:.2f} s'.format(run['step'][0]) for run in runs)} |",
        f"| memory, model loaded | {' | '.join('{:.0f} MB'.format(run['loaded_mb']) for run in runs)} |",
        f"| memory, one step | {' | '.join('{:.0f} MB'.format(run['step_mb']) for run in runs)} |",
        f"| memory, with saving | {' | '.join('{:.0f} MB'.format(run['run_mb']) for run in runs)} |",
        "",
        "## What safety costs",
        "",
        "CPU seconds (in brackets wall clock, which includes waiting for the disk) of a step's lines in log.jsonl and "
        "TensorBoard, of the copy of the state that makes a step happen wholly or not at all, and of a checkpoint; "
        "and their share of the time of a run. "
        + (
            f"At the default, a checkpoint every {SAVE_STEPS} steps, it stays below {LIMIT:.0%}."
            if worst < LIMIT
            else f"At the default, a checkpoint every {SAVE_STEPS} steps, it is {worst:.1%}: MORE than {LIMIT:.0%}."
        ),
        "",
        f"| | {' | '.join(heads)} |",
        "| --- |" + " --- |" * len(heads),
        *(
            f"| {text} | {' | '.join('{:.3f} s ({:.3f} s)'.format(*run[name]) for run in runs)} |"
            for name, text in (("log", "log, a step"), ("copy", "copy, a step"), ("save", "checkpoint"))
        ),
        f"| size of a checkpoint | {' | '.join('{:.0f} MB'.format(run['checkpoint_mb']) for run in runs)} |",
        *(
            f"| share, saved every {text} | "
            + " | ".join(f"{share(run, every):.2%} ({share(run, every, 1):.2%})" for run in runs)
            + " |"
            for every, text in ((SAVE_STEPS, f"{SAVE_STEPS} steps"), (1, "step"))
        ),
    ]


def launch_lines(found: Mapping[str, Any]) -> list[str]:
    runs = found["runs"]
    lines = [
        "",
        "## Two processes, and scoring while sampling",
        "",
        f"The same global batch, LoRA, batches of 16 samples; each kind in turn, {len(runs['one'])} times. Ratios are "
        f"to one process of the same round. The machine has {found['cores']} cores; its load was {found['load']:.1f} "
        "before. On a machine that other work shares, wall-clock ratios say little; the CPU ratio says how much work "
        "is done twice: two processes on free cores cannot take less than half of it.",
        "",
        "| | wall clock a step | CPU a step | wall-clock ratio (rounds) | CPU ratio (rounds) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, name in LAUNCHES.items():
        steps = [step for run in runs[kind] for step in run]
        cells = [name, *(f"{median(step[clock] for step in steps):.1f} s" for clock in (1, 0))]
        for clock in (1, 0):
            values = ratios(runs, kind, clock)
            listed = ", ".join(f"{value:.2f}" for value in values)
            cells.append("1" if kind == "one" else f"{fmean(values):.2f} ({listed})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["stages", "launches"], choices=["stages", "launches"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "training_cost.md")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "PLACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, place = options.one
        keep(f"stages_{kind}", stages(kind, Path(place)))
        return
    with tempfile.TemporaryDirectory(prefix="training-cost-") as folder:
        if "stages" in options.parts:
            for kind in KINDS:
                call = [sys.executable, __file__, "--one", kind, str(Path(folder) / kind)]
                subprocess.run(call, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, check=True)
        if "launches" in options.parts:
            keep("launches", launches(Path(folder)))
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    options.out.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
