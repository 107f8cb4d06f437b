"""Claims of AudioLDM2's family that the contract of all families does not make."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from dragon.errors import ConfigError
from dragon.policy.audioldm2 import AudioLDM2
from dragon.policy.pipeline import PipelinePolicy
from tiny_pipelines import PROMPTS, family, randomise

CPU = torch.device("cpu")
TINY = family("audioldm2")
TOKENS = [3, 6, 3]  # of PROMPTS, with the end
RELATIVE = 1e-5  # float32 across batch shapes


@pytest.fixture(scope="module")
def made() -> Any:
    """A tiny random pipeline; no test may change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = TINY.tiny()
    randomise(*(part for part in pipe.components.values() if isinstance(part, nn.Module)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(made) -> Any:
    return copy.deepcopy(made)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= RELATIVE * float(wanted.abs().max())


def encoded(ours: AudioLDM2, prompt: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(ours.encode(prompt, CPU).tensors)


# ---- conditions


def test_conditions_are_those_of_the_pipelines_call_with_that_prompt_alone(made):
    ours = AudioLDM2(made, text_tokens=8)
    empty = encoded(ours, "")
    for prompt, length in zip(PROMPTS, TOKENS, strict=True):
        found = encoded(ours, prompt)
        with torch.no_grad():
            text, mask, generated = made.encode_prompt(prompt, CPU, 1, True)  # row 0: guidance's empty prompt
        assert text.shape[1] == length and found["text"].shape[1] == 8
        close(found["text"][:, :length], text[1:])
        assert found["mask"][0].tolist() == [1] * length + [0] * (8 - length)
        close(found["generated"], generated[1:])
        close(found["empty"], generated[:1])
        assert mask[0].tolist() == [1] + [0] * (length - 1) and empty["mask"][0].tolist() == [1] + [0] * 7
        close(empty["text"][:, :1], text[:1, :1])


def test_the_empty_prompt_reads_otherwise_beside_a_longer_one(made):
    """Why a condition brings along what guidance leads away from: the language model counts padding as places."""
    ours = AudioLDM2(made)
    short, long = (encoded(ours, prompt)["empty"] for prompt in PROMPTS[:2])
    assert float((short - long).abs().max()) > 1e-3 * float(short.abs().max())
    torch.testing.assert_close(short, encoded(ours, PROMPTS[2])["empty"])  # as long as the first


def test_room_for_tokens_changes_nothing(made):
    z = torch.randn(1, 4, 8, 4, generator=Generator().manual_seed(0))
    outputs = []
    for room in (6, 16):
        ours = AudioLDM2(made, seconds=0.004, text_tokens=room)
        with torch.no_grad():
            cond, empty = (ours.encode(prompt, CPU) for prompt in (PROMPTS[1], ""))
            outputs.append(ours.guided(cond, empty, 3.0)(z, torch.tensor(500.0), cond))
    close(*outputs)


def test_a_longer_prompt_is_cut_with_a_warning_that_says_what_to_raise(pipe):
    ours = AudioLDM2(pipe, text_tokens=4)
    with pytest.warns(UserWarning, match="6 tokens cut to the 4 .* raise text_tokens, to at most 16"):
        found = encoded(ours, PROMPTS[1])
    pipe.tokenizer_2.model_max_length = 4
    with torch.no_grad():
        text, _, generated = pipe.encode_prompt(PROMPTS[1], CPU, 1, False)
    close(found["text"], text)
    close(found["generated"], generated)
    with pytest.warns(UserWarning, match="cut to the 28 that RobertaTokenizer may give audioldm2: 'piano"):
        encoded(AudioLDM2(pipe, text_tokens=4), " ".join(["piano"] * 10))


def test_a_checkpoint_whose_language_model_has_no_head_is_read_as_well(made):
    """Published checkpoints name `GPT2Model`, with which the pipeline's own call fails in newer transformers."""
    wanted = encoded(AudioLDM2(made), PROMPTS[0])
    bare = copy.copy(made)
    bare.language_model = made.language_model.transformer
    found = encoded(AudioLDM2(bare), PROMPTS[0])
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


# ---- lengths


@pytest.mark.parametrize(
    ("seconds", "samples"), [(None, 64), (0.0005, 8), (0.0007, 8), (0.0031, 48), (0.0038, 60), (0.0081, 128)]
)
def test_clips_of_any_length_equal_the_pipelines_own(made, seconds, samples):
    """Whole mel frames, here of 4 samples."""
    ours = AudioLDM2(made, seconds=seconds)
    given = {"audio_length_in_s": seconds, "num_inference_steps": 1, "generator": Generator().manual_seed(0)}
    latents = made(PROMPTS[0], output_type="latent", **given).audios
    assert ours.event_shape == latents.shape[1:]
    given["generator"] = Generator().manual_seed(0)
    clips = made(PROMPTS[0], output_type="pt", **given).audios
    with torch.no_grad():
        found = ours.decode(latents)
    close(found, clips[:, None])
    assert found.shape[2] == samples


# ---- schedulers


def policy(pipe: Any, **options: Any) -> PipelinePolicy:
    return PipelinePolicy(pipe, rank=2, **TINY.OPTIONS, **options)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DDPMScheduler", {}),  # stochastic
        ("EulerDiscreteScheduler", {}),  # in coordinates of its own
        ("PNDMScheduler", {"skip_prk_steps": True}),  # visits a time twice
    ],
)
def test_other_schedulers_sample_as_in_the_pipeline(pipe, kind, changes):
    import diffusers

    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **changes)
    own = TINY.call(pipe, PROMPTS[0], Generator().manual_seed(5), 6, TINY.GUIDANCE, "latent")
    ours = policy(pipe)
    close(ours.generate(PROMPTS[:1], [5], steps=6, guidance=TINY.GUIDANCE).latents, own)
    sigmas = ours._backbone._family.sigmas(6)
    assert sigmas.shape == (7,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_predictions_of_v_are_denoised_as_such(pipe):
    """One step that DDIM ends at no noise at all is the clean sample of the scaling."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction", set_alpha_to_one=True
    )
    own = TINY.call(pipe, PROMPTS[0], Generator().manual_seed(5), 1, 1.0, "latent")
    backbone = policy(pipe)._backbone
    denoiser, sigma = backbone.denoiser, backbone._family.sigmas(1)[:1]
    with torch.no_grad():
        cond = backbone._family.encode(PROMPTS[0], CPU)
        noise = torch.randn(1, *backbone.event_shape, generator=Generator().manual_seed(5))
        found = denoiser(noise / denoiser.scaling.c_in(sigma), sigma, cond)
    close(found, own)


def test_checkpointing_runs_the_transformers_blocks_twice(pipe):
    ours = policy(pipe, gradient_checkpointing=True)
    calls = []
    block = pipe.unet.mid_block.attentions[2].transformer_blocks[0]  # which reads the masked text
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    latents = torch.randn(2, *ours.event_shape, generator=Generator().manual_seed(0))
    noising = ours.draw_noising(latents, Generator().manual_seed(1))
    ours.predict(latents, noising, ours.encode(PROMPTS[:2])).square().mean().backward()
    assert len(calls) == 2


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0004}, "seconds is 0.0004; expected a number from 0.0005"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"text_tokens": 0}, "text_tokens is 0; expected 1 to 16"),
        ({"text_tokens": 17}, "text_tokens is 17; expected 1 to 16"),
    ],
)
def test_impossible_options_are_refused_with_their_limits(made, options, message):
    with pytest.raises(ConfigError, match=message):
        AudioLDM2(made, **options)


def test_networks_of_other_predictions_and_speech_are_refused_by_name(pipe):
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(ConfigError, match="has prediction_type 'sample'.*epsilon.*v_prediction"):
        AudioLDM2(pipe)


def test_speech_is_refused_by_name(pipe):
    from transformers import VitsConfig, VitsModel

    pipe.text_encoder_2 = VitsModel(
        VitsConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, ffn_dim=8, flow_size=8)
    )
    with pytest.raises(ConfigError, match="text_encoder_2 is a 'vits'; expected 't5'"):
        AudioLDM2(pipe)
