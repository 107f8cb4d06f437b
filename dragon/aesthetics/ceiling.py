"""The best figures that any predictor could reach, given how much the people disagree.

Knows opinions, no predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dragon.aesthetics.ratings import Floats, Ints, Opinions, Ratings, Votes

SPLITS = 200
FEWEST_SEVERAL = 20  # clips with two ratings or more: fewer tell too little of rater noise


@dataclass(frozen=True)
class Ceiling:
    """The best figures that a perfect predictor could reach against these noisy opinions; None where not known.

    reliability: correlation that a second panel's mean ratings would have with these. how: in words.
    """

    plcc: float | None
    srcc: float | None
    accuracy: float | None
    reliability: float | None
    how: str


def rater_ceiling(opinions: Opinions, *, seed: int = 0) -> Ceiling:
    """What noise of the raters leaves to be predicted.

    Ratings: reliability R of the clips' means by split halves (below); PLCC sqrt(R); within prompts, SRCC and share of
    pairs of a bivariate normal whose correlation is the root of the reliability within prompts (Moran 1948, with
    prompts of their size; Sheppard 1899). Votes: no predictor agrees with more than (1 + sqrt(2 a - 1)) / 2 of
    them, where a is the share of repeated votes on one pair that agree (concave, so also where pairs differ).
    """
    if isinstance(opinions, Votes):
        agree = _agreement(opinions)
        if agree is None:
            how = f"not known: fewer than {FEWEST_SEVERAL} pairs of clips have several votes"
            return Ceiling(None, None, None, None, how)
        top = float((1 + np.sqrt(max(0.0, 2 * agree - 1))) / 2)
        return Ceiling(None, None, top, None, f"two votes on one pair agree {100 * agree:.0f} % of the time")
    within = np.zeros(len(opinions.files), np.int64)
    if opinions.prompts is not None:
        within = np.unique(np.array(opinions.prompts), return_inverse=True)[1]
    overall, how = _reliability(opinions, np.zeros_like(within), seed)
    inner, _ = _reliability(opinions, within, seed)
    sizes = np.bincount(within)
    sizes = sizes[sizes > 2]
    root = None if inner is None else float(np.sqrt(inner))
    return Ceiling(
        plcc=None if overall is None else float(np.sqrt(overall)),
        srcc=None if root is None or not len(sizes) else float(np.mean(expected_spearman(root, sizes))),
        accuracy=None if root is None else float(0.5 + np.arcsin(root) / np.pi),
        reliability=overall,
        how=how,
    )


def expected_spearman(correlation: float, sizes: ArrayLike) -> Floats:
    """Expected Spearman correlation of samples of these sizes from a bivariate normal. Moran (1948)."""
    n = np.asarray(sizes, np.float64)
    found: Floats = 6 / (np.pi * (n + 1)) * (np.arcsin(correlation) + (n - 2) * np.arcsin(correlation / 2))
    return found


def _reliability(ratings: Ratings, within: Ints, seed: int) -> tuple[float | None, str]:
    """Reliability of the mean ratings less the mean of each set `within`, and how it was found.

    The ratings of each clip are split at random into two halves of floor(k / 2); the halves' means correlate by r over
    the clips; r is averaged over splits and stepped up to whole panels (Spearman 1910, Brown 1910; with unequal
    counts, by the mean of 1 / k). Where every rater rated every clip, the raters are split instead, so
    that a strict rater counts as no noise.
    """
    counts = ratings.counts
    several = counts >= 2
    if several.sum() < FEWEST_SEVERAL:
        return None, f"not known: fewer than {FEWEST_SEVERAL} clips have several ratings"
    raters = int(ratings.rater.max()) + 1
    complete = raters > 1 and bool((ratings.rater >= 0).all()) and len(ratings.value) == raters * len(ratings.files)
    half, order_of = counts // 2, np.random.default_rng(seed)
    start = np.cumsum(counts) - counts
    place = np.arange(len(ratings.value)) - start[ratings.clip]  # of a row within its clip, once sorted by clip
    n, correlations = len(counts), []
    for _ in range(SPLITS):
        key = order_of.random(raters)[ratings.rater] if complete else order_of.random(len(ratings.value))
        value = ratings.value[np.lexsort((key, ratings.clip))]
        sides = [(place < half[ratings.clip]), (place >= half[ratings.clip]) & (place < 2 * half[ratings.clip])]
        means = [np.bincount(ratings.clip[s], value[s], n) / np.maximum(half, 1) for s in sides]
        left, right = (centred(m[several], within[several]) for m in means)
        size = np.sqrt((left @ left) * (right @ right))  # 0: every prompt has one clip, or clips that are all alike
        correlations.append(float(left @ right / size) if size > 0 else np.nan)
    r = float(np.mean(correlations))
    if np.isnan(r):
        return None, "not known: half the raters give clips of a prompt the same mean"
    longer = float(np.mean(1 / half[several]) / np.mean(1 / counts))
    found = min(1.0, longer * r / (1 + (longer - 1) * r)) if r > 0 else 0.0
    split = "raters" if complete else "each clip's ratings"
    how = f"{split} split in halves {SPLITS} times, r = {r:.2f}; Spearman-Brown to {counts.mean():.1f} ratings a clip"
    return found, how


def _agreement(votes: Votes) -> float | None:
    """Mean over pairs of clips with several votes of the share of two votes that agree."""
    low, high = np.minimum(votes.winner, votes.loser), np.maximum(votes.winner, votes.loser)
    pairs, row = np.unique(np.stack([low, high], 1), axis=0, return_inverse=True)
    total = np.bincount(row.reshape(-1), minlength=len(pairs))
    first = np.bincount(row.reshape(-1), votes.winner == low, len(pairs))
    several = total >= 2
    if several.sum() < FEWEST_SEVERAL:
        return None
    one, other, both = first[several], (total - first)[several], total[several]
    return float(np.mean((one * (one - 1) + other * (other - 1)) / (both * (both - 1))))


def centred(values: Floats, label: Ints) -> Floats:
    """(n,) values less the mean of the rows of the same label."""
    found: Floats = values - (np.bincount(label, values) / np.maximum(np.bincount(label), 1))[label]
    return found
