"""Vendi score: closed forms, invariances, forty digits, the vendi_score package, and what it refuses."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.rewards.vendi import vendi_score, vendi_score_from_kernel

ORDERS = [0.0, 0.5, 1.0, 2.0, math.inf]


def features(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, size)) + 0.5


def cosines(x: np.ndarray) -> np.ndarray:
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    return units @ units.T


def by_mpmath(x: np.ndarray, q: float, weights: np.ndarray | None = None) -> float:
    """The definition in 40 digits."""
    with mpmath.workdps(40):
        table = mpmath.matrix(x.tolist())
        n = table.rows
        total = mpmath.mpf(n if weights is None else float(weights.sum()))
        shares = [mpmath.mpf(1 if weights is None else float(weights[i])) / total for i in range(n)]
        for i in range(n):
            length = mpmath.sqrt(sum(table[i, j] ** 2 for j in range(table.cols)))
            for j in range(table.cols):
                table[i, j] *= mpmath.sqrt(shares[i]) / length
        values = [v for v in mpmath.eigsy(table * table.T, eigvals_only=True) if v > mpmath.mpf(10) ** -30]
        if q == 1:
            return float(mpmath.exp(-sum(v * mpmath.log(v) for v in values)))
        if math.isinf(q):
            return float(1 / max(values))
        return float(sum(v**q for v in values) ** (1 / (1 - mpmath.mpf(q))))


# ---- closed forms


@pytest.mark.parametrize("q", [*ORDERS, 0.9, 1.1, 7.0])
def test_items_with_nothing_in_common_count_one_each(q: float):
    assert float(vendi_score(np.eye(6), q)) == pytest.approx(6, rel=1e-13)
    assert float(vendi_score_from_kernel(np.eye(6), q)) == pytest.approx(6, rel=1e-13)


@pytest.mark.parametrize("q", [*ORDERS, 0.9, 1.1, 7.0])
def test_equal_items_count_as_one(q: float):
    assert float(vendi_score(np.tile([[0.3, -0.7, 0.1]], (9, 1)), q)) == pytest.approx(1, rel=1e-12)
    assert float(vendi_score_from_kernel(np.ones((9, 9)), q)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("q", "expected"), [(0, 2), (1, 4 / 3**0.75), (2, 1.6), (math.inf, 4 / 3)])
def test_two_items_at_sixty_degrees(q: float, expected: float):
    # K / 2 has eigenvalues (1 +- 1/2) / 2 = 3/4, 1/4; exp of their entropy is 4 / 3^(3/4) = 1.7547653506,
    # 1 / (9/16 + 1/16) = 1.6, 1 / (3/4) = 4/3
    x = np.array([[2.0, 0.0], [0.5, math.sqrt(0.75)]])
    result = vendi_score(x, q)
    assert result.value == pytest.approx(expected, rel=1e-13)
    assert (result.q, result.n, result.d) == (q, 2, 2)
    by_kernel = vendi_score_from_kernel(np.array([[1.0, 0.5], [0.5, 1.0]]), q)
    assert by_kernel.value == pytest.approx(expected, rel=1e-13)
    assert (by_kernel.q, by_kernel.n, by_kernel.d) == (q, 2, 0)


def test_order_zero_counts_the_rank_and_not_rounding_noise():
    x = features(200, 3, 1) @ features(3, 50, 2)  # rank 3
    assert float(vendi_score(x, 0)) == 3
    assert float(vendi_score(x.T, 0)) == 3
    assert float(vendi_score_from_kernel(cosines(x), 0)) == 3
    single = cosines(x).astype(np.float32)  # its noise is that of float32, and cut as such
    assert float(vendi_score_from_kernel(single, 0)) == 3


# ---- a second implementation


@pytest.mark.parametrize("q", [0.5, 1.0, 1.5, 2.0, 5.0, math.inf])
@pytest.mark.parametrize(("rows", "size"), [(5, 9), (9, 5), (6, 6)])
def test_it_equals_the_definition_in_forty_digits(q: float, rows: int, size: int):
    x = features(rows, size, rows)
    assert float(vendi_score(x, q)) == pytest.approx(by_mpmath(x, q), rel=1e-12)
    weights = np.arange(1.0, rows + 1)
    assert float(vendi_score(x, q, weights)) == pytest.approx(by_mpmath(x, q, weights), rel=1e-12)
    assert float(vendi_score_from_kernel(cosines(x), q, weights)) == pytest.approx(by_mpmath(x, q, weights), rel=1e-12)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
@pytest.mark.parametrize(("rows", "size"), [(400, 60), (400, 700)])
def test_features_and_their_kernel_agree_on_many_rows(q: float, rows: int, size: int):
    table = np.random.default_rng(0).standard_normal((rows, size)) * np.linspace(0.2, 1, size) + 0.2
    units = table / np.linalg.norm(table, axis=1, keepdims=True)
    kernel = units @ units.T
    np.fill_diagonal(kernel, 1.0)
    assert float(vendi_score(table, q)) == pytest.approx(float(vendi_score_from_kernel(kernel, q)), rel=1e-10)


@pytest.mark.parametrize("offset", [-1e-3, -1e-6, -1e-9, -1e-13, 1e-13, 1e-9, 1e-6, 1e-3])
def test_orders_next_to_one_are_accurate(offset: float):
    x = features(7, 4, 3)
    assert float(vendi_score(x, 1 + offset)) == pytest.approx(by_mpmath(x, 1 + offset), rel=1e-13)


@pytest.mark.parametrize("q", [50.0, 1e3, 1e6])
def test_large_orders_neither_underflow_nor_leave_their_limit(q: float):
    x = features(20, 4, 3)
    assert float(vendi_score(x, q)) == pytest.approx(by_mpmath(x, q), rel=1e-12)
    assert float(vendi_score(x, q)) == pytest.approx(float(vendi_score(x, math.inf)) ** (q / (q - 1)), rel=1e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_vendi_score_package_agrees_where_it_is_right_and_its_faults_are_absent():
    from vendi_score import vendi

    wide, tall = features(12, 30, 0), features(40, 6, 1)
    for x in (wide, tall):
        assert float(vendi_score(x)) == pytest.approx(float(vendi.score_K(cosines(x))), rel=1e-11)
        assert float(vendi_score_from_kernel(cosines(x))) == pytest.approx(float(vendi.score_K(cosines(x))), rel=1e-11)
        assert float(vendi_score(x, math.inf)) == pytest.approx(float(vendi.score_K(cosines(x), "inf")), rel=1e-12)
        assert float(vendi_score(x)) == pytest.approx(float(vendi.score_X(x)), rel=1e-11)
        for q in (1, 2):
            assert float(vendi_score(x, q)) == pytest.approx(float(vendi.score_dual(x, q)), rel=1e-11)
        assert float(vendi_score(x, 2)) == pytest.approx(float(vendi.score_K(cosines(x), 2)), rel=1e-11)
        # the package's score of features ignores the order
        assert float(vendi.score_X(x, 2)) == float(vendi.score_X(x, 1))
        assert float(vendi_score(x, 2)) < 0.99 * float(vendi_score(x, 1))
    # its order inf, as a number, is NaN, and its order 0 counts whatever noise came out positive
    assert math.isnan(float(vendi.score_K(cosines(tall), math.inf)))
    assert float(vendi.score_K(cosines(tall), 0)) > 6.5
    assert float(vendi_score(tall, 0)) == 6


# ---- laws


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 8), st.sampled_from(ORDERS))
def test_rotation_row_lengths_order_and_doubling_change_nothing(seed: int, rows: int, size: int, q: float):
    x = features(rows, size, seed)
    expected = float(vendi_score(x, q))
    rng = np.random.default_rng(seed + 1)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    assert float(vendi_score(x @ turn, q)) == pytest.approx(expected, rel=1e-9)
    assert float(vendi_score(x * 10.0 ** rng.uniform(-6, 6, (rows, 1)), q)) == pytest.approx(expected, rel=1e-9)
    assert float(vendi_score(x[rng.permutation(rows)], q)) == pytest.approx(expected, rel=1e-9)
    assert float(vendi_score(np.concatenate([x, x]), q)) == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-12 <= expected <= min(rows, size) * (1 + 1e-12)


@pytest.mark.parametrize("q", [*ORDERS, 1.3])
def test_weights_equal_to_multiplicities_equal_a_repeated_set(q: float):
    x, times = features(5, 8), np.array([1, 3, 2, 1, 0])
    repeated = np.repeat(x, times, axis=0)
    expected = float(vendi_score(repeated, q))
    assert float(vendi_score(x, q, times)) == pytest.approx(expected, rel=1e-11)
    assert float(vendi_score(x, q, 1e-3 * times)) == pytest.approx(expected, rel=1e-11)
    assert float(vendi_score_from_kernel(cosines(x), q, times)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_the_score_falls_as_the_order_grows(seed: int):
    x = features(15, 10, seed)
    orders = [0, 0.1, 0.49, 0.5, 0.51, 0.99, 1 - 1e-7, 1, 1 + 1e-7, 1.01, 1.49, 1.5, 1.51, 2, 3, 10, 1000, math.inf]
    values = [float(vendi_score(x, q)) for q in orders]
    assert all(a > b * (1 + 1e-14) for a, b in zip(values, values[1:], strict=False))


def test_numpy_equals_torch_and_single_precision_features_are_taken_as_they_are():
    x = features(6, 9).astype(np.float32)
    assert float(vendi_score(torch.tensor(x))) == float(vendi_score(x)) == float(vendi_score(x.astype(np.float64)))


# ---- refusals


def test_what_is_not_finite_is_named_with_its_row():
    bad = features(5, 3)
    bad[3, 1] = np.nan
    with pytest.raises(NotFinite, match="features: row 3"):
        vendi_score(bad)
    kernel = np.eye(4)
    kernel[2, 1] = np.inf
    with pytest.raises(NotFinite, match="kernel: row 2"):
        vendi_score_from_kernel(kernel)
    with pytest.raises(NotFinite, match="weights: entry 1"):
        vendi_score(np.eye(2), weights=np.array([1, np.nan]))


def test_features_and_orders_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="features: row 1 is all zeros"):
        vendi_score(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ShapeError, match="0 rows; expected at least 1"):
        vendi_score(np.zeros((0, 3)))
    for q in (-0.1, math.nan):
        with pytest.raises(ConfigError, match="expected 0 or more"):
            vendi_score(np.eye(2), q)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"shape \(2,\); expected \(3,\)"),
        ([1.0, -2.0, 3.0], "entry 1 is -2"),
        ([0.0, 0.0, 0.0], "all 0"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights: list[float], message: str):
    with pytest.raises(ShapeError, match=message):
        vendi_score(np.eye(3), weights=np.array(weights))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\); expected \(n, n\)"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "not symmetric"),
        (np.array([[1.0, 0.0], [0.0, 4.0]]), r"entry \[1, 1\] is 4; .* normalise it"),
        (np.array([[1.0, 1.5], [1.5, 1.0]]), "eigenvalue -0.5"),
    ],
)
def test_kernels_that_are_none_are_refused(kernel: np.ndarray, message: str):
    with pytest.raises(ShapeError, match=message):
        vendi_score_from_kernel(kernel)
