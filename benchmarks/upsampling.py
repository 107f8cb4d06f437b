"""New transitions beside a plain implementation of the published loop: docs/upsampling.md.

    python benchmarks/upsampling.py                    # resumable, some 70 CPU minutes
    python benchmarks/upsampling.py --part sampling    # only that part anew: training, sampling, quality

Claims, of training: at least 1.5 times as many steps a CPU second at width 256 and more than 1 time above; of sampling:
at least 4 times as many transitions a CPU second with a dynamics error that is not worse; of quality at width 256
after as many CPU seconds as 10,000 steps of the published loop take: HalfCheetah dynamics error at most .12 and
marginals at least .965, Hopper dynamics error at most .003, nearest rows not below half the distance of held-out ones.

The plain side is `published_loop.py`, written down there from the paper. Data: recipes/transitions/collect.py, 20,000
rows of a task, of which 5,000 are held out.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from published_loop import HELD_OUT, RELEASED, ROWS, PlainLoop, data, interval, keep, released, run_missing, shown
from seeded_runs import ROOT, notes, processor

from dragon.synther import PAPER_SAMPLING, SampleConfig, Transitions, TransitionSpec, fit, preset
from dragon.synther.columns import Layout, fit_layout
from dragon.synther.fitting import finished, prepare
from dragon.synther.quality import quality

RESULTS = ROOT / "benchmarks" / "results" / "upsampling"
TASKS = ("HalfCheetah-v5", "Hopper-v5")
SIDES = {"plain": "published loop, 255 calls", "ours": "dragon, 63 calls"}
STEPS = {"plain": 10_000, "ours": 16_000}  # of a fit: about as many CPU seconds, by the speed part
DRAWN = 5_000
WIDTHS = {256: 400, 1024: 60, 2048: 20}  # steps of one round
ROUNDS = 6


# ---- speed


class Clock:
    """CPU seconds inside a `with`: of this process, and of its loader's workers once they have ended."""

    def __enter__(self) -> Clock:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._now() - self._start

    @staticmethod
    def _now() -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime


def training_speed() -> dict[str, Any]:
    """Rounds of both sides in turn: CPU seconds of the same number of training steps."""
    train, layout, rows = timed()
    found: dict[str, Any] = {}
    for width, steps in WIDTHS.items():
        plain = PlainLoop(rows, width, 128, 0, 100_000)
        ours, _, _ = prepare(train, RELEASED, preset("tiny", width=width, max_steps=100_000))
        plain.train(20)
        list(ours.steps(20))
        rounds = []
        for _ in range(ROUNDS):
            with Clock() as theirs:
                plain.train(steps)
            with Clock() as mine:
                list(ours.steps(ours.step + steps))
            rounds.append([theirs.seconds / steps, mine.seconds / steps])
        found[str(width)] = rounds
        print(f"width {width}: {np.median([a / b for a, b in rounds]):.2f} times as many steps", flush=True)
    return machine(layout) | {"rounds": found}


def sampling_speed() -> dict[str, Any]:
    """Rounds of both sides in turn: CPU seconds of drawing a row."""
    train, layout, rows = timed()
    plain = PlainLoop(rows, 256, 128, 0, 100_000)
    ours, coded, _ = prepare(train, TransitionSpec(), preset("tiny"))
    model = finished(ours, coded, None)
    rounds = []
    for seed in range(ROUNDS):
        with Clock() as theirs:
            plain.sample(2048, rows.shape[1])
        with Clock() as mine:
            model.sample(2048, seed=seed)
        rounds.append([theirs.seconds / 2048, mine.seconds / 2048])
    print(f"sampling: {np.median([a / b for a, b in rounds]):.2f} times as many rows", flush=True)
    return machine(layout) | {"rounds": rounds}


def timed() -> tuple[Transitions, Layout, torch.Tensor]:
    """The rows that both sides are timed with."""
    train, _ = data("HalfCheetah-v5", 0)
    layout = fit_layout(train, RELEASED)
    return train, layout, layout.encode(train)[0]


def machine(layout: Layout) -> dict[str, Any]:
    return {"machine": processor(), "torch": torch.__version__, "d": layout.d}


SPEEDS = {"training": training_speed, "sampling": sampling_speed}


def timing(part: str) -> Path:
    return RESULTS / f"{part}.json"


# ---- quality


def one(task: str, side: str, seed: int) -> dict[str, Any]:
    """A fit and its figures; of ours also those of rows that are drawn as published."""
    train, held_out = data(task, seed)
    found: dict[str, Any] = {"task": task, "side": side, "seed": seed, "machine": processor()}
    if side == "plain":
        layout = fit_layout(train, RELEASED)
        rows, _ = layout.encode(train)
        loop = PlainLoop(rows, 256, 128, seed, STEPS[side])
        with Clock() as fitting:
            loop.train(STEPS[side])
        torch.manual_seed(1000 + seed)
        with Clock() as drawing:
            drawn = loop.sample(DRAWN, rows.shape[1])
        new = released(drawn, layout, train)
    else:
        with Clock() as fitting:
            model = fit(train, TransitionSpec(), preset("tiny", max_steps=STEPS[side], seed=seed))
        layout = model.layout
        with Clock() as drawing:
            new = model.sample(DRAWN, seed=1000 + seed, sampling=SampleConfig())
        with Clock() as slowly:
            slow = model.sample(DRAWN, seed=1000 + seed, sampling=PAPER_SAMPLING)
        found["as_published"] = figures(slow, train, held_out, layout, task, seed)
        found["as_published"] |= {"training_seconds": fitting.seconds, "sampling_seconds": slowly.seconds}
    found |= figures(new, train, held_out, layout, task, seed)
    return found | {"training_seconds": fitting.seconds, "sampling_seconds": drawing.seconds}


def figures(
    new: Transitions, train: Transitions, held_out: Transitions, layout: Layout, task: str, seed: int
) -> dict[str, Any]:
    found = quality(new, train, held_out, layout, environment=task, seed=seed).figures
    dynamics = found["dynamics"]
    flag = found["flags"].get("terminals")
    return {
        "error": dynamics["error"]["new"],
        "reward_error": dynamics["reward_error"]["new"],
        "marginal": found["similarity"]["new"],
        "ceiling": found["similarity"]["real"],
        "nearest": found["nearest"]["ratio"]["new"],
        "inside": found["bounds"]["inside_box"],
        "terminal_rate": None if flag is None else flag["new"],
        "data_rate": None if flag is None else flag["data"],
        "recall": dynamics["terminal_recall"]["new"],
    }


def kept(task: str, side: str, seed: int) -> Path:
    return RESULTS / f"{task}_{side}_{seed}.json"


def run_quality(seeds: int, workers: int) -> None:
    wanted = [(task, side, seed) for seed in range(seeds) for task in TASKS for side in SIDES]
    for task in TASKS:
        data(task, 0)  # made once, before processes could make it at once

    run_missing(__file__, wanted, kept, workers)


# ---- page


def ratio(rounds: list[list[float]]) -> str:
    """Of CPU seconds, plain over ours: the geometric mean of rounds and its interval."""
    middle, half = interval([math.log(a / b) for a, b in rounds])
    return f"{math.exp(middle):.2f} [{math.exp(middle - half):.2f}, {math.exp(middle + half):.2f}]"


def page() -> str:
    """docs/upsampling.md of the parts that are there."""
    lines = [
        "# Upsampling beside the published loop",
        "",
        "Made by `python benchmarks/upsampling.py`, one thread; the plain side is `benchmarks/published_loop.py`.",
        "",
    ]
    speeds = [json.loads(timing(part).read_text()) for part in SPEEDS if timing(part).exists()]
    if len(speeds) == len(SPEEDS):
        lines += speed_lines(*speeds)
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_*_[0-9].json"))]
    if runs:
        lines += quality_lines(runs)
    return "\n".join(lines) + notes("upsampling")


def speed_lines(training: dict[str, Any], sampling: dict[str, Any]) -> list[str]:
    lines = [
        "## Speed",
        "",
        f"{training['machine']}, torch {training['torch']}; HalfCheetah, D = {training['d']}, batch 256; {ROUNDS} "
        "rounds of both sides in turn. Ratios: CPU seconds of the plain loop over ours, geometric mean and 95 % "
        "interval.",
        "",
        "| | published loop | dragon | times as fast |",
        "| --- | --- | --- | --- |",
    ]
    measured = {f"training, width {w}: steps a CPU second": rounds for w, rounds in training["rounds"].items()}
    measured["sampling, width 256: rows a CPU second, 255 calls of the network against 63"] = sampling["rounds"]
    for name, rounds in measured.items():
        rates = " | ".join(f"{1 / np.median([r[side] for r in rounds]):.1f}" for side in (0, 1))
        lines.append(f"| {name} | {rates} | {ratio(rounds)} |")
    return [*lines, ""]


def quality_lines(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Quality",
        "",
        f"Width 256; {STEPS['plain']:,} steps of the published loop, {STEPS['ours']:,} of dragon, which take about as "
        f"many CPU seconds; {DRAWN:,} new rows, {ROWS - HELD_OUT:,} rows in the fit. Means over seeds (of split, "
        "weights and samples) ± half of the 95 % interval. Third line: the second's models, sampled as published. "
        "Dynamics: the simulator is put into (s, a); mean squared error of s' over the variance of held-out rows. "
        "Marginal: mean of 1 - KS against held-out rows. Nearest: median distance to the nearest row of the fit over "
        "that of held-out rows. Recall: share of truly terminal rows that are flagged.",
        "",
        "| task | side | seeds | dynamics | reward | marginal (real rows) | terminals (data) | recall "
        "| nearest | actions in the box | CPU s of training | of drawing |",
        "| " + "--- | " * 12,
    ]
    for task in TASKS:
        mine = [run for run in runs if run["task"] == task]
        parts = {name: [run for run in mine if run["side"] == side] for side, name in SIDES.items()}
        parts["dragon, 255 calls"] = [run["as_published"] for run in parts[SIDES["ours"]]]
        for name, part in parts.items():
            if not part:
                continue
            ends = f"{shown(part, 'terminal_rate', 4)} ({shown(part, 'data_rate', 4)})" if part[0]["data_rate"] else "-"
            cells = [
                task,
                name,
                str(len(part)),
                shown(part, "error", 4),
                shown(part, "reward_error", 4),
                f"{shown(part, 'marginal', 3)} ({shown(part, 'ceiling', 3)})",
                ends,
                shown(part, "recall", 2),
                shown(part, "nearest", 2),
                shown(part, "inside", 3),
                shown(part, "training_seconds", 0),
                shown(part, "sampling_seconds", 1),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*SPEEDS, "quality"), help="only that part; default: what is missing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", nargs=3, metavar=("TASK", "SIDE", "SEED"), help="one run of the quality table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.one:
        keep(options.one, one, kept)
        return
    for part, measure in SPEEDS.items():
        if options.part == part or (options.part is None and not timing(part).exists()):
            timing(part).write_text(json.dumps(measure()) + "\n", encoding="utf-8")
    if options.part in (None, "quality"):
        run_quality(options.seeds, options.workers)
    (ROOT / "docs" / "upsampling.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
