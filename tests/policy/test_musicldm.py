"""What MusicLDM and AudioLDM have of their own: lengths, the text vector, the order of samples, schedulers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dragon.errors import ConfigError
from dragon.policy.musicldm import MusicLDM
from dragon.policy.pipeline import PipelinePolicy, scheduled
from tiny_pipelines import PROMPTS, WORDS, tiny_pipeline

GUIDANCE = 2.0
FRAME = 4 / 16_000  # seconds of a mel frame of the tiny vocoder


@pytest.fixture(scope="module", params=["musicldm", "audioldm"])
def saved(request, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp(request.param))
    tiny_pipeline(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def policy(saved) -> PipelinePolicy:
    """Not trained; no test may change it."""
    return PipelinePolicy(saved, rank=1)


@pytest.fixture(scope="module")
def pipe(saved) -> Any:
    """As diffusers loads it, with MusicLDM's text features a tensor again: its own encoding expects one."""
    from diffusers import DiffusionPipeline

    found = DiffusionPipeline.from_pretrained(saved)
    found.set_progress_bar_config(disable=True)
    if hasattr(found.text_encoder, "get_text_features"):
        features = found.text_encoder.get_text_features
        found.text_encoder.get_text_features = lambda *given, **named: features(*given, **named).pooler_output
    return found


def own(pipe: Any, seed: int, steps: int = 2, **given: Any) -> tuple[Tensor, Tensor]:
    """Latents and clip of the pipeline's own call, from plain words on."""
    latents: list[Tensor] = []
    clip = pipe(
        PROMPTS[0],
        generator=torch.Generator().manual_seed(seed),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        output_type="pt",
        callback=lambda step, time, now: latents.append(now),
        **given,
    ).audios
    return latents[-1], clip


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal up to float32's rounding across batch shapes."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("seconds", [None, FRAME * 2, 0.0007, 0.00149, 0.0038, 0.00625])
def test_every_length_is_the_pipelines_own(pipe, seconds) -> None:
    family = MusicLDM(pipe, seconds=seconds)
    latents, clip = own(pipe, 5, audio_length_in_s=seconds)
    assert latents.shape[1:] == family.event_shape
    with torch.no_grad():
        close(family.decode(latents)[:, 0], clip)
    # frames are counted downwards, so a clip may lack part of one
    assert seconds is None or 0 <= int(seconds * 16_000) - clip.shape[1] < 4


def test_plain_words_give_the_pipelines_own_clip(policy, pipe) -> None:
    """Of seeds in an order that no score has: the pipeline's own call for several clips sorts them by one."""
    seeds = [3, 1, 2, 1]
    media = policy.decode(policy.generate(PROMPTS[:1] * 4, seeds, steps=2, guidance=GUIDANCE))
    assert media.rate == 16_000 and media.tensor.shape[1] == 1
    for row, seed in zip(media.tensor, seeds, strict=True):
        close(row, own(pipe, seed)[1])
    assert not torch.equal(media.tensor[0], media.tensor[1])


@pytest.mark.parametrize("seconds", [0.0, -1.0, FRAME * 1.9, math.nan, math.inf])
def test_a_length_without_a_latent_is_refused_with_the_limit(pipe, seconds) -> None:
    with pytest.raises(ConfigError, match=f"seconds is {seconds}; expected a number from 0.0005"):
        MusicLDM(pipe, seconds=seconds)


def test_the_text_vector_has_length_1_and_depends_on_every_word(policy) -> None:
    vectors = policy.encode([*PROMPTS, "slow drums", ""]).tensors["text"]
    assert vectors.shape == (5, 12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    distances = torch.cdist(vectors, vectors) + torch.eye(5)
    assert distances.min() > 1e-3


def test_words_past_the_text_encoders_limit_are_cut_with_a_warning(policy) -> None:
    nine, long = " ".join(WORDS[:9]), " ".join(WORDS)  # nine words and the end are 10 tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = policy.encode([nine]).tensors["text"]
    with pytest.warns(UserWarning, match="prompt of 13 tokens cut to the 10") as found:
        cut = policy.encode([long]).tensors["text"]
    assert len(found) == 1
    torch.testing.assert_close(cut, kept)


@pytest.mark.parametrize("name", ["PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep"])
def test_any_scheduler_for_noise_prediction_may_replace_the_pipelines(pipe, monkeypatch, name) -> None:
    """PNDM, as it is used with latent diffusion, visits one step twice."""
    import diffusers

    other = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config, skip_prk_steps=True)
    monkeypatch.setattr(pipe, "scheduler", other)
    wanted = own(pipe, 5, steps=4)[0]
    family, device = MusicLDM(pipe), torch.device("cpu")
    with torch.no_grad():
        cond, empty = family.encode(PROMPTS[0], device), family.encode("", device)
        guided = family.guided(cond, empty, GUIDANCE)
        close(scheduled(family.schedule(4), guided, cond, [5], family.event_shape, device), wanted)
    levels = family.sigmas(4)
    assert len(levels) == 5 and levels[-1] == 0 and (levels.diff() < 0).all()


def test_another_prediction_is_refused(pipe, monkeypatch) -> None:
    other = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="sample")
    monkeypatch.setattr(pipe, "scheduler", other)
    with pytest.raises(ConfigError, match="has prediction_type 'sample'"):
        MusicLDM(pipe)


def test_by_default_lora_reaches_where_the_prompt_enters(policy) -> None:
    names = policy.trainable()
    assert any("time_emb_proj" in name for name in names) and any("to_q" in name for name in names)


def test_a_training_level_is_one_of_the_tables_steps(policy) -> None:
    """Levels of steps 0 ... 999, which the network is told to within rounding."""
    family = policy._backbone._family
    sigmas = family.draw_sigmas(500, Generator().manual_seed(0), 0.5, 0.75)
    steps = family.scaling.c_noise(sigmas)
    assert float((steps - steps.round()).abs().max()) < 1e-3
    assert 500 <= int(steps.round().min()) < 510 and 740 < int(steps.round().max()) < 750
