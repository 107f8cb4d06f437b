"""Randomly initialised pipelines of the real classes, of any size: what costs of pipelines are measured on.

A cost does not depend on what the weights are. Text encoders have one layer: prompts are encoded once, before any clock
starts. Tokenizers know the few words of the tests' tiny pipelines.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from seeded_runs import ROOT

sys.path.append(str(ROOT / "tests" / "shared"))

from tiny_pipelines import VOCABULARY, WORDS, words_tokenizer  # noqa: E402

PROMPTS = [" ".join([WORDS[i % len(WORDS)], WORDS[(3 * i + 2) % len(WORDS)]]) for i in range(8)]

SMALL = {"sample_size": 64, "num_layers": 6, "num_attention_heads": 8, "num_key_value_attention_heads": 4}
"""Of a transformer of Stable Audio Open's kind: 512 wide."""
OPEN = {"sample_size": 1024, "num_layers": 24, "num_attention_heads": 24, "num_key_value_attention_heads": 12}
"""Of Stable Audio Open's, as its model card and diffusers' defaults have it: 1,536 wide, 1.06 billion weights."""
TOY = {"sample_size": 16, "num_layers": 24, "num_attention_heads": 2, "num_key_value_attention_heads": 1}
"""As deep as the real one, so that what is compiled is compiled in the same way."""


def stable_audio(size: Mapping[str, int], *, decoder_channels: int, text_tokens: int, device: str = "cpu") -> Any:
    """A StableAudioPipeline whose denoiser is made on `device`; 64 latent channels, as the real one."""
    import torch
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5Config, T5EncoderModel

    text = T5Config(vocab_size=VOCABULARY, d_model=768, d_kv=64, d_ff=64, num_layers=1, num_heads=2)
    with torch.device(device):
        transformer = StableAudioDiTModel(**size)
        vae = AutoencoderOobleck(
            encoder_hidden_size=8, decoder_channels=decoder_channels, decoder_input_channels=64, sampling_rate=44100
        )
    pipe = StableAudioPipeline(
        vae=vae,
        text_encoder=T5EncoderModel(text),
        projection_model=StableAudioProjectionModel(768, conditioning_dim=768, min_value=0, max_value=512),
        tokenizer=words_tokenizer(text_tokens),
        transformer=transformer,
        scheduler=CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion(channels: tuple[int, ...], *, latent: int) -> Any:
    """A StableDiffusionPipeline on latents of (4, latent, latent), cross-attention at all resolutions but the last."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    crossed = len(channels) - 1
    unet = UNet2DConditionModel(
        sample_size=latent,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * crossed + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * crossed,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    blocks = 4
    vae = AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=latent * 2 ** (blocks - 1),
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=words_tokenizer(77),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parameters(module: Any) -> int:
    """Weights of the module, without what LoRA added."""
    return sum(p.numel() for name, p in module.named_parameters() if "lora_" not in name)
