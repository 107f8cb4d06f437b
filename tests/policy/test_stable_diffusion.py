"""Stable Diffusion: every scheduler a checkpoint may come with, what it refuses, and the checker that stays outside."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Generator, Tensor

from dragon.errors import ConfigError
from dragon.media import Generation
from dragon.policy.levels import DiscreteTimes
from dragon.policy.pipeline import PipelinePolicy
from tiny_pipelines import PROMPTS, randomise, tiny_pipeline
from tiny_pipelines.stable_diffusion import TABLE, call, tiny

STEPS, GUIDANCE = 5, 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stable_diffusion")
    tiny_pipeline("stable_diffusion", place)
    return place


def scheduler(name: str, **settings: Any) -> Any:
    import diffusers

    given = TABLE | {"steps_offset": 1} | settings
    return getattr(diffusers, name)(**{key: value for key, value in given.items() if value is not None})


ZERO_SNR: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm_v": ("PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "v_prediction"}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim_v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    "ddim_zero_snr": ("DDIMScheduler", {"clip_sample": False, **ZERO_SNR}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_zero_snr": ("EulerDiscreteScheduler", ZERO_SNR),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "outdated": ("DDIMScheduler", {"steps_offset": None}),  # the pipeline mends what such a file leaves out
}


def with_scheduler(folder: Path, name: str) -> Any:
    """The pipeline as diffusers loads it, with that scheduler."""
    from diffusers import StableDiffusionPipeline

    kind, settings = SCHEDULERS[name]
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, scheduler=scheduler(kind, **settings), safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def family_of(policy: Any) -> Any:
    return policy._backbone._family


def generated(policy: PipelinePolicy, steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
    return policy.generate(PROMPTS[:1], [11], steps=steps, guidance=guidance).latents


def own(pipe: Any, steps: int = STEPS, guidance: float = GUIDANCE, output: str = "latent", **more: Any) -> Tensor:
    return call(pipe, PROMPTS[0], Generator().manual_seed(11), steps, guidance, output, **more)


def close(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= relative * float(wanted.abs().max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_rollout_equals_the_pipelines_own_call_with_each_scheduler(folder: Path, name: str) -> None:
    """A pipeline's scheduler keeps the state of its last roll-out, ours must not: asked twice."""
    wanted = own(with_scheduler(folder, name))
    policy = PipelinePolicy(with_scheduler(folder, name), rank=2)
    close(generated(policy), wanted)
    assert torch.equal(generated(policy), generated(policy))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["pndm", "ddim_v", "ddim_zero_snr", "dpmpp_karras", "euler_zero_snr", "heun"])
def test_the_scheduler_names_the_prediction_and_the_levels_of_training(folder: Path, name: str) -> None:
    """x0 of the family's scaling is the one that diffusers' own formulas give, at levels of the scheduler's table."""
    pipe = with_scheduler(folder, name)
    policy = PipelinePolicy(pipe, rank=2)
    family = family_of(policy)
    sigmas = family.sigmas(STEPS)
    assert len(sigmas) == STEPS + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all() and sigmas.isfinite().all()
    latents = torch.randn(4, *policy.event_shape, generator=Generator().manual_seed(0))
    noising = policy.draw_noising(latents, Generator().manual_seed(1))
    power = pipe.scheduler.alphas_cumprod.double()
    steps = family.scaling.c_noise(noising.sigma)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=2e-3)
    assert len(set(steps.tolist())) == 4
    steps = steps.round()
    # a plain scheduler over the same table noises and converts as the papers have it
    alpha, sigma = (power[steps.long()] ** 0.5).float(), ((1 - power[steps.long()]) ** 0.5).float()
    shape = (-1, 1, 1, 1)
    z = alpha.reshape(shape) * latents + sigma.reshape(shape) * noising.noise
    cond = policy.encode([PROMPTS[0]] * 4)
    with torch.no_grad():
        output = policy.predict(latents, noising, cond)
        close(output, pipe.unet(z, steps, encoder_hidden_states=cond.tensors["text"]).sample, 1e-3)
    v = alpha.reshape(shape) * noising.noise - sigma.reshape(shape) * latents
    is_v = pipe.scheduler.config.prediction_type == "v_prediction"
    close(policy.target(latents, noising), v if is_v else noising.noise, 1e-3)


def test_zero_terminal_snr_is_trained_and_sampled_at_its_last_step(folder: Path) -> None:
    policy = PipelinePolicy(with_scheduler(folder, "ddim_zero_snr"), rank=2, t_min=0.999)
    latents = torch.randn(2, *policy.event_shape)
    noising = policy.draw_noising(latents, Generator().manual_seed(0))
    assert (noising.sigma >= 4095).all() and noising.sigma.isfinite().all()
    assert family_of(policy).scaling.c_noise(noising.sigma).tolist() == [999, 999]
    close(policy.target(latents, noising), -latents, 2e-3)  # what is left to say of pure noise
    with pytest.raises(ConfigError, match="from noise alone"):
        pipe = with_scheduler(folder, "ddim")
        pipe.scheduler = scheduler("DDIMScheduler", clip_sample=False, rescale_betas_zero_snr=True)
        PipelinePolicy(pipe)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_rescaled_guidance_is_the_pipelines(folder: Path, guidance: float) -> None:
    pipe = with_scheduler(folder, "ddim_zero_snr")
    policy = PipelinePolicy(with_scheduler(folder, "ddim_zero_snr"), rank=2, guidance_rescale=0.7)
    wanted, plain = own(pipe, guidance=guidance, guidance_rescale=0.7), own(pipe, guidance=guidance)
    close(generated(policy, guidance=guidance), wanted)
    assert torch.equal(wanted, plain) == (guidance == 1)
    batch = policy.generate(PROMPTS, [10, 11, 12], steps=2, guidance=guidance).latents
    alone = policy.generate(PROMPTS[1:2], [11], steps=2, guidance=guidance).latents
    close(batch[1:2], alone)


def test_images_of_another_size_are_the_pipelines(folder: Path) -> None:
    pipe, policy = with_scheduler(folder, "ddim"), PipelinePolicy(with_scheduler(folder, "ddim"), height=24, width=8)
    assert policy.event_shape == (4, 12, 4) and policy.settings["rate"] is None
    made = policy.generate(PROMPTS[:1], [11], steps=2, guidance=GUIDANCE)
    media = policy.decode(made)
    assert media.tensor.shape == (1, 3, 24, 8) and media.rate is None
    close(media.tensor, own(pipe, steps=2, output="pt", height=24, width=8))


def test_what_the_decoder_gives_beyond_white_is_clipped_or_kept(folder: Path) -> None:
    policy = PipelinePolicy(str(folder), rank=2)
    latents = 40 * torch.randn(1, *policy.event_shape, generator=Generator().manual_seed(0))
    made = Generation(latents, policy.encode(PROMPTS[:1]), (PROMPTS[0],), (0,))
    kept = PipelinePolicy(str(folder), rank=2, loudness="decoded").decode(made).tensor
    assert float(kept.abs().max()) > 1.02
    assert torch.equal(policy.decode(made).tensor, kept.clamp(-1, 1))
    assert policy.settings["loudness"] == "clipped to [-1, 1]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 12}, "height is 12; expected a multiple of 8"),
        ({"width": 0}, "width is 0; expected a multiple of 8"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5"),
        ({"seconds": 3}, "'seconds' is unknown to StableDiffusionPipeline.*height, width"),
    ],
)
def test_options_out_of_range_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PipelinePolicy(str(folder), **options)


def test_a_latent_consistency_model_and_a_flow_are_refused(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

    pipe = with_scheduler(folder, "ddim")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler.*no table of steps"):
        PipelinePolicy(pipe)
    pipe = with_scheduler(folder, "ddim")
    pipe.unet = UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"time_cond_proj_dim": 8})
    with pytest.raises(ConfigError, match="latent consistency"):
        PipelinePolicy(pipe)


def test_a_prompt_that_does_not_fit_is_said_once_by_the_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PipelinePolicy(str(folder), rank=2)
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [_Kept(said)])
    policy.encode(["slow " * 7])  # and the mark of the end
    assert not said
    policy.encode(["slow " * 9, "slow " * 9])
    policy.encode(["slow " * 9])
    assert len(said) == 1 and "truncated" in said[0]


class _Kept(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a checker that blackens whatever it is shown."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    common = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config=common | {"image_size": 16, "patch_size": 8}, text_config=common, projection_dim=8
    )
    pipe = tiny()
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2)  # any cosine lies above it
    pipe.register_modules(
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )
    pipe.register_to_config(requires_safety_checker=True)
    randomise(pipe.unet, pipe.vae, pipe.text_encoder)
    place = tmp_path_factory.mktemp("checked")
    pipe.save_pretrained(place)
    return place


class TestSafetyChecker:
    def test_the_checker_is_not_run(self, checked: Path) -> None:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(checked)
        pipe.set_progress_bar_config(disable=True)
        black = own(pipe, output="pt")
        assert torch.equal(black, torch.full_like(black, -1.0))  # the checker works
        pipe.safety_checker = None
        policy = PipelinePolicy(str(checked), rank=2)
        media = policy.decode(policy.generate(PROMPTS[:1], [11], steps=STEPS, guidance=GUIDANCE))
        close(media.tensor, own(pipe, output="pt"))

    def test_the_checker_need_not_be_there(self, checked: Path, tmp_path: Path) -> None:
        place = shutil.copytree(checked, tmp_path / "without")
        for part in ("safety_checker", "feature_extractor"):
            shutil.rmtree(place / part)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            policy = PipelinePolicy(str(place), rank=2)
        assert cast(Any, policy)._backbone._pipe.safety_checker is None
        assert torch.equal(generated(policy), generated(PipelinePolicy(str(checked), rank=2)))


def test_a_last_step_without_signal_has_a_finite_level() -> None:
    levels = DiscreteTimes(torch.tensor([0.99, 0.5, 0.0])).levels(torch.tensor([2, 1, 0]))
    assert levels.isfinite().all() and (levels.diff() < 0).all()
