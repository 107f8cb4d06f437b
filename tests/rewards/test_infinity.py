"""Frechet distance at infinitely many frames: known truths, what the interval covers, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.exemplars import Gaussian
from dragon.rewards import frechet_distance
from dragon.rewards.infinity import FrechetInfinityResult, frechet_distance_infinity

SPREADS = np.linspace(2, 1, 6)
STANDARD = Gaussian.of_moments(np.zeros(6), np.eye(6), n=10_000)
TRUTH = 1 + float(np.sum((SPREADS - 1) ** 2))  # a shift of 1, and a diagonal covariance against the unit matrix


def sample(rows: int, seed: int) -> np.ndarray:
    table = np.random.default_rng(seed).standard_normal((rows, 6)) * SPREADS
    return table + np.eye(6)[0]


def frames(rows: int, size: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, size))


# ---- the value


@pytest.mark.parametrize("rows", [48, 144])
def test_extrapolation_removes_most_of_the_bias(rows: int):
    # what it takes off is compared on the same tables, where the noise of the tables cancels: its standard error is 1 %
    # of the bias; that of the bias itself, over 2,000 tables, is 3 % and 5 %
    bias = np.mean([float(frechet_distance(sample(rows, seed), STANDARD)) for seed in range(2000)]) - TRUTH
    tables = [sample(rows, seed) for seed in range(100)]
    removed = np.mean([float(frechet_distance(t, STANDARD)) - float(infinity(t, draws=2, groups=4)) for t in tables])
    assert bias > 0.15
    assert abs(bias - removed) < 0.25 * bias


def infinity(table: np.ndarray, **options: int) -> FrechetInfinityResult:
    return frechet_distance_infinity(table, STANDARD, **options)  # type: ignore[arg-type]


def test_all_rows_at_once_are_the_plain_distance_and_the_line_is_the_least_squares_one():
    table = sample(60, 0)
    found = infinity(table)
    assert found.sizes == (60, 30, 20)
    assert found.distances[0] == pytest.approx(float(frechet_distance(table, STANDARD)), rel=1e-12)
    slope, intercept = np.polyfit(1 / np.array(found.sizes), found.distances, 1)
    assert (found.value, found.slope) == (pytest.approx(intercept, rel=1e-10), pytest.approx(slope, rel=1e-10))
    correlation = np.corrcoef(1 / np.array(found.sizes), found.distances)[0, 1]
    assert found.r_squared == pytest.approx(correlation**2, rel=1e-10)
    assert (found.n, found.reference_n, found.d, found.draws, found.groups, found.seed) == (60, 10_000, 6, 4, 12, 0)
    assert found.low < float(found) < found.high
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_sizes_are_means_over_disjoint_sub_samples():
    # of equal halves of 16 rows, the mean distance to the reference's mean is known: 8 rows each, none twice
    table = np.repeat([[0.0], [1.0]], 8, axis=0)
    found = frechet_distance_infinity(table, np.array([[0.0], [0.0]]), sizes=(16, 8), draws=1, groups=4)
    # the reference is one point at 0: |mean|^2 + variance; with u ones among the first 8 rows, mean u / 8
    halves = [[(u / 8) ** 2 + u * (8 - u) / 56 for u in (first, 8 - first)] for first in range(9)]
    assert any(found.distances[1] == pytest.approx(np.mean(half), rel=1e-12) for half in halves)
    assert found.r_squared == pytest.approx(1)  # of two sizes


def test_a_seed_gives_one_value_and_seeds_differ_less_than_tables_do():
    table = sample(96, 0)
    assert infinity(table, seed=3) == infinity(table, seed=3)
    over_seeds = [float(infinity(table, seed=seed, groups=4)) for seed in range(8)]
    assert 0 < np.std(over_seeds) < 0.2 * np.std([float(infinity(sample(96, s), groups=4)) for s in range(8)])


def test_the_order_of_reference_rows_and_global_random_state_do_not_matter():
    reference = frames(50, 6, 1)
    np.random.seed(5)
    expected = frechet_distance_infinity(sample(60, 0), reference, groups=4)
    state = np.random.get_state()[1]
    found = frechet_distance_infinity(sample(60, 0), reference[::-1].copy(), groups=4)
    assert float(found) == pytest.approx(float(expected), rel=1e-10)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_it_scales_with_the_square_of_the_features():
    table, reference = sample(60, 0), frames(50, 6, 1)
    one = frechet_distance_infinity(table, reference, groups=4)
    thousand = frechet_distance_infinity(1000 * table, 1000 * reference, groups=4)
    assert float(thousand) == pytest.approx(1e6 * float(one), rel=1e-9)
    assert thousand.high - thousand.low == pytest.approx(1e6 * (one.high - one.low), rel=1e-9)


def test_an_estimate_of_zero_may_be_negative_and_is_kept():
    values = [
        float(frechet_distance_infinity(frames(60, 3, s), Gaussian.of_moments(np.zeros(3), np.eye(3)), groups=4))
        for s in range(20)
    ]
    assert min(values) < 0 < max(values)


# ---- the interval


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # 95 % nominal: that 107 or fewer of 120 are covered has probability 1 % (binomial)
    results = [infinity(sample(96, 500 + seed), draws=2) for seed in range(120)]
    covered = sum(result.low <= TRUTH <= result.high for result in results)
    assert covered > 107
    width = np.mean([result.high - result.low for result in results])
    spread = np.std([result.value for result in results])
    assert 2.5 * spread < width < 6 * spread  # two standard errors on either side, and no more than that calls for


def test_frames_of_one_clip_kept_together_widen_the_interval():
    # 24 clips of 8 equal frames: as many independent rows as 24, not 192
    clips = np.repeat(sample(24, 0), 8, axis=0)
    shuffled = clips[np.random.default_rng(0).permutation(len(clips))]
    together, apart = (infinity(table, draws=1) for table in (clips, shuffled))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


# ---- refusals


def test_too_few_rows_are_refused_with_how_many_are_needed():
    with pytest.raises(ShapeError, match="generated: 35 rows; the extrapolation needs at least 36.*from 24 rows on"):
        infinity(sample(35, 0))
    assert frechet_distance_infinity(sample(24, 0), STANDARD, sizes=(24, 12)).sizes == (24, 12)
    # a reference of four rows spreads in at most four of many dimensions: what counts is where the two can meet
    assert frechet_distance_infinity(frames(24, 40), frames(4, 40, 1)).sizes == (24, 12, 8)
    with pytest.raises(ShapeError, match="at least 24"):
        frechet_distance_infinity(frames(23, 1), frames(9, 1, 1))


def test_settings_that_cannot_be_are_refused():
    table = sample(60, 0)
    with pytest.raises(ConfigError, match="draws is 0"):
        infinity(table, draws=0)
    with pytest.raises(ConfigError, match="groups is 3; expected 4 to 60"):
        infinity(table, groups=3)
    with pytest.raises(ConfigError, match="at least two different"):
        frechet_distance_infinity(table, STANDARD, sizes=(60, 60))
    with pytest.raises(ConfigError, match="sizes: 11 is too small; expected at least 12 rows for 6 features"):
        frechet_distance_infinity(table, STANDARD, sizes=(60, 11))
    with pytest.raises(ShapeError, match="60 rows; the largest of sizes needs 61"):
        frechet_distance_infinity(table, STANDARD, sizes=(61, 30))


def test_what_is_not_finite_or_does_not_fit_is_refused():
    bad = sample(60, 0)
    bad[7, 2] = np.nan
    with pytest.raises(NotFinite, match="generated: row 7"):
        infinity(bad)
    with pytest.raises(ShapeError, match="generated: rows of 5 features; expected 6"):
        infinity(frames(60, 5))
