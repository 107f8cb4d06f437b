"""KL divergence and Inception score: closed forms, a second implementation, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.rewards.labels import inception_score, kl_divergence


def probabilities(rows: int, classes: int = 6, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    return scipy_softmax(spread * np.random.default_rng(seed).standard_normal((rows, classes)), axis=1)


# ---- KL divergence


def test_two_bernoullis_by_hand_and_in_the_direction_of_audio():
    # KL(reference || generated) = 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4) = log 2 - 1/2 log 3; the other direction:
    # 1/4 log(1/4 / 1/2) + 3/4 log(3/4 / 1/2) = 3/4 log 3 - log 2
    generated, reference = np.array([[0.25, 0.75]]), np.array([[0.5, 0.5]])
    assert float(kl_divergence(generated, reference)) == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-12)
    assert float(kl_divergence(reference, generated)) == pytest.approx(0.75 * math.log(3) - math.log(2), rel=1e-12)


def test_pairs_equal_scipys_and_the_value_is_their_mean():
    q, p = probabilities(20, seed=0), probabilities(20, seed=1)
    result = kl_divergence(q, p)
    expected = rel_entr(p, q).sum(axis=1)
    np.testing.assert_allclose(result.scores, expected, rtol=1e-10)
    assert float(result) == pytest.approx(expected.mean(), rel=1e-12)
    assert (result.n, result.classes, result.eps) == (20, 6, 1e-6)
    order = np.random.default_rng(0).permutation(20)
    assert float(kl_divergence(q[order], p[order])) == pytest.approx(float(result), rel=1e-13)
    assert float(kl_divergence(q, p[order])) != pytest.approx(float(result), rel=1e-3)  # paired by row


def test_a_table_is_at_divergence_zero_from_itself_zeros_included():
    p = probabilities(10, spread=30)
    p[0] = np.eye(6)[2]
    assert float(kl_divergence(p, p)) == pytest.approx(0, abs=1e-14)
    assert float(kl_divergence(p, p, eps=0)) == pytest.approx(0, abs=1e-14)
    assert kl_divergence(p, p).scores.min() >= 0


def test_the_floor_bounds_what_a_missing_class_costs():
    generated, reference = np.eye(4)[[0]], np.eye(4)[[1]]
    for eps in (1e-6, 1e-3):
        # both sides become 1 and eps, divided by 1 + 3 eps: log(1 / eps) times the difference of their shares
        assert float(kl_divergence(generated, reference, eps=eps)) == pytest.approx(
            -math.log(eps) * (1 - eps) / (1 + 3 * eps), rel=1e-12
        )
    with pytest.raises(NotFinite, match="pair 0: a class has probability 0 in generated.*eps above 0"):
        kl_divergence(generated, reference, eps=0)
    # a class that only the generated clip has is no trouble
    assert float(kl_divergence(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]), eps=0)) == pytest.approx(math.log(2))


def test_single_precision_rows_are_divided_by_their_sums():
    logits = torch.randn(8, 527, generator=torch.Generator().manual_seed(0))
    single, double = logits.softmax(1), logits.double().softmax(1)
    other = logits.double().roll(1, 0).softmax(1)
    assert float(kl_divergence(single, other)) == pytest.approx(float(kl_divergence(double, other)), rel=1e-6)


# ---- Inception score


def test_equal_rows_score_one_and_one_hot_rows_the_number_of_classes():
    assert float(inception_score(np.full((7, 5), 0.2))) == pytest.approx(1, rel=1e-14)
    assert float(inception_score(np.tile(probabilities(1), (9, 1)))) == pytest.approx(1, rel=1e-13)
    assert float(inception_score(np.eye(6))) == pytest.approx(6, rel=1e-14)
    assert float(inception_score(np.eye(6)[[0, 0, 3, 3]])) == pytest.approx(2, rel=1e-14)


def test_it_equals_its_definition_and_ignores_the_order_of_rows():
    p = probabilities(40, spread=3)
    expected = math.exp(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean())
    result = inception_score(p)
    assert float(result) == pytest.approx(expected, rel=1e-12)
    assert float(inception_score(p[::-1].copy())) == pytest.approx(expected, rel=1e-12)
    assert (result.splits, result.seed, result.n, result.classes) == (1, 0, 40, 6)
    assert 1 <= float(result) <= 6


def test_splits_are_seeded_and_averaged():
    p = probabilities(41, spread=3)
    result = inception_score(p, splits=4, seed=1)
    assert len(result.scores) == 4
    assert float(result) == pytest.approx(result.scores.mean())
    np.testing.assert_array_equal(result.scores, inception_score(p, splits=4, seed=1).scores)
    assert float(inception_score(p, splits=4, seed=2)) != float(result)
    assert float(inception_score(p, seed=1)) == float(inception_score(p, seed=2))
    # sorted rows would give each part one class and the score 1; shuffled ones do not
    ordered = np.repeat(np.eye(4), 25, axis=0)
    assert float(inception_score(ordered, splits=4)) > 3
    assert float(inception_score(p, splits=41)) == pytest.approx(1)  # a part of one row has no variety


# ---- refusals


def test_rows_that_are_no_distribution_are_refused_with_what_to_do():
    good, logits, sigmoids = probabilities(5), np.full((5, 6), -1.0), np.full((5, 6), 0.5)
    for call in (lambda t: inception_score(t), lambda t: kl_divergence(good, t), lambda t: kl_divergence(t, good)):
        with pytest.raises(ShapeError, match="row 0 holds -1; .*softmax"):
            call(logits)
        with pytest.raises(ShapeError, match="row 0 sums to 3; expected 1: apply softmax"):
            call(sigmoids)
    nearly = good.copy()
    nearly[3] *= 1.0002
    with pytest.raises(ShapeError, match="row 3 sums to 1.0002"):
        inception_score(nearly)
    bad = good.copy()
    bad[2, 0] = np.nan
    with pytest.raises(NotFinite, match="probabilities: row 2"):
        inception_score(bad)


def test_tables_and_settings_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="5 generated rows, 4 of the reference"):
        kl_divergence(probabilities(5), probabilities(4))
    with pytest.raises(ShapeError, match="reference: rows of 6 features; expected 3"):
        kl_divergence(probabilities(5, 3), probabilities(5, 6))
    for eps in (-1e-6, 0.2, math.nan):
        with pytest.raises(ConfigError, match="eps is"):
            kl_divergence(probabilities(5), probabilities(5), eps=eps)
    for splits in (0, 6):
        with pytest.raises(ConfigError, match=f"splits is {splits}; expected 1 to 5"):
            inception_score(probabilities(5), splits=splits)
