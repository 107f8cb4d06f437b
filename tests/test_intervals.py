"""Laws of the comparisons: symmetry, coverage of the truth, numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dragon import intervals as st
from dragon.errors import ConfigError, NotFinite, ShapeError


def frechet_to_unit_gaussian(features):
    """Minus the squared Frechet distance of each candidate set to N(0, I), float64; features (rows, s, f).

    One covariance is the identity, so tr (S1 S2)^(1/2) is the sum of the square roots of S1's eigenvalues.
    """
    f = features.shape[-1]

    def score(members):
        frames = features[members].reshape(len(members), -1, f)
        mean = frames.mean(1)
        centred = frames - mean[:, None]
        cov = np.einsum("qnd,qne->qde", centred, centred) / (frames.shape[1] - 1)
        roots = np.sqrt(np.clip(np.linalg.eigvalsh(cov), 0, None)).sum(1)
        return -(np.square(mean).sum(1) + np.trace(cov, axis1=1, axis2=2) + f - 2 * roots)

    return score


def draw_sides(generator, prompts, samples, shift=0.0):
    """Two sides of (prompts * samples, 3 frames, 2): prompts have own centres, samples scatter about them."""
    centres = 0.7 * generator.normal(size=(prompts, 1, 1, 2))
    base, tuned = (
        (centres + generator.normal(size=(prompts, samples, 3, 2)) + offset).reshape(prompts * samples, 3, 2)
        for offset in (0.0, shift)
    )
    return frechet_to_unit_gaussian(base), frechet_to_unit_gaussian(tuned)


class TestWinShares:
    def test_by_hand(self):
        """Prompt 0: 1 > 0, 3 > 0, 1 < 2, 3 > 2 -> 3/4. Prompt 1: 5 = 5 and 5 > 4 -> (.5 + 1)/2, NaN left out."""
        found = st.win_shares([[0, 2], [5, 4]], [[1, 3], [5, np.nan]])
        assert found.tolist() == [0.75, 0.75]

    def test_swapping_the_sides_gives_the_complement(self):
        generator = np.random.default_rng(0)
        base, tuned = generator.integers(0, 4, (50, 3)), generator.integers(0, 4, (50, 2))  # many ties
        np.testing.assert_allclose(st.win_shares(base, tuned) + st.win_shares(tuned, base), 1)

    def test_any_increasing_map_of_the_scores_leaves_them(self):
        generator = np.random.default_rng(1)
        base, tuned = generator.normal(size=(20, 2)), generator.normal(size=(20, 2))
        np.testing.assert_array_equal(st.win_shares(base, tuned), st.win_shares(np.exp(base), np.exp(tuned)))

    def test_a_prompt_without_opinions_is_nan(self):
        assert np.isnan(st.win_shares([[np.nan, np.nan]], [[1.0, 2.0]])[0])

    def test_other_prompt_counts_are_refused(self):
        with pytest.raises(ShapeError, match="base has 2 prompts and tuned 3"):
            st.win_shares(np.zeros((2, 1)), np.zeros((3, 1)))

    def test_shared_seeds_exaggerate_a_small_shift(self):
        """The reason for independent samples: a shift of 0.1 sd wins every same-seed pair, 53 % of the others.

        P(N(0.1, 1) > N(0, 1)) = Phi(0.1 / sqrt 2) = .528; 200,000 pairs give a standard error of .0011.
        """
        generator = np.random.default_rng(2)
        base, other = generator.normal(size=(2, 200_000, 1))
        assert st.win_shares(base, base + 0.1).mean() == 1
        assert st.win_shares(base, other + 0.1).mean() == pytest.approx(0.528, abs=0.005)


class TestBootstrap:
    def test_base_against_base_covers_one_half(self):
        """Nominal coverage .95; 300 draws have a standard error of .0126, so [.91, .99] is +- 3 of them."""
        generator = np.random.default_rng(0)
        covered = 0
        for draw in range(300):
            prompt = generator.normal(size=(96, 1))
            base, tuned = (prompt + generator.normal(size=(96, 2)) for _ in range(2))
            interval = st.bootstrap_mean(st.win_shares(base, tuned), seed=draw, draws=400)
            covered += interval.low <= 0.5 <= interval.high
        assert 0.91 <= covered / 300 <= 0.99

    def test_width_is_that_of_the_normal_theory(self):
        """High minus low is 2 * 1.96 sd / sqrt(m); 4,000 draws place each end within a few per cent."""
        values = np.random.default_rng(3).normal(size=400)
        interval = st.bootstrap_mean(values, seed=0, draws=4000)
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
        assert interval.value == pytest.approx(values.mean())

    def test_seeded(self):
        values = np.random.default_rng(4).normal(size=30)
        assert st.bootstrap_mean(values, seed=1) == st.bootstrap_mean(values, seed=1)
        assert st.bootstrap_mean(values, seed=1) != st.bootstrap_mean(values, seed=2)

    def test_nan_prompts_are_dropped_and_counted(self):
        interval = st.bootstrap_mean([0.0, 1.0, np.nan], seed=0)
        assert (interval.value, interval.n) == (0.5, 2)

    def test_nothing_left_is_an_error(self):
        with pytest.raises(NotFinite, match="every prompt"):
            st.bootstrap_mean([np.nan], seed=0)


class TestSetRewards:
    @pytest.mark.parametrize(("prompts", "size"), [(32, 8), (64, 8)])
    def test_base_against_base_covers_one_half_and_no_difference(self, prompts, size):
        """200 draws: nominal .95 has a standard error of .0154, so .90 is -3 of them.

        The mean win rate has standard deviation < .13 a draw, so < .0092 over 200: .03 is 3 of them.
        """
        generator = np.random.default_rng(prompts)
        wins, differences, values = 0, 0, []
        for draw in range(200):
            base, tuned = draw_sides(generator, prompts, 2)
            rate, _ = st.set_win_rate(base, tuned, prompts, 2, size=size, seed=draw)
            *_, gap = st.set_difference(base, tuned, prompts, 2, seed=draw)
            wins += rate.low <= 0.5 <= rate.high
            differences += gap.low <= 0 <= gap.high
            values.append(rate.value)
        assert wins / 200 >= 0.90
        assert differences / 200 >= 0.90
        assert np.mean(values) == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize("shift", [0.5, 0.8, 1.6])
    def test_a_win_rate_near_one_is_covered_too(self, shift):
        """Sets of 8 normal numbers, shifted: the win rate of their means is Phi(2 shift). Leaving out alone covers 93,
        70 and 6 %: mostly all comparisons are won, and then it sees no spread."""
        from scipy.stats import norm

        generator, covered = np.random.default_rng(9), 0
        for draw in range(200):
            base, tuned = generator.normal(size=64), generator.normal(size=64) + shift
            sides = [lambda members, values=values: values[members].mean(1) for values in (base, tuned)]
            rate, _ = st.set_win_rate(*sides, 32, 2, size=8, seed=draw)
            covered += rate.low <= norm.cdf(2 * shift) <= rate.high
        assert covered / 200 >= 0.92  # three standard errors below the nominal .95 are .90

    def test_sets_that_are_never_beaten_have_an_interval(self):
        sides = [lambda members, shift=shift: shift + np.arange(len(members)) / 1000 for shift in (0.0, 1.0)]
        won, _ = st.set_win_rate(*sides, 64, 2, size=8, seed=0)
        assert (won.value, won.low, won.high) == (1, st.unbeaten(8), 1)
        lost, _ = st.set_win_rate(*sides[::-1], 64, 2, size=8, seed=0)
        assert (lost.value, lost.low, lost.high) == (0, 0, 1 - st.unbeaten(8))

    @pytest.mark.parametrize("sets", [2, 4, 9])
    def test_never_beaten_is_as_rare_as_it_says(self, sets):
        """Under a power law of the scores: U and U^(1/t), whose win rate is t / (1 + t)."""
        rate = st.unbeaten(sets)
        generator = np.random.default_rng(sets)
        base = generator.random((40_000, sets))
        tuned = generator.random((40_000, sets)) ** ((1 - rate) / rate)
        never = (tuned.min(1) > base.max(1)).mean()
        assert never == pytest.approx(0.025, abs=3 * np.sqrt(0.025 / 40_000))
        assert (tuned > base).mean() == pytest.approx(rate, abs=0.01)
        assert st.unbeaten(sets) < st.unbeaten(sets + 1) < 1

    def test_a_real_shift_is_found(self):
        base, tuned = draw_sides(np.random.default_rng(5), 128, 2, shift=1.5)
        rate, _ = st.set_win_rate(base, tuned, 128, 2, size=8, seed=0)
        before, after, gap = st.set_difference(base, tuned, 128, 2, seed=0)
        assert rate.high < 0.5
        assert gap.high < 0
        assert gap.value == pytest.approx(after - before)

    def test_swapping_the_sides_mirrors_both(self):
        base, tuned = draw_sides(np.random.default_rng(6), 40, 2, shift=0.3)
        there, _ = st.set_win_rate(base, tuned, 40, 2, size=8, seed=0)
        back, _ = st.set_win_rate(tuned, base, 40, 2, size=8, seed=0)
        assert there.value + back.value == pytest.approx(1)
        assert (1 - there.high, 1 - there.low) == pytest.approx((back.low, back.high))
        gap, mirrored = (st.set_difference(*sides, 40, 2, seed=0)[2] for sides in ((base, tuned), (tuned, base)))
        assert (gap.low, gap.high) == pytest.approx((-mirrored.high, -mirrored.low))

    def test_no_comparison_shares_a_prompt_and_none_is_drawn_twice(self):
        seen = []

        def score(members):
            seen.append(members)
            return np.zeros(len(members))

        rate, subsets = st.set_win_rate(score, score, 35, 3, size=8, seed=0)
        assert subsets.shape == (4, 3)
        assert rate.value == 0.5  # ties count one half
        prompts = [set(row // 3) for row in seen[0]]
        assert all(len(p) == 8 for p in prompts)
        # three sample indices of one subset share its prompts; subsets share none
        for i, left in enumerate(prompts):
            for j, right in enumerate(prompts):
                assert (left == right) if i // 3 == j // 3 else not (left & right)
        rows = np.concatenate(list(seen[0]))
        assert len(np.unique(rows)) == len(rows)

    def test_win_rate_interval_equals_leaving_subsets_out_one_by_one(self):
        """Second implementation: the estimator on the remaining subsets, by loops."""
        scores = np.random.default_rng(7).normal(size=(2, 5, 2))
        order = np.random.default_rng(0).permutation(40).reshape(5, 8)
        place = {tuple(sorted(subset)): i for i, subset in enumerate(order)}

        def side(values):
            return lambda members: np.array([values[place[tuple(sorted(row // 2))], row[0] % 2] for row in members])

        def share(kept):
            wins = [
                np.mean([scores[1, a, i] > scores[0, b, j] for i in range(2) for j in range(2)])
                for a in kept
                for b in kept
                if a != b
            ]
            return np.mean(wins)

        rate, _ = st.set_win_rate(side(scores[0]), side(scores[1]), 40, 2, size=8, seed=0)
        replicates = [share([i for i in range(5) if i != out]) for out in range(5)]
        expected = st.jackknife_interval(share(range(5)), replicates)
        assert rate.value == pytest.approx(expected.value)
        assert rate.low == pytest.approx(max(0, expected.low))
        assert rate.high == pytest.approx(min(1, expected.high))

    def test_jackknife_of_a_mean_is_the_t_interval(self):
        """For a mean over g groups the jack-knife error is sd / sqrt(g), exactly (Efron and Stein 1981)."""
        from scipy import stats

        values = np.random.default_rng(8).normal(size=12)
        replicates = [np.delete(values, i).mean() for i in range(12)]
        found = st.jackknife_interval(values.mean(), replicates)
        expected = stats.t.interval(0.95, 11, values.mean(), values.std(ddof=1) / np.sqrt(12))
        assert (found.low, found.high) == pytest.approx(expected)

    def test_too_few_prompts_are_refused(self):
        with pytest.raises(ConfigError, match="30 prompts make 3 disjoint subsets of 8.*use 32 prompts"):
            st.set_win_rate(np.sum, np.sum, 30, 1, size=8, seed=0)

    def test_a_score_that_is_not_finite_is_refused(self):
        with pytest.raises(NotFinite, match="32 clips is nan"):
            st.set_difference(lambda rows: np.full(len(rows), np.nan), lambda rows: np.zeros(len(rows)), 16, 2, seed=0)


def test_gain_in_standard_deviations_by_hand():
    """Base 0, 2: mean 1, sd (ddof 1) sqrt 2; tuned mean 3: gain 2 / sqrt 2."""
    assert st.gain_in_sd([[0.0, 2.0]], [[3.0, np.nan]]) == pytest.approx(np.sqrt(2))
    assert st.gain_in_sd([[0.1, 0.1, 0.1]], [[3.0]]) is None


def test_cosine_distance_equals_the_mean_over_all_pairs():
    vectors = np.random.default_rng(9).normal(size=(15, 6)) + 1
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(15) for j in range(i)]
    assert st.mean_cosine_distance(vectors) == pytest.approx(np.mean(pairs))
    assert st.mean_cosine_distance(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)
    with pytest.raises(NotFinite, match="row 1"):
        st.mean_cosine_distance([[1.0, 0.0], [0.0, 0.0]])
