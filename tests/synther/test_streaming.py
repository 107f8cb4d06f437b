"""An npz written part by part is the one that numpy writes at once; nothing stays of one that is not finished."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from dragon.errors import ShapeError, Unwritable
from dragon.synther import streaming
from dragon.synther.streaming import NpzWriter


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "observations": random.standard_normal((1000, 3)).astype(np.float32),
        "terminals": random.random(1000) < 0.1,
        "levels": np.arange(1000),
    }


@pytest.mark.parametrize("size", [1, 300, 1000])
def test_parts_of_any_size_give_the_bytes_of_numpy(arrays, size: int, tmp_path: Path) -> None:
    low = np.ones(3)
    with NpzWriter(tmp_path / "parts.npz", 1000) as writer:
        for start in range(0, 1000, size):
            writer.add({name: value[start : start + size] for name, value in arrays.items()})
        writer.finish({"action_low": low})
    np.savez(tmp_path / "whole.npz", **arrays, action_low=low)
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_rows_that_are_missing_too_many_or_of_unequal_number_are_refused(arrays, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="1000 rows were written; expected 1001"), NpzWriter(tmp_path / "a", 1001) as w:
        w.add(arrays)
        w.finish({})
    with pytest.raises(ShapeError, match="expected 999 rows in all"), NpzWriter(tmp_path / "a", 999) as w:
        w.add(arrays)
    with pytest.raises(ShapeError, match="as many of each array"), NpzWriter(tmp_path / "a", 1000) as w:
        w.add(arrays | {"levels": np.arange(10)})
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_until_the_new_one_is_whole(arrays, tmp_path: Path) -> None:
    place = tmp_path / "rows.npz"
    place.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), NpzWriter(place, 1000) as writer:
        writer.add({name: value[:10] for name, value in arrays.items()})
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npz"] and place.read_bytes() == b"older"


def test_a_full_disk_is_one_message_and_leaves_nothing(arrays, tmp_path: Path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streaming.shutil, "copyfileobj", full)
    with pytest.raises(Unwritable, match="No space left on device.*21 kB needed.*make room"):  # noqa: SIM117
        with NpzWriter(tmp_path / "rows.npz", 1000) as writer:
            writer.add(arrays)
            writer.finish({})
    assert not list(tmp_path.iterdir())
