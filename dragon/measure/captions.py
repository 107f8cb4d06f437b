"""Captions of clips: a CSV with the columns file and caption, whose other columns go to rewards.

Knows file names, no audio. samples.csv of a run serves as it is: there the column is called prompt.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dragon.errors import ConfigError

_LISTED = 8  # clips without a caption that an error names


@dataclass(frozen=True, eq=False)
class Captioned:
    """Captions and other columns, one value a clip, in the order of the clips."""

    captions: tuple[str, ...]
    columns: Mapping[str, tuple[object, ...]]


@dataclass(frozen=True, eq=False)
class CaptionFile:
    """The rows of a caption file by the name of their clip.

    A clip is found by its path within its set's folder, or by its path from the caption file.
    """

    path: Path
    rows: Mapping[str, Mapping[str, str]]
    columns: tuple[str, ...]

    def of(self, names: Sequence[str], paths: Sequence[Path], of_set: str) -> Captioned:
        """Captions of a set's clips, by their names in the set and their paths.

        Raises:
            ConfigError: clips without one: all are counted, the first ones named.
        """
        found = [self._row(label, path) for label, path in zip(names, paths, strict=True)]
        missing = [label for label, row in zip(names, found, strict=True) if row is None]
        if missing:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            raise ConfigError(
                f"{self.path}: no caption for {len(missing)} of {len(found)} clips of {of_set!r}: "
                f"{', '.join(missing[:_LISTED])}{more}; give each a row, its file named from the set's folder or from "
                "the caption file"
            )
        rows = [row for row in found if row is not None]
        return Captioned(
            tuple(row["caption"] for row in rows),
            {column: tuple(row[column] for row in rows) for column in self.columns},
        )

    def _row(self, label: str, path: Path) -> Mapping[str, str] | None:
        if label in self.rows:
            return self.rows[label]
        beside = os.path.relpath(os.path.abspath(path), os.path.abspath(self.path.parent))
        return self.rows.get(Path(beside).as_posix())


def read_captions(path: str | os.PathLike[str]) -> CaptionFile:
    """A CSV file with the columns file and caption (or prompt).

    Raises:
        ConfigError: no such file, no such columns, no rows, blank captions or files named twice: all, with their lines.
    """
    place = Path(path)
    try:
        with place.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"captions {place} cannot be read ({error}); expected a CSV file in UTF-8") from error
    text = "caption" if "caption" in names else "prompt"
    if "file" not in names or text not in names:
        raise ConfigError(
            f"captions {place}: columns {', '.join(names) or 'none'}; expected file,caption in the first line"
        )
    if not rows:
        raise ConfigError(f"captions {place}: no rows; expected one a clip")
    problems: list[str] = []
    found: dict[str, dict[str, str]] = {}
    for line, row in rows:
        if None in row or None in row.values():
            problems.append(f"line {line}: expected {len(names)} columns, as in line 1")
        elif not row["file"].strip() or not row[text].strip():
            problems.append(f"line {line}: the {text if row['file'].strip() else 'file'} is blank")
        elif (label := Path(row["file"].strip()).as_posix()) in found:
            problems.append(f"line {line}: {label} has a row already")
        else:
            found[label] = {**row, "caption": row[text].strip()}
    if problems:
        raise ConfigError(f"captions {place}:\n" + "\n".join(f"  {problem}" for problem in problems))
    return CaptionFile(place, found, tuple(name for name in names if name not in ("file", "caption", "prompt")))
