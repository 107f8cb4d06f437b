"""The reward of mean features: closed forms, its derivative, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.exemplars.sets import ExemplarSet
from dragon.media import Media
from dragon.rewards import SetMean
from dragon.testing.rewards import check_reward


class Points:
    """Each clip's own numbers as one frame."""

    name, fingerprint, features = "points", "p", 2

    def embed_media(self, media: Media) -> Tensor:
        return media.tensor[:, :1, :2].float()


def reward(mean: tuple[float, float] = (0.25, 1.0), deviation: tuple[float, float] = (0.5, 2.0)) -> SetMean:
    square = torch.tensor(deviation, dtype=torch.float64).square()
    exemplars = ExemplarSet("made", "points", "p", torch.tensor(mean, dtype=torch.float64), torch.diag(square), 100)
    return SetMean(exemplars, Points())


def frames(n: int, s: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, s, 2, generator=torch.Generator().manual_seed(seed))


def test_it_is_a_set_reward():
    clips = Media(frames(40, 8).mT.contiguous(), tuple(f"row {i}" for i in range(40)), None)
    assert "influence" in " ".join(check_reward(reward(), clips).laws)


def test_a_set_of_the_exemplars_mean_scores_0_and_a_rate_its_squared_difference():
    one = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]])  # a rate of one in four
    found = reward().score_sets(one, torch.tensor([[0, 1, 2, 3], [1, 2, 3, 1]]))
    torch.testing.assert_close(found, torch.tensor([0.0, -((0.25 / 0.5) ** 2)], dtype=torch.float64))


def test_all_frames_count_and_their_order_does_not():
    many = frames(12, 5)
    whole = reward().score_sets(many, torch.arange(12)[None])
    away = (many.double().flatten(0, 1).mean(0) - torch.tensor([0.25, 1.0])) / torch.tensor([0.5, 2.0])
    torch.testing.assert_close(whole, -away.square().sum()[None])
    torch.testing.assert_close(reward().score_sets(many.flip(0), torch.arange(12)[None]), whole)


def test_influence_is_the_derivative_of_the_mixture():
    queue, fresh = frames(50, 3), frames(6, 3, 1)
    score = reward()

    def mixed(clip: Tensor, share: float) -> float:
        mean = (1 - share) * queue.double().mean((0, 1)) + share * clip.double().mean(0)
        return -float(((mean - score.exemplars.mean) / score.exemplars.cov.diagonal().sqrt()).square().sum())

    for clip, value in zip(fresh, score.influence(queue, fresh).tolist(), strict=True):
        # quadratic in the share: the central difference is exact
        assert value == pytest.approx((mixed(clip, 0.1) - mixed(clip, -0.1)) / 0.2, rel=1e-9)
    assert float(score.influence(queue, queue).mean()) == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ConfigError, match="feature 1 never changes"):
        reward(deviation=(0.5, 0.0))
    with pytest.raises(ShapeError, match="expected .clips, frames, 2."):
        reward().score_sets(torch.zeros(3, 1, 4), torch.tensor([[0, 1]]))
    with pytest.raises(NotFinite):
        reward().score_sets(torch.full((3, 1, 2), torch.nan), torch.tensor([[0, 1]]))
