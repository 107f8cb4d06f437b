"""Kernel distance: by hand, against a plain double loop, invariances, and what it refuses."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.rewards import kernel_distance
from dragon.rewards.kernel import median_distance


def features(rows: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, size))


def by_definition(x: np.ndarray, y: np.ndarray, h: float) -> float:
    """The U-statistic of Gretton et al. (2012), Lemma 6, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-float(np.sum((a - b) ** 2)) / (2 * h * h))

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return 100 * (within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m))


def test_by_hand():
    # x = {0, 1}, y = {0, 2}: h = 2; within x: e^(-1/8); within y: e^(-1/2); across: (1 + e^(-1/2) + 2 e^(-1/8)) / 4
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    a, b = math.exp(-1 / 8), math.exp(-1 / 2)
    result = kernel_distance(x, y)
    assert result.bandwidth == 2
    assert float(result) == pytest.approx(100 * (a + b - (1 + b + 2 * a) / 2), rel=1e-13)


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_it_equals_the_definition(shift: float):
    x, y = features(12, 4, 0) + shift, features(17, 4, 1)
    h = float(np.median(pdist(y)))
    result = kernel_distance(x, y)
    assert result.bandwidth == pytest.approx(h, rel=1e-14)
    assert float(result) == pytest.approx(by_definition(x, y, h), rel=1e-10, abs=1e-11)
    assert float(kernel_distance(x, y, bandwidth=0.7)) == pytest.approx(by_definition(x, y, 0.7), rel=1e-10, abs=1e-11)


@pytest.mark.parametrize("distance", [0.5, 2.0, 50.0])
def test_point_masses(distance: float):
    # 1 within either, exp(-distance^2 / (2 h^2)) across
    x, y = np.tile([[0.0, 0.0]], (4, 1)), np.tile([[0.6 * distance, 0.8 * distance]], (6, 1))
    expected = 100 * (2 - 2 * math.exp(-(distance**2) / (2 * 1.5**2)))
    assert float(kernel_distance(x, y, bandwidth=1.5)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("rows", "offset"), [(40, 0.0), (64, 0.0), (40, 1e4)])
def test_it_is_right_to_ten_digits(rows: int, offset: float):
    # in 40 digits from the features on; offset in units that float64 holds exactly
    x, y = (np.round(features(rows, 3, seed) * 2**20) / 2**20 + shift for seed, shift in ((0, 1.0), (1, 0.0)))
    x, y = x + offset, y + offset
    with mpmath.workdps(40):

        def k(a: np.ndarray, b: np.ndarray) -> mpmath.mpf:
            return mpmath.exp(-sum((mpmath.mpf(s) - mpmath.mpf(t)) ** 2 for s, t in zip(a, b, strict=True)) / 8)

        def within(table: np.ndarray) -> mpmath.mpf:
            pairs = sum(k(table[i], table[j]) for i in range(rows) for j in range(i))
            return 2 * pairs / (rows * (rows - 1))

        exact = float(100 * (within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / rows**2))
    assert float(kernel_distance(x, y, bandwidth=2.0)) == pytest.approx(exact, rel=1e-10)


def test_features_far_from_zero_keep_their_digits_in_single_precision():
    x, y = 5 + 0.1 * features(60, 8, 0), 5.05 + 0.1 * features(60, 8, 1)
    exact = kernel_distance(x, y)
    single = kernel_distance(x.astype(np.float32), y.astype(np.float32))
    assert float(single) == pytest.approx(float(exact), rel=1e-6)
    assert single.bandwidth == pytest.approx(exact.bandwidth, rel=1e-6)


def test_the_order_of_rows_changes_nothing_and_gradients_stay_enabled():
    x, y = torch.tensor(features(30, 4, 0), requires_grad=True), features(40, 4, 1)
    expected = kernel_distance(x, y)
    turned = kernel_distance(x.flip(0), np.roll(y, 11, axis=0))
    assert float(turned) == pytest.approx(float(expected), rel=1e-11)
    assert turned.bandwidth == pytest.approx(expected.bandwidth, rel=1e-14)
    assert torch.is_grad_enabled()
    assert x.requires_grad and x.grad is None


def test_the_bandwidth_is_the_references_and_not_the_generated_sets():
    x, y = 10 * features(20, 3, 0), features(20, 3, 1)
    assert kernel_distance(x, y).bandwidth == pytest.approx(float(np.median(pdist(y))))


def test_equal_laws_give_zero_on_average_and_negative_values_are_kept():
    values = np.array([float(kernel_distance(features(20, 2, s), features(20, 2, s + 1000), 1.0)) for s in range(300)])
    assert (values < 0).mean() > 0.3
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))  # unbiased: three standard errors


def test_blocks_scale_rotation_and_a_far_offset_change_nothing(monkeypatch):
    x, y = features(40, 5, 0) + 0.4, features(60, 5, 1)
    expected = float(kernel_distance(x, y))
    turn = np.linalg.qr(features(5, 5, 2))[0]
    assert float(kernel_distance(x @ turn, y @ turn)) == pytest.approx(expected, rel=1e-10)
    assert float(kernel_distance(x * 1e4, y * 1e4)) == pytest.approx(expected, rel=1e-10)
    assert float(kernel_distance(x * 1e-3, y * 1e-3)) == pytest.approx(expected, rel=1e-10)
    # an offset of 1e6 leaves ten digits of the features themselves
    assert float(kernel_distance(x + 1e6, y + 1e6)) == pytest.approx(expected, rel=1e-7)
    monkeypatch.setattr("dragon.rewards.kernel._BLOCK_NUMBERS", 100)
    assert float(kernel_distance(x, y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8])
def test_one_side_far_off_keeps_its_own_distances(offset: float):
    """Across, the kernel is 0; within the generated side it must not suffer from where that side lies."""
    y = features(60, 5, 1)
    x = np.round(features(40, 5, 0), 3)  # moved without rounding
    moved = np.round(x + offset, 3)
    x = moved - offset
    within = np.exp(-cdist(x, x, "sqeuclidean") / 2)
    within_y = np.exp(-cdist(y, y, "sqeuclidean") / 2)
    expected = 100 * ((within.sum() - 40) / (40 * 39) + (within_y.sum() - 60) / (60 * 59))
    assert float(kernel_distance(moved, y, 1.0)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("where", ["generated", "reference", "both"])
def test_outliers_cost_no_digits(where: str):
    x, y = features(40, 5, 0), features(60, 5, 1)
    for side, table in (("generated", x), ("reference", y)):
        if where in (side, "both"):
            table[3:6] += 2.0**20  # three rows far from all, near each other; they hold ten digits

    def mean(a: np.ndarray, b: np.ndarray, diagonal: int = 0) -> float:
        return float((np.exp(-cdist(a, b, "sqeuclidean") / 2).sum() - diagonal) / (len(a) * (len(b) - (diagonal > 0))))

    expected = 100 * (mean(x, x, 40) + mean(y, y, 60) - 2 * mean(x, y))
    assert float(kernel_distance(x, y, 1.0)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rows", [2, 3, 50, 401])
@pytest.mark.parametrize("law", ["normal", "grid"])
def test_the_median_of_many_rows_is_exact(monkeypatch, rows: int, law: str):
    table = features(rows, 3, rows) if law == "normal" else np.floor(3 * features(rows, 2, rows))
    monkeypatch.setattr("dragon.rewards.kernel._SORT_PAIRS", 0)
    monkeypatch.setattr("dragon.rewards.kernel._BRACKET_ROWS", 20)
    monkeypatch.setattr("dragon.rewards.kernel._BLOCK_NUMBERS", 2000)
    assert median_distance(table) == pytest.approx(float(np.median(pdist(table))), rel=1e-13)


def test_pair_distances_equal_scipys():
    table = features(30, 6, 0)
    assert median_distance(table) == pytest.approx(
        float(np.median(cdist(table, table)[np.triu_indices(30, 1)])), rel=1e-13
    )


def test_a_reference_of_equal_rows_has_no_bandwidth():
    same = np.tile([[0.1, 0.2, 0.3]], (9, 1))
    with pytest.raises(ConfigError, match="equal; give a bandwidth"):
        kernel_distance(features(4, 3, 0), same)
    assert float(kernel_distance(same, same, bandwidth=1.0)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ConfigError, match="bandwidth 0"):
        kernel_distance(same, same, bandwidth=0.0)


def test_a_bandwidth_too_small_for_numbers_is_refused():
    with pytest.raises(ConfigError, match="bandwidth 9.99989e-321 for features that lie .* from the reference's mean"):
        kernel_distance(features(5, 2, 0), features(5, 2, 1), 1e-320)


def test_what_does_not_fit_is_refused():
    bad = features(5, 3, 0)
    bad[2] = np.nan
    with pytest.raises(NotFinite, match="generated: row 2"):
        kernel_distance(bad, features(5, 3, 1))
    with pytest.raises(ShapeError, match="generated: rows of 4 features; expected 3"):
        kernel_distance(features(5, 4, 0), features(5, 3, 1))
    with pytest.raises(ShapeError, match="reference: 1 rows; expected at least 2"):
        kernel_distance(features(5, 3, 0), features(1, 3, 1))
