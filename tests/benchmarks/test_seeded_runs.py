"""benchmarks/seeded_runs.py: which stored runs still belong to a row."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("seeded_runs")


def test_a_run_counts_until_something_but_the_number_format_changes(runs: Any) -> None:
    row = runs.Row("a", "a", "mini_set_fad", "set_frechet")
    now = runs.settings_of(row, 0)
    assert runs.same_settings(now, now) and not runs.same_settings(now, runs.settings_of(row, 1))
    other_format = now | {"policy": {"name": "mini", "options": {"t_min": 0.9, "precision": "bfloat16"}}}
    assert runs.same_settings(other_format, now)
    other_levels = now | {"policy": {"name": "mini", "options": {"t_min": 0.5}}}
    assert not runs.same_settings(other_levels, now)
    assert not runs.same_settings(now | {"nothing_like_this": 1}, now)
