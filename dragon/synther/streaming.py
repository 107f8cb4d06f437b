"""Transitions written to npz part by part: memory holds one part, however many rows there are.

Knows the npy and zip formats through numpy and zipfile. An npz keeps each array whole, and parts bring some rows of
every array: each array grows in a file of its own, and the files become the npz at the end, one after another, each
deleted as soon as it is in. The disk then holds all rows once and the largest array twice.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from dragon.errors import ShapeError
from dragon.files import writing
from dragon.synther.transitions import Array

_COPIED = 16 << 20  # bytes at once
HINT = "make room, or choose another file; the model is kept, and resuming only samples again"


class NpzWriter:
    """Writes `rows` rows to `place`, which is complete as soon as it is there; the same bytes as numpy.savez.

    `add` takes arrays of equal length by name, as often as needed; `finish` writes `more` arrays behind them and
    renames. Left without `finish`, nothing stays.

    Raises:
        Unwritable: a full disk or the like.
    """

    def __init__(self, place: str | os.PathLike[str], rows: int) -> None:
        self.place, self.rows, self.done = Path(place), rows, 0
        self._folder = self.place.with_name(f".{self.place.name}.partial")
        self._files: dict[str, IO[bytes]] = {}
        self._needed = 0

    def __enter__(self) -> NpzWriter:
        with self._writing():
            shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed
            self._folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # what a full disk has said already
            self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, arrays: Mapping[str, Array]) -> None:
        """Appends rows.

        Raises:
            ShapeError: arrays of unequal lengths, or more rows than were announced.
        """
        counts = {len(value) for value in arrays.values()}
        count = counts.pop()
        if counts or self.done + count > self.rows:
            raise ShapeError(
                f"rows {self.done} to {self.done + count} in arrays of {sorted({count, *counts})} rows; expected "
                f"{self.rows} rows in all, as many of each array"
            )
        with self._writing():
            if not self._files:
                self._needed = sum(value.nbytes // max(1, count) for value in arrays.values()) * self.rows
                for number, (name, value) in enumerate(arrays.items()):
                    self._files[name] = (self._folder / f"{number}.npy").open("wb")
                    _header(self._files[name], value.dtype, (self.rows, *value.shape[1:]))
            for name, value in arrays.items():
                self._files[name].write(np.ascontiguousarray(value).tobytes())
        self.done += count

    def finish(self, more: Mapping[str, Array]) -> None:
        """Puts the arrays together.

        Raises:
            ShapeError: rows are missing.
        """
        if self.done != self.rows:
            raise ShapeError(f"{self.done} rows were written; expected {self.rows}")
        made = self._folder / "whole.npz"
        with self._writing():
            self._close()
            with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for number, name in enumerate(self._files):
                    part = self._folder / f"{number}.npy"
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as out, part.open("rb") as source:
                        shutil.copyfileobj(source, out, _COPIED)
                    part.unlink()
                for name, value in more.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                        np.lib.format.write_array(out, np.asanyarray(value), allow_pickle=False)
            os.replace(made, self.place)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _writing(self) -> Any:
        return writing("transitions", self.place, HINT, self._needed)


def _header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
