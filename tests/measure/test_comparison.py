"""Intervals and differences: mirrored by swapping, zero between equals, Welch's where the theory is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dragon.measure.comparison import Difference, difference, interval_of, standard_error
from dragon.measure.measured import Measured


def of_set(values, **options) -> Measured:
    """The mean of values as a metric of a set, whose groups are single clips."""
    values = np.asarray(values, float)
    left_out = (values.sum() - values) / (len(values) - 1)
    return Measured("mean", float(values.mean()), "lower", replicates=left_out, **options)


def of_clips(values) -> Measured:
    values = np.asarray(values, float)
    return Measured("mean", float(np.nanmean(values)), "lower", scores=values)


@pytest.fixture
def two():
    generator = np.random.default_rng(0)
    return generator.normal(size=30), 0.4 + 2 * generator.normal(size=24)


def test_unpaired_sets_of_means_give_welchs_interval(two):
    """The jack-knife error of a mean is sd / sqrt(n), so scipy's Welch test must say the same."""
    found = difference(*map(of_set, two), paired=False)
    expected = stats.ttest_ind(*two, equal_var=False).confidence_interval(0.95)
    assert found is not None and not found.paired
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_paired_sets_of_means_give_the_paired_t_interval(two):
    first, second = two[0][:24], two[1]
    found = difference(of_set(first), of_set(second), paired=True)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found is not None and found.paired
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("kind", [of_set, of_clips])
@pytest.mark.parametrize("paired", [True, False])
def test_swapping_the_sets_mirrors_the_interval(two, kind, paired):
    """Exactly for a jack-knife; a bootstrap draws anew, and 2,000 draws place its ends within a tenth."""
    first, second = kind(two[0][:24]), kind(two[1])
    there, back = difference(first, second, paired), difference(second, first, paired)
    assert there is not None and back is not None
    width = there.high - there.low
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.1 * width)


@pytest.mark.parametrize("kind", [of_set, of_clips])
def test_a_set_does_not_differ_from_itself(two, kind):
    same = difference(kind(two[0]), kind(two[0]), paired=True)
    assert same == Difference(0.0, 0.0, 0.0, True) and not same.significant
    apart = difference(kind(two[0]), kind(two[0]), paired=False)
    assert apart is not None and apart.low < 0 < apart.high


@pytest.mark.parametrize("kind", [of_set, of_clips])
def test_what_clips_of_one_name_share_cancels(two, kind):
    """The second model is .1 better on every clip: certain by pairs, not certain by independent samples."""
    first, second = kind(two[1]), kind(two[1] - 0.1)
    paired, apart = (difference(first, second, p) for p in (True, False))
    assert paired is not None and paired.significant and apart is not None and not apart.significant


def test_a_clip_without_an_opinion_takes_part_in_no_pair():
    found = difference(of_clips([1.0, np.nan, 3.0, 9.0]), of_clips([0.0, 5.0, 2.0, np.nan]), paired=True)
    assert found is not None and found.value == pytest.approx(1.0)


def test_unpaired_clip_means_have_about_the_normal_width(two):
    found = difference(*map(of_clips, two), paired=False)
    error = np.sqrt(two[0].var() / 30 + two[1].var() / 24)
    assert found is not None and found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_an_error_of_its_own_is_used_with_students_t():
    measured = Measured("own", 5.0, "lower", error=(2.0, 11))
    interval, how = interval_of(measured) or pytest.fail("no interval")
    assert (interval.low, interval.high) == pytest.approx((5 - 2 * 2.20099, 5 + 2 * 2.20099), abs=1e-4)
    assert standard_error(measured) == (2.0, 11) and "own" in how
    found = difference(measured, Measured("own", 5.0, "lower", error=(0.0, 11)), paired=True)
    assert (
        found is not None and not found.paired and (found.low, found.high) == pytest.approx((-4.402, 4.402), abs=1e-3)
    )


def test_an_interval_does_not_leave_what_is_possible(two):
    interval, _ = interval_of(of_set([0.0, 0.0, 0.1], bounds=(0, 1))) or pytest.fail("no interval")
    assert interval.low == 0


def test_where_no_clip_matters_nothing_is_known():
    """A precision of 0 that stays 0 whichever clips are left out is no certainty."""
    assert interval_of(of_set([0.0, 0.0, 0.0])) is None
    assert interval_of(of_clips([1.0, 1.0])) is None
    for kind in (of_set, of_clips):
        for paired in (True, False):
            assert difference(kind([1.0, 1.0, 1.0]), kind([0.5, 0.5, 0.5]), paired) is None
            same = difference(kind([1.0, 1.0, 1.0]), kind([1.0, 1.0, 1.0]), paired)
            assert same is not None and not same.significant


def test_one_clip_has_no_interval_and_no_difference():
    assert interval_of(of_clips([1.0])) is None
    assert interval_of(Measured("m", 1.0, "lower")) is None
    assert difference(of_clips([1.0]), of_clips([2.0]), paired=False) is None
    assert difference(of_clips([1.0]), of_clips([2.0]), paired=True) is None
    assert difference(Measured("m", 1.0, "lower"), of_set([1.0, 2.0]), paired=False) is None
