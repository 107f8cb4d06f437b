"""One update by several processes equals one by a single process, and what stops one of them stops all alike.

The processes are threads that meet at a barrier: what each of them computes and passes on is what real ones would.
Sharded weights need real ones (the last claim, slow); so does a whole run (test_processes.py).
"""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from dragon.errors import NotFinite, OtherProcess
from dragon.learner import Learner, Update
from dragon.objectives import DPO, KTO, NFT, BestOfK
from dragon.policy import ToyPolicy
from dragon.policy.base import DiffusionPolicy
from dragon.pool import PairPool
from dragon.processes import Processes
from dragon.protocols import Objective
from tests.test_learner import OBJECTIVES, DoubleToy, Small, Spoilt, figures, learner, pool, same, seeded, weights

T = TypeVar("T")


class Meeting:
    """Where `count` threads leave something for one another."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._left: list[Any] = [None] * count
        self._barrier = threading.Barrier(count, timeout=20)

    def swap(self, rank: int, value: T) -> list[T]:
        self._left[rank] = value
        self._barrier.wait()
        found = list(self._left)
        self._barrier.wait()  # all have read before anyone leaves the next thing
        return found


@dataclass
class Thread:
    """One of several processes, as a thread."""

    rank: int
    meeting: Meeting
    calls: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.meeting.count

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        self.calls.append("gather")
        return torch.cat(self.meeting.swap(self.rank, rows.clone()))

    def gather_values(self, value: T) -> list[T]:
        self.calls.append("values")
        return self.meeting.swap(self.rank, value)

    def add(self, tensors: Sequence[Tensor]) -> None:
        self.calls.append("add")
        everyone = self.meeting.swap(self.rank, [t.clone() for t in tensors])
        for i, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([theirs[i] for theirs in everyone]).sum(0))

    @contextmanager
    def together(self) -> Iterator[None]:
        found: Exception | None = None
        try:
            yield
        except OtherProcess:
            raise
        except Exception as error:
            found = error
        told = self.gather_values(str(found or ""))
        if found is not None:
            raise found
        for rank, text in enumerate(told):
            if text:
                raise OtherProcess(f"process {rank} has stopped: {text}")


def by_threads(count: int, build: Callable[[Processes], Learner], work: Callable[[Learner], T]) -> list[T | Exception]:
    """What `work` gives, or raises, for the learner of each of `count` processes; they make the same calls."""
    meeting = Meeting(count)
    processes = [Thread(rank, meeting) for rank in range(count)]
    learners = [build(one) for one in processes]  # here, since building seeds torch's global generator
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(learners[rank])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(one.calls == processes[0].calls for one in processes)
    return results


def some_updates(pairs: PairPool, updates: int = 4) -> Callable[[Learner], tuple[list[Update], Tensor, Any]]:
    def work(it: Learner) -> tuple[list[Update], Tensor, Any]:
        reports = [it.update(pairs, seeded(i), 1e-2) for i in range(updates)]
        it.follow()
        return reports, weights(it), it.state_dict()

    return work


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_two_or_three_processes_equal_one(objective: Objective) -> None:
    work = some_updates(pool(ToyPolicy(), dtype=torch.float64))
    options: dict[str, Any] = {"micro_batch_size": 3, "calibration_updates": 2}
    alone, after, _ = work(learner(DoubleToy(), objective, **options))
    for count in (2, 3):  # 8 pairs an update: 4 + 4, and 3 + 3 + 2
        found = by_threads(count, lambda p: learner(DoubleToy(), objective, processes=p, **options), work)
        for one in found:
            assert isinstance(one, tuple), one
            for mine, theirs in zip(alone, one[0], strict=True):
                assert figures(theirs) == pytest.approx(figures(mine), rel=1e-7, abs=1e-9, nan_ok=True)
            torch.testing.assert_close(one[1], after, rtol=1e-9, atol=1e-9)
            assert same(one[2], found[0][2])  # type: ignore[index]  # all processes to the bit


@pytest.mark.parametrize("objective", [NFT(), KTO(beta=50)], ids=str)
def test_a_process_without_rows_takes_part(objective: Objective) -> None:
    work = some_updates(pool(ToyPolicy(), pairs=1, dtype=torch.float64))
    _, after, _ = work(learner(DoubleToy(), objective))
    for one in by_threads(2, lambda p: learner(DoubleToy(), objective, processes=p), work):
        assert isinstance(one, tuple), one
        torch.testing.assert_close(one[1], after, rtol=1e-9, atol=1e-9)


def test_a_weight_that_no_loss_reaches_stays_without_a_gradient() -> None:
    class OneMore(DoubleToy):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

        def trainable(self) -> dict[str, torch.nn.Parameter]:
            return {**self._toy.trainable(), "more": self.more}

        def weights(self, values: Any) -> Any:
            return self._toy.weights({name: value for name, value in values.items() if name != "more"})

    work = some_updates(pool(ToyPolicy(), pairs=1, dtype=torch.float64))
    for one in by_threads(2, lambda p: learner(OneMore(), NFT(), processes=p, weight_decay=0.5), work):
        assert isinstance(one, tuple), one
        assert one[1][-2:].tolist() == [1.0, 1.0]  # with a gradient of 0 it would have decayed


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_what_is_not_finite_in_one_process_is_left_out_in_all(fault: str, rank: int) -> None:
    def spoil(loss: Tensor) -> Tensor:
        return loss * torch.nan if fault == "loss" else (loss - loss.detach()).abs().sqrt()

    def build(processes: Processes) -> Learner:
        it = learner(
            DoubleToy(), Spoilt(BestOfK(), spoil) if processes.rank == rank else BestOfK(), processes=processes
        )
        it._max_skipped = 1
        return it

    pairs = pool(ToyPolicy(), dtype=torch.float64)
    drawn = learner(DoubleToy(), BestOfK())._draw(pairs, seeded(0)).pairs.positive
    first = 0 if fault == "gradient" or rank == 0 else 4  # a gradient is blamed on one of all pairs, by all
    start = weights(learner(DoubleToy(), BestOfK()))

    def work(it: Learner) -> tuple[Update, int, Tensor]:
        return it.update(pairs, seeded(0), 1e-2), it.skipped, weights(it)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = by_threads(2, build, work)
    assert len(said) == 1  # the main process speaks
    for one in found:
        assert isinstance(one, tuple), one
        update, skipped, after = one
        assert f"prompt {drawn.prompts[first]!r}, seed" in update.skipped and str(drawn.seeds[first]) in update.skipped
        assert fault in update.skipped and skipped == 1 and torch.equal(after, start)


def test_after_too_many_all_processes_raise_the_same_error() -> None:
    def build(processes: Processes) -> Learner:
        spoilt = Spoilt(BestOfK(), lambda loss: loss * torch.nan)
        return learner(DoubleToy(), spoilt if processes.rank == 1 else BestOfK(), processes=processes)

    one, other = by_threads(2, build, some_updates(pool(ToyPolicy(), dtype=torch.float64)))
    assert isinstance(one, NotFinite) and isinstance(other, NotFinite) and str(one) == str(other)


def test_an_error_in_one_process_is_known_to_all() -> None:
    def broken(loss: Tensor) -> Tensor:
        raise ZeroDivisionError("a fault of the objective")

    def build(processes: Processes) -> Learner:
        objective = Spoilt(DPO(), broken) if processes.rank == 1 else DPO()
        return learner(DoubleToy(), objective, processes=processes)

    one, other = by_threads(2, build, some_updates(pool(ToyPolicy(), dtype=torch.float64)))
    assert isinstance(other, ZeroDivisionError)
    assert isinstance(one, OtherProcess) and "process 1" in str(one) and "a fault of the objective" in str(one)


def test_out_of_memory_in_one_process_halves_the_micro_batch_of_all() -> None:
    pairs = pool(ToyPolicy(), dtype=torch.float64)
    work = some_updates(pairs)
    _, after, _ = work(learner(DoubleToy(), KTO(beta=50)))

    def build(processes: Processes) -> Learner:
        return learner(Small(DoubleToy(), 2 if processes.rank else 99), KTO(beta=50), processes=processes)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = by_threads(2, build, work)
    for one in found:
        assert isinstance(one, tuple), one
        torch.testing.assert_close(one[1], after, rtol=1e-9, atol=1e-9)
        assert one[2]["micro_batch"][1] == 2


def left_out_between(policy: DiffusionPolicy, processes: Processes | None = None) -> tuple[str, dict[str, Any]]:
    """Why the third of four updates was left out, and the state at the end.

    Of 5 pairs one process has 3 and the other 2: with one pair a micro-batch, it makes one call more than it has rows.
    """
    it = learner(policy, NFT(), pairs_per_update=5, micro_batch_size=1, max_skipped_updates=1, processes=processes)
    pairs, good, why = pool(policy), it.objective, ""
    for i in range(4):
        it.objective = Spoilt(good, lambda loss: (loss - loss.detach()).abs().sqrt()) if i == 2 else good
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            why += it.update(pairs, seeded(i), 1e-2).skipped
    return why, it.state_dict()


def tell_as(rank: int, folder: Path) -> None:
    """One of two processes: trains a sharded policy and stores what it saw."""
    from dragon.processes import Launched

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    policy = ToyPolicy()
    policy.shard()
    torch.save(left_out_between(policy, Launched(cpu=True)), folder / f"{rank}.pt")


@pytest.mark.slow
def test_sharded_weights_leave_out_the_same_update(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=120)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
    why, alone = left_out_between(ToyPolicy())
    assert "the gradient of" in why and alone["skipped"] == 1
    for rank in range(2):
        told, state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert told == why and state["skipped"] == 1 and state["updates"] == 3
        for part in ("weights", "ema", "old"):
            torch.testing.assert_close(state[part], alone[part], rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    tell_as(int(sys.argv[1]), Path(sys.argv[2]))
