"""LongCatAudioDiTPipeline with 6 latents of 4 channels."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from tiny_pipelines import VOCABULARY, latents_of, words_tokenizer

KIND = "LongCatAudioDiTPipeline"
GUIDANCE = 4.0
OPTIONS = {"seconds": 0.033}  # 6.6 latents
CANNOT = ("gradient_checkpointing",)


def tiny() -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        LongCatAudioDiTPipeline,
        LongCatAudioDiTTransformer,
        LongCatAudioDiTVae,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    text = UMT5Config(
        vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return LongCatAudioDiTPipeline(
        vae=LongCatAudioDiTVae(
            channels=4, c_mults=[1, 2], strides=[2, 2], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=4,
            sample_rate=800,
        ),
        text_encoder=UMT5EncoderModel(text),
        tokenizer=words_tokenizer(8),
        transformer=LongCatAudioDiTTransformer(
            dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=8, latent_dim=4, ff_mult=2.0
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )  # fmt: skip


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str) -> Tensor:
    """output: "latent" or "pt"."""
    return latents_of(
        pipe(
            prompt,
            audio_duration_s=OPTIONS["seconds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type=output,
        )
    )
