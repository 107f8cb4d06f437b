"""From a set's reward to D+ and D-: which way gains most, an iteration and a minute. Part of benchmarks/set_tuning.py.

Minutes are those of the fastest seed, since other work may have shared the machine with the rest.

All ways end near the same distance, so what tells them apart is the way there: the reward of each iteration's own 64
samples, as training logged it. Random labels at the same seed saw the same prompts and noise, so their reward is taken
off, iteration by iteration, and with it what a set owes to its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

WINDOW = 5
"""Iterations that a smoothed curve averages."""
LAST = 10
"""Iterations that say where a run ends."""
COLOURS = ("#1f9e77", "#7a5195", "#d1752b", "#44546a")


def curve(log: Sequence[dict], reward: str) -> dict[str, list[float]]:
    """Reward of the set of each iteration's samples, and minutes of training until then, from a run's log."""
    minutes = np.cumsum([sum(step["seconds"].values()) for step in log]) / 60
    return {"reward": [step["rewards"][reward] for step in log], "minutes": minutes.round(4).tolist()}


def gained(rows: Sequence[dict], control: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Key of a row -> (reward above the control's, minutes), each (steps,), of every seed that both were run with."""
    base = next((row["curves"] for row in rows if row["key"] == control), {})
    found = {}
    for row in rows:
        if row["key"] == control:
            continue
        pairs = [(curves, base[seed]) for seed, curves in row["curves"].items() if seed in base]
        found[row["key"]] = [
            (np.subtract(one["reward"], other["reward"]), np.array(one["minutes"])) for one, other in pairs
        ]
    return {key: seeds for key, seeds in found.items() if seeds}


def half_way(gain: np.ndarray) -> int:
    """The first iteration, from 1, at which the smoothed gain is half of what the last `LAST` iterations average."""
    reached = smooth(gain) >= gain[-LAST:].mean() / 2
    return int(reached.argmax()) + 1 if reached.any() else len(gain)


def smooth(gain: np.ndarray) -> np.ndarray:
    """(steps,) mean over `WINDOW` iterations around each, fewer at the ends."""
    kernel = np.ones(WINDOW)
    return np.convolve(gain, kernel, "same") / np.convolve(np.ones(len(gain)), kernel, "same")


def lines(rows: Sequence[dict], names: dict[str, str], control: str, parts: Sequence[tuple[int, int]]) -> list[str]:
    """A table: gain over random labels in `parts` (first and last iteration, from 1), and how soon half is reached."""
    by_key = gained(rows, control)
    if not by_key:
        return []
    heads = [f"iterations {first}-{last}" for first, last in parts]
    table = [
        f"| credit | seeds | {' | '.join(heads)} | iterations to half | minutes to half | search or credits |",
        "| --- " * (len(heads) + 5) + "|",
    ]
    for key, seeds in by_key.items():
        row = next(row for row in rows if row["key"] == key)
        cells = [names[key], str(len(seeds))]
        cells += [_over_seeds([gain[first - 1 : last].mean() for gain, _ in seeds]) for first, last in parts]
        half = [half_way(gain) for gain, _ in seeds]
        minutes = min((minutes for _, minutes in seeds), key=lambda minutes: minutes[-1])
        cells += [_over_seeds(half, 0), f"{np.mean([minutes[h - 1] for h in half]):.1f}"]
        table.append("| " + " | ".join([*cells, f"{100 * row['search_share']:.1f} %"]) + " |")
    return table


def picture(rows: Sequence[dict], names: dict[str, str], control: str, path: Path) -> None:
    """The smoothed gains over random labels, mean and range of seeds, against iterations and against minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (key, seeds) in enumerate(gained(rows, control).items()):
        colour = COLOURS[place]
        gains = np.stack([smooth(gain) for gain, _ in seeds])
        mean, steps = gains.mean(0), np.arange(1, gains.shape[1] + 1)
        minutes = min((minutes for _, minutes in seeds), key=lambda minutes: minutes[-1])
        for axes, x in ((left, steps), (right, minutes)):
            axes.plot(x, mean, color=colour, label=names[key])
            axes.fill_between(x, gains.min(0), gains.max(0), color=colour, alpha=0.15, linewidth=0)
    left.set(xlabel="iteration", ylabel="dataset FAD below random labels'")
    right.set(xlabel="minutes of training, one thread")
    for axes in (left, right):
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path)


def _over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and the range of seeds."""
    low, high = min(values), max(values)
    text = f"{np.mean(values):.{max(digits, 1)}f}"
    return text if len(values) < 2 else f"{text} ({low:.{digits}f} to {high:.{digits}f})"
