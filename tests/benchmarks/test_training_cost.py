"""benchmarks/training_cost.py: what is counted as overhead, and how launches are compared."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def cost(root: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("training_cost")


def mark(now: float, **spent: tuple[float, int]) -> dict[str, Any]:
    """A mark at `now` on both clocks; (seconds so far, calls so far) by name."""
    return {"now": (now, 2 * now), "spent": {name: [s, 2 * s, calls] for name, (s, calls) in spent.items()}}


def test_a_step_and_its_safety_add_up_to_the_time_between_marks(cost: Any) -> None:
    first = mark(100.0, log=(1.0, 3), save=(2.0, 1), copy=(0.5, 2))
    last = mark(150.0, log=(2.0, 18), save=(6.0, 6), copy=(1.5, 12))
    found = cost.safety(first, last, steps=5)
    assert found["log"] == pytest.approx((0.2, 0.4))  # one second over five steps, whatever the number of trackers
    assert found["save"] == pytest.approx((0.8, 1.6))
    assert found["copy"] == pytest.approx((0.1, 0.2))  # ten calls: before a step, and for a checkpoint
    once = found["step"][0] + found["log"][0] + found["save"][0] + 2 * found["copy"][0]
    assert 5 * once == pytest.approx(150 - 100)


def test_the_share_falls_with_rarer_checkpoints_to_that_of_log_and_copy(cost: Any) -> None:
    found = {"step": (9.0, 9.0), "log": (0.1, 0.1), "copy": (0.1, 0.1), "save": (0.7, 1.7)}
    assert cost.share(found, 1) == pytest.approx(1.0 / 10.0)
    assert cost.share(found, 1, clock=1) == pytest.approx(2.0 / 11.0)
    assert cost.share(found, 10) < cost.share(found, 1)
    assert cost.share(found, 10**9) == pytest.approx(0.2 / 9.2)


def test_a_clock_counts_calls_that_fail_too(cost: Any) -> None:
    clock = cost.Clock()

    def fails() -> None:
        time.sleep(0.01)
        raise ValueError

    with pytest.raises(ValueError):
        clock.timed("save", fails)()
    cpu, wall, calls = clock.totals["save"]
    assert calls == 1 and wall >= 0.01 > cpu


def test_descendants_are_children_and_theirs_and_no_others(cost: Any) -> None:
    assert cost.descendants(2, {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}) == {2, 3, 4}


def test_the_time_of_this_process_is_found(cost: Any) -> None:
    if not os.path.exists("/proc/self/stat"):
        pytest.skip("no /proc")
    assert cost.cpu_of(os.getpid()) >= 0.5 * time.process_time()


def test_ratios_are_within_a_round(cost: Any) -> None:
    runs = {"one": [[(10.0, 10.0)], [(20.0, 40.0)]], "two": [[(11.0, 6.0)], [(22.0, 24.0)]]}
    assert cost.ratios(runs, "two", 0) == pytest.approx([1.1, 1.1])
    assert cost.ratios(runs, "two", 1) == pytest.approx([0.6, 0.6])


def kept(save: float) -> dict[str, Any]:
    stage = {
        "machine": "a machine",
        "versions": "torch 1",
        "steps": 5,
        "seconds": {"rollout": 6.0, "train": 2.0},
        "loaded_mb": 900.0,
        "step_mb": 1000.0,
        "run_mb": 1100.0,
        "checkpoint_mb": 13.0,
        "step": (8.0, 8.0),
        "log": (0.1, 0.1),
        "copy": (0.01, 0.01),
        "save": (save, save),
    }
    steps = [[(10.0, 10.0), (10.0, 10.0)]]
    launches = {"machine": "a machine", "versions": "torch 1", "cores": 2, "load": 0.1}
    return {"stages_lora": stage, "launches": launches | {"runs": {"one": steps, "two": steps, "overlap": steps}}}


def test_the_page_says_whether_the_claim_holds(cost: Any) -> None:
    assert "it stays below 3%" in cost.page(kept(save=0.2))
    assert "MORE than 3%" in cost.page(kept(save=20.0))
    assert "| rollout | 6.00 s, 75.0% |" in cost.page(kept(save=0.2))
    assert "| two processes | 10.0 s | 10.0 s | 1.00 (1.00) | 1.00 (1.00) |" in cost.page(kept(save=0.2))
