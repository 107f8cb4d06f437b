"""StableAudioPipeline with 16 latents of 4 channels, and its stochastic scheduler."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from tiny_pipelines import VOCABULARY, latents_of, words_tokenizer

KIND = "StableAudioPipeline"
GUIDANCE = 4.0
OPTIONS = {"seconds": 0.1}


def tiny() -> Any:
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5Config, T5EncoderModel

    text = T5Config(
        vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return StableAudioPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 4],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[1, 2],
            sampling_rate=800,
        ),
        text_encoder=T5EncoderModel(text),
        projection_model=StableAudioProjectionModel(text_encoder_dim=8, conditioning_dim=6, min_value=0, max_value=32),
        tokenizer=words_tokenizer(8),
        transformer=StableAudioDiTModel(
            sample_size=16,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            out_channels=4,
            cross_attention_dim=6,
            time_proj_dim=8,
            global_states_input_dim=12,
            cross_attention_input_dim=6,
        ),
        scheduler=CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str) -> Tensor:
    """output: "latent" or "pt"."""
    return latents_of(
        pipe(
            prompt,
            audio_end_in_s=OPTIONS["seconds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type=output,
        )
    )
