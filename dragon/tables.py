"""CSV that reads back as it was written, whatever the cells hold. Knows text and columns."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from dragon.errors import ConfigError


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


def csv_writer(file: _Writable) -> Any:
    """A csv.writer of lines that end in a line feed; `file` is opened with newline=""."""
    return csv.writer(_LineFeeds(file))


def csv_text(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table with its columns in the first line.

    >>> csv_text(["prompt"], [["a, b"]])
    'prompt\\n"a, b"\\n'
    """
    text = io.StringIO()
    writer = csv_writer(text)
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def csv_rows(path: str | os.PathLike[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a table with exactly these columns; cells of any length.

    Raises:
        ConfigError: it cannot be read, is no UTF-8 text, or has other columns or a line that is short of them.
    """
    place = os.fspath(path)
    try:
        with open(place, newline="", encoding="utf-8") as file, _any_length():
            reader = csv.reader(file)
            head, *lines = list(reader) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{place} cannot be read ({error}); expected CSV in UTF-8") from error
    if head != list(columns):
        raise ConfigError(f"{place}: columns {head}; expected {list(columns)}")
    for number, line in enumerate(lines, 1):
        if len(line) != len(columns):
            raise ConfigError(f"{place}: row {number} has {len(line)} cells; expected {len(columns)}")
    return [dict(zip(columns, line, strict=True)) for line in lines]


class _LineFeeds:
    """Turns the end of each line, on which csv decides what to quote, into a line feed.

    With a line feed for csv's own end of line it would leave a carriage return in a cell bare, and readers end a line
    there.
    """

    def __init__(self, file: _Writable) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


@contextmanager
def _any_length() -> Iterator[None]:
    """csv refuses cells of more than 131,072 characters unless told otherwise, for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
