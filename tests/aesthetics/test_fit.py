"""Heads and what is said of them: invariances, planted preferences, no preference at all, second implementations."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from scipy import stats

from dragon.aesthetics import Ratings, Votes, bradley_terry, fit, rater_ceiling, report
from dragon.aesthetics.ceiling import expected_spearman
from dragon.aesthetics.regression import Logistic, Ridge
from dragon.aesthetics.report import ordered_share
from dragon.errors import ConfigError, NotFinite, ShapeError


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{i:05}" for i in range(count))


def planted(
    seed: int, prompts: int, each: int, features: int, signal: float
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Vectors (n, f), true scores (n,) with standard deviation `signal`, the prompt of each clip."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((prompts * each, features))
    weight = rng.standard_normal(features)
    return vectors, signal * vectors @ weight / np.linalg.norm(weight), tuple(np.repeat(names(prompts), each))


def ratings(values: np.ndarray, prompts: tuple[str, ...] | None, named: bool = False) -> Ratings:
    """values (n, raters), NaN: not rated."""
    clip, rater = np.nonzero(~np.isnan(values))
    n = len(values)
    return Ratings(
        names(n), prompts, tuple(range(n)), clip, rater if named else -np.ones_like(rater), values[clip, rater]
    )


def votes(true: np.ndarray, prompts: tuple[str, ...], seed: int, times: int = 1, prompted: bool = True) -> Votes:
    """Of every pair of clips of one prompt, with probability sigmoid(true difference)."""
    rng = np.random.default_rng(seed)
    same = np.array(prompts)[:, None] == np.array(prompts)
    first, second = np.nonzero(np.triu(same, 1))
    first, second = np.tile(first, times), np.tile(second, times)
    wins = rng.random(len(first)) < 1 / (1 + np.exp(true[second] - true[first]))
    winner, loser = np.where(wins, first, second), np.where(wins, second, first)
    return Votes(names(len(true)), prompts if prompted else None, tuple(range(len(true))), winner, loser)


def scored(fitted, vectors: np.ndarray) -> np.ndarray:
    return fitted.bias + (vectors - fitted.mean) / fitted.scale @ fitted.weight


class TestLaws:
    def test_scale_and_shift_of_ratings_change_nothing_but_units(self):
        vectors, true, prompts = planted(0, 20, 4, 6, 1.0)
        noisy = true + np.random.default_rng(1).standard_normal(80)
        first = ratings(noisy[:, None], prompts)
        other = ratings(20 - 3 * -noisy[:, None], prompts)
        one, two = fit(first, vectors), fit(other, vectors)
        np.testing.assert_allclose(scored(two, vectors), 20 + 3 * scored(one, vectors), rtol=1e-9)
        told, again = report(first, one), report(other, two)
        for name, found in told.figures.items():
            assert dataclasses.astuple(again.figures[name]) == pytest.approx(dataclasses.astuple(found), rel=1e-9)

    def test_a_rotation_or_scale_of_the_features_gives_the_same_kind_of_head(self):
        """Standardising takes out scale and shift of each feature; a feature that does not vary is as if absent."""
        vectors, true, prompts = planted(2, 20, 4, 6, 1.0)
        opinions = ratings(true[:, None] + 0.1 * np.random.default_rng(3).standard_normal((80, 1)), prompts)
        moved = np.concatenate([vectors * np.arange(1, 7) - 5, np.full((80, 1), 0.1)], 1)
        one, two = fit(opinions, vectors), fit(opinions, moved)
        np.testing.assert_allclose(two.held_out, one.held_out, atol=1e-9)
        assert two.weight[-1] == 0 and two.scale[-1] == 1

    def test_a_planted_preference_is_recovered_up_to_the_noise(self):
        """Noise of sd .5 on a score of sd 1 leaves correlation 1 / sqrt(1.25) = .894; 300 clips fit 8 weights."""
        vectors, true, prompts = planted(4, 60, 5, 8, 1.0)
        opinions = ratings(true[:, None] + 0.5 * np.random.default_rng(5).standard_normal((300, 1)), prompts)
        fitted = fit(opinions, vectors)
        found = report(opinions, fitted).figures
        limit = 1 / np.sqrt(1.25)
        assert found["plcc"].value == pytest.approx(limit, abs=0.03)
        assert found["srcc"].value == pytest.approx(float(expected_spearman(limit, 5)), abs=0.04)
        assert found["accuracy"].value == pytest.approx(0.5 + np.arcsin(limit) / np.pi, abs=0.03)
        assert all(f.low < f.value < f.high and f.high - f.low < 0.2 for f in found.values())
        assert stats.spearmanr(scored(fitted, vectors), true)[0] > 0.99

    def test_intervals_of_ratings_without_preference_cover_chance(self, monkeypatch: pytest.MonkeyPatch):
        """16 x 3 intervals of 95 %; the scores of one data set are alike, so a few of one set may miss together."""
        monkeypatch.setattr(sys.modules[report.__module__], "DRAWS", 300)
        covered = []
        for seed in range(16):
            vectors, _, prompts = planted(seed, 15, 3, 4, 1.0)
            opinions = ratings(np.random.default_rng(seed + 100).standard_normal((45, 1)), prompts)
            found = report(opinions, fit(opinions, vectors)).figures
            covered += [found[k].low <= chance <= found[k].high for k, chance in CHANCE.items()]
        assert np.mean(covered) >= 0.9

    def test_held_out_figures_of_no_preference_are_at_chance_on_average(self):
        """Leaving the folds' means in, or pooling folds, would put the mean PLCC of these below -.1."""
        values = []
        for seed in range(60):
            vectors, _, _ = planted(seed, 40, 1, 3, 1.0)
            opinions = ratings(np.random.default_rng(seed).standard_normal((40, 1)), None)
            fitted = fit(opinions, vectors)
            each = [fitted.fold == f for f in range(5)]
            values.append(np.mean([stats.pearsonr(fitted.held_out[i], fitted.target[i])[0] for i in each]))
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))

    def test_votes_and_ratings_of_the_same_preference_agree(self):
        vectors, true, prompts = planted(6, 40, 4, 5, 2.0)
        by_votes = votes(true, prompts, 7, times=2)
        by_ratings = ratings(true[:, None] + np.random.default_rng(8).standard_normal((160, 1)), prompts)
        one, two = fit(by_votes, vectors), fit(by_ratings, vectors)
        assert (one.unit, two.unit) == ("logit", "rating")
        assert stats.spearmanr(scored(one, vectors), scored(two, vectors))[0] > 0.97
        slope = np.polyfit(true, scored(one, vectors), 1)[0]
        assert slope == pytest.approx(1, abs=0.2)  # logits are the true ones
        assert report(by_votes, one).figures["srcc"].value > 0.6

    def test_a_clip_is_scored_by_a_head_that_saw_nothing_of_its_group(self):
        """Other ratings of one prompt leave the scores of its own fold as they are."""
        vectors, true, prompts = planted(9, 20, 3, 4, 1.0)
        noisy = true + np.random.default_rng(10).standard_normal(60)
        one = fit(ratings(noisy[:, None], prompts), vectors)
        changed = noisy.copy()
        changed[:3] += 100 * np.random.default_rng(11).standard_normal(3)
        two = fit(ratings(changed[:, None], prompts), vectors)
        same = one.fold == one.fold[0]
        np.testing.assert_array_equal(one.held_out[same], two.held_out[same])
        assert not np.allclose(one.held_out[~same], two.held_out[~same])
        assert all(len(set(one.fold[3 * p : 3 * p + 3])) == 1 for p in range(20))

    def test_votes_without_prompts_keep_linked_clips_together_unless_all_are(self):
        vectors, true, prompts = planted(12, 30, 3, 4, 2.0)
        apart = votes(true, prompts, 13, prompted=False)
        found = report(apart, fit(apart, vectors))
        assert found.group == "set of files that votes link" and found.groups == 30
        rng = np.random.default_rng(14)
        pairs = np.array([rng.choice(90, 2, replace=False) for _ in range(600)])
        wins = rng.random(600) < 1 / (1 + np.exp(true[pairs[:, 1]] - true[pairs[:, 0]]))
        ends = np.where(wins[:, None], pairs, pairs[:, ::-1])
        linked = Votes(apart.files, None, apart.lines, ends[:, 0], ends[:, 1])
        found = report(linked, fit(linked, vectors))
        assert found.group == "file" and found.groups == 90
        # the best that a perfect predictor could expect
        best = np.mean(1 / (1 + np.exp(-np.abs(true[pairs[:, 0]] - true[pairs[:, 1]]))))
        assert best - 0.1 < found.figures["accuracy"].value < best + 0.05


CHANCE = {"plcc": 0.0, "srcc": 0.0, "accuracy": 0.5}


class TestSecondImplementations:
    def test_ridge_solves_its_normal_equations_with_a_free_constant(self):
        rng = np.random.default_rng(0)
        x, y, keep = rng.standard_normal((12, 3)) + 2, rng.standard_normal(12), np.arange(12) % 3 > 0
        design = np.concatenate([x[keep], np.ones((8, 1))], 1)
        for strength in (0.01, 1.0):
            penalty = 8 * strength * np.diag([1.0, 1, 1, 0])
            expected = np.linalg.solve(design.T @ design + penalty, design.T @ y[keep])
            found = Ridge(x, y).weights(keep, [strength])
            np.testing.assert_allclose(found[0], expected[:3], rtol=1e-10)
            errors = np.concatenate([x[~keep], np.ones((4, 1))], 1) @ expected - y[~keep]
            loss, count = Ridge(x, y).losses(keep, ~keep, found)
            assert (loss[0], count) == (pytest.approx(np.square(errors).sum(), rel=1e-10), 4)

    def test_votes_equal_scikit_learns_logistic_regression(self):
        linear = pytest.importorskip("sklearn.linear_model")
        vectors, true, prompts = planted(1, 10, 3, 4, 1.5)
        cast = votes(true, prompts, 2)
        found = Logistic(vectors, cast).weights(np.ones(30, bool), [0.01, 1.0])
        differences = vectors[cast.winner] - vectors[cast.loser]
        rows, labels = np.concatenate([differences, -differences]), np.repeat([1, 0], 30)
        for weight, strength in zip(found, (0.01, 1.0), strict=True):
            model = linear.LogisticRegression(C=1 / (60 * strength), fit_intercept=False, tol=1e-10, max_iter=10_000)
            np.testing.assert_allclose(weight, model.fit(rows, labels).coef_[0], rtol=1e-4)

    def test_strengths_are_the_logits_of_won_shares(self):
        """Two clips, 30 of 40 votes: log 3 apart with a flat prior; the sum is 0."""
        cast = Votes(("a", "b"), None, (1, 2), np.repeat([0, 1], [30, 10]), np.repeat([1, 0], [30, 10]))
        a, b = bradley_terry(cast, prior_sd=1e4)
        assert a - b == pytest.approx(np.log(3), rel=1e-5) and a + b == pytest.approx(0, abs=1e-6)
        # by hand, prior sd 1, one vote: 1 - sigmoid(2 s) = s, which s = .32... solves
        won = bradley_terry(Votes(("a", "b"), None, (1, 2), np.array([0]), np.array([1])), prior_sd=1.0)
        assert 1 / (1 + np.exp(2 * won[0])) == pytest.approx(won[0], rel=1e-6) and won[1] == pytest.approx(-won[0])

    def test_the_share_of_ordered_pairs_equals_counting_them(self):
        rng = np.random.default_rng(3)
        for _ in range(20):
            scores, target = rng.integers(0, 4, 9).astype(float), rng.integers(0, 3, 9).astype(float)
            pairs = [(i, j) for i in range(9) for j in range(9) if target[i] > target[j]]
            counted = np.mean([1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j]) for i, j in pairs])
            assert ordered_share(scores, target) == pytest.approx(counted, rel=1e-12)
        assert ordered_share(np.arange(3.0), np.ones(3)) is None
        assert ordered_share(np.ones(3), np.arange(3.0)) == 0.5

    def test_figures_equal_scipys_prompt_by_prompt(self):
        vectors, true, prompts = planted(15, 15, 4, 4, 1.0)
        opinions = ratings(np.round(true + np.random.default_rng(16).standard_normal(60))[:, None], prompts)
        fitted = fit(opinions, vectors)
        found = report(opinions, fitted).figures
        rows = [np.arange(4 * p, 4 * p + 4) for p in range(15)]
        rows = [r for r in rows if np.ptp(fitted.target[r]) > 0]
        expected = np.mean([stats.spearmanr(fitted.held_out[r], fitted.target[r])[0] for r in rows])
        assert found["srcc"].value == pytest.approx(expected, rel=1e-10)
        each = [fitted.fold == f for f in range(5)]
        expected = np.mean([stats.pearsonr(fitted.held_out[i], fitted.target[i])[0] for i in each])
        assert found["plcc"].value == pytest.approx(expected, rel=1e-10)


class TestCeiling:
    def test_reliability_is_that_of_the_planted_noise(self):
        """Clips of variance 1, raters of variance 4, k raters: reliability k / (k + 4); also for unequal counts."""
        rng = np.random.default_rng(0)
        panel = rng.standard_normal((1500, 1)) + 2 * rng.standard_normal((1500, 5))
        found = rater_ceiling(ratings(panel, None))
        assert found.reliability == pytest.approx(5 / 9, abs=0.04)
        assert found.plcc == pytest.approx(np.sqrt(5 / 9), abs=0.03)
        assert found.accuracy == pytest.approx(0.5 + np.arcsin(np.sqrt(5 / 9)) / np.pi, abs=0.02)
        gone = rng.random(panel.shape) < 0.4
        gone[:, 0] = False
        expected = 1 / (1 + 4 * np.mean(1 / (~gone).sum(1)))
        assert rater_ceiling(ratings(np.where(gone, np.nan, panel), None)).reliability == pytest.approx(
            expected, abs=0.05
        )

    def test_it_equals_the_intraclass_correlation(self):
        """One-way ICC of the mean of k: 1 - within / between mean squares (Shrout & Fleiss 1979)."""
        rng = np.random.default_rng(1)
        panel = rng.standard_normal((800, 1)) + rng.standard_normal((800, 4))
        between = 4 * panel.mean(1).var(ddof=1)
        within = panel.var(axis=1, ddof=1).mean()
        assert rater_ceiling(ratings(panel, None)).reliability == pytest.approx(1 - within / between, abs=0.01)

    def test_a_strict_rater_of_every_clip_is_no_noise(self):
        rng = np.random.default_rng(2)
        panel = rng.standard_normal((200, 1)) + 0.5 * rng.standard_normal((200, 4))
        strict = panel + np.array([0, 0, 0, 10.0])
        plain, named = rater_ceiling(ratings(panel, None, True)), rater_ceiling(ratings(strict, None, True))
        assert named.reliability == pytest.approx(plain.reliability, rel=1e-9)
        assert "raters split" in named.how
        unnamed = rater_ceiling(ratings(strict, None))
        assert unnamed.reliability is not None and unnamed.reliability < 0.3

    def test_within_prompts_what_prompts_share_does_not_count(self):
        """Prompts of variance 9 make ratings reliable; within them clips and rating noise have variance 1 each."""
        rng = np.random.default_rng(3)
        _, _, prompts = planted(3, 300, 4, 2, 1.0)
        centre = np.repeat(3 * rng.standard_normal(300), 4)[:, None]
        panel = centre + rng.standard_normal((1200, 1)) + rng.standard_normal((1200, 2))
        found = rater_ceiling(ratings(panel, prompts))
        inner = 2 / 3
        assert found.reliability is not None and found.reliability > 0.9
        assert found.srcc == pytest.approx(float(expected_spearman(np.sqrt(inner), 4)), abs=0.03)
        # the expectation itself, by simulation
        drawn = rng.multivariate_normal([0, 0], [[1, inner**0.5], [inner**0.5, 1]], (4000, 4))
        ranks = drawn.argsort(1).argsort(1)
        simulated = 1 - 6 * np.square(ranks[..., 0] - ranks[..., 1]).sum(1) / (4 * 15)
        assert float(expected_spearman(np.sqrt(inner), 4)) == pytest.approx(simulated.mean(), abs=0.02)

    def test_votes_that_agree_with_chance_p_bound_the_share_of_right_ones(self):
        """p = .8 for every pair: two votes agree .64 + .04 = .68 of the time; (1 + sqrt(.36)) / 2 = .8."""
        rng = np.random.default_rng(4)
        wins = rng.random((400, 5)) < 0.8
        first = 2 * np.repeat(np.arange(400), 5)
        winner = np.where(wins.reshape(-1), first, first + 1)
        cast = Votes(names(800), None, tuple(range(800)), winner, 2 * first + 1 - winner)
        assert rater_ceiling(cast).accuracy == pytest.approx(0.8, abs=0.02)

    def test_without_repeats_it_is_not_known_and_says_why(self):
        _, true, prompts = planted(5, 10, 3, 2, 1.0)
        assert "fewer than 20 clips have several ratings" in rater_ceiling(ratings(true[:, None], prompts)).how
        assert "fewer than 20 pairs" in rater_ceiling(votes(true, prompts, 0)).how

    def test_raters_who_do_not_agree_leave_nothing(self):
        found = rater_ceiling(ratings(np.random.default_rng(8).standard_normal((60, 2)), None))
        assert found.reliability is not None and found.reliability < 0.4


class TestRefusals:
    def test_too_little_is_refused(self):
        vectors, true, prompts = planted(0, 4, 5, 3, 1.0)
        with pytest.raises(ConfigError, match="19 clips with opinions; a head needs at least 20"):
            fit(ratings(true[:19, None], prompts[:19]), vectors[:19])
        with pytest.raises(ConfigError, match=r"4 groups of clips \(each a prompt\).*without the column prompt"):
            fit(ratings(true[:, None], prompts), vectors)
        with pytest.raises(ConfigError, match="every clip has the mean rating 3"):
            fit(ratings(np.full((20, 1), 3.0), None), vectors)
        few = Votes(names(20), None, tuple(range(20)), np.arange(0, 20, 2), np.arange(1, 20, 2))
        with pytest.raises(ConfigError, match="10 votes; a head needs at least 20"):
            fit(few, vectors)

    def test_vectors_that_do_not_fit_are_refused(self):
        vectors, true, _ = planted(0, 20, 1, 3, 1.0)
        opinions = ratings(true[:, None], None)
        with pytest.raises(ShapeError, match=r"\(19, 3\) for 20 clips"):
            fit(opinions, vectors[:19])
        vectors[7, 1] = np.nan
        with pytest.raises(NotFinite, match="vector of 00007"):
            fit(opinions, vectors)

    def test_the_report_reads_as_text_and_as_json(self):
        import json

        vectors, true, prompts = planted(1, 10, 3, 3, 1.0)
        opinions = ratings(true[:, None] + np.random.default_rng(0).standard_normal((30, 2)), prompts)
        found = report(opinions, fit(opinions, vectors))
        text = str(found)
        assert "30 clips, 60 ratings; held out by prompt (10)" in text and "SRCC within prompts" in text
        assert "Spearman-Brown" in text
        kept = json.loads(json.dumps(found.as_dict()))
        assert kept["figures"]["plcc"]["value"] == found.figures["plcc"].value
