"""The quality of new transitions as files for people and programs: quality.json, pictures/*.png and report.html.

Knows figures and arrays that were found before (see `Found`), not how. Drawn as the other pictures are.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dragon.files import write_whole
from dragon.report.files import own_folder
from dragon.report.page import Page
from dragon.texts import literal

Floats = NDArray[np.float64]
REAL, NEW, GAUSSIAN = "#7a869a", "#1f9e77", "#d08a2e"
_COLORS = {"real": REAL, "held_out": REAL, "new": NEW, "gaussian": GAUSSIAN}
_LABELS = {"real": "real", "held_out": "held-out", "new": "new", "gaussian": "Gaussian"}
_SIDES = ("real", "new", "gaussian")
_MOST_COLUMNS = 60


class FoundVerdict(Protocol):
    """One line of the first table."""

    @property
    def aspect(self) -> str: ...
    @property
    def new(self) -> float: ...
    @property
    def real(self) -> float: ...
    @property
    def gaussian(self) -> float: ...
    @property
    def asked(self) -> str: ...
    @property
    def passed(self) -> bool: ...
    @property
    def words(self) -> str: ...


class FoundColumn(Protocol):
    """One line of the last table."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def similarity(self) -> Mapping[str, float]: ...
    @property
    def wasserstein(self) -> Mapping[str, float]: ...
    @property
    def mean(self) -> Mapping[str, float]: ...
    @property
    def std(self) -> Mapping[str, float]: ...


class Found(Protocol):
    """What is known of the new transitions, as `dragon.synther.quality` gives it."""

    @property
    def rows(self) -> Mapping[str, int]: ...
    @property
    def columns(self) -> Sequence[FoundColumn]: ...
    @property
    def verdicts(self) -> Sequence[FoundVerdict]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def drawn(self) -> Mapping[str, Floats]: ...
    @property
    def figures(self) -> Mapping[str, Any]: ...

    def to_json(self) -> dict[str, Any]: ...


def write_quality(found: Found, folder: str | os.PathLike[str], *, title: str = "Quality of new transitions") -> Path:
    """Writes `folder`/pictures/*.png, quality.json and report.html, which holds the pictures; the page's path."""
    root = Path(folder)
    place = own_folder(root, "pictures")
    page = Page(title)
    rows = found.rows
    page.note(
        f"{rows['new']:,} new rows are compared with {rows['held_out']:,} real rows that the fit has not seen. Beside "
        f"them stand as many of the {rows['train']:,} rows of the fit (real: the best that can be had), and rows of a "
        "Gaussian with the data's mean and covariance (what comes without any learning beyond that)."
    )
    for text in found.notes:
        page.note(f"Note: {text}.")
    page.table(("aspect", "new", "real", "Gaussian", "asked", "verdict"), [_line(v) for v in found.verdicts])
    for name, heading, text, figure in _pictures(found):
        png = _png(figure)
        write_whole(place / f"{name}.png", png)
        page.heading(heading)
        page.note(text)
        page.picture(png, heading)
    page.heading("All columns")
    page.note("1 - KS: 1 where the distributions are the same. W1: how far values would have to move, in deviations.")
    page.table(
        ("column", "kind", "1 - KS new", "real", "Gaussian", "W1 new", "real", "mean data", "new", "std data", "new"),
        [_column(column) for column in found.columns],
    )
    write_whole(root / "quality.json", (json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n").encode())
    return page.write(root / "report.html")


def number(value: float) -> str:
    """Three digits, and nothing where there is no number.

    >>> number(0.12345), number(float("nan"))
    ('0.123', '-')
    """
    return f"{value:.3g}" if math.isfinite(value) else "-"


# ---- pictures


def similarity_dots(columns: Sequence[FoundColumn]) -> Any:
    """1 - KS of every column and side, the worst on top."""
    ordered = sorted(columns, key=lambda c: c.similarity["new"])[:_MOST_COLUMNS]
    figure = _figure(7.5, 1.1 + 0.19 * len(ordered))
    axes = figure.add_subplot()
    places = np.arange(len(ordered))[::-1]
    for side in _SIDES:
        values = [column.similarity[side] for column in ordered]
        axes.plot(values, places, "o", color=_COLORS[side], ms=5 if side == "new" else 4, label=_LABELS[side])
    for place, column in zip(places, ordered, strict=True):
        axes.plot([column.similarity["new"], column.similarity["real"]], [place, place], color=NEW, lw=0.8, alpha=0.6)
    axes.set_yticks(places, [literal(column.name) for column in ordered], fontsize=7)
    axes.set(xlabel="1 - KS to held-out rows", ylim=(-0.8, len(ordered) - 0.2))
    axes.set_xlim(right=1.005)
    axes.grid(axis="x", lw=0.4, alpha=0.5)
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(_SIDES))
    return figure


def histograms(columns: Sequence[FoundColumn], drawn: Mapping[str, Floats], worst: int = 6, best: int = 3) -> Any:
    """Held-out and new rows' values of the columns that are furthest from the data, and of the nearest."""
    order = sorted(range(len(columns)), key=lambda j: columns[j].similarity["new"])
    shown = [*order[:worst], *order[max(worst, len(order) - best) :]]
    rows = -(-len(shown) // 3)
    figure = _figure(10.0, 2.5 * rows)
    for place, j in enumerate(shown, 1):
        axes = figure.add_subplot(rows, 3, place)
        held_out, new = drawn["held_out"][:, j], drawn["new"][:, j]
        edges, ticks = _edges(held_out, new)
        axes.hist(held_out, edges, density=True, color=REAL, alpha=0.5, label="held-out")
        axes.hist(new, edges, density=True, histtype="step", color=NEW, lw=1.6, label="new")
        rank = "worst" if place <= worst else "best"
        axes.set_title(
            literal(f"{columns[j].name} ({rank}): {columns[j].similarity['new']:.3f}"), fontsize=9, loc="left"
        )
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
        if len(ticks):
            axes.set_xticks(ticks)
        if place == 1:
            axes.legend(fontsize=8, frameon=False)
    return figure


def correlation_maps(found: Found) -> Any:
    """Differences of correlations to the held-out rows', by side, on one scale of colours."""
    columns, drawn = found.columns, found.drawn
    largest = max(float(np.abs(drawn[f"correlation_{side}"]).max()) for side in ("new", "real"))
    limit = max(0.05, largest)
    names = [column.name.partition(".")[0].partition("=")[0] for column in columns]
    starts = [j for j, name in enumerate(names) if j == 0 or names[j - 1] != name]
    figure = _figure(10.5, 3.6)
    panels = figure.subplots(1, 3)
    for axes, side in zip(panels, _SIDES, strict=True):
        image = axes.imshow(drawn[f"correlation_{side}"], cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
        mean = found.figures["correlation"][side]["mean"]
        axes.set_title(f"{_LABELS[side]}, mean {number(mean)}", fontsize=10, loc="left")
        axes.set_xlabel("column, in the order of the last table", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="black", lw=0.5)
            axes.axvline(start - 0.5, color="black", lw=0.5)
    middles = [(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], len(names)], strict=True)]
    panels[0].set_yticks(middles, [literal(names[start]) for start in starts], fontsize=7)
    figure.colorbar(image, ax=panels, shrink=0.85, label="difference of correlation")
    return figure


def nearest_curves(drawn: Mapping[str, Floats]) -> Any:
    """Share of rows whose nearest row of the fit is closer than a distance."""
    figure = _figure(7.5, 3.6)
    axes = figure.add_subplot()
    positive = [drawn[f"nearest_{side}"] for side in ("held_out", "new")]
    floor = max(1e-6, 0.5 * min(float(d[d > 0].min()) if (d > 0).any() else 1.0 for d in positive))
    for side in ("held_out", "new", "gaussian"):
        distance = np.sort(np.maximum(drawn[f"nearest_{side}"], floor))
        share = np.arange(1, len(distance) + 1) / len(distance)
        axes.step(distance, share, where="post", color=_COLORS[side], lw=1.8, label=_LABELS[side])
    ends = np.concatenate([np.maximum(drawn[f"nearest_{side}"], floor) for side in ("held_out", "new")])
    if ends.max() > 30 * ends.min():
        axes.set_xscale("log")
    axes.set(
        xlabel="distance to the nearest row of the fit (standard deviations)", ylabel="share of rows", ylim=(0, 1.02)
    )
    axes.grid(lw=0.4, alpha=0.5)
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    return figure


def component_clouds(drawn: Mapping[str, Floats]) -> Any:
    """Two principal components of the data: real, new and Gaussian rows on the same axes."""
    figure = _figure(10.5, 3.8)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    shares = drawn["component_shares"]
    count = min(len(drawn[f"components_{side}"]) for side in _SIDES)  # as many in each: else the denser looks better
    for axes, side in zip(panels, _SIDES, strict=True):
        cloud = drawn[f"components_{side}"][:count]
        axes.plot(cloud[:, 0], cloud[:, -1], ".", color=_COLORS[side], ms=3.5, alpha=0.55, mew=0)
        axes.set_title(f"{_LABELS[side]}, {count:,} rows", fontsize=10, loc="left")
        axes.set_xlabel(f"component 1 ({100 * shares[0]:.0f} % of the variance)", fontsize=8)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel(f"component {len(shares)} ({100 * shares[-1]:.0f} %)", fontsize=8)
    return figure


def _pictures(found: Found) -> list[tuple[str, str, str, Any]]:
    """(file, heading, what to see, figure) in reading order."""
    drawn = found.drawn
    return [
        (
            "columns",
            "Columns one by one",
            "1 - KS to the held-out rows; the line leads from the new rows to what real rows get. Columns whose green "
            "dot lies left of the Gaussian's are worse than no learning.",
            similarity_dots(found.columns),
        ),
        (
            "histograms",
            "Worst and best columns",
            "Values of held-out rows (filled) and of new rows (line); the number is 1 - KS.",
            histograms(found.columns, drawn),
        ),
        (
            "correlation",
            "Correlations",
            "Correlation of each pair of columns minus that in the held-out rows: the left map shows what chance alone "
            "does, and the middle one should look like it. A Gaussian has them right by construction.",
            correlation_maps(found),
        ),
        (
            "nearest",
            "Copies",
            "Distance to the nearest row of the fit. A curve that rises left of the held-out rows' means rows learnt "
            "by heart; one far to its right means rows away from the data.",
            nearest_curves(drawn),
        ),
        (
            "components",
            "Where rows lie",
            "Rows on the two directions in which the data varies most: shapes and gaps of the first panel should be "
            "found in the second.",
            component_clouds(drawn),
        ),
    ]


def _edges(held_out: Floats, new: Floats) -> tuple[Floats, Floats]:
    """Bins for both, and where ticks belong if they are few values. Tails beyond 99.8 % of either are cut."""
    values = np.unique(held_out)
    if 1 < len(values) <= 25:
        step = float(np.diff(values).min())
        if (values[-1] - values[0]) / step <= 60:
            ends = np.arange(values[0] - step / 2, values[-1] + step, step)
            return ends, values if len(values) <= 10 else values[:0]
    low = min(float(np.quantile(x, 0.001)) for x in (held_out, new))
    high = max(float(np.quantile(x, 0.999)) for x in (held_out, new))
    bins = int(np.clip(2 * len(held_out) ** (1 / 3), 8, 40))  # Rice's rule: more would show the noise of few rows
    return np.linspace(low, high if high > low else low + 1.0, bins + 1), values[:0]


# ---- parts


def _line(verdict: FoundVerdict) -> list[str]:
    figures = [number(value) for value in (verdict.new, verdict.real, verdict.gaussian)]
    return [verdict.aspect, *figures, verdict.asked, f"{'✓' if verdict.passed else '✗'} {verdict.words}"]


def _column(column: FoundColumn) -> list[str]:
    return [
        column.name,
        column.kind,
        *(f"{column.similarity[side]:.3f}" for side in ("new", "real", "gaussian")),
        *(f"{column.wasserstein[side]:.3f}" for side in ("new", "real")),
        *(number(column.mean[side]) for side in ("train", "new")),
        *(number(column.std[side]) for side in ("train", "new")),
    ]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
