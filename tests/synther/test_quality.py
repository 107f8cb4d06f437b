"""The report finds what is wrong with rows, and nothing where rows are as good as real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dragon.errors import ShapeError
from dragon.report.transitions import correlation_maps, number, write_quality
from dragon.synther.columns import Layout, TransitionSpec, fit_layout
from dragon.synther.quality import Quality, Verdict, distances_of_samples, nearest_distances, quality, wilson
from dragon.synther.transitions import Transitions

A = np.array([[0.9, 0.2], [-0.1, 0.8]])


def system(n: int, seed: int) -> Transitions:
    """A linear system with two modes of start, a whole-number column, and terminals far to the right."""
    random = np.random.default_rng(seed)
    state = random.standard_normal((n, 2)) * 0.5 + random.choice([-2.0, 2.0], (n, 1))
    action = random.uniform(-1, 1, (n, 1))
    after = state @ A.T + action * [0.3, 0.1]
    return Transitions(
        observations=state.astype(np.float32),
        actions=action.astype(np.float32),
        rewards=(-np.square(state).sum(1)).astype(np.float32),
        next_observations=after.astype(np.float32),
        terminals=after[:, 0] > 2.2,
        blocks={"level": random.integers(0, 5, n)},
        action_low=np.array([-1.0], dtype=np.float32),
        action_high=np.array([1.0], dtype=np.float32),
    )


@pytest.fixture(scope="module")
def train() -> Transitions:
    return system(4000, 0)


@pytest.fixture(scope="module")
def held_out() -> Transitions:
    return system(1500, 1)


@pytest.fixture(scope="module")
def layout(train: Transitions) -> Layout:
    return fit_layout(train, TransitionSpec())


def verdict(found: Quality, aspect: str) -> Verdict:
    return next(v for v in found.verdicts if v.aspect.startswith(aspect))


def failed(found: Quality) -> set[str]:
    return {v.aspect for v in found.verdicts if not v.passed}


def test_fresh_rows_of_the_same_system_pass_in_every_aspect(train, held_out, layout) -> None:
    found = quality(system(4000, 2), train, held_out, layout)
    assert found.passed, failed(found)
    assert verdict(found, "columns, 1 - KS").new > 0.96
    assert verdict(found, "nearest row").new == pytest.approx(1, abs=0.1)
    # the ceiling is what fresh rows get, too: the new rows are exchangeable with it
    for one in found.columns:
        assert one.similarity["new"] == pytest.approx(one.similarity["real"], abs=0.04)


def test_a_shifted_column_is_the_worst_and_fails(train, held_out, layout) -> None:
    new = system(4000, 2)
    moved = new.observations.copy()
    moved[:, 1] += 0.6
    found = quality(replace(new, observations=moved), train, held_out, layout)
    assert not verdict(found, "worst column").passed and "observations.1" in verdict(found, "worst column").words
    column = next(c for c in found.columns if c.name == "observations.1")
    # W1 of a shift is the shift, here in standard deviations of the data
    assert column.wasserstein["new"] == pytest.approx(0.6 / train.observations[:, 1].std(), rel=0.1)


def test_copies_of_training_rows_are_flagged(train, held_out, layout) -> None:
    copied = quality(train, train, held_out, layout)
    assert failed(copied) == {
        "nearest row of the fit, median distance over held-out rows'",
        "rows nearer than 99 in 100 real ones",
    }
    assert verdict(copied, "nearest row").new == 0 and verdict(copied, "rows nearer").new == 1
    fresh = system(3600, 2)
    some = Transitions.cat([fresh, train.rows(slice(0, 400))])  # one row in ten
    found = quality(some, train, held_out, layout)
    assert failed(found) == {"rows nearer than 99 in 100 real ones"}
    assert verdict(found, "rows nearer").new == pytest.approx(0.11, abs=0.02)


def test_rows_of_one_mode_only_leave_real_rows_alone(train, held_out, layout) -> None:
    new = system(8000, 2)
    found = quality(new.rows(np.flatnonzero(new.observations.sum(1) > 0)), train, held_out, layout)
    assert not verdict(found, "held-out rows' distance").passed


def test_lost_terminals_actions_outside_and_broken_numbers_are_found(train, held_out, layout) -> None:
    new = system(4000, 2)
    found = quality(
        replace(
            new,
            terminals=new.terminals & (np.arange(4000) % 2 == 0),
            actions=np.where(np.arange(4000)[:, None] < 40, 1.5, new.actions).astype(np.float32),
            blocks={"level": new.blocks["level"] + 0.25},
        ),
        train,
        held_out,
        layout,
    )
    assert "comes less often" in verdict(found, "rate of terminals").words
    assert verdict(found, "actions inside").new == pytest.approx(0.99)
    assert not verdict(found, "whole numbers").passed
    assert {"rate of terminals", "actions inside their box", "whole numbers that are whole"} <= failed(found)


def test_the_gaussian_is_a_floor_where_columns_are_not_gaussian(train, held_out, layout) -> None:
    found = quality(system(4000, 2), train, held_out, layout)
    mean = verdict(found, "columns, 1 - KS")
    assert mean.gaussian < mean.real - 0.05
    correlations = verdict(found, "correlations")
    assert correlations.gaussian < correlations.real + 0.02  # moments it has right


def test_distances_of_samples_are_those_of_scipy() -> None:
    from scipy.stats import ks_2samp, wasserstein_distance

    random = np.random.default_rng(0)
    for a, b in (
        (random.standard_normal(300), random.standard_normal(200) + 0.5),
        (random.integers(0, 4, 100).astype(float), random.integers(0, 3, 150).astype(float)),
        (np.ones(5), np.ones(7)),
    ):
        ks, w1 = distances_of_samples(a, b)
        assert ks == pytest.approx(ks_2samp(a, b).statistic) and w1 == pytest.approx(wasserstein_distance(a, b))


def test_nearest_distances_are_exact_across_blocks(monkeypatch) -> None:
    monkeypatch.setattr("dragon.synther.quality.BLOCK", 1000)
    random = np.random.default_rng(0)
    rows, queries = random.standard_normal((777, 4)) + 50, random.standard_normal((90, 4)) + 50
    queries[3] = rows[700]
    brute = np.sqrt(np.square(queries[:, None] - rows).sum(2)).min(1)
    found = nearest_distances(queries, rows)
    assert found[3] == 0  # although |a|^2 - 2ab + |b|^2 in float32 is off by far more here
    assert found == pytest.approx(brute, rel=1e-3)


def test_the_interval_of_a_rate_holds_it_and_stays_between_0_and_1() -> None:
    assert wilson(0, 100) == pytest.approx((0, 0.0370), abs=1e-4)
    low, high = wilson(50, 1000)
    assert low < 0.05 < high


def test_a_simulator_tells_true_rows_from_moved_ones() -> None:
    pytest.importorskip("mujoco")
    from dragon.synther.dynamics import simulate

    random = np.random.default_rng(0)

    def hopper(n: int) -> Transitions:
        now = np.concatenate([1.25 + 0.02 * random.standard_normal((n, 1)), 0.1 * random.standard_normal((n, 10))], 1)
        actions = random.uniform(-1, 1, (n, 3))
        after, rewards, terminals = simulate("Hopper-v5", now, actions)
        return Transitions(now, actions, rewards, after, terminals)

    train, held_out, new = hopper(200), hopper(60), hopper(60)
    layout = fit_layout(train, TransitionSpec())
    true = quality(new, train, held_out, layout, environment="Hopper-v5")
    assert verdict(true, "dynamics error").new < 1e-6 and verdict(true, "dynamics error").passed
    assert verdict(true, "dynamics error").real < 1e-6 < verdict(true, "dynamics error").gaussian
    moved = replace(new, next_observations=new.next_observations + 2 * held_out.next_observations.std(0))
    found = quality(moved, train, held_out, layout, environment="Hopper-v5")
    assert verdict(found, "dynamics error").new == pytest.approx(4, rel=1e-3)  # (2 deviations)^2 over the variance
    assert not verdict(found, "dynamics error").passed


def test_discrete_actions_are_compared_as_rates(held_out) -> None:
    random = np.random.default_rng(3)

    def part(n: int, shares: list[float]) -> Transitions:
        made = system(n, int(random.integers(1 << 30)))
        return replace(made, actions=random.choice(3, n, p=shares), action_low=None, action_high=None)

    train, real, new = part(3000, [0.2, 0.5, 0.3]), part(1000, [0.2, 0.5, 0.3]), part(3000, [0.5, 0.2, 0.3])
    found = quality(new, train, real, fit_layout(train, TransitionSpec()))
    columns = {c.name: c for c in found.columns}
    assert columns["actions=1"].similarity["new"] == pytest.approx(0.7, abs=0.04)
    assert columns["actions=2"].similarity["new"] > 0.95
    assert "actions inside their box" not in {v.aspect for v in found.verdicts}


def test_the_same_rows_and_seed_give_the_same_figures(train, held_out, layout) -> None:
    new = system(2500, 2)
    once, again = (quality(new, train, held_out, layout, seed=4) for _ in range(2))
    assert once.to_json() == again.to_json()


def test_files_for_people_and_programs(train, held_out, layout, tmp_path: Path) -> None:
    found = quality(system(2500, 2), train, held_out, layout)
    page = write_quality(replace(found, notes=("a <note>",)), tmp_path, title="Mine")
    text = page.read_text()
    assert "Note: a &lt;note&gt;." in text and "observations.1" in text and text.count("data:image/png") == 5
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5
    stored = json.loads((tmp_path / "quality.json").read_text())
    assert stored["version"] == 1 and stored["passed"] and stored["rows"]["held_out"] == 1500
    assert {v["aspect"] for v in stored["verdicts"]} == {v.aspect for v in found.verdicts}


def test_a_map_of_correlations_shows_the_mean_of_the_table(train, held_out, layout) -> None:
    """Over pairs of columns: the diagonal, where all agree, would flatter."""
    found = quality(system(2500, 2), train, held_out, layout)
    titles = [axes.get_title(loc="left") for axes in correlation_maps(found).axes[:3]]
    sides = found.figures["correlation"]
    assert titles[1] == f"new, mean {number(sides['new']['mean'])}"
    off = ~np.eye(len(found.columns), dtype=bool)
    assert sides["new"]["mean"] == pytest.approx(np.abs(found.drawn["correlation_new"])[off].mean(), rel=1e-12)


def test_one_column_that_varies_can_be_drawn(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def part(n: int) -> Transitions:
        zero = np.zeros((n, 1))
        return Transitions(zero, zero, random.standard_normal(n), zero, np.zeros(n, dtype=bool))

    train = part(400)
    found = quality(part(300), train, part(100), fit_layout(train, TransitionSpec()))
    assert [column.name for column in found.columns] == ["rewards"]
    assert write_quality(found, tmp_path).is_file()


def test_too_few_rows_are_refused_and_few_are_said(train, held_out, layout) -> None:
    with pytest.raises(ShapeError, match="held_out has 1 rows"):
        quality(train, train, held_out.rows([0]), layout)
    assert "only 20 rows" in quality(train, train, held_out.rows(slice(0, 20)), layout).notes[0]
