"""The package as a whole: what it imports, and what its names resolve to."""

from __future__ import annotations

import subprocess
import sys

import torch

import dragon.rewards
from dragon import mini, registry
from dragon.encoders.mini import MiniEncoder, MiniJudgeEncoder
from dragon.encoders.spectral import Spectral
from dragon.exemplars import build_from_media
from dragon.media import Media
from dragon.rewards import ClapScore, FunctionReward, JudgeScore, RandomReward, SongFrechet
from dragon.testing import check_reward


def test_importing_rewards_loads_no_heavy_package():
    code = (
        "import sys, dragon.rewards, dragon.exemplars, dragon.encoders, dragon.audio\n"
        "heavy = {'diffusers', 'peft', 'accelerate', 'transformers', 'soundfile', 'soxr', 'matplotlib', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_exists():
    for name in dragon.rewards.__all__:
        assert hasattr(dragon.rewards, name)


def test_built_in_names_resolve():
    for kind in ("reward", "encoder"):
        for name in registry.BUILT_IN[kind]:
            assert callable(registry.resolve(kind, name))


def noisy_clips() -> Media:
    tensor = 0.1 * torch.randn(4, 1, 32_000, generator=torch.Generator().manual_seed(0))
    return Media(tensor, ("fast piano", "slow strings", "a choir", "drums"), 16_000)


def test_built_in_rewards_keep_their_contract():
    encoder = Spectral(bands=16)
    check_reward(SongFrechet(build_from_media(noisy_clips(), encoder, "noise"), encoder), noisy_clips())
    check_reward(ClapScore(MiniEncoder(model=mini.random_encoder(0))), noisy_clips())
    check_reward(JudgeScore(MiniJudgeEncoder(model=mini.random_judge(0))), noisy_clips())
    check_reward(RandomReward(), noisy_clips())
    check_reward(FunctionReward(lambda audio, prompts: [float(a.samples.max()) for a in audio]), noisy_clips())


def test_two_rewards_of_one_class_can_have_two_names():
    encoder = Spectral(bands=16)
    exemplars = build_from_media(noisy_clips(), encoder, "noise")
    assert SongFrechet(exemplars, encoder, name="to_noise").name == "to_noise"
    assert RandomReward(name="control").name == "control"
    model = mini.random_encoder(0)
    assert ClapScore(MiniEncoder(model=model), name="fit").name == "fit"
