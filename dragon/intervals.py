"""Comparing two models by numbers: win rates, gains and the intervals around them.

Knows arrays of scores (prompts in rows, samples in columns), not rewards, clips or models. NaN means "no
opinion": that sample takes part in no comparison. Everything is seeded; nothing draws from a global generator.

Two kinds of score need two kinds of interval. A score of one clip is averaged over prompts, so a bootstrap
over prompts holds. A score of a whole set (a Frechet distance, a diversity) is not an average: drawing with
replacement repeats clips and biases it, so its interval is a delete-group jack-knife, which only leaves out
(Kott, 2001, "The delete-a-group jackknife"; Efron and Stein, 1981, for the conservative variance).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dragon.errors import ConfigError, NotFinite, ShapeError

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
SetScore = Callable[[Rows], Floats]
"""Members (q, n) of q candidate sets, as rows prompt * samples + sample, -> (q,) scores."""

DRAWS = 2000
LEVEL = 0.95
SMALLEST_SPLIT = 4  # subsets: with fewer the jack-knife has no degrees of freedom to speak of


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval, and how many prompts or groups it stands on."""

    value: float
    low: float
    high: float
    n: int


def win_shares(base: ArrayLike, tuned: ArrayLike) -> Floats:
    """(m,): of each prompt, the share of pairs (base sample, tuned sample) that the tuned one wins.

    base (m, k), tuned (m, l): all k * l pairs count, ties one half. Pairs with a NaN are left out; a prompt
    without any pair is NaN.

    >>> win_shares([[0.0, 1.0]], [[1.0, 2.0]]).tolist()  # wins 0<1, 0<2, 1<2; tie 1=1
    [0.875]
    """
    left, right = _matrix(base, "base"), _matrix(tuned, "tuned")
    if len(left) != len(right):
        raise ShapeError(f"base has {len(left)} prompts and tuned {len(right)}; expected the same prompts on both")
    wins = _wins(left[:, :, None], right[:, None, :])
    counted = np.isfinite(wins)
    total = counted.sum((1, 2))
    summed = np.where(counted, wins, 0.0).sum((1, 2))
    shares: Floats = np.divide(summed, total, out=np.full(len(left), np.nan), where=total > 0)
    return shares


def bootstrap_mean(values: ArrayLike, *, seed: int, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """The mean of one value a prompt, with a percentile interval from resampling prompts with replacement.

    values (m,); NaN prompts are dropped. Under about 20 prompts, and where every prompt gives the same value,
    the interval is too narrow: it cannot show what was not drawn.

    Raises:
        NotFinite: no prompt has a value.
    """
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        raise NotFinite("every prompt's value is NaN; expected at least one prompt on which the reward has an opinion")
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    chunk = max(1, 1_000_000 // len(kept))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        means[start : start + size] = kept[generator.integers(len(kept), size=(size, len(kept)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


def gain_in_sd(base: ArrayLike, tuned: ArrayLike) -> float | None:
    """(mean of tuned - mean of base) / standard deviation (ddof 1) of base; None where base does not vary."""
    left, right = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    sd = float(np.nanstd(left, ddof=1)) if np.isfinite(left).sum() > 1 else 0.0
    # the mean of equal numbers is rounded, so their standard deviation may be a few ulp
    if sd <= 1e-12 * float(np.nanmax(np.abs(left))):
        return None
    return float((np.nanmean(right) - np.nanmean(left)) / sd)


def mean_cosine_distance(vectors: ArrayLike) -> float:
    """Mean of 1 - cosine over all pairs of different rows; vectors (n, f), n >= 2; 0 when all are parallel."""
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise ShapeError(f"vectors of shape {rows.shape}; expected (n, f) with at least two rows")
    norms = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise NotFinite(f"embedding row {bad[0]} has length {norms[bad[0]]}; expected a finite, non-zero vector")
    unit = rows / norms[:, None]
    # sum over i != j of cos = |sum of rows|^2 - n, without the (n, n) matrix
    n = len(unit)
    return float(1 - (np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def jackknife_interval(estimate: float, replicates: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Interval from g estimates, each made with one of g equal groups left out.

    Standard error sqrt((g - 1) / g * sum (replicate - mean)^2), Student's t with g - 1 degrees of freedom.
    """
    from scipy.stats import t

    left_out = np.asarray(replicates, np.float64)
    groups = len(left_out)
    if groups < 2:
        raise ShapeError(f"{groups} groups for a jack-knife; expected at least 2")
    error = np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum())
    half = float(t.ppf((1 + level) / 2, groups - 1) * error)
    return Interval(float(estimate), float(estimate) - half, float(estimate) + half, groups)


def set_difference(
    score_base: SetScore,
    score_tuned: SetScore,
    prompts: int,
    samples: int,
    *,
    seed: int,
    groups: int = 20,
    level: float = LEVEL,
) -> tuple[float, float, Interval]:
    """(base, tuned, tuned - base): scores of all samples as one set a side, the difference with its interval.

    The jack-knife leaves the same group of prompts out of both sides, so what prompts share cancels.
    """
    every = np.arange(prompts)
    base, tuned = (float(_scored(score, _rows(every, samples)[None])[0]) for score in (score_base, score_tuned))
    order = np.random.default_rng(seed).permutation(prompts)
    kept = [np.setdiff1d(every, group) for group in np.array_split(order, min(groups, prompts))]
    replicates = np.empty(len(kept))
    # one batched call for each size: groups differ by at most one prompt
    for size in {len(members) for members in kept}:
        which = [i for i, members in enumerate(kept) if len(members) == size]
        sets = np.stack([_rows(kept[i], samples) for i in which])
        replicates[which] = _scored(score_tuned, sets) - _scored(score_base, sets)
    return base, tuned, jackknife_interval(tuned - base, replicates, level=level)


def set_win_rate(
    score_base: SetScore,
    score_tuned: SetScore,
    prompts: int,
    samples: int,
    *,
    size: int,
    seed: int,
    level: float = LEVEL,
) -> tuple[Interval, Floats]:
    """How often a tuned set beats a base set of other prompts; and the base sets' scores (subsets, samples).

    The prompts are split at random, without replacement, into disjoint subsets of `size`; each subset and each
    sample index of a side makes one set. Every tuned set is compared with every base set of ANOTHER subset
    (ties one half), so no two sides of a comparison share a prompt. Leftover prompts are not used. The interval
    leaves out one subset at a time, from both sides; its low end is at most `unbeaten`, its high end at least one
    minus that, and it is clipped to [0, 1].

    With base against base on both sides the mean is one half by symmetry.

    Raises:
        ConfigError: fewer than 4 subsets of that size.
    """
    subsets = prompts // size if size > 0 else 0
    if subsets < SMALLEST_SPLIT:
        raise ConfigError(
            f"{prompts} prompts make {subsets} disjoint subsets of {size}; a set reward's win rate needs at least "
            f"{SMALLEST_SPLIT}: use {SMALLEST_SPLIT * max(size, 1)} prompts or a smaller subset size"
        )
    order = np.random.default_rng(seed).permutation(prompts)[: subsets * size].reshape(subsets, size)
    sets = order[:, None, :] * samples + np.arange(samples)[:, None]  # (subsets, samples, size)
    flat = sets.reshape(subsets * samples, size)
    base, tuned = (_scored(score, flat).reshape(subsets, samples) for score in (score_base, score_tuned))
    # (tuned subset, base subset): mean over the sample indices of both sides
    wins = _wins(base[None, :, None, :], tuned[:, None, :, None]).mean((2, 3))
    np.fill_diagonal(wins, 0.0)
    total = wins.sum()
    left = total - wins.sum(0) - wins.sum(1)  # the diagonal is zero, so nothing is subtracted twice
    found = jackknife_interval(total / (subsets * (subsets - 1)), left / ((subsets - 1) * (subsets - 2)), level=level)
    most = unbeaten(subsets, level=level)
    low, high = min(max(0.0, found.low), most), max(min(1.0, found.high), 1 - most)
    return Interval(found.value, low, high, found.n), base


def unbeaten(sets: int, *, level: float = LEVEL) -> float:
    """The least win rate that so many sets a side can show: the low end where every tuned set beats every base set.

    Leaving out sees no spread there. This is the win rate t / (1 + t) at which the k tuned sets are the k best of all
    2 k with probability (1 - level) / 2, product of i t / (i t + k) over i = 1 to k, if the law of tuned scores is a
    power t of the base's (Lehmann, 1953, "The power of rank tests"; the ranks' law: Savage, 1956). It ignores that
    both sides share prompts.

    >>> round(unbeaten(4), 3), round(unbeaten(8), 3)
    (0.557, 0.807)
    """
    from scipy.optimize import brentq

    i = np.arange(1, sets + 1)

    def surplus(log_t: float) -> float:
        return float(np.log(i / (i + sets * np.exp(-log_t))).sum() - np.log((1 - level) / 2))

    t = np.exp(brentq(surplus, -50.0, 50.0))
    return float(t / (1 + t))


def _wins(base: Floats, tuned: Floats) -> Floats:
    """1 where tuned is larger, one half where equal, 0 where smaller, NaN where either is NaN."""
    wins = np.where(tuned > base, 1.0, np.where(tuned == base, 0.5, 0.0))
    return np.where(np.isnan(tuned) | np.isnan(base), np.nan, wins)


def _scored(score: SetScore, members: Rows) -> Floats:
    """Scores of the sets `members` (q, n), checked: (q,) and finite."""
    scores = np.asarray(score(members), np.float64)
    if scores.shape != (len(members),):
        raise ShapeError(f"a set score gave shape {scores.shape} for {len(members)} sets; expected one score a set")
    if not np.isfinite(scores).all():
        raise NotFinite(
            f"a set score of {members.shape[1]} clips is {scores[~np.isfinite(scores)][0]}; expected finite"
        )
    return scores


def _rows(prompts: Rows, samples: int) -> Rows:
    """All samples' rows of `prompts`, flat."""
    return (np.asarray(prompts)[:, None] * samples + np.arange(samples)).reshape(-1)


def _matrix(scores: ArrayLike, side: str) -> Floats:
    matrix = np.asarray(scores, np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ShapeError(f"{side} scores of shape {matrix.shape}; expected (prompts, samples), neither of them 0")
    return matrix
