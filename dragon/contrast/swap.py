"""Swap search: which sample of each prompt belongs to D+ and which to D-, judged by scores of the WHOLE sets.

Knows scorers of sets of rows (dragon.protocols.SwapScorer), not what they judge. Every prompt gives one sample to
each set. The search starts at random, visits the prompts in random order, and exchanges a prompt's samples wherever
that raises the objective; it ends when no exchange within one prompt does (one-swap optimal).

The idea of splitting by swaps under a set reward: DRAGON (Bai et al., arXiv 2504.15217). Two objectives, the search
until one-swap optimal, any number of samples a prompt, and mixtures of set and instance rewards are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dragon.contrast.pairs import Pairs
from dragon.errors import ConfigError, ShapeError
from dragon.protocols import SetReward, SwappableReward, SwapScorer

OBJECTIVES = ("difference", "positive")
# A kept swap must gain more than rounding of a tracked score can feign; scores are exact to 1e-9 of their size.
_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Judge:
    """One reward in a search: how it scores D+ and how it scores D-, each weighed by `weight`."""

    positive: SwapScorer
    negative: SwapScorer
    weight: float = 1.0


@dataclass(frozen=True)
class SwapTrace:
    """How a search went. `start`, `end`: the objective before and after; it never falls in between (`path`).

    passes: visits of every prompt, the last of which kept nothing if `optimal`. kept: exchanges made. asked:
    neighbours scored; screened: neighbours that a bound ruled out without scoring them.
    """

    start: float
    end: float
    passes: int
    kept: int
    asked: int
    screened: int
    optimal: bool
    path: tuple[float, ...] = ()


@dataclass(frozen=True)
class Swap:
    """Contrast of set rewards: D+ and D- by swap search.

    objective: "difference" maximises r(D+) - r(D-) over both sets at once. "positive" maximises r(D+) first, then
    lowers r(D-) with what D+ left over; with two samples a prompt nothing is left to choose.
    max_passes: the search stops after so many visits of every prompt, one-swap optimal or not.
    """

    objective: str = "difference"
    max_passes: int = 20

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"swap objective is {self.objective!r}; expected {' or '.join(map(repr, OBJECTIVES))}")
        if self.max_passes < 1:
            raise ConfigError(f"max_passes is {self.max_passes}; expected at least 1")

    def search(self, judges: Sequence[Judge], usable: Tensor, generator: Generator) -> tuple[Pairs, SwapTrace]:
        """D+ and D- as pairs, one of every prompt with two usable samples; rows count as prompt * k + sample.

        usable: (m, k) bool. A pair's gap is what the objective would lose if its two members were exchanged: at
        least 0 up to rounding once the search is one-swap optimal.
        """
        if usable.ndim != 2:
            raise ShapeError(f"usable of shape {tuple(usable.shape)}; expected (m prompts, k samples)")
        if not judges:
            raise ConfigError("swap search without a reward; expected at least one")
        rows = [
            (prompt * usable.shape[1] + mine.nonzero().squeeze(1)).tolist()
            for prompt, mine in enumerate(usable)
            if int(mine.sum()) >= 2
        ]
        if len(rows) < 2:  # a set of one clip has no spread, and there is nothing to swap it against
            empty = torch.empty(0, dtype=torch.long)
            return Pairs(empty, empty, torch.empty(0, dtype=torch.float64)), SwapTrace(0, 0, 0, 0, 0, 0, True)
        draws = [torch.randperm(len(mine), generator=generator).tolist() for mine in rows]
        state = _Sets(
            judges,
            [m[d[0]] for m, d in zip(rows, draws, strict=True)],
            [m[d[1]] for m, d in zip(rows, draws, strict=True)],
        )
        order = torch.stack([torch.randperm(len(rows), generator=generator) for _ in range(self.max_passes)]).tolist()
        if self.objective == "difference":
            trace = state.climb(rows, order, both=True)
        else:
            trace = state.climb(rows, order, both=False)
            state.climb_negative(rows, order)
        return state.pairs(), trace


def swap_variance(scorer: SwapScorer, usable: Tensor, generator: Generator) -> float | None:
    """Variance, within a prompt, of what a clip is worth to a set: a mixture's measure of a set reward's spread.

    Exchanging a prompt's two samples in a random set of n changes its score by a difference of credits / n, and half
    the mean square of such differences is their variance. None where fewer than two prompts have two usable samples.
    """
    rows = [prompt * usable.shape[1] + mine.nonzero().squeeze(1) for prompt, mine in enumerate(usable)]
    drawn = [mine[torch.randperm(len(mine), generator=generator)[:2]] for mine in rows if len(mine) >= 2]
    if len(drawn) < 2:
        return None
    leaving, entering = torch.stack(drawn).unbind(1)
    scorer.start(leaving)
    change = len(drawn) * (scorer.neighbours(leaving, entering) - scorer.value)
    return float(change.square().mean()) / 2


def swap_scorer(reward: SetReward, features: Tensor) -> SwapScorer:
    """The reward's own scorer, or one that scores every neighbour anew."""
    return reward.swap_scorer(features) if isinstance(reward, SwappableReward) else Rescored(reward, features)


class Rescored:
    """SwapScorer of any set reward: every neighbour is scored as a whole set."""

    def __init__(self, reward: SetReward, features: Tensor) -> None:
        self._reward, self._features = reward, features
        self._members = torch.empty(0, dtype=torch.long)
        self._value = float("nan")

    @property
    def value(self) -> float:
        return self._value

    def start(self, members: Tensor) -> None:
        self._members = members.clone()
        self._value = float(self._score(members[None])[0])

    def neighbours(self, leaving: Tensor, entering: Tensor) -> Tensor:
        sets = self._members.repeat(len(leaving), 1)
        sets = torch.where(sets == leaving[:, None], entering[:, None], sets)
        return self._score(sets)

    def bounds(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        return _unknown(len(leaving))

    def swap(self, leaving: int, entering: int) -> None:
        self.start(torch.where(self._members == leaving, entering, self._members))

    def _score(self, sets: Tensor) -> Tensor:
        return self._reward.score_sets(self._features, sets).detach().to("cpu", torch.float64)


class Mean:
    """SwapScorer of an instance reward: the mean score of the set's members. scores: (rows,)."""

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores.detach().to("cpu", torch.float64).flatten()
        self._members = torch.empty(0, dtype=torch.long)

    @property
    def value(self) -> float:
        return float(self._scores[self._members].mean())

    def start(self, members: Tensor) -> None:
        self._members = members.clone()

    def neighbours(self, leaving: Tensor, entering: Tensor) -> Tensor:
        return self.value + (self._scores[entering] - self._scores[leaving]) / len(self._members)

    def bounds(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        exact = self.neighbours(leaving, entering)
        return exact, exact

    def swap(self, leaving: int, entering: int) -> None:
        self._members = torch.where(self._members == leaving, entering, self._members)


class _Sets:
    """D+ and D- in the middle of a search. positive[i], negative[i]: rows of prompt i."""

    def __init__(self, judges: Sequence[Judge], positive: list[int], negative: list[int]) -> None:
        self.judges, self.positive, self.negative = judges, positive, negative
        for judge in judges:
            judge.positive.start(torch.tensor(positive))
            judge.negative.start(torch.tensor(negative))
        self.asked = self.screened = 0

    def objective(self, both: bool) -> float:
        return sum(j.weight * (j.positive.value - (j.negative.value if both else 0.0)) for j in self.judges)

    def climb(self, rows: list[list[int]], orders: list[list[int]], *, both: bool) -> SwapTrace:
        """Visits prompts until no visit of all of them changes anything."""
        start = self.objective(both)
        path, kept, passes, optimal = [start], 0, 0, False
        for order in orders:
            passes += 1
            before = kept
            for i in order:
                choice = self._best(i, rows[i], both)
                if choice is not None:
                    self._move(i, *choice)
                    kept += 1
                    path.append(self.objective(both))
            if kept == before:
                optimal = True
                break
        return SwapTrace(start, path[-1], passes, kept, self.asked, self.screened, optimal, tuple(path))

    def climb_negative(self, rows: list[list[int]], orders: list[list[int]]) -> None:
        """D+ fixed: the members of D- that lower its score most."""
        for order in orders:
            changed = False
            for i in order:
                others = [row for row in rows[i] if row not in (self.positive[i], self.negative[i])]
                if not others:
                    continue
                gains = -self._changes(False, self.negative[i], others)
                if float(gains.max()) > self._slack():
                    self._move(i, self.positive[i], others[int(gains.argmax())])
                    changed = True
            if not changed:
                return

    def pairs(self) -> Pairs:
        """With each pair's gap: the objective r(D+) - r(D-) now, less that with its two members exchanged."""
        positive, negative = torch.tensor(self.positive), torch.tensor(self.negative)
        gap = torch.zeros(len(positive), dtype=torch.float64)
        for judge in self.judges:
            gap += judge.weight * (judge.positive.value - judge.positive.neighbours(positive, negative))
            gap += judge.weight * (judge.negative.neighbours(negative, positive) - judge.negative.value)
        return Pairs(positive, negative, gap)

    def _best(self, i: int, mine: list[int], both: bool) -> tuple[int, int] | None:
        """The best other choice (positive, negative) of prompt i, or None if none is better than the present one."""
        now, then = self.positive[i], self.negative[i]
        entering = [row for row in mine if row != now]
        slack = self._slack()
        if not both:
            changes = self._changes(True, now, entering, slack)
            best = int(changes.argmax())
            if not float(changes[best]) > slack:
                return None
            # what D+ takes from D-, D- gets back from it
            return entering[best], now if entering[best] == then else then
        up = dict(zip(entering, self._changes(True, now, entering).tolist(), strict=True)) | {now: 0.0}
        leaving = [row for row in mine if row != then]
        down = dict(zip(leaving, self._changes(False, then, leaving).tolist(), strict=True)) | {then: 0.0}
        gains = {(p, n): up[p] - down[n] for p in mine for n in mine if p != n}
        best_pair = max(gains, key=gains.__getitem__)
        return best_pair if gains[best_pair] > slack else None

    def _changes(self, positive: bool, leaving: int, entering: list[int], floor: float | None = None) -> Tensor:
        """(c,) weighed change of one set's scores; -inf where a bound shows that it stays below `floor`."""
        there, here = torch.full((len(entering),), leaving), torch.tensor(entering)
        scorers = [(j.weight, j.positive if positive else j.negative) for j in self.judges]
        asked = torch.ones(len(entering), dtype=torch.bool)
        if floor is not None:
            upper = sum(
                (w * ((s.bounds(there, here)[1 if w > 0 else 0]) - s.value) for w, s in scorers),
                torch.zeros(len(entering), dtype=torch.float64),
            )
            asked = upper > floor
        changes = torch.full((len(entering),), -torch.inf, dtype=torch.float64)
        self.asked += int(asked.sum())
        self.screened += int((~asked).sum())
        if asked.any():
            changes[asked] = sum(
                (w * (s.neighbours(there[asked], here[asked]) - s.value) for w, s in scorers),
                torch.zeros(int(asked.sum()), dtype=torch.float64),
            )
        return changes

    def _move(self, i: int, positive: int, negative: int) -> None:
        for judge in self.judges:
            if positive != self.positive[i]:
                judge.positive.swap(self.positive[i], positive)
            if negative != self.negative[i]:
                judge.negative.swap(self.negative[i], negative)
        self.positive[i], self.negative[i] = positive, negative

    def _slack(self) -> float:
        return _TOLERANCE * sum(abs(j.weight) * (abs(j.positive.value) + abs(j.negative.value)) for j in self.judges)


def _unknown(count: int) -> tuple[Tensor, Tensor]:
    """Bounds that bound nothing."""
    return torch.full((count,), -torch.inf, dtype=torch.float64), torch.full((count,), torch.inf, dtype=torch.float64)
