"""Moments of pieces are those of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dragon.errors import NotFinite, ShapeError
from dragon.measure.moments import Moments


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_any_cut_and_any_order_give_the_moments_of_the_whole(table):
    expected = np.cov(table.numpy(), rowvar=False)
    for sizes in ([60], [1, 59], [20, 1, 39], [7] * 8 + [4]):
        parts = [Moments.of_frames(part) for part in table.split(sizes)]
        for order in (parts, parts[::-1]):
            found = Moments.none(5)
            for part in order:
                found = found.merged(part)
            assert found.n == 60
            torch.testing.assert_close(found.mean, table.mean(dim=0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found.gaussian().covariance, expected, rtol=1e-12, atol=1e-13)


def test_a_mean_a_million_times_the_spread_costs_no_more_digits_than_the_numbers_have(table):
    far = table + 1e6
    halves = [Moments.of_frames(part) for part in far.split(30)]
    found = halves[0].merged(halves[1]).gaussian().covariance
    # the table itself holds 1e6 + x to 1e-10; a sum of squares would be off by 1e12 * 2e-16 = 2e-4
    np.testing.assert_allclose(found, np.cov(table.numpy(), rowvar=False), rtol=0, atol=1e-8)


def test_nothing_is_neutral_and_one_frame_has_no_covariance(table):
    one = Moments.of_frames(table)
    for both in (one.merged(Moments.none(5)), Moments.none(5).merged(one)):
        assert both.n == 60 and torch.equal(both.mean, one.mean) and torch.equal(both.scatter, one.scatter)
    assert Moments.none(5).merged(Moments.none(5)).n == 0
    with pytest.raises(ShapeError, match="songs: 1 frames; a covariance needs at least 2"):
        Moments.of_frames(table[:1]).gaussian("songs")
    table[3, 2] = torch.nan
    with pytest.raises(NotFinite, match="songs: row 3"):
        Moments.of_frames(table, "songs")
