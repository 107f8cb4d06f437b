"""Swap search: the objective never falls, the end is one-swap optimal, and small cases equal brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations, product

import pytest
import torch
from torch import Generator, Tensor

from dragon.contrast import Judge, Mean, Swap, swap_scorer, swap_variance
from dragon.contrast.swap import Rescored
from dragon.errors import ConfigError, ShapeError
from dragon.media import Media
from dragon.protocols import SetReward


@dataclass(frozen=True)
class Near:
    """Minus the squared distance of the set's mean to the origin, minus that of its variance to 1: not additive."""

    name: str = "near"

    def embed(self, media: Media) -> Tensor:
        return media.tensor

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        points = features[members].double().flatten(1, 2)
        return -points.mean(1).square().sum(1) - (points.var(1) - 1).square().sum(1)


def points(m: int, k: int, seed: int = 0) -> Tensor:
    return 1.5 * torch.randn(m * k, 1, 3, generator=Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def judges(features: Tensor, reward: SetReward | None = None) -> list[Judge]:
    reward = reward or Near()
    return [Judge(swap_scorer(reward, features), swap_scorer(reward, features))]


def objective(features: Tensor, positive: Tensor, negative: Tensor) -> float:
    up, down = Near().score_sets(features, torch.stack([positive, negative])).tolist()
    return up - down


ALL = torch.ones(8, 2, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["difference", "positive"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_objective_never_falls_and_the_end_is_one_swap_optimal(kind: str, k: int, seed: int) -> None:
    features = points(8, k, seed)
    usable = torch.ones(8, k, dtype=torch.bool)
    pairs, trace = Swap(kind).search(judges(features), usable, Generator().manual_seed(seed))
    assert list(trace.path) == sorted(trace.path) and len(trace.path) == trace.kept + 1
    assert trace.optimal and trace.end >= trace.start
    assert torch.equal(pairs.positive // k, torch.arange(8)) and torch.equal(pairs.negative // k, torch.arange(8))
    assert bool((pairs.positive != pairs.negative).all())

    def value(positive: Tensor, negative: Tensor) -> float:
        if kind == "positive":
            return float(Near().score_sets(features, positive[None])[0])
        return objective(features, positive, negative)

    best = value(pairs.positive, pairs.negative)
    assert best == pytest.approx(trace.end, rel=1e-9)
    for i, (p, n) in product(range(8), permutations(range(k), 2)):
        positive, negative = pairs.positive.clone(), pairs.negative.clone()
        positive[i], negative[i] = i * k + p, i * k + n
        assert value(positive, negative) <= best + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_restarts_reach_the_brute_force_optimum_of_few_pairs(seed: int) -> None:
    """One search may end in a local optimum; the best of eight restarts on six pairs is seen to be the global one."""
    features = points(6, 2, seed)
    usable = torch.ones(6, 2, dtype=torch.bool)
    rows = torch.arange(6) * 2
    every = [rows + torch.tensor(choice) for choice in product((0, 1), repeat=6)]
    best = max(objective(features, chosen, 2 * rows + 1 - chosen) for chosen in every)
    ends = [Swap().search(judges(features), usable, Generator().manual_seed(s))[1].end for s in range(8)]
    assert max(ends) == pytest.approx(best, rel=1e-9)
    assert min(ends) > 0.5 * best  # the gap of a single search


def test_an_instance_reward_alone_gives_best_and_worst() -> None:
    """The mean over D+ less that over D- is largest with each prompt's best and worst sample."""
    scores = torch.randn(8, 4, generator=Generator().manual_seed(3), dtype=torch.float64)
    pairs, trace = Swap().search(
        [Judge(Mean(scores), Mean(scores))], torch.ones(8, 4, dtype=torch.bool), Generator().manual_seed(0)
    )
    rows = torch.arange(8) * 4
    assert torch.equal(pairs.positive, rows + scores.argmax(1)) and torch.equal(pairs.negative, rows + scores.argmin(1))
    assert trace.optimal
    # exchanging a pair costs its difference twice, once in D+ and once in D-, over n
    assert torch.allclose(pairs.gap, 2 * (scores.amax(1) - scores.amin(1)) / 8)


def test_the_two_step_objective_lowers_the_negative_set_with_what_is_left() -> None:
    scores = torch.randn(5, 4, generator=Generator().manual_seed(4), dtype=torch.float64)
    usable = torch.ones(5, 4, dtype=torch.bool)
    pairs, _ = Swap("positive").search([Judge(Mean(scores), Mean(scores))], usable, Generator().manual_seed(0))
    assert torch.equal(pairs.positive % 4, scores.argmax(1)) and torch.equal(pairs.negative % 4, scores.argmin(1))


def test_two_rewards_are_searched_together() -> None:
    """A heavy instance reward decides alone; a light one leaves the split to the set reward."""
    features, scores = points(8, 2), torch.randn(8, 2, generator=Generator().manual_seed(5), dtype=torch.float64)
    alone, _ = Swap().search(judges(features), ALL, Generator().manual_seed(0))
    for weight, expected in ((1e6, scores.argmax(1)), (1e-9, alone.positive % 2)):
        mixed = [*judges(features), Judge(Mean(scores), Mean(scores), weight)]
        pairs, _ = Swap().search(mixed, ALL, Generator().manual_seed(0))
        assert torch.equal(pairs.positive % 2, expected)


def test_unusable_samples_are_in_neither_set() -> None:
    usable = torch.ones(5, 3, dtype=torch.bool)
    usable[0, 1] = usable[1, 0] = usable[2, 0] = usable[2, 2] = False  # prompt 2 has one sample left
    pairs, _ = Swap().search(judges(points(5, 3)), usable, Generator().manual_seed(0))
    assert sorted((pairs.positive // 3).tolist()) == [0, 1, 3, 4]
    assert bool(usable.flatten()[pairs.positive].all() and usable.flatten()[pairs.negative].all())


def test_fewer_than_two_prompts_give_no_pairs() -> None:
    pairs, trace = Swap().search(judges(points(1, 4)), torch.ones(1, 4, dtype=torch.bool), Generator())
    assert len(pairs) == 0 and trace.optimal


def test_the_same_seed_gives_the_same_sets() -> None:
    features = points(8, 2)
    one, two = (Swap().search(judges(features), ALL, Generator().manual_seed(7))[0] for _ in range(2))
    assert torch.equal(one.positive, two.positive)


@dataclass
class Bounded(Rescored):
    """A scorer whose upper bound is the truth plus a slack, and that counts what it is asked."""

    reward: SetReward
    features: Tensor
    slack: float
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        Rescored.__init__(self, self.reward, self.features)

    def neighbours(self, leaving: Tensor, entering: Tensor) -> Tensor:
        self.asked.append(len(leaving))
        return super().neighbours(leaving, entering)

    def bounds(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        return super().bounds(leaving, entering)[0], super().neighbours(leaving, entering) + self.slack


@pytest.mark.parametrize("slack", [0.0, 0.1])
def test_bounds_save_work_and_change_nothing(slack: float) -> None:
    features = points(8, 3)
    usable = torch.ones(8, 3, dtype=torch.bool)
    plain, plainly = Swap("positive").search(judges(features), usable, Generator().manual_seed(1))
    bounded = Bounded(Near(), features, slack)
    screened, trace = Swap("positive").search(
        [Judge(bounded, swap_scorer(Near(), features))], usable, Generator().manual_seed(1)
    )
    assert torch.equal(plain.positive, screened.positive) and trace.path == pytest.approx(plainly.path)
    assert trace.screened > 0 and trace.asked + trace.screened == plainly.asked + plainly.screened


def test_the_variance_of_a_mean_is_that_of_its_scores() -> None:
    """For an additive score it estimates the within-prompt variance: here of unit normal scores."""
    scores = torch.randn(4000, 2, generator=Generator().manual_seed(6), dtype=torch.float64)
    found = swap_variance(Mean(scores), torch.ones(4000, 2, dtype=torch.bool), Generator().manual_seed(0))
    assert found == pytest.approx(1.0, abs=0.08)  # standard error of 4,000 squares: .022
    assert swap_variance(Mean(scores[:1]), torch.ones(1, 2, dtype=torch.bool), Generator()) is None


def steps(reward: SetReward, features: Tensor, swaps: Sequence[tuple[int, int]]) -> list[float]:
    scorer = Rescored(reward, features)
    scorer.start(torch.arange(4))
    values = [scorer.value]
    for leaving, entering in swaps:
        expected = float(scorer.neighbours(torch.tensor([leaving]), torch.tensor([entering]))[0])
        scorer.swap(leaving, entering)
        assert scorer.value == pytest.approx(expected, rel=1e-12)
        values.append(scorer.value)
    return values


def test_a_swap_and_its_reverse_cancel() -> None:
    values = steps(Near(), points(4, 2), [(0, 6), (6, 0)])
    assert values[0] == values[2] != values[1]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="objective is 'both'; expected 'difference' or 'positive'"):
        Swap("both")
    with pytest.raises(ConfigError, match="max_passes is 0"):
        Swap(max_passes=0)
    with pytest.raises(ConfigError, match="without a reward"):
        Swap().search([], ALL, Generator())
    with pytest.raises(ShapeError, match=r"\(m prompts, k samples\)"):
        Swap().search(judges(points(8, 2)), torch.ones(16), Generator())
