"""The picture of a score: the sets in the plane where the reference varies most, and the clips' values as histograms.

Knows points and numbers. The plane is that of the reference's first two principal axes (of all sets, where there is no
reference), so a set cannot make itself look far away by choosing the axes. Drawn without pyplot: no window, no global
figure. Colours after Okabe & Ito (2008), told apart by the colour-blind; the reference is grey.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.measure.sides import Reference, Side
from dragon.texts import literal

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8c8c8c"
MARKERS = "o^sDvP"
POINTS = 2000
"""Points of one set that are drawn at most."""

Points = NDArray[np.float64]


class Row(Protocol):
    """What a histogram needs of a clip."""

    @property
    def set(self) -> str: ...

    @property
    def scores(self) -> Mapping[str, float | None]: ...


@dataclass(frozen=True, eq=False)
class Projection:
    """Sets in a plane. explained: shares of the reference's variance on the two axes.

    of: "clips" or "frames", what one point is. sets: (n, 2) by name. reference: (m, 2); None where there is none, or it
    keeps no points.
    """

    encoder: str
    of: str
    explained: tuple[float, float]
    sets: Mapping[str, Points]
    reference: Points | None
    reference_name: str


def project(sides: Sequence[Side], reference: Reference | None, seed: int = 0) -> Projection | None:
    """The sets, of one encoder, in the plane of the reference's first two principal axes; None for a single point.

    One point a clip; where the reference is an exemplar set, which keeps no clips, one point a frame.
    """
    encoder = sides[0].embedded.encoder.name
    by_clip = reference is None or reference.clips is not None
    tables = {s.name: _some(s.clips, seed) if by_clip else s.frames(POINTS, seed)[0].double() for s in sides}
    if reference is None:
        target = torch.cat([side.clips for side in sides])
        points = None
    elif reference.clips is not None:
        target, points = reference.clips, _some(reference.clips, seed)
    else:
        kept = reference.frames(POINTS, seed)
        target, points = reference.gaussian.factor, None if kept is None else kept.double()
    mean = target.mean(dim=0) if by_clip or reference is None else reference.gaussian.mean
    centred = target - mean if by_clip else target
    if len(centred) < 2 or centred.shape[1] < 2:
        return None
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    shares = spread.square() / spread.square().sum().clamp(min=torch.finfo(spread.dtype).tiny)
    plane = axes[:2]
    # an axis has no sign of its own; the largest weight is made positive, so that a picture can be drawn twice
    plane = plane * plane.gather(1, plane.abs().argmax(dim=1, keepdim=True)).sign()
    return Projection(
        encoder,
        "clips" if by_clip else "frames",
        (float(shares[0]), float(shares[1])),
        {name: _flat(table, mean, plane) for name, table in tables.items()},
        None if points is None else _flat(points, mean, plane),
        "" if reference is None else reference.name,
    )


def draw(projection: Projection, songs: Sequence[Row], better: Mapping[str, str]) -> bytes:
    """The picture as PNG: the plane, and beside it the histogram of one metric of clips, where there is one.

    better: of each metric of clips, which way is good.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = _shown(songs)
    figure = Figure(figsize=(12.0 if metric else 6.4, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, *right = figure.subplots(1, 2 if metric else 1, squeeze=False)[0]
    _draw_plane(left, projection)
    if metric:
        _draw_histogram(right[0], songs, metric, better.get(metric, ""), list(projection.sets))
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is drawn as a box
        figure.savefig(content, format="png")
    return content.getvalue()


def _draw_plane(axes: Any, projection: Projection) -> None:
    if projection.reference is not None:
        axes.scatter(*projection.reference.T, s=14, c=GREY, alpha=_alpha(projection.reference), linewidths=0)
        axes.scatter([], [], s=40, c=GREY, linewidths=0, label=literal(f"{projection.reference_name} (reference)"))
        axes.scatter(0, 0, s=200, c="black", marker="+", linewidths=2, zorder=6, label="its mean")
    for number, (name, points) in enumerate(projection.sets.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.scatter(*points.T, s=16, c=colour, marker=marker, alpha=_alpha(points), linewidths=0)
        # the mean, on top of all points
        mean = {"s": 130, "c": colour, "marker": marker, "edgecolors": "black", "linewidths": 1.2, "zorder": 5}
        axes.scatter(*points.mean(0), label=literal(name), **mean)
    axis = "principal axis of the reference" if projection.reference_name else "principal axis of all sets"
    axes.set_xlabel(f"first {axis}, {100 * projection.explained[0]:.0f} % of its variance")
    axes.set_ylabel(f"second {axis}, {100 * projection.explained[1]:.0f} %")
    axes.set_title(
        literal(f"One point a {projection.of[:-1]}, heard by {projection.encoder}; large: the sets' means"),
        fontsize=10,
        loc="left",
    )
    axes.legend(fontsize=8, frameon=True, framealpha=0.7, markerscale=0.6)


def _draw_histogram(axes: Any, songs: Sequence[Row], metric: str, better: str, sets: Sequence[str]) -> None:
    values = {name: [v for s in songs if s.set == name and (v := s.scores.get(metric)) is not None] for name in sets}
    every = np.concatenate([v for v in values.values() if v])
    # one set of bins for all, else equal counts look different; one clip far off does not squeeze the others
    edges = np.histogram_bin_edges(every, bins=30, range=_range(every))
    for number, (name, found) in enumerate(values.items()):
        if not found:
            continue
        colour = COLOURS[number % len(COLOURS)]
        weights = np.full(len(found), 100 / len(found))
        inside = np.clip(found, edges[0], edges[-1])
        label = literal(f"{name}, mean {np.mean(found):.4g}")
        axes.hist(inside, edges, weights=weights, color=colour, alpha=0.25)
        axes.hist(inside, edges, weights=weights, color=colour, histtype="step", lw=1.6, label=label)
        axes.axvline(float(np.mean(found)), color=colour, lw=1.4, ls="--")
    axes.set_xlabel(literal(f"{metric} ({better} is better)" if better else metric))
    axes.set_ylabel("clips, %")
    beyond = every.max() > edges[-1] or every.min() < edges[0]
    last = ", outermost bars holding all beyond" if beyond else ""
    axes.set_title(literal(f"{metric.partition(':')[0]} of each clip{last}; dashed: means"), fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=True)


def _range(values: Points) -> tuple[float, float] | None:
    """Where the values lie, without a hundredth on a side where that would squeeze the others; None: all are equal."""
    low, low_in, high_in, high = np.quantile(values, [0.0, 0.01, 0.99, 1.0])
    inner = high_in - low_in
    low = low_in if low_in - low > inner / 2 else low
    high = high_in if high - high_in > inner / 2 else high
    return (float(low), float(high)) if high > low else None


def _alpha(points: Points) -> float:
    """Fainter where many points lie over each other."""
    return 0.6 if len(points) < 300 else 0.25


def _shown(songs: Sequence[Row]) -> str | None:
    """The metric of clips to draw: the per-song distance, else the first there is."""
    names = list(dict.fromkeys(name for song in songs for name, value in song.scores.items() if value is not None))
    return next((name for name in names if name.startswith("song_fad")), names[0] if names else None)


def _some(table: Tensor, seed: int) -> Tensor:
    if len(table) <= POINTS:
        return table
    return table[torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:POINTS].sort().values]


def _flat(table: Tensor, mean: Tensor, plane: Tensor) -> Points:
    found: Points = ((table - mean) @ plane.mT).numpy()
    return found
