"""Intervals of metrics, and which of two sets is better for certain.

Knows numbers only. A value of a whole set: delete-group jack-knife over clips. A mean over clips: bootstrap over clips.
Sets whose files have the same names are compared file by file: the same clips are left out, or drawn, on both sides, so
what they share cancels; others as independent samples, by Welch's t (1947, "The generalization of Student's problem")
or by drawing each side by itself. The reference is held fixed: that it is a sample too is in no interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dragon.intervals import DRAWS, LEVEL, Floats, Interval, bootstrap_mean, jackknife_interval
from dragon.measure.measured import Measured

JACKKNIFE = "jack-knife over groups of clips"
BOOTSTRAP = "bootstrap over clips"
OWN = "the metric's own"


@dataclass(frozen=True)
class Difference:
    """First minus second, with its interval; significant: the interval leaves out 0."""

    value: float
    low: float
    high: float
    paired: bool

    @property
    def significant(self) -> bool:
        return not self.low <= 0 <= self.high


def interval_of(measured: Measured, seed: int = 0) -> tuple[Interval, str] | None:
    """The 95 % interval of a value and how it was made.

    None where there are too few clips for one, and where leaving clips out changes nothing: then nothing is known of
    how much other clips would change.
    """
    if measured.scores is not None:
        scores = measured.scores[~np.isnan(measured.scores)]
        return (bootstrap_mean(scores, seed=seed), BOOTSTRAP) if len(scores) > 1 and np.ptp(scores) > 0 else None
    found, how = None, JACKKNIFE
    if measured.replicates is not None and np.ptp(measured.replicates) > 0:
        found = jackknife_interval(measured.value, measured.replicates)
    elif measured.error is not None:
        error, freedom = measured.error
        half, how = _t(freedom) * error, OWN
        found = Interval(measured.value, measured.value - half, measured.value + half, freedom + 1)
    if found is None:
        return None
    least, most = measured.bounds
    return Interval(found.value, max(found.low, least), min(found.high, most), found.n), how


def difference(first: Measured, second: Measured, paired: bool, seed: int = 0) -> Difference | None:
    """First minus second; None where one of them has nothing to make an interval of, or where they differ and neither
    changes with its clips (1 and 0.5, whichever are left out): then nothing is known of how much others would change.

    paired: clip i of both is the same one, made twice. A metric with an error of its own is compared unpaired.
    """
    value = first.value - second.value
    if value != 0 and _never_changes(first) and _never_changes(second):
        return None
    if first.scores is not None and second.scores is not None:
        if paired:
            both = first.scores - second.scores
            if np.isfinite(both).sum() < 2:
                return None
            found = bootstrap_mean(both, seed=seed)
            return Difference(found.value, found.low, found.high, True)
        ends = _two_sample(first.scores, second.scores, seed)
        return None if ends is None else Difference(value, *ends, False)
    left, right = first.replicates, second.replicates
    if paired and left is not None and right is not None and len(left) == len(right):
        found = jackknife_interval(value, left - right)
        return Difference(value, found.low, found.high, True)
    one, other = standard_error(first), standard_error(second)
    if one is None or other is None:
        return None
    (a, n), (b, m) = one, other
    variance = a * a + b * b
    # Welch and Satterthwaite's degrees of freedom
    freedom = variance**2 / (a**4 / n + b**4 / m) if variance > 0 else float(n + m)
    half = _t(freedom) * variance**0.5
    return Difference(value, value - half, value + half, False)


def standard_error(measured: Measured) -> tuple[float, int] | None:
    """Of a value of a whole set, with its degrees of freedom; None where it has none."""
    if measured.error is not None:
        return measured.error
    if measured.replicates is None:
        return None
    left_out = measured.replicates
    groups = len(left_out)
    return float(np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum())), groups - 1


def _never_changes(measured: Measured) -> bool:
    """Whether all clips have one score, or the value is the same without any group of them."""
    rows = measured.replicates if measured.scores is None else measured.scores[~np.isnan(measured.scores)]
    return rows is not None and len(rows) > 0 and float(np.ptp(rows)) == 0


def _two_sample(first: Floats, second: Floats, seed: int) -> tuple[float, float] | None:
    """Percentile interval of the difference of two means, each side drawn by itself."""
    sides = [side[~np.isnan(side)] for side in (first, second)]
    if min(map(len, sides)) < 2:
        return None
    generator = np.random.default_rng(seed)
    means = [np.empty(DRAWS), np.empty(DRAWS)]
    for side, drawn in zip(sides, means, strict=True):
        step = max(1, 1_000_000 // len(side))
        for start in range(0, DRAWS, step):
            size = min(step, DRAWS - start)
            drawn[start : start + size] = side[generator.integers(len(side), size=(size, len(side)))].mean(1)
    low, high = np.quantile(means[0] - means[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _t(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))
