"""What moved, as a picture: rows of tuned models beside their base. Part of benchmarks/set_tuning.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dragon.texts import literal

PANELS = (
    ("set_frechet_held_out", "dataset FAD to other disco clips", -1),
    ("heard_disco", "heard as disco, %", 100),
    ("vendi_judge", "Vendi, judge's space", 1),
)
"""Reward, what the panel is called, factor from the reward to what is shown."""
RATES = (("clap_score", "CLAP score: wins over base, %"), ("judge_score", "judge: wins over base, %"))
BASE, MOVED, CONTROL = "#a9b0b9", "#1f9e77", "#44546a"


def picture(rows: Sequence[dict], path: Path) -> None:
    """Base (grey) -> tuned of each row, means over seeds; of prompt fit the win rates with their 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.1 + 0.34 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(PANELS) + len(RATES), sharey=True)
    places = list(range(len(rows)))[::-1]
    for axes, (name, title, factor) in zip(panels, PANELS, strict=False):
        for place, row in zip(places, rows, strict=True):
            base, tuned = factor * row["base"][name], factor * row["tuned"][name]
            axes.plot([base, tuned], [place, place], color=_colour(row), lw=1.2, alpha=0.6)
            axes.plot(base, place, "o", color=BASE, ms=5)
            axes.plot(tuned, place, "o", color=_colour(row), ms=6)
        _finish(axes, title)
    for axes, (name, title) in zip(panels[len(PANELS) :], RATES, strict=True):
        axes.axvline(50, color=BASE, lw=1)
        for place, row in zip(places, rows, strict=True):
            mean, low, high = (100 * share for share in row["win_rate"][name])
            axes.plot([low, high], [place, place], color=_colour(row), lw=1.2)
            axes.plot(mean, place, "o", color=_colour(row), ms=6)
        axes.set_xlim(25, 75)
        _finish(axes, title)
    names = [f"control: {row['name']}" if row["control"] else row["name"] for row in rows]
    panels[0].set_yticks(places, [literal(name) for name in names], fontsize=8)
    figure.savefig(path)


def _colour(row: dict) -> str:
    return CONTROL if row["control"] else MOVED


def _finish(axes: Any, title: str) -> None:
    axes.set_xlabel(title, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", lw=0.4, alpha=0.5)
