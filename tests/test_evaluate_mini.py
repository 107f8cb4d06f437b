"""Evaluation of the built-in model: its policy keeps the contract, and against itself it wins half."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from dragon.evaluate import evaluate
from dragon.mini import prompts, random_pipeline
from dragon.policy.mini import MiniPolicy
from dragon.testing import check_policy


@dataclass(frozen=True)
class Loudness:
    """Mean square of the samples."""

    name: str = "loudness"
    abstains: bool = False

    def score(self, media):
        return media.tensor.double().square().mean((1, 2))


@dataclass(frozen=True)
class LevelSpread:
    """A set reward: variance of the clips' level over 16 stretches of time."""

    name: str = "level_spread"

    def embed(self, media):
        stretches = media.tensor.double().mean(1).unfold(1, 5120, 5120)
        return stretches.square().mean(2).log1p()[:, :, None]

    def score_sets(self, features, members):
        return features[members].mean((2, 3)).var(1)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.filterwarnings("error::dragon.testing.TrainsBadly")
def test_the_policy_keeps_its_contract(tuning):
    check_policy(MiniPolicy(random_pipeline(), tuning=tuning, rank=2), ("piano, drums", "slow strings"))


@pytest.mark.slow
def test_base_against_base_covers_one_half_on_the_built_in_model():
    """64 held-out prompts x 2, seeds fixed: two instance rewards and a set reward, none of them moved by nothing."""
    from dragon.rewards.clap import ClapScore

    torch.set_num_threads(1)
    rewards = {"clap_score": ClapScore(), "loudness": Loudness(), "level_spread": LevelSpread()}
    found = evaluate(MiniPolicy(), rewards, set(), prompts("test")[:64], steps=6, guidance=2.0, seed=7)
    for name, result in found.rewards.items():
        assert result.low <= 0.5 <= result.high, name
    assert found.rewards["clap_score"].same_seed_win_rate == 0.5
    spread = found.rewards["level_spread"]
    assert spread.difference_low <= 0 <= spread.difference_high
