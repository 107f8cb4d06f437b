"""benchmarks/set_tuning.py and its parts: intervals over seeds, curves beside the control, what is heard."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def tuning(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("set_tuning")


def run(value: float, half: float) -> dict[str, Any]:
    return {"rewards": {"r": {"value": value, "low": value - half, "high": value + half}}}


def test_the_interval_over_seeds_holds_that_of_the_prompts_and_the_spread_of_seeds(tuning: Any) -> None:
    one = tuning.over_seeds([run(3.0, 0.5)], "r", "value", "low", "high")
    assert one == pytest.approx((3.0, 2.5, 3.5))
    same = tuning.over_seeds([run(3.0, 0.5)] * 3, "r", "value", "low", "high")
    assert same == pytest.approx(one)  # all seeds share the prompts, so that more of them do not narrow it
    mean, low, high = tuning.over_seeds([run(2.0, 0.5), run(4.0, 0.5)], "r", "value", "low", "high")
    half = math.sqrt(0.5**2 + 1.96**2 * 2.0 / 2)  # the variance of 2 and 4 is 2
    assert (mean, high - mean, mean - low) == pytest.approx((3.0, half, half))


def test_a_curve_is_halfway_where_it_first_reaches_half_of_its_end(tuning: Any) -> None:
    curves = tuning.credit_curves
    steps = np.concatenate([np.zeros(12), np.full(28, 4.0)])
    assert curves.half_way(steps) == 13  # a mean over five is half of the end where it holds three of the five
    assert curves.half_way(np.full(40, 2.0)) == 1
    np.testing.assert_allclose(curves.smooth(np.full(7, 3.0)), 3.0)  # ends are means of fewer


def test_gains_are_taken_beside_the_control_of_the_same_seed(tuning: Any) -> None:
    def row(key: str, **curves: list[float]) -> dict[str, Any]:
        return {"key": key, "curves": {s: {"reward": v, "minutes": [1.0, 2.0]} for s, v in curves.items()}}

    rows = [row("mine", a=[1.0, 5.0], b=[2.0, 2.0]), row("random", a=[1.0, 2.0]), row("other", c=[0.0, 0.0])]
    found = tuning.credit_curves.gained(rows, "random")
    assert list(found) == ["mine"] and len(found["mine"]) == 1
    np.testing.assert_allclose(found["mine"][0][0], [0.0, 3.0])


def test_total_variation_is_the_share_of_clips_that_would_have_to_change(tuning: Any) -> None:
    variation = tuning.set_attributes.variation
    assert variation({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}) == 0
    assert variation({"a": 1.0}, {"b": 1.0}) == 1
    assert variation({"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.5, "c": 0.25}) == pytest.approx(0.25)
    assert variation({"a": 0.7, "b": 0.3}, {"b": 1.0}) == variation({"b": 1.0}, {"a": 0.7, "b": 0.3})


def test_the_page_is_drawn_from_kept_runs(tuning: Any, root: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(tuning, "ROOT", tmp_path)
    kept, rows = root / "benchmarks" / "results" / "set_tuning", []
    for key in ("set_fad", "random"):
        row = next(row for row in tuning.ROWS if row.key == key)
        runs = [json.loads(path.read_text()) for path in sorted(kept.glob(f"{key}_[0-9]*.json"))]
        rows.append(tuning.summary(row, runs))
    heard = {side: {"style": {"disco": share, "funk": 1 - share}} for side, share in (("base", 0.25), ("tuned", 0.5))}
    rows[0]["heard"], rows[1]["heard"] = [heard | {"again": heard["base"]}], []
    text = tuning.table(rows, "a machine", 128)
    assert "a tuned set of 16 prompts beats" in text and "| control: random labels | 3 |" in text
    assert "| dataset FAD, influence | 1 | 25 |" in text and "| the base beside itself | 1 | 0 |" in text
    for name in ("set_tuning.png", "set_tuning_credits.png"):
        assert (tmp_path / "docs" / name).stat().st_size > 10_000 and name in text
