"""MusicLDMPipeline with latents of 4 channels, 8 x 4, and clips that end before the last latent does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from tiny_pipelines import VOCABULARY, latents_of, words_tokenizer

KIND = "MusicLDMPipeline"
GUIDANCE = 2.0
OPTIONS = {"seconds": 0.0038}  # 15.2 mel frames of 4 samples at 16 kHz, so 15, padded to 16: 60 of 64 samples


def parts(text: Any) -> dict[str, Any]:
    """Everything but the text encoder's class, which AudioLDM has in common."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return {
        "vae": AutoencoderKL(
            block_out_channels=[4, 8],
            in_channels=1,
            out_channels=1,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=2,
            scaling_factor=0.6,
        ),
        "text_encoder": text,
        "tokenizer": words_tokenizer(10),
        "unet": UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=(8, 16),
            attention_head_dim=4,
            norm_num_groups=4,
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=12,
            class_embeddings_concat=True,
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "vocoder": SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=8,
                sampling_rate=16000,
                upsample_initial_channel=8,
                upsample_rates=[2, 2],
                upsample_kernel_sizes=[4, 4],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1, 3]],
                normalize_before=False,
                initializer_range=0.3,  # of 0.01 clips would not depend on their latents
            )
        ),
    }


def text_config() -> Any:
    from transformers import ClapTextConfig

    return ClapTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        projection_dim=12,
    )


def tiny() -> Any:
    from diffusers import MusicLDMPipeline
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel

    audio = ClapAudioConfig(
        spec_size=16,
        num_mel_bins=8,
        window_size=2,
        patch_size=4,
        patch_stride=4,
        patch_embeds_hidden_size=8,
        patch_embed_input_channels=1,
        hidden_size=8,
        depths=[1],
        num_attention_heads=[2],
        num_hidden_layers=1,
        projection_dim=12,
    )
    clap = ClapConfig(text_config=text_config().to_dict(), audio_config=audio.to_dict(), projection_dim=12)
    return MusicLDMPipeline(feature_extractor=ClapFeatureExtractor(), **parts(ClapModel(clap)))


def text_vector(pipe: Any, prompt: str, length: int) -> Tensor:
    """What the pipeline's own encoding meant before the features became an object."""
    tokens = pipe.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found: Tensor = pipe.text_encoder.get_text_features(tokens.input_ids, attention_mask=tokens.attention_mask)[1]
    return found


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str) -> Tensor:
    """output: "latent" or "pt"."""
    vector = text_vector(pipe, prompt, pipe.tokenizer.model_max_length)
    return latents_of(
        pipe(
            prompt_embeds=vector,
            negative_prompt_embeds=text_vector(pipe, "", vector.shape[1]),
            audio_length_in_s=OPTIONS["seconds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type=output,
        )
    )
