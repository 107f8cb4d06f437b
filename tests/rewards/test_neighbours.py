"""Precision, recall, density, coverage: by hand, against the definition, with ties, and what it refuses."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.rewards.neighbours import PrdcResult, prdc


def features(rows: int, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, size))


def four(result: PrdcResult) -> tuple[float, float, float, float]:
    return result.precision, result.recall, result.density, result.coverage


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([[np.sum((a - b) ** 2) for b in y] for a in x])


def by_definition(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Naeem et al. (2020), eq. 1 to 6, with <= and neighbours among the other rows."""

    def radii(table: np.ndarray) -> np.ndarray:
        distances = squared(table, table)
        np.fill_diagonal(distances, np.inf)
        return np.sort(distances, axis=1)[:, k - 1]

    across = squared(x, y)
    real = across <= radii(y)
    fake = across <= radii(x)[:, None]
    return real.any(1).mean(), fake.any(0).mean(), real.sum() / (k * len(x)), real.any(0).mean()


def test_by_hand():
    # reference 0, 1, 3: radii (k = 1) 1, 1, 2, so balls [-1, 1], [0, 2], [1, 5]. Generated 0.5, 4, 9: in balls
    # {0, 1}, {3}, none: precision 2/3, density 3/3, coverage 3/3. Its radii 3.5, 3.5, 5: balls [-3, 4], [0.5, 7.5],
    # [4, 14] hold every reference row
    result = prdc(np.array([[0.5], [4.0], [9.0]]), np.array([[0.0], [1.0], [3.0]]), k=1)
    assert four(result) == pytest.approx((2 / 3, 1.0, 1.0, 1.0))
    assert (result.k, result.n, result.reference_n, result.d) == (1, 3, 3, 1)
    # the other way about: precision and recall change places
    turned = prdc(np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [4.0], [9.0]]), k=1)
    assert (turned.precision, turned.recall) == pytest.approx((1.0, 2 / 3))


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("law", ["normal", "grid"])
def test_it_equals_the_definition_with_and_without_ties(k: int, law: str):
    x, y = features(40, 3, 0), features(50, 3, 1) + 0.5
    if law == "grid":  # many equal distances
        x, y = np.floor(2 * x), np.floor(2 * y)
    assert four(prdc(x, y, k)) == pytest.approx(by_definition(x, y, k), rel=1e-14)


def test_it_equals_the_prdc_package_where_no_distances_are_equal():
    package = pytest.importorskip("prdc")
    x, y = features(60, 5, 0), features(80, 5, 1) + 0.3
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        expected = package.compute_prdc(y, x, 5)
    found = prdc(x, y, 5)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12)


def test_a_set_of_duplicates_is_not_worth_nothing():
    x = np.repeat(np.arange(20.0)[:, None], 3, axis=0)
    assert four(prdc(x, x, 2)) == (1.0, 1.0, 1.5, 1.0)  # all balls are points: each row lies in three
    package = pytest.importorskip("prdc")
    with contextlib.redirect_stdout(io.StringIO()):
        assert set(package.compute_prdc(x, x, 2).values()) == {0.0}  # it compares with <


@pytest.mark.parametrize("size", [1, 7, 300])
def test_a_neighbour_lies_on_its_own_sphere_whatever_the_rounding(size: int):
    # a copy of the reference: each ball holds its centre and its k neighbours, the last exactly on the sphere
    x = features(60, size)
    for offset in (0.0, 1e4):
        found = prdc(x[::-1] + offset, x + offset, 5)
        assert four(found) == (1.0, 1.0, 6 / 5, 1.0)


def test_blocks_and_the_order_of_rows_change_nothing(monkeypatch):
    x, y = np.floor(3 * features(50, 2, 0)), np.floor(3 * features(70, 2, 1))
    expected = four(prdc(x, y))
    assert four(prdc(np.roll(x, 9, axis=0), y[::-1].copy())) == expected
    monkeypatch.setattr("dragon.rewards.neighbours._BLOCK_NUMBERS", 200)
    assert four(prdc(x, y)) == expected


def test_neighbours_out_of_order_by_rounding_are_put_right(monkeypatch):
    # two tight clouds far apart: a matrix product knows no distance within them, 1e-7 beside 1e3
    x = np.concatenate([1e-7 * features(30, 3, 0), 1e3 + 1e-7 * features(30, 3, 1)])
    y = np.concatenate([1e-7 * features(30, 3, 2), 1e3 + 1e-7 * features(30, 3, 3)])
    expected = by_definition(x, y, 3)
    assert four(prdc(x, y, 3)) == pytest.approx(expected, rel=1e-14)
    monkeypatch.setattr("dragon.rewards.neighbours._SPARE", 0)
    assert four(prdc(x, y, 3)) == pytest.approx(expected, rel=1e-14)


def test_scale_rotation_and_a_common_offset_change_nothing():
    x, y = features(40, 6, 0), features(60, 6, 1) + 0.2
    expected = four(prdc(x, y))
    turn = np.linalg.qr(features(6, 6, 2))[0]
    for changed in ((x @ turn, y @ turn), (1e-3 * x, 1e-3 * y), (1e4 * x, 1e4 * y), (x + 1e4, y + 1e4)):
        assert four(prdc(*changed)) == expected


def test_laws_of_precision_recall_density_and_coverage():
    near, far = features(100, 2, 0), features(100, 2, 1) + 100
    assert four(prdc(near, far)) == (0, 0, 0, 0)
    # an outlier in the reference has a huge ball: precision is fooled, density is not
    with_outlier = np.concatenate([near, [[1e3, 1e3]]])
    found = prdc(far, with_outlier)
    assert found.precision == 1
    assert found.density == pytest.approx(1 / 5)
    assert found.coverage == pytest.approx(1 / 101)
    # equal laws: density 1 on average, coverage near 1 - 2^-k for equal sizes (Naeem et al., section 4)
    pairs = [prdc(features(200, 3, s), features(200, 3, s + 100), 5) for s in range(10)]
    assert np.mean([p.density for p in pairs]) == pytest.approx(1, abs=0.05)
    assert np.mean([p.coverage for p in pairs]) == pytest.approx(1 - 2.0**-5, abs=0.015)


def test_there_is_no_single_value():
    with pytest.raises(TypeError):
        float(prdc(features(10), features(10)))


@pytest.mark.parametrize("k", [0, -1, 8, 20])
def test_k_that_does_not_fit_is_refused(k: int):
    with pytest.raises(ConfigError, match=rf"k is {k}; expected 1 to 7, .*\(8 generated, 10 reference\)"):
        prdc(features(8), features(10), k)
    assert prdc(features(8), features(10), 7).k == 7


def test_what_does_not_fit_is_refused():
    bad = features(10)
    bad[4, 0] = np.inf
    with pytest.raises(NotFinite, match="reference: row 4"):
        prdc(features(10), bad)
    with pytest.raises(ShapeError, match="generated: rows of 3 features; expected 4"):
        prdc(features(10, 3), features(10, 4))
    with pytest.raises(ShapeError, match="generated: 1 rows"):
        prdc(features(1), features(10))
