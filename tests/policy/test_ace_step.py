"""What is ACE-Step's own: padding, guidance, options, turbo checkpoints. The contract of all families is beside it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dragon.diffusion import flow_time
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.ace_step import AceStep
from dragon.policy.pipeline import PEAK, PipelinePolicy
from dragon.protocols import Noising
from tiny_pipelines import PROMPTS, ace_step, randomise

TOLERANCE = 1e-5  # relative, as in the contract of all families
LONG = "the slow music of a loud choir and strings " * 8


def tiny(**transformer: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = ace_step.tiny(**transformer)
    randomise(*(part for part in pipe.components.values() if isinstance(part, nn.Module)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def untouched() -> Any:
    return tiny()


def policy(pipe: Any = None, **options: Any) -> PipelinePolicy:
    return PipelinePolicy(tiny() if pipe is None else pipe, rank=2, **{**ace_step.OPTIONS, **options})


def own(prompt: str, seed: int, *, steps: int = 3, guidance: float = 1.0, **more: Any) -> Tensor:
    """The pipeline's own call."""
    generator = torch.Generator().manual_seed(seed)
    return ace_step.call(untouched(), prompt, generator, steps, guidance, "latent", **more)


def difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def ours(made: PipelinePolicy, prompt: str, seed: int, *, steps: int = 3, guidance: float = 1.0) -> Tensor:
    return made.generate([prompt], [seed], steps=steps, guidance=guidance).latents


# ---- options of the pipeline's call


@pytest.mark.parametrize(
    "options",
    [
        {"lyrics": "slow strings of the choir"},
        {"vocal_language": "piano"},  # a word the tiny tokenizer knows
        {"shift": 1.0},
        {"cfg_interval_start": 0.2, "cfg_interval_end": 0.6},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_option_does_what_it_does_in_the_pipelines_call(options):
    found = ours(policy(**options), PROMPTS[0], 5, steps=6, guidance=4.0)
    assert difference(found, own(PROMPTS[0], 5, steps=6, guidance=4.0, **options)) <= TOLERANCE
    assert difference(found, own(PROMPTS[0], 5, steps=6, guidance=4.0)) > 1e-3


def test_a_clip_is_60_seconds_unless_seconds_says_otherwise():
    pipe = tiny()
    assert policy(pipe, seconds=None).event_shape == (300, 4)  # 5 Hz
    assert AceStep(pipe, seconds=3.1).event_shape == (16, 4)
    assert AceStep(pipe, seconds=3).decode(torch.zeros(2, 15, 4)).shape == (2, 2, 120)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 3001.0, math.nan])
def test_seconds_without_silence_are_refused(seconds):
    with pytest.raises(ConfigError, match="expected a number from 0.2 to 3000, the silence"):
        AceStep(tiny(), seconds=seconds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 0.0}, "shift is 0.0"),
        ({"cfg_interval_start": 0.7, "cfg_interval_end": 0.6}, "start <= end"),
        ({"text_tokens": 0}, "text_tokens is 0"),
        ({"lyrics": "piano " * 2048}, "the model reads 2048"),
    ],
    ids=["shift", "interval", "text_tokens", "lyrics"],
)
def test_a_value_without_meaning_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AceStep(tiny(), **options)


def test_what_encodes_other_music_is_not_loaded(tmp_path):
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepAudioTokenizer

    pipe = tiny()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    tokenizer = AceStepAudioTokenizer(**sizes, head_dim=8, audio_acoustic_hidden_dim=4, fsq_dim=8)
    pipe.register_modules(audio_tokenizer=tokenizer)
    pipe.save_pretrained(str(tmp_path))
    made = policy(str(tmp_path))
    assert made._backbone._pipe.audio_tokenizer is None
    assert difference(ours(made, PROMPTS[0], 5, guidance=4.0), own(PROMPTS[0], 5, guidance=4.0)) <= TOLERANCE


# ---- padding


def test_padding_has_no_part_in_the_output():
    """Whatever stands in it, to the bit; and its length changes nothing that matters."""
    made = policy()
    cond = made.encode(PROMPTS)
    keep = cond.tensors["keep"]
    assert len(set(keep.sum(1).tolist())) > 1  # the prompts differ in length
    latents = torch.randn(3, *made.event_shape, generator=torch.Generator().manual_seed(0))
    noising = made.draw_noising(latents, torch.Generator().manual_seed(1))
    noise = torch.randn(cond.tensors["states"].shape, generator=torch.Generator().manual_seed(2))
    filled = Cond({"states": torch.where(keep[..., None], cond.tensors["states"], noise), "keep": keep})
    longer = policy(text_tokens=120)
    with torch.no_grad():
        wanted = made.predict(latents, noising, cond)
        assert torch.equal(made.predict(latents, noising, filled), wanted)
        assert difference(longer.predict(latents, noising, longer.encode(PROMPTS)), wanted) <= TOLERANCE


def test_checkpointed_blocks_run_again_with_the_padding_of_their_own_prompts():
    """Two forward passes of other prompts before one backward pass, and a third without gradient."""
    found = []
    for checkpointing in (False, True):
        made = policy(gradient_checkpointing=checkpointing)
        for name, p in made.trainable().items():  # the second matrices start at 0, which would hide the first
            nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        latents = torch.randn(1, *made.event_shape, generator=torch.Generator().manual_seed(0))
        noising = Noising(torch.tensor([0.7]), torch.ones_like(latents))
        loss = sum(made.predict(latents, noising, made.encode([prompt])).square().mean() for prompt in PROMPTS[:2])
        with torch.no_grad():
            made.predict(latents, noising, made.encode(PROMPTS[2:]))
        assert isinstance(loss, Tensor)
        loss.backward()
        found.append({name: p.grad for name, p in made.trainable().items()})
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in found[0].values())
    for name, gradient in found[0].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient)


def test_the_pipeline_is_not_masked_outside_the_policy():
    pipe = tiny()
    policy(pipe).generate(PROMPTS, [1, 2, 3], steps=1, guidance=3.0)
    generator = torch.Generator().manual_seed(5)
    found = ace_step.call(pipe, PROMPTS[0], generator, 3, 4.0, "latent")
    assert difference(found, own(PROMPTS[0], 5, guidance=4.0)) <= TOLERANCE


def test_a_prompt_that_does_not_fit_is_cut_as_in_the_pipeline_with_a_warning():
    made = policy(text_tokens=60)
    with pytest.warns(UserWarning, match="cut to the 60 of text_tokens"):
        found = ours(made, LONG, 5)
    assert difference(found, own(LONG, 5, max_text_length=60)) <= TOLERANCE


# ---- guidance


def test_guidance_carries_momentum_within_a_rollout_and_not_over_to_the_next():
    made = policy()
    first = ours(made, PROMPTS[0], 5, steps=4, guidance=6.0)
    assert torch.equal(ours(made, PROMPTS[0], 5, steps=4, guidance=6.0), first)
    # a guidance made anew at each step has no momentum
    family = made._backbone._family
    cond, empty = made.encode(PROMPTS[:1]), made.encode([""])
    scheduler = family.schedule(4)
    z = torch.randn(1, *family.event_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(family.guided(cond, empty, 6.0)(z, t[None], cond), t, z, return_dict=False)[0]
    assert difference(z, first) > 1e-3


def test_a_guided_step_is_orthogonal_to_the_conditional_output_over_time():
    family = AceStep(tiny(), **ace_step.OPTIONS)
    with torch.no_grad():
        cond = Cond.cat([family.encode(prompt, torch.device("cpu")) for prompt in PROMPTS])
        z, time = torch.randn(3, *family.event_shape, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.8)
        plain = family.network(z, time, cond)
        change = family.guided(cond, cond, 3.0)(z, time, cond) - plain
    assert change.norm() > 1e-2
    assert float((change * plain).sum(1).abs().max()) < 1e-4 * float(plain.norm() * change.norm())
    assert 2.5 < float(change.norm(dim=1).max()) <= 2 * 2.5 + 1e-4  # (guidance - 1) times the limit


@pytest.mark.parametrize(
    ("change", "guidance", "message"),
    [("turbo", 2.0, "turbo checkpoint"), ("null", 2.0, "no null_condition_emb"), ("", 0.5, "starts at 1")],
)
def test_guidance_that_the_checkpoint_does_not_know_is_refused(change, guidance, message):
    pipe = tiny(is_turbo=change == "turbo")
    if change == "null":
        pipe.condition_encoder.null_condition_emb = None
    made = policy(pipe)
    assert ours(made, PROMPTS[0], 1, steps=1).isfinite().all()
    with pytest.raises(ConfigError, match=message):
        ours(made, PROMPTS[0], 1, steps=1, guidance=guidance)


# ---- times and loudness


def test_base_checkpoints_draw_times_whose_logit_is_normal_around_minus_0_4():
    family = AceStep(tiny(), **ace_step.OPTIONS)
    logs = family.draw_sigmas(20_000, torch.Generator().manual_seed(0), 0.0, 1.0).double().log()
    assert abs(float(logs.mean()) + 0.4) < 5 / math.sqrt(20_000) and abs(float(logs.std()) - 1) < 0.03
    times = flow_time(family.draw_sigmas(1000, torch.Generator().manual_seed(0), 0.3, 0.5))
    assert float(times.min()) >= 0.3 and float(times.max()) <= 0.5


def test_turbo_checkpoints_draw_the_eight_times_they_were_distilled_at():
    family = AceStep(tiny(is_turbo=True), **ace_step.OPTIONS)
    times = flow_time(family.draw_sigmas(500, torch.Generator().manual_seed(0), 0.0, 1.0)).unique()
    by_hand = [3 * t / (1 + 2 * t) for t in (k / 8 for k in range(1, 8))]  # shift 3
    torch.testing.assert_close(times, torch.tensor([*by_hand, 0.999]))
    few = flow_time(family.draw_sigmas(100, torch.Generator().manual_seed(0), 0.4, 0.7)).unique()
    torch.testing.assert_close(few, torch.tensor([0.5, 9 / 14]))
    with pytest.raises(ConfigError, match="leave none of the 8 times"):
        family.draw_sigmas(1, torch.Generator(), 0.0, 0.2)


def test_clips_end_at_one_peak():
    made = policy()
    clips = made.decode(made.generate(PROMPTS, [1, 2, 3], steps=1, guidance=1.0)).tensor
    torch.testing.assert_close(clips.abs().amax((1, 2)), torch.full((3,), PEAK))
