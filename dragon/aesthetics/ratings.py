"""What people said of clips: a CSV of ratings or of pairwise votes -> one table, with every bad line named at once.

Ratings: columns `file` and `rating`, optionally `rater` and `prompt`. Votes: `winner` and `loser`, optionally
`prompt`. Other columns are left alone. Knows no audio and no encoder. Files, prompts and rows are sorted, so the
order of the lines changes nothing.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dragon.errors import ConfigError
from dragon.registry import nearest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T")

_LISTED = 20  # problems that one message shows


@dataclass(frozen=True, eq=False)
class Ratings:
    """r ratings of n clips. clip, rater: (r,) row of `files` and of `raters` (-1: not named); value: (r,)."""

    files: tuple[str, ...]
    prompts: tuple[str, ...] | None
    lines: tuple[int, ...]
    """Of each file: the first line that names it."""
    clip: Ints
    rater: Ints
    value: Floats

    @property
    def counts(self) -> Ints:
        """(n,) ratings of each clip."""
        return np.bincount(self.clip, minlength=len(self.files))

    @property
    def means(self) -> Floats:
        """(n,) mean rating of each clip; every rating counts alike."""
        return np.bincount(self.clip, self.value, len(self.files)) / self.counts

    def without(self, gone: Sequence[str]) -> Ratings:
        """Without these files."""
        keep, row = _kept(self.files, gone)
        some = keep[self.clip]
        return Ratings(
            *_of_files(self, keep), clip=row[self.clip[some]], rater=self.rater[some], value=self.value[some]
        )


@dataclass(frozen=True, eq=False)
class Votes:
    """v votes between n clips: winner, loser (v,) are rows of `files`."""

    files: tuple[str, ...]
    prompts: tuple[str, ...] | None
    lines: tuple[int, ...]
    winner: Ints
    loser: Ints

    @property
    def components(self) -> Ints:
        """(n,) which clips are linked by votes: strengths compare within a component only."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        n = len(self.files)
        links = coo_matrix((np.ones(len(self.winner)), (self.winner, self.loser)), shape=(n, n))
        return connected_components(links, directed=False)[1].astype(np.int64)

    def without(self, gone: Sequence[str]) -> Votes:
        """Without these files, and the votes on them; a file that is then in no vote goes, too."""
        keep, _ = _kept(self.files, gone)
        some = keep[self.winner] & keep[self.loser]
        keep = np.isin(np.arange(len(self.files)), np.concatenate([self.winner[some], self.loser[some]]))
        row = np.cumsum(keep) - 1
        return Votes(*_of_files(self, keep), winner=row[self.winner[some]], loser=row[self.loser[some]])


Opinions = Ratings | Votes


def load_opinions(path: str | os.PathLike[str]) -> Opinions:
    """Ratings or votes, by the columns of the file.

    A rater's several ratings of one file count as one, their mean.

    Raises:
        ConfigError: no such file, columns that fit neither, or bad lines: all of them, each with its number.
    """
    place = Path(path)
    if not place.is_file():
        if place.is_dir():
            raise ConfigError(f"{str(place)!r} is a folder; expected the .csv of ratings or votes")
        raise ConfigError(f"no ratings file {str(place)!r} (looked for {place.resolve()})")
    try:
        with place.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            columns = [name or "" for name in reader.fieldnames or []]
            lines = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{place} is not a CSV file in UTF-8 ({error}); save it as one") from error
    of_votes = _check_columns(place, columns)
    table = _Lines(place, "prompt" in columns)
    if of_votes:
        votes = [v for number, row in lines if (v := table.vote(number, row)) is not None]
        table.report()
        files, prompts, first, row_of = table.files()
        pairs = np.array(sorted((row_of[w], row_of[b]) for w, b in votes), np.int64).reshape(-1, 2)
        return Votes(files, prompts, first, winner=pairs[:, 0], loser=pairs[:, 1])
    ratings = [r for number, row in lines if (r := table.rating(number, row, "rater" in columns)) is not None]
    table.report()
    files, prompts, first, row_of = table.files()
    raters = {name: i for i, name in enumerate(sorted({rater for _, rater, _ in ratings if rater is not None}))}
    given: dict[tuple[int, int], list[float]] = {}
    for i, (name, rater, value) in enumerate(ratings):
        who = -1 - i if rater is None else raters[rater]  # each rating without a name stands for itself
        given.setdefault((row_of[name], who), []).append(value)
    rows = sorted((clip, max(who, -1), math.fsum(values) / len(values)) for (clip, who), values in given.items())
    return Ratings(
        files,
        prompts,
        first,
        clip=np.array([r[0] for r in rows], np.int64),
        rater=np.array([r[1] for r in rows], np.int64),
        value=np.array([r[2] for r in rows], np.float64),
    )


def find_audio(opinions: Opinions, path: str | os.PathLike[str], folder: str | os.PathLike[str] = "") -> list[Path]:
    """The audio file of each clip, below `folder`; "": beside the CSV file at `path`.

    Raises:
        ConfigError: files that do not exist: all of them, with the line that names each.
    """
    root = Path(folder) if os.fspath(folder) else Path(path).parent
    found = [root / name for name in opinions.files]
    problems = [
        (line, f"no file {str(place)!r}")
        for line, place in zip(opinions.lines, found, strict=True)
        if not place.is_file()
    ]
    report_lines(path, problems, "files are looked for beside the CSV file, or in --audio FOLDER")
    return found


def report_lines(path: str | os.PathLike[str], problems: Sequence[tuple[int, str]], step: str) -> None:
    """Raises ConfigError with all problems (line, text) and the next step, if there are any."""
    if not problems:
        return
    listed = [f"  line {number}: {text}" for number, text in sorted(problems)]
    if len(listed) > _LISTED:
        listed = [*listed[:_LISTED], f"  and {len(listed) - _LISTED} more"]
    raise ConfigError(f"{os.fspath(path)}: {len(problems)} lines cannot be used; {step}:\n" + "\n".join(listed))


class _Lines:
    """Reads lines, and collects what is wrong with them."""

    def __init__(self, path: Path, prompted: bool) -> None:
        self._path, self._prompted = path, prompted
        self._problems: list[tuple[int, str]] = []
        self._seen: dict[str, tuple[int, str]] = {}  # file -> first line, prompt

    def rating(self, number: int, row: dict[str, str], named: bool) -> tuple[str, str | None, float] | None:
        def read() -> tuple[str, str | None, float]:
            try:
                value = float(_text(row, "rating"))
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise _Bad(f"rating {row['rating']!r}; expected a finite number")
            rater = _text(row, "rater") if named else None
            (name,) = self._clips(number, row, "file")
            return name, rater, value

        return self._try(number, row, read)

    def vote(self, number: int, row: dict[str, str]) -> tuple[str, str] | None:
        def read() -> tuple[str, str]:
            if os.path.normpath(_text(row, "winner")) == os.path.normpath(_text(row, "loser")):
                raise _Bad(f"winner and loser are both {row['winner']!r}; expected two clips (leave ties out)")
            winner, loser = self._clips(number, row, "winner", "loser")
            return winner, loser

        return self._try(number, row, read)

    def report(self) -> None:
        report_lines(self._path, self._problems, "mend or remove them")
        if not self._seen:
            raise ConfigError(f"{self._path}: no lines below the header; expected one rating or vote a line")

    def files(self) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[int, ...], dict[str, int]]:
        names = tuple(sorted(self._seen))
        prompts = tuple(self._seen[name][1] for name in names) if self._prompted else None
        return names, prompts, tuple(self._seen[name][0] for name in names), {name: i for i, name in enumerate(names)}

    def _try(self, number: int, row: dict[str, str], read: Callable[[], T]) -> T | None:
        try:
            if "" in row or None in row.values():
                raise _Bad("another number of columns than the header has")
            return read()
        except _Bad as bad:
            self._problems.append((number, str(bad)))
            return None

    def _clips(self, number: int, row: dict[str, str], *columns: str) -> list[str]:
        prompt = _text(row, "prompt") if self._prompted else ""
        names = [os.path.normpath(_text(row, column)) for column in columns]  # ./a.wav is a.wav
        for name in names:
            line, other = self._seen.setdefault(name, (number, prompt))
            if other != prompt:
                raise _Bad(f"{name} has prompt {prompt!r}, and {other!r} on line {line}; expected one prompt a file")
        return names


class _Bad(Exception):
    """What is wrong with a line."""


def _text(row: dict[str, str], column: str) -> str:
    text = row[column].strip()
    if not text:
        raise _Bad(f"{column} is blank")
    return text


def _check_columns(path: Path, columns: list[str]) -> bool:
    """Whether the file holds votes; it may hold only one of the two."""
    ratings, votes = {"file", "rating"} <= set(columns), {"winner", "loser"} <= set(columns)
    if ratings == votes:
        raise ConfigError(
            f"{path}: columns {', '.join(columns) or 'none'}; expected file,rating (and rater, prompt) or "
            "winner,loser (and prompt)"
        )
    for name in ("rater", "prompt") if ratings else ("prompt",):
        others = [
            c.strip().lower() for c in columns if c not in ("file", "rating", "winner", "loser", "rater", "prompt")
        ]
        if name not in columns and (near := nearest(name, others)):
            raise ConfigError(f"{path}: column {near} looks like {name!r}; call it {name!r}, or something else")
    return votes


def _kept(files: tuple[str, ...], gone: Sequence[str]) -> tuple[NDArray[np.bool_], Ints]:
    keep = ~np.isin(np.arange(len(files)), [i for i, name in enumerate(files) if name in set(gone)])
    return keep, np.cumsum(keep) - 1


def _of_files(
    opinions: Opinions, keep: NDArray[np.bool_]
) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[int, ...]]:
    rows = np.flatnonzero(keep)
    prompts = None if opinions.prompts is None else tuple(opinions.prompts[i] for i in rows)
    return tuple(opinions.files[i] for i in rows), prompts, tuple(opinions.lines[i] for i in rows)
