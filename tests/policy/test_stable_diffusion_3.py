"""Stable Diffusion 3: its schedulers and shifts, an absent T5, sizes, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dragon.diffusion import flow_time
from dragon.errors import ConfigError
from dragon.policy.pipeline import PipelinePolicy
from tiny_pipelines import PROMPTS, tiny_pipeline
from tiny_pipelines.stable_diffusion_3 import call

STEPS, GUIDANCE = 5, 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stable_diffusion_3")
    tiny_pipeline("stable_diffusion_3", place)
    return place


DYNAMIC: dict[str, Any] = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "euler_unshifted": ("FlowMatchEulerDiscreteScheduler", {}),
    "euler_dynamic": ("FlowMatchEulerDiscreteScheduler", DYNAMIC),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "dpmpp": ("DPMSolverMultistepScheduler", FLOW),
    "unipc": ("UniPCMultistepScheduler", FLOW),
}


def loaded(folder: Path, scheduler: str = "euler", **parts: Any) -> Any:
    """The pipeline as diffusers loads it, with that scheduler."""
    import diffusers

    kind, settings = SCHEDULERS[scheduler]
    made = getattr(diffusers, kind)(**settings)
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, scheduler=made, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def policy_of(pipe: Any, **options: Any) -> PipelinePolicy:
    return PipelinePolicy(pipe, rank=2, **{"text_tokens": 8, **options})


def family_of(policy: Any) -> Any:
    return policy._backbone._family


def generated(policy: PipelinePolicy, steps: int = STEPS) -> Tensor:
    return policy.generate(PROMPTS[:1], [11], steps=steps, guidance=GUIDANCE).latents


def own(pipe: Any, steps: int = STEPS, output: str = "latent") -> Tensor:
    return call(pipe, PROMPTS[0], Generator().manual_seed(11), steps, GUIDANCE, output)


def close(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= relative * float(wanted.abs().max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_rollout_equals_the_pipelines_own_call_with_each_scheduler(folder: Path, name: str) -> None:
    """A pipeline's scheduler keeps the state of its last roll-out, ours must not: asked twice."""
    wanted = own(loaded(folder, name))
    policy = policy_of(loaded(folder, name))
    close(generated(policy), wanted)
    assert torch.equal(generated(policy), generated(policy))
    sigmas = family_of(policy).sigmas(STEPS)
    assert len(sigmas) == STEPS + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all() and sigmas.isfinite().all()


def test_the_networks_time_is_a_thousand_times_that_of_the_flow(folder: Path) -> None:
    policy = policy_of(loaded(folder))
    sigma = torch.tensor([1 / 3, 1.0, 3.0])
    torch.testing.assert_close(family_of(policy).scaling.c_noise(sigma), torch.tensor([250.0, 500.0, 750.0]))
    latents = torch.randn(3, *policy.event_shape, generator=Generator().manual_seed(0))
    noising = policy.draw_noising(latents, Generator().manual_seed(1))
    assert torch.equal(policy.target(latents, noising), noising.noise - latents)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "shift"), [("euler", 3.0), ("euler_unshifted", 1.0), ("dpmpp", 3.0)])
def test_training_draws_times_around_the_shift(folder: Path, name: str, shift: float) -> None:
    """The logit of a shifted time is that of the time plus log shift, so its median is the shifted middle."""
    levels = policy_of(loaded(folder, name)).draw_noising(torch.zeros(4001, 4, 1, 1), Generator().manual_seed(0)).sigma
    # the error of a median of 4001 normal numbers is about 0.02
    assert float(levels.log().median()) == pytest.approx(math.log(shift), abs=0.08)
    assert float(levels.log().std()) == pytest.approx(1, abs=0.05)


def test_the_dynamic_shift_grows_with_the_image_and_is_trained_at(folder: Path) -> None:
    small, large = (policy_of(loaded(folder, "euler_dynamic"), height=s, width=s) for s in (8, 32))
    medians = [
        float(policy.draw_noising(torch.zeros(4001, 4, 1, 1), Generator().manual_seed(0)).sigma.log().median())
        for policy in (small, large)
    ]
    # the second of three times is a half before the shift, so its log sigma is the shift's logarithm
    shifts = [float(family_of(policy).sigmas(3)[1].log()) for policy in (small, large)]
    assert shifts[1] > shifts[0] + 0.2
    assert medians == pytest.approx(shifts, abs=0.08)
    assert medians[1] - medians[0] == pytest.approx(shifts[1] - shifts[0], abs=1e-3)  # the draws are the same


def test_times_can_be_held_in_a_range(folder: Path) -> None:
    policy = policy_of(loaded(folder), t_min=0.5, t_max=0.9)
    sigma = policy.draw_noising(torch.zeros(500, 4, 1, 1), Generator().manual_seed(0)).sigma
    assert 0.5 <= float(flow_time(sigma).min()) < 0.55 and 0.85 < float(flow_time(sigma).max()) <= 0.9


def test_without_t5_it_samples_as_the_pipeline_does(folder: Path) -> None:
    absent: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    policy = policy_of(loaded(folder, **absent))
    close(generated(policy), own(loaded(folder, **absent)))
    assert float((generated(policy) - own(loaded(folder))).abs().max()) > 1e-3


def test_a_folder_without_t5_is_loaded(folder: Path, tmp_path: Path) -> None:
    pipe = loaded(folder, text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path)
    close(generated(policy_of(str(tmp_path))), own(pipe))


@pytest.mark.parametrize("lacking", ["text_encoder", "text_encoder_2"])
def test_without_a_clip_encoder_it_is_refused_by_name(folder: Path, lacking: str) -> None:
    with pytest.raises(ConfigError, match=f"has no {lacking};"):
        policy_of(loaded(folder, "euler", **{lacking: None}))


def test_images_of_another_size_are_the_pipelines(folder: Path) -> None:
    policy = policy_of(loaded(folder), height=24, width=8)
    assert policy.event_shape == (4, 12, 4)
    media = policy.decode(policy.generate(PROMPTS[:1], [11], steps=2, guidance=GUIDANCE))
    assert media.tensor.shape == (1, 3, 24, 8) and media.rate is None
    pipe = loaded(folder)
    found = pipe(
        PROMPTS[0], height=24, width=8, num_inference_steps=2, guidance_scale=GUIDANCE, output_type="pt",
        generator=Generator().manual_seed(11), max_sequence_length=8,
    )  # fmt: skip
    close(media.tensor, 2 * found.images - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 18}, "height is 18; expected a multiple of 4 pixels, at least 4 and at most 32"),
        ({"width": 36}, "width is 36; expected a multiple of 4 pixels, at least 4 and at most 32"),
        ({"text_tokens": 513}, "text_tokens is 513; expected 1 to 512"),
    ],
)
def test_options_out_of_range_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_of(loaded(folder), **options)


def test_a_scheduler_of_another_prediction_is_refused(folder: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    pipe = loaded(folder)
    pipe.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(ConfigError, match="prediction_type 'epsilon'; this network predicts a flow"):
        policy_of(pipe)
