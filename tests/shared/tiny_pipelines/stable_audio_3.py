"""StableAudio3Pipeline with 5 latents of 4 channels, and the stochastic scheduler of a distilled checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from tiny_pipelines import VOCABULARY, latents_of, words_tokenizer

KIND = "StableAudio3Pipeline"
GUIDANCE = 4.0
OPTIONS = {"seconds": 0.048}  # 38.4 samples: neither a whole number of samples nor of latents


def tiny() -> Any:
    from diffusers import (
        AutoencoderSAME,
        FlowMatchEulerDiscreteScheduler,
        StableAudio3DiTModel,
        StableAudio3Pipeline,
    )
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder
    from transformers import T5GemmaConfig, T5GemmaEncoderModel
    from transformers.models.t5gemma import T5GemmaModuleConfig

    text = T5GemmaModuleConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
        sliding_window=16,
    )
    vae = AutoencoderSAME(
        audio_channels=2,
        patch_size=4,
        encoder_channels=8,
        encoder_c_mults=[2],
        encoder_strides=[2],
        encoder_transformer_depths=[1],
        latent_dim=4,
        dim_heads=8,
        sampling_rate=800,
    )
    vae.decoder.blocks[-1].mapping.weight_g.data *= 8  # loud enough to be clamped
    return StableAudio3Pipeline(
        vae=vae,
        text_encoder=T5GemmaEncoderModel(T5GemmaConfig(encoder=text, decoder=text, is_encoder_decoder=False)),
        tokenizer=words_tokenizer(8),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=8, fourier_dim=8, max_val=4.0),
        transformer=StableAudio3DiTModel(
            io_channels=4,
            embed_dim=16,
            depth=2,
            num_heads=2,
            cond_token_dim=8,
            global_cond_dim=8,
            local_add_cond_dim=5,
            timestep_features_dim=8,
            ff_mult=2,
            num_memory_tokens=2,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=True),
    )


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str) -> Tensor:
    """output: "latent" or "pt"."""
    return latents_of(
        pipe(
            prompt,
            duration=OPTIONS["seconds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type=output,
        )
    )
