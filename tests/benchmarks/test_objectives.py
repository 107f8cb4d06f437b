"""benchmarks/objectives.py: best-of-n from a pool, where it costs as much as training, and the page."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def objectives(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("objectives")


def scores(seed: int, shape: tuple[int, ...], shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape) + shift


def test_best_of_n_is_the_mean_over_all_subsets(objectives: Any) -> None:
    chosen_by, judged = scores(0, (5, 6)), scores(1, (5, 6))
    for n in range(1, 7):
        by_hand = np.mean(
            [judged[np.arange(5), np.array(s)[chosen_by[:, s].argmax(1)]] for s in combinations(range(6), n)], axis=0
        )
        np.testing.assert_allclose(objectives.best_of(chosen_by, judged, n), by_hand)


def test_best_of_one_is_the_mean_and_of_all_the_maximum(objectives: Any) -> None:
    values = scores(0, (5, 6))
    np.testing.assert_allclose(objectives.best_of(values, values, 1), values.mean(1))
    np.testing.assert_allclose(objectives.best_of(values, values, 6), values.max(1))
    with pytest.raises(ValueError, match="n is 7; expected 1 to 6"):
        objectives.best_of(values, values, 7)


def test_choosing_by_one_score_gains_nothing_in_an_unrelated_one(objectives: Any) -> None:
    chosen_by, judged = scores(0, (20_000, 8)), scores(1, (20_000, 8))
    assert abs(objectives.best_of(chosen_by, judged, 6).mean()) < 0.03  # the sd of the mean is below .01


def test_at_the_break_even_both_have_cost_the_same(objectives: Any) -> None:
    curve = [0.0, 0.5, 0.8, 1.0]
    n, clips = objectives.break_even(0.65, curve, seconds=90.0, clip=0.2)
    assert n == pytest.approx(2.5)  # half-way between best of 2 and best of 3
    assert clips * (n - 1) * 0.2 == pytest.approx(90.0)


def test_no_break_even_without_a_gain_or_beyond_the_curve(objectives: Any) -> None:
    curve = [0.0, 0.5, 0.8]
    assert objectives.break_even(0.0, curve, 90.0, 0.2) == (None, None)
    assert objectives.break_even(-0.1, curve, 90.0, 0.2) == (None, None)
    assert objectives.break_even(0.9, curve, 90.0, 0.2) == (None, None)


def test_the_default_runs_have_a_best_of_n_of_exactly_their_budget(objectives: Any) -> None:
    config = objectives.configuration(objectives.ROWS[1], 0)
    generations = config.max_steps * config.rollout.prompts_per_step * config.num_generations
    delivered = config.evaluation.prompts * config.evaluation.samples_per_prompt
    assert objectives.same_budget(generations, delivered) == 4 <= objectives.POOL


def test_rows_differ_in_objective_tuning_and_rate_alone(objectives: Any) -> None:
    first, *others = (objectives.settings_of(row, 0) for row in objectives.ROWS[1:])
    assert len({str((o["objective"], o["tuning"])) for o in (first, *others)}) == 8
    for other in others:
        differing = {key for key in first if first[key] != other[key]}
        assert differing <= {"objective", "tuning", "learning_rate"}


def test_every_rate_that_is_tried_has_a_key_of_its_own(objectives: Any) -> None:
    keys = [row.key for row in (*objectives.ROWS, *objectives.SEARCH)]
    assert len(set(keys)) == len(keys)


def kept(seed: int, values: np.ndarray, judge: np.ndarray, **more: Any) -> dict[str, Any]:
    return {
        "settings": {"seed": seed, "learning_rate": 1e-3},
        "machine": "a machine",
        "scores": {"song_frechet": values.tolist()} | dict.fromkeys(("heard_disco", "clap_score"), judge.tolist()),
        "diversity": 0.5,
    } | more


def finished(objectives: Any, shift: float) -> list[list[dict[str, Any]]]:
    """Two seeds of the untuned model and of the first row, the second lifted by `shift` deviations."""
    pools = [kept(s, scores(s, (40, 8)), scores(s + 10, (40, 8)), clip_seconds=0.2) for s in (0, 1)]
    runs = [
        kept(s, scores(s + 20, (40, 2), shift), scores(s + 30, (40, 2)), steps=3, generations=480, cpu_seconds=96.0)
        for s in (0, 1)
    ]
    return [pools, runs, *([[]] * (len(objectives.ROWS) - 2))]


def test_a_lift_of_one_deviation_is_a_gain_of_one(objectives: Any) -> None:
    found = objectives.summaries(objectives.ROWS, finished(objectives, shift=1.0))
    row = found["rows"][0]
    gain, low, high = row["gain"]["song_frechet"]
    assert low < 1 < high and abs(gain - 1) < 0.2
    assert row["gain"]["clap_score"][1] < 0 < row["gain"]["clap_score"][2]
    assert row["per_minute"][0] == pytest.approx(gain * 60 / 96)
    assert found["curve"][1]["seconds"] == pytest.approx(80 * 0.2)  # one more sample for each of 80 clips


def test_the_gain_of_best_of_n_is_that_of_normal_order_statistics(objectives: Any) -> None:
    found = objectives.summaries(objectives.ROWS, finished(objectives, shift=0.0))
    means = [point["gain"]["song_frechet"][0] for point in found["curve"]]
    assert abs(means[0]) < 1e-12 and means == sorted(means)
    assert means[1] == pytest.approx(1 / np.sqrt(np.pi), abs=0.1)  # of 2


def test_the_page_says_never_where_nothing_was_gained(objectives: Any, tmp_path: Path) -> None:
    found = objectives.summaries(objectives.ROWS, finished(objectives, shift=-1.0))
    page = objectives.page(found)
    assert "| DiffusionNFT, LoRA | none [none, none] | never [never, never] |" in page
    assert "| best of 7, the same samples | 2 |" in page  # 480 samples for 80 clips, and one each to deliver
    objectives.picture(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
