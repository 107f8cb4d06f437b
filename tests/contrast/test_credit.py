"""Credits: what a clip is worth to a set, in one unit, and a queue that forgets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from dragon.contrast.credit import Influence, LeaveOneOut, influence, leave_one_out
from dragon.errors import ConfigError
from dragon.media import Media


@dataclass(frozen=True)
class MeanOf:
    """The mean of the set's first feature: a set reward that is an instance reward in disguise."""

    name: str = "mean"

    def embed(self, media: Media) -> Tensor:
        return media.tensor

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        return features[members][..., 0].double().mean((1, 2))


@dataclass(frozen=True)
class SquaredMean(MeanOf):
    """Minus the squared mean; its influence is -2 mean (x - mean)."""

    name: str = "squared"

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        return -super().score_sets(features, members).square()


@dataclass(frozen=True)
class Closed(SquaredMean):
    """The same with its derivative in closed form."""

    def influence(self, queue: Tensor, features: Tensor) -> Tensor:
        mean = queue[..., 0].double().mean()
        return -2 * mean * (features[..., 0].double().mean(1) - mean)


def clips(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 3, generator=Generator().manual_seed(seed)) + 0.5


def test_the_credit_of_a_mean_is_the_clips_own_deviation() -> None:
    features = clips(7)
    own = features[..., 0].double().mean(1)
    expected = own - own.mean()
    # (n - 1) (mean - mean without i) = x_i - mean
    assert torch.allclose(leave_one_out(MeanOf(), features), expected)
    # adding x to n clips changes their mean by (x - mean) / (n + 1)
    assert torch.allclose(influence(MeanOf(), features, features), expected)


def test_without_a_closed_form_the_error_falls_as_one_over_n() -> None:
    fresh = clips(5, 1)
    errors = []
    for n in (100, 200, 400):
        queue = torch.cat([clips(100)] * (n // 100))  # the same distribution, more clips
        errors.append(float((influence(SquaredMean(), queue, fresh) - Closed().influence(queue, fresh)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05) and errors[1] / errors[2] == pytest.approx(
        2.0, rel=0.05
    )


def test_a_closed_form_is_used_where_there_is_one() -> None:
    queue, fresh = clips(100), clips(5, 1)
    assert torch.equal(influence(Closed(), queue, fresh), Closed().influence(queue, fresh))


def test_credits_predict_an_exchange_to_second_order() -> None:
    """By hand: with D = x_j - x_i, -(mean + D / n)^2 + mean^2 = (c_j - c_i) / n - (D / n)^2."""
    features, n = clips(60), 50
    own, members = features[..., 0].double().mean(1), torch.arange(n)
    credit = influence(Closed(), features[:n], features)
    now = float(Closed().score_sets(features, members[None])[0])
    for i, j in ((0, 50), (7, 55), (49, 59)):
        swapped = members.clone()
        swapped[i] = j
        change = float(Closed().score_sets(features, swapped[None])[0]) - now
        second = float((own[j] - own[i]) / n) ** 2
        assert change == pytest.approx(float(credit[j] - credit[i]) / n - second, abs=1e-12)
    alone = leave_one_out(Closed(), features[:n])
    assert torch.allclose(alone, credit[:n], atol=10 / n)


def test_the_queue_fills_holds_the_newest_and_forgets() -> None:
    credit = Influence(queue=10, minimum=6)
    steps = [clips(4, seed) for seed in range(5)]
    assert credit.score(MeanOf(), steps[0]) is None and credit.held("mean") == 4
    for i, step in enumerate(steps[1:], start=1):
        newest = torch.cat(steps[: i + 1])[-10:]
        expected = influence(MeanOf(), newest, step)
        found = credit.score(MeanOf(), step)
        assert found is not None and torch.allclose(found, expected)
    assert credit.held("mean") == 10


def test_a_step_larger_than_the_queue_is_kept_whole() -> None:
    credit = Influence(queue=6, minimum=2)
    assert credit.score(MeanOf(), clips(8)) is not None and credit.held("mean") == 8


def test_each_reward_has_a_queue_of_its_own_and_all_are_saved() -> None:
    credit = Influence(queue=20, minimum=2)
    credit.score(MeanOf(), clips(4))
    credit.score(SquaredMean(), clips(3, 1))
    other = Influence(queue=20, minimum=2)
    other.load_state_dict(credit.state_dict())
    assert (other.held("mean"), other.held("squared")) == (4, 3)
    one, two = credit.score(MeanOf(), clips(4, 2)), other.score(MeanOf(), clips(4, 2))
    assert one is not None and two is not None and torch.equal(one, two)


def test_leave_one_out_keeps_nothing() -> None:
    assert LeaveOneOut().state_dict() == {}
    assert torch.equal(LeaveOneOut().score(MeanOf(), clips(5)), leave_one_out(MeanOf(), clips(5)))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="queue 100, minimum 200"):
        Influence(queue=100, minimum=200)
    with pytest.raises(ConfigError, match="of 2 clips; expected at least 3"):
        leave_one_out(MeanOf(), clips(2))
