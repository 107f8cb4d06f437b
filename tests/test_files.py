"""A file is complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dragon.errors import Unwritable
from dragon.files import readable, write_whole, writing


def test_it_makes_the_folder_and_replaces_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "new" / "file.bin"
    write_whole(place, b"one")
    write_whole(place, b"two")
    assert place.read_bytes() == b"two" and os.listdir(place.parent) == ["file.bin"]
    assert place.stat().st_mode & 0o777 == 0o644


def test_what_stops_it_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "file.bin"
    write_whole(place, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(place, b"new")
    assert place.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.bin"]


def test_what_the_system_refuses_is_one_message(tmp_path: Path) -> None:
    with (
        pytest.raises(Unwritable, match=r"a table cannot be written to '.*': Is a directory \(.* free\); choose"),
        writing("a table", tmp_path / "not" / "there", "choose another folder"),
    ):
        tmp_path.write_text("")


def test_sizes_read_in_thousands() -> None:
    assert [readable(n) for n in (0, 999, 1500, 28_100_000, 5 * 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "28.1 MB",
        "5e+03 TB",
    ]
