"""Diversity: by hand, against the double loop, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from dragon.errors import NotFinite, ShapeError
from dragon.rewards import diversity


def test_orthogonal_equal_and_opposite_embeddings():
    assert float(diversity(np.eye(4))) == pytest.approx(1, rel=1e-15)
    assert float(diversity(np.ones((4, 7)))) == pytest.approx(0, abs=1e-14)
    assert float(diversity(np.array([[1.0, 0.0], [-2.0, 0.0]]))) == pytest.approx(2, rel=1e-15)


def test_it_equals_the_mean_over_all_pairs_and_ignores_lengths():
    table = np.random.default_rng(0).standard_normal((30, 8)) + 0.5
    assert float(diversity(table)) == pytest.approx(float(pdist(table, "cosine").mean()), rel=1e-12)
    assert float(diversity(table * np.arange(1, 31)[:, None])) == pytest.approx(float(diversity(table)), rel=1e-12)


def test_what_has_no_direction_or_no_pair_is_refused():
    table = np.eye(3)
    table[1] = 0
    with pytest.raises(ShapeError, match="row 1 is all zeros"):
        diversity(table)
    with pytest.raises(ShapeError, match="expected at least 2"):
        diversity(np.ones((1, 3)))
    with pytest.raises(NotFinite, match="row 0"):
        diversity(np.full((2, 2), np.nan))
