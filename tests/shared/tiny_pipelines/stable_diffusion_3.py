"""StableDiffusion3Pipeline of 16 x 16 pixels on 8 x 8 latents, with the scheduler of Stable Diffusion 3."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from tiny_pipelines import VOCABULARY, words_tokenizer
from tiny_pipelines.stable_diffusion import call as stable_diffusion_call
from tiny_pipelines.stable_diffusion import tiny_vae

KIND = "StableDiffusion3Pipeline"
GUIDANCE = 4.0
OPTIONS = {"text_tokens": 8}


def tiny() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=4,
            num_attention_heads=2,
            caption_projection_dim=8,
            joint_attention_dim=20,
            pooled_projection_dim=14,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(_clip(8)),
        tokenizer=words_tokenizer(8),
        text_encoder_2=CLIPTextModelWithProjection(_clip(6)),
        tokenizer_2=words_tokenizer(8),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=VOCABULARY, d_model=20, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ),
        tokenizer_3=words_tokenizer(8),
    )


def _clip(width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        pad_token_id=0,
        eos_token_id=1,
    )


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str) -> Tensor:
    """output: "latent" or "pt", whose pixels in [0, 1] come back in [-1, 1]."""
    return stable_diffusion_call(pipe, prompt, generator, steps, guidance, output, max_sequence_length=8)
