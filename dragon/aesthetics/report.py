"""How well a fitted head orders clips that it has not seen, how sure that is, and how well anything could.

Knows held-out scores and opinions. SRCC and the share of pairs in the right order are found within each prompt and
averaged over prompts; PLCC (and all three, where there are no prompts) within each fold, whose clips one head scored.
Pooling folds would bias a correlation downward where there is nothing to learn: the mean of the other folds is low
where the held-out ratings are high (Parker et al. 2007), and heads that found little are scaled up beside others.

Intervals resample prompts (bootstrap) and are stretched by the root of 2. Resampling alone takes the heads as given;
but without anything to learn, the score of clip i is a sum over j of a_ij y_j, so the products of i's rating with j's
enter twice, once by each other's head, and the variance is twice the resampled one. With much to learn the heads agree
and the stretched interval is wide of the mark on the safe side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dragon.aesthetics.ceiling import Ceiling, centred, rater_ceiling
from dragon.aesthetics.fit import Fit, groups
from dragon.aesthetics.ratings import Floats, Ints, Opinions, Ratings, Votes
from dragon.intervals import LEVEL, Interval, bootstrap_mean

DRAWS = 1000
Pairwise = Callable[[Floats, Floats], float | None]

_RANGE = {"plcc": (-1.0, 1.0), "srcc": (-1.0, 1.0), "accuracy": (0.0, 1.0)}


@dataclass(frozen=True)
class Report:
    """Figures of held-out clips ("plcc", "srcc", "accuracy") with intervals, their ceilings, and sizes.

    A figure that the opinions cannot give is absent: SRCC needs prompts with three clips. group: what was held out.
    """

    figures: Mapping[str, Interval]
    ceiling: Ceiling
    clips: int
    opinions: int
    groups: int
    group: str
    unit: str
    strength: float

    def as_dict(self) -> dict[str, object]:
        """What JSON holds."""
        kept = {key: value for key, value in vars(self).items() if key not in ("figures", "ceiling")}
        figures = {name: vars(found) for name, found in self.figures.items()}
        return {"figures": figures, "ceiling": vars(self.ceiling)} | kept

    def __str__(self) -> str:
        of = "ratings" if self.unit == "rating" else "votes"
        each = (
            "within prompts" if self.group == "prompt" else "over all clips" if of == "ratings" else "of linked clips"
        )
        titles = {"plcc": "PLCC", "srcc": f"SRCC {each}", "accuracy": "pairs in the right order"}
        lines = [
            f"{self.clips} clips, {self.opinions} {of}; held out by {self.group} ({self.groups}); strength "
            f"{self.strength:g}",
            f"{'held-out clips':28}{'value':>8}{'95 % interval':>18}{'ceiling':>10}",
        ]
        for name, found in self.figures.items():
            top = getattr(self.ceiling, name)
            ends = f"{found.low:.3f} to {found.high:.3f}"
            lines.append(f"{titles[name]:28}{found.value:8.3f}{ends:>18}{'' if top is None else f'{top:.3f}':>10}")
        return "\n".join([*lines, f"ceiling: {self.ceiling.how}"])


def report(opinions: Opinions, fitted: Fit, *, seed: int = 0) -> Report:
    """Figures of the held-out scores. seed: of the bootstrap, and of how raters are split for the ceiling."""
    _, kind = groups(opinions)
    return Report(
        figures={name: _stretched(found, *_RANGE[name]) for name, found in _figures(opinions, fitted, seed).items()},
        ceiling=rater_ceiling(opinions, seed=seed),
        clips=len(opinions.files),
        opinions=len(opinions.value) if isinstance(opinions, Ratings) else len(opinions.winner),
        groups=int(fitted.group.max()) + 1,
        group=kind,
        unit=fitted.unit,
        strength=fitted.strength,
    )


def _figures(opinions: Opinions, fitted: Fit, seed: int) -> dict[str, Interval]:
    """With intervals that take the heads as given.

    Votes say nothing of clips that they do not link: PLCC is then of scores and strengths less the mean of each linked
    set, and SRCC within one.
    """
    scores, target, within = fitted.held_out, fitted.target, _within(opinions, fitted.fold)
    of_votes = isinstance(opinions, Votes)
    inside = (centred(scores, within), centred(target, within)) if of_votes else (scores, target)

    def by_fold(statistic: Pairwise, left: Floats, right: Floats) -> Interval | None:
        """Mean over folds of a statistic of two columns; resamples groups."""

        def value(rows: Ints) -> float:
            parts = (rows[c] for c in _members(fitted.fold[rows]))
            some = [v for part in parts if (v := statistic(left[part], right[part])) is not None]
            return float(np.mean(some)) if some else np.nan

        return _bootstrap(value, fitted.group, seed)

    found = {"plcc": by_fold(_plcc, *inside)}
    if isinstance(opinions, Ratings) and opinions.prompts is None:
        found |= {"srcc": by_fold(_srcc, scores, target), "accuracy": by_fold(ordered_share, scores, target)}
    else:
        sets = list(_members(within))
        ranks = [v for c in sets if len(c) > 2 and (v := _srcc(scores[c], target[c])) is not None]
        found["srcc"] = bootstrap_mean(ranks, seed=seed) if ranks else None
        if isinstance(opinions, Votes):
            shares = _shares_of_votes(opinions, scores)
        else:
            shares = [v for c in sets if (v := ordered_share(scores[c], target[c])) is not None]
        found["accuracy"] = bootstrap_mean(shares, seed=seed) if len(shares) else None
    return {name: each for name, each in found.items() if each is not None}


def _bootstrap(statistic: Callable[[Ints], float], group: Ints, seed: int) -> Interval | None:
    """Percentile interval of a statistic of rows, from drawing groups with replacement; None: it has no value."""
    rng, members = np.random.default_rng(seed), list(_members(group))
    value = statistic(np.arange(len(group)))
    if np.isnan(value):
        return None
    drawn = (rng.integers(len(members), size=len(members)) for _ in range(DRAWS))
    values = [statistic(np.concatenate([members[i] for i in draw])) for draw in drawn]
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), len(members))


def _stretched(found: Interval, lowest: float, highest: float) -> Interval:
    low, high = (found.value + np.sqrt(2) * (end - found.value) for end in (found.low, found.high))
    return Interval(found.value, max(lowest, float(low)), min(highest, float(high)), found.n)


def _plcc(scores: Floats, target: Floats) -> float | None:
    """None: the targets are all equal. 0: the scores are, and tell nothing."""
    if len(target) < 3 or np.ptp(target) == 0:
        return None
    return float(np.corrcoef(scores, target)[0, 1]) if np.ptp(scores) > 0 else 0.0


def _srcc(scores: Floats, target: Floats) -> float | None:
    """As _plcc, of ranks."""
    from scipy.stats import rankdata

    return _plcc(rankdata(scores), rankdata(target))


def ordered_share(scores: Floats, target: Floats) -> float | None:
    """Share of the pairs with different targets that the scores put in the same order; ties of scores count 1/2.

    From Kendall's tau-b = (C - D) / sqrt(pairs untied in scores * pairs untied in target), in O(n log n).
    None: no such pairs.
    """
    from scipy.stats import kendalltau

    untied = [_pairs(len(v)) - sum(_pairs(c) for c in np.unique(v, return_counts=True)[1]) for v in (scores, target)]
    if not untied[1]:
        return None
    if not untied[0]:
        return 0.5
    surplus = float(kendalltau(scores, target)[0]) * np.sqrt(float(untied[0]) * float(untied[1]))
    return float((1 + surplus / untied[1]) / 2)


def _within(opinions: Opinions, fold: Ints) -> Ints:
    """(n,) the set of clips among which each is ranked: its prompt, or what votes link it with, in one fold."""
    if isinstance(opinions, Votes):
        return np.unique(np.stack([opinions.components, fold]), axis=1, return_inverse=True)[1].reshape(-1)
    return groups(opinions)[0] if opinions.prompts is not None else fold


def _shares_of_votes(votes: Votes, scores: Floats) -> list[float]:
    """Share of right votes of each prompt, or of each linked set.

    A clip's score is by a head that saw no vote on it, so votes between folds count, too.
    """
    group = votes.components if votes.prompts is None else groups(votes)[0]
    margin, label = scores[votes.winner] - scores[votes.loser], group[votes.winner]
    right = np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))
    return [float(share) for share in np.bincount(label, right) / np.bincount(label)]


def _members(label: Ints) -> Iterator[Ints]:
    """The rows of each label."""
    rows = np.argsort(label, kind="stable")
    yield from np.split(rows, np.flatnonzero(np.diff(label[rows])) + 1)


def _pairs(count: int) -> int:
    return int(count) * (int(count) - 1) // 2
