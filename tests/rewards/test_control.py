"""The random control: a function of the clip alone, standard normal, and blind."""

from __future__ import annotations

import torch

from dragon.media import Media
from dragon.protocols import InstanceReward
from dragon.rewards import RandomReward


def clips(count: int, seed: int = 0) -> Media:
    tensor = torch.randn(count, 1, 8, generator=torch.Generator().manual_seed(seed))
    return Media(tensor, tuple(str(i) for i in range(count)), 16_000)


def test_the_same_clip_has_the_same_score_in_any_batch():
    media, reward = clips(6), RandomReward(3)
    assert isinstance(reward, InstanceReward)
    scores = reward.score(media)
    assert reward.score(media.rows([5, 0, 2])).tolist() == scores[[5, 0, 2]].tolist()
    renamed = Media(media.tensor, ("x",) * 6, 16_000)
    assert RandomReward(3).score(renamed).tolist() == scores.tolist()


def test_another_seed_or_one_changed_bit_gives_another_score():
    media = clips(1)
    assert RandomReward(0).score(media) != RandomReward(1).score(media)
    other = Media(media.tensor.clone(), media.prompts, media.rate)
    other.tensor[0, 0, 0] = torch.nextafter(other.tensor[0, 0, 0], torch.tensor(9.0))
    assert RandomReward(0).score(media) != RandomReward(0).score(other)


def test_scores_are_standard_normal():
    scores = RandomReward(0).score(clips(4000))
    # three standard errors of mean, spread and the share below -1 (.1587)
    assert abs(float(scores.mean())) < 3 / 4000**0.5
    assert abs(float(scores.std()) - 1) < 3 / 8000**0.5
    assert abs(float((scores < -1).double().mean()) - 0.1587) < 3 * (0.1587 * 0.8413 / 4000) ** 0.5
