"""AceStepPipeline with 15 frames of 4 channels (an odd number: the network's patches are of two), 40 Hz stereo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from tiny_pipelines import VOCABULARY, latents_of, words_tokenizer

KIND = "AceStepPipeline"
GUIDANCE = 5.0
CANNOT = ("negative",)
OPTIONS = {"seconds": 3.0, "text_tokens": 72}
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 4,
}


def tiny(**transformer: Any) -> Any:
    """transformer: further settings of the denoiser (`is_turbo`)."""
    from diffusers import (
        AceStepPipeline,
        AceStepTransformer1DModel,
        AutoencoderOobleck,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    text = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    condition = AceStepConditionEncoder(
        **_SIZES,
        text_hidden_dim=8,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2,
    )
    condition.silence_latent.copy_(torch.randn_like(condition.silence_latent))
    denoiser = AceStepTransformer1DModel(
        **_SIZES, num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, patch_size=2, **transformer
    )
    with torch.no_grad():
        denoiser.proj_out_conv.weight *= 5  # else guidance never reaches its limit of 2.5
    return AceStepPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 4],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[1, 2],
            sampling_rate=40,
        ),
        text_encoder=Qwen3Model(text),
        tokenizer=words_tokenizer(1024),
        transformer=denoiser,
        condition_encoder=condition,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str, **more: Any) -> Tensor:
    """output: "latent" or "pt"."""
    return latents_of(
        pipe(
            prompt,
            audio_duration=OPTIONS["seconds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type=output,
            **more,
        )
    )
