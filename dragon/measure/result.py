"""What `score` found: values with intervals, differences, one row a clip; as a table, JSON, CSV and a picture.

Knows numbers and texts; no audio, encoder or metric. Plain dataclasses, so that a program reads what the table shows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dragon.errors import ConfigError
from dragon.files import write_whole
from dragon.measure.comparison import Difference
from dragon.measure.measured import Better
from dragon.measure.picture import Projection, draw
from dragon.registry import nearest
from dragon.tables import csv_text
from dragon.texts import shown

VERSION = 1


@dataclass(frozen=True)
class Value:
    """One number of one set: `better` says which way is good; low, high: 95 % interval, None where there is none.

    encoder, reference: "" where the metric has none. interval: how it was made. facts: what the value was made of.
    """

    set: str
    metric: str
    value: float
    better: Better
    low: float | None = None
    high: float | None = None
    encoder: str = ""
    reference: str = ""
    interval: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Pair:
    """Value of the first set minus that of the second."""

    first: str
    second: str
    metric: str
    encoder: str
    reference: str
    difference: Difference


@dataclass(frozen=True)
class Song:
    """One clip of a set, and its value of each metric of clips (None: no opinion)."""

    set: str
    file: str
    hash: str
    seconds: float
    scores: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """Everything `score` found. `print(result)` shows the table; `result["fad"]` is a value.

    better: of each column of the songs, which way is good.
    """

    values: tuple[Value, ...]
    pairs: tuple[Pair, ...]
    songs: tuple[Song, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    better: Mapping[str, Better] = field(default_factory=dict)
    projection: Projection | None = field(default=None, repr=False)

    def __getitem__(self, metric: str) -> Value:
        """The only value of a metric; with several sets, encoders or references take `value`."""
        return self.value(metric)

    def value(
        self, metric: str, *, set: str | None = None, encoder: str | None = None, reference: str | None = None
    ) -> Value:
        """The one value that fits.

        Raises:
            ConfigError: none or several fit, with what there is.
        """
        wanted = {"metric": metric, "set": set, "encoder": encoder, "reference": reference}
        fits = [v for v in self.values if all(text is None or getattr(v, k) == text for k, text in wanted.items())]
        if len(fits) == 1:
            return fits[0]
        asked = ", ".join(f"{key} {text!r}" for key, text in wanted.items() if text is not None)
        if fits:
            differ = [k for k in ("set", "encoder", "reference") if len({getattr(v, k) for v in fits}) > 1]
            raise ConfigError(f"{len(fits)} values have {asked}; say also which {' and '.join(differ)}")
        names = dict.fromkeys(v.metric for v in self.values)
        near = nearest(metric, names)
        raise ConfigError(f"no value has {asked}; " + (f"did you mean {near}?" if near else f"there are {list(names)}"))

    def __str__(self) -> str:
        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture's points, as JSON values."""
        return {
            "version": VERSION,
            "values": [_plain(value) for value in self.values],
            "differences": [
                _plain({k: getattr(p, k) for k in ("first", "second", "metric", "encoder", "reference")})
                | {
                    "difference": p.difference.value,
                    "low": p.difference.low,
                    "high": p.difference.high,
                    "paired": p.difference.paired,
                    "significant": p.difference.significant,
                }
                for p in self.pairs
            ],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "provenance": _plain(self.provenance),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes values, differences and provenance as JSON."""
        return _written(path, json.dumps(self.to_dict(), indent=1, allow_nan=False).encode() + b"\n")

    def save_songs(self, path: str | os.PathLike[str]) -> Path:
        """Writes a CSV: set, file, hash, seconds, and a column for each metric of clips; empty for no opinion."""
        columns = list(dict.fromkeys(name for song in self.songs for name in song.scores))
        lines = []
        for song in self.songs:
            scores = [song.scores.get(name) for name in columns]
            row = ["" if value is None else repr(float(value)) for value in scores]
            lines.append([song.set, song.file, song.hash, f"{song.seconds:.3f}", *row])
        text = csv_text(["set", "file", "hash", "seconds", *columns], lines)
        return _written(path, text.encode("utf-8", "backslashreplace"))  # a file's name need not be UTF-8

    def save_picture(self, path: str | os.PathLike[str]) -> Path:
        """Writes a PNG: both sets projected to a plane, and the clips' values of one metric as histograms."""
        if self.projection is None:
            raise ConfigError("there is nothing to draw: fewer than two clips, or no encoder")
        return _written(path, draw(self.projection, self.songs, self.better))


def table(result: ScoreResult) -> str:
    """Values by encoder and reference, each metric's best set marked, and what is not certain."""
    lines: list[str] = []
    for key in dict.fromkeys((v.encoder, v.reference) for v in result.values):
        lines += [_heading(result, *key), *_rows([v for v in result.values if (v.encoder, v.reference) == key], result)]
        lines.append("")
    unsure = [p for p in result.pairs if not p.difference.significant]
    if result.pairs:
        count = len(result.pairs)
        many = f"{count} differences, each tested" if count > 1 else "1 difference, tested"
        lines.append(
            f"{many} at 95 % (expect one in twenty of equal sets to look real); "
            f"not significant: {len(unsure) or 'none'}"
        )
        lines += [f"  {_difference(p)}" for p in unsure]
    lines += [f"warning: {text}" for text in result.warnings]
    lines += [f"note: {text}" for text in result.notes]
    return shown("\n".join(lines).rstrip())


def _heading(result: ScoreResult, encoder: str, reference: str) -> str:
    known = {e["label"]: e for e in result.provenance.get("encoders", ())}.get(encoder)
    parts = [
        f"{encoder}, {known['features']} features ({known['fingerprint']})"
        if known
        else "rewards, which hear the clips themselves"
    ]
    return f"{parts[0]} against {reference}" if reference else parts[0]


def _rows(values: list[Value], result: ScoreResult) -> list[str]:
    rows = [("metric", "better", "set", "value", "95 % interval", "")]
    for metric in dict.fromkeys(v.metric for v in values):
        same = [v for v in values if v.metric == metric]
        best = (min if same[0].better == "lower" else max)(same, key=float)
        for value in same:
            first = value is same[0]
            ends = "" if value.low is None or value.high is None else f"{number(value.low)} to {number(value.high)}"
            mark = _mark(value, best, result) if len(same) > 1 else ""
            head = (metric, value.better) if first else ("", "")
            rows.append((*head, value.set, number(value.value), ends, mark))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    right = (3,)
    return [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _mark(value: Value, best: Value, result: ScoreResult) -> str:
    """What the last column says of a set beside the best one."""
    if value is best:
        return "best"
    if value.value == best.value:
        return "equal"
    for pair in result.pairs:
        same = (pair.metric, pair.encoder, pair.reference) == (value.metric, value.encoder, value.reference)
        if same and {pair.first, pair.second} == {value.set, best.set}:
            return "worse" if pair.difference.significant else "not certainly worse"
    return "not compared"


def _difference(pair: Pair) -> str:
    found = pair.difference
    place = ", ".join(text for text in (pair.encoder, pair.reference) if text)
    how = "file by file" if found.paired else "independent sets"
    return (
        f"{pair.metric}{f' ({place})' if place else ''}: {pair.first} - {pair.second} = {number(found.value)}, "
        f"{number(found.low)} to {number(found.high)} ({how})"
    )


def number(value: float) -> str:
    """Four significant digits, no exponent where that is readable."""
    if value == 0 or not math.isfinite(value):
        return f"{value + 0.0:g}"  # never -0
    digits = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, digits)}f}" if -1 <= digits <= 7 else f"{value:.3e}"


def _plain(value: Any) -> Any:
    """JSON values: dataclasses as objects, tuples as lists, numbers that JSON lacks as null."""
    from dragon.loading import plain

    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): finite(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [finite(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return finite(plain(value))


def _written(path: str | os.PathLike[str], content: bytes) -> Path:
    target = Path(path)
    try:
        write_whole(target, content)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error}); choose another place") from error
    return target
