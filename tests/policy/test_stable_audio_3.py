"""Stable Audio 3: lengths, the base checkpoint's deterministic scheduler, and what a distilled one is warned of.

What holds for every family is in test_pipeline_contract.py, there with the stochastic scheduler.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dragon.errors import ConfigError
from dragon.faults import TrainsBadly
from dragon.policy.pipeline import PipelinePolicy
from tiny_pipelines import PROMPTS, WORDS, stable_audio_3, tiny_pipeline

SECONDS = stable_audio_3.OPTIONS["seconds"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("stable_audio_3")
    tiny_pipeline("stable_audio_3", path)
    return str(path)


def pipeline(folder: str, *, stochastic: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableAudio3Pipeline

    pipe = StableAudio3Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=stochastic)
    return pipe


def sample(folder: str, *, stochastic: bool, steps: int, guidance: float = 1.0) -> Tensor:
    policy = PipelinePolicy(pipeline(folder, stochastic=stochastic), rank=2, seconds=SECONDS)
    return policy.generate(PROMPTS[:1], [5], steps=steps, guidance=guidance).latents


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_base_checkpoints_scheduler_samples_as_its_pipeline(folder, steps, guidance):
    pipe, generator = pipeline(folder, stochastic=False), Generator().manual_seed(5)
    own = stable_audio_3.call(pipe, PROMPTS[0], generator, steps, guidance, "latent")
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainsBadly)
        ours = sample(folder, stochastic=False, steps=steps, guidance=guidance)
    assert float((ours - own).abs().max()) <= 1e-5 * float(own.abs().max())


def test_ping_pong_adds_noise_between_steps_only(folder):
    one, other = (sample(folder, stochastic=kind, steps=1) for kind in (True, False))
    torch.testing.assert_close(one, other)
    one, other = (sample(folder, stochastic=kind, steps=3) for kind in (True, False))
    assert float((one - other).abs().max()) > 0.01 * float(other.abs().max())


def test_guidance_of_a_distilled_checkpoint_is_warned_of_once(folder):
    policy = PipelinePolicy(folder, rank=2, seconds=SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainsBadly)
        policy.generate(PROMPTS[:1], [1], steps=1, guidance=1.0)
    with pytest.warns(TrainsBadly, match="guidance is 3.0 with a distilled checkpoint"):
        policy.generate(PROMPTS[:1], [1], steps=1, guidance=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainsBadly)
        policy.generate(PROMPTS[:1], [1], steps=1, guidance=3.0)


def test_random_times_of_a_distilled_checkpoint_are_warned_of_and_the_samplers_own_are_not(folder):
    latents = torch.zeros(2, 4, 5)
    with pytest.warns(TrainsBadly, match="set sampler_times"):
        PipelinePolicy(folder, rank=2, seconds=SECONDS).draw_noising(latents, Generator())
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainsBadly)
        PipelinePolicy(folder, rank=2, seconds=SECONDS, sampler_times=8).draw_noising(latents, Generator())


def test_length_follows_seconds(folder):
    """Latents of 8 samples at 800 Hz: the last one is begun even if a clip ends inside it."""
    for seconds, samples, latents in [(0.05, 40, 5), (0.051, 40, 6), (0.0625, 50, 7)]:
        policy = PipelinePolicy(folder, rank=2, seconds=seconds)
        assert policy.event_shape == (4, latents)
        made = policy.generate(PROMPTS[:1], [1], steps=1, guidance=1.0)
        assert policy.decode(made).tensor.shape == (1, 2, samples)


def test_the_default_length_is_that_of_the_pipelines_own_call(folder):
    """10 s, which this network cannot be told."""
    with pytest.raises(ConfigError, match="seconds is 10.0; expected a number from .* to 4"):
        PipelinePolicy(folder, rank=2)
    pipe = pipeline(folder, stochastic=False)
    pipe.duration_embedder.register_to_config(max_val=384.0)
    assert PipelinePolicy(pipe, rank=2).event_shape == (4, 1000)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.001, 4.1, float("inf"), float("nan")])
def test_a_length_that_the_network_cannot_be_told_is_refused(folder, seconds):
    with pytest.raises(ConfigError, match=f"seconds is {seconds}; expected a number from .* to 4"):
        PipelinePolicy(folder, rank=2, seconds=seconds)


def test_the_network_is_told_the_duration_twice_and_never_the_padding(folder):
    policy = PipelinePolicy(pipeline(folder, stochastic=False), rank=2, seconds=SECONDS)
    network, cond = policy._backbone._family.network, policy.encode(PROMPTS[:1])
    z, time = torch.randn(1, 4, 5, generator=Generator().manual_seed(0)), torch.tensor([0.5])
    mask = cond.tensors["mask"]
    assert mask.shape == (1, 9) and mask[0, -1] == 1 and 0 < int(mask.sum()) < 9

    def changed(**changes: Tensor) -> bool:
        with torch.no_grad():
            return not torch.equal(network(z, time, type(cond)({**cond.tensors, **changes})), network(z, time, cond))

    padded, told = cond.tensors["text"].clone(), cond.tensors["text"].clone()
    padded[:, mask[0] == 0] += 1
    told[:, -1] += 1
    assert not changed(text=padded)
    assert changed(text=told) and changed(seconds=cond.tensors["seconds"] + 1) and changed(mask=torch.ones_like(mask))


def test_a_prompt_that_is_too_long_is_cut_with_the_pipelines_warning(folder, caplog):
    from diffusers.utils import logging as diffusers_logging

    policy = PipelinePolicy(folder, rank=2, seconds=SECONDS)
    diffusers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            long = policy.encode([" ".join(WORDS)])
    finally:
        diffusers_logging.disable_propagation()
    assert "truncated" in caplog.text
    assert long.tensors["text"].shape == policy.encode(PROMPTS[:1]).tensors["text"].shape
