"""AudioLDM2Pipeline with latents of 4 channels, 8 x 4, and clips that end before the last latent does.

Its two tokenizers are of the real classes, which the pipeline asks for: CLAP's reads letters, T5's words. Its language
model has a head for words, without which newer transformers give the pipeline nothing to generate with.
"""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from tiny_pipelines import VOCABULARY, WORDS, latents_of

KIND = "AudioLDM2Pipeline"
GUIDANCE = 3.5
CANNOT = ("negative",)
OPTIONS = {
    "seconds": 0.0038,  # 15.2 mel frames of 4 samples at 16 kHz, so 15, padded to 16: 60 of 64 samples
    "text_tokens": 10,
}


def tiny() -> Any:
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
        AutoencoderKL,
        DDIMScheduler,
    )
    from transformers import (
        ClapFeatureExtractor,
        GPT2Config,
        GPT2LMHeadModel,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        T5Config,
        T5EncoderModel,
    )

    return AudioLDM2Pipeline(
        vae=AutoencoderKL(
            block_out_channels=[4, 8],
            in_channels=1,
            out_channels=1,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=2,
            scaling_factor=0.6,
        ),
        text_encoder=clap(),
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=VOCABULARY,
                d_model=12,
                d_kv=4,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ),
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=6, text_encoder_1_dim=12, langauge_model_dim=8),
        language_model=GPT2LMHeadModel(
            GPT2Config(
                vocab_size=4,
                n_embd=8,
                n_head=2,
                n_layer=1,
                n_positions=64,
                bos_token_id=0,
                eos_token_id=1,
                max_new_tokens=3,
                initializer_range=0.5,
            )
        ),
        tokenizer=letters_tokenizer(28),
        tokenizer_2=t5_tokenizer(16),
        feature_extractor=ClapFeatureExtractor(),
        unet=AudioLDM2UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=((None, 8, 12), (None, 8, 12)),
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        vocoder=SpeechT5HifiGan(
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
    )


def clap() -> Any:
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    text = ClapTextConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=32,
        projection_dim=6,
    )
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
        projection_dim=6,
    )
    return ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=6))


def letters_tokenizer(max_length: int) -> Any:
    from transformers import RobertaTokenizer

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]  # Ġ is its space
    return RobertaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=max_length)


def t5_tokenizer(max_length: int) -> Any:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str) -> Tensor:
    """output: "latent" or "pt"."""
    return latents_of(
        pipe(
            prompt,
            audio_length_in_s=OPTIONS["seconds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type=output,
        )
    )
