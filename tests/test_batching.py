"""Batches: every row once and in order, at whatever size memory allows."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch

from dragon.batching import Batching, out_of_memory
from dragon.errors import OutOfMemory


def rows_of(batching: Batching, rows: int, room: int, error: type[BaseException] = MemoryError) -> list[range]:
    """The batches that fitted into `room` rows."""

    def work(batch: range) -> range:
        if len(batch) > room:
            raise error("out of memory")
        return batch

    return batching.run(rows, work)


@pytest.mark.parametrize("room", [1, 3, 7, 100])
@pytest.mark.parametrize("size", [1, 8, 64])
@pytest.mark.filterwarnings("ignore:out of memory")
def test_every_row_comes_once_and_in_order(room: int, size: int) -> None:
    found = rows_of(Batching(size), 50, room)
    assert [row for batch in found for row in batch] == list(range(50))
    assert all(len(batch) <= min(room, size) for batch in found)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, RuntimeError])
def test_a_size_is_halved_for_good_and_said_once_a_halving(error: type[BaseException]) -> None:
    batching = Batching(32, "roll-out")
    with pytest.warns(UserWarning, match="out of memory in a roll-out of") as told:
        found = rows_of(batching, 40, 8, error)
    assert [len(batch) for batch in found] == [8] * 5 and len(told) == 2 and batching.halved == [32, 8]
    assert "of 32 rows; going on with 16 (set rollout.batch_size" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(rows_of(batching, 40, 8)) == 5


def test_fewer_rows_than_the_size_are_halved_from_what_they_are() -> None:
    batching = Batching(1000)
    with pytest.warns(UserWarning, match="of 6 rows; going on with 3"):
        assert [len(batch) for batch in rows_of(batching, 6, 3)] == [3, 3]


def test_one_row_that_does_not_fit_is_an_error() -> None:
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory, match=r"in a batch of one row \(out of memory\)"):
        rows_of(Batching(2), 4, 0)


def test_a_size_that_processes_share_is_not_halved() -> None:
    with pytest.raises(OutOfMemory, match="set rollout.batch_size below 8"):
        rows_of(Batching(8, fixed=True), 16, 4)


def test_other_errors_pass() -> None:
    assert not out_of_memory(RuntimeError("shape mismatch")) and not out_of_memory(ValueError("out of memory"))
    with pytest.raises(ValueError):
        rows_of(Batching(8), 16, 4, ValueError)


def test_nothing_of_the_call_that_failed_is_kept() -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    def work(batch: range) -> None:
        assert all(ref() is None for ref in seen), "the failed call's tensor is still there"
        large = torch.zeros(len(batch))
        seen.append(weakref.ref(large))
        if len(batch) > 2:
            raise MemoryError

    with pytest.warns(UserWarning):
        Batching(8).run(8, work)


def test_calls_beyond_the_rows_are_made_and_dropped() -> None:
    asked: list[range] = []

    def work(batch: range) -> range:
        asked.append(batch)
        return batch

    found = Batching(4).run(6, work, calls=4)
    assert found == [range(4), range(4, 6)] and asked == [*found, range(1), range(1)]


def test_a_size_found_before_is_taken_over() -> None:
    batching = Batching(32)
    for nothing in ([], [64, 8]):  # another size was asked for then
        batching.restore(nothing)
        assert (batching.size, batching.halved) == (32, [])
    batching.restore([32, 8])
    assert (batching.size, batching.halved) == (8, [32, 8])
