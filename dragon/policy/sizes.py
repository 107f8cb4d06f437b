"""Public checkpoints by hub name: the constructor arguments of every component, to tell memory without weights.

Knows numbers that their authors published, no pipelines. What is not written down here is the constructor's default in
the installed diffusers or transformers.

Each entry names where its numbers are from. A checkpoint whose numbers are not public is not here: a guess would look
like a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One component: its class in diffusers or transformers, and what its constructor (or config class) is given."""

    made_by: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """kind: the pipeline's class. parts: component -> network or scheduler. tokens: tokenizer -> its longest prompt.

    nothing: components that the pipeline takes and that do not matter to memory, given as None.
    """

    kind: str
    parts: Mapping[str, Part]
    tokens: Mapping[str, int]
    source: str
    nothing: tuple[str, ...] = ()


_T5 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_CLAP_TEXT = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_HIFIGAN = {
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_initial_channel": 1024,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "normalize_before": False,
}
_MEL_VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 8,
    "sample_size": 1024,
}
_IMAGE_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
_MEL_UNET = {
    "sample_size": 256,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [128, 256, 384, 640],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
    "layers_per_block": 2,
}
_LATENT_DIFFUSION = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_CLIP_LARGE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}

STABLE_AUDIO_OPEN = Sizes(
    "StableAudioPipeline",
    {
        "vae": Part("diffusers:AutoencoderOobleck"),
        "text_encoder": Part("transformers:T5EncoderModel", {"d_model": 768, "d_ff": 3072, "num_layers": 12,
                             "num_heads": 12}),
        "projection_model": Part("diffusers:StableAudioProjectionModel", {"text_encoder_dim": 768,
                                 "conditioning_dim": 768, "min_value": 0, "max_value": 512}),
        "transformer": Part("diffusers:StableAudioDiTModel"),
        "scheduler": Part("diffusers:CosineDPMSolverMultistepScheduler", {"solver_order": 2, "sigma_data": 1.0,
                          "prediction_type": "v_prediction", "sigma_schedule": "exponential"}),
    },
    {"tokenizer": 128},
    "defaults of diffusers' classes, which are this checkpoint's; T5-base",
)  # fmt: skip

STABLE_AUDIO_3_MEDIUM = Sizes(
    "StableAudio3Pipeline",
    {
        "vae": Part("diffusers:AutoencoderSAME"),
        "text_encoder": Part("transformers:T5GemmaEncoderModel", {"encoder": {"hidden_size": 768,
                             "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
                             "num_key_value_heads": 12, "head_dim": 64}, "is_encoder_decoder": False}),
        "duration_embedder": Part("diffusers:StableAudio3DurationEmbedder"),
        "transformer": Part("diffusers:StableAudio3DiTModel"),
        "scheduler": Part("diffusers:FlowMatchEulerDiscreteScheduler"),
    },
    {"tokenizer": 256},
    "defaults of diffusers' classes (1.45 B, the size that the authors state as 1.4 B); T5Gemma B-B. The decoder's "
    "numbers are in the gated model_config.json: its estimate is that of diffusers' defaults",
)  # fmt: skip

AUDIOLDM2 = Sizes(
    "AudioLDM2Pipeline",
    {
        "vae": Part("diffusers:AutoencoderKL", _MEL_VAE),
        "text_encoder": Part("transformers:ClapModel", {"text_config": _CLAP_TEXT}),
        "text_encoder_2": Part("transformers:T5EncoderModel", {**_T5, "d_model": 1024, "d_ff": 2816, "num_layers": 24,
                               "num_heads": 16}),
        "projection_model": Part("diffusers:AudioLDM2ProjectionModel", {"text_encoder_dim": 512,
                                 "text_encoder_1_dim": 1024, "langauge_model_dim": 768}),
        "language_model": Part("transformers:GPT2Model"),
        "unet": Part("diffusers:AudioLDM2UNet2DConditionModel", {**_MEL_UNET, "attention_head_dim": 8,
                     "cross_attention_dim": [[None, 768, 1024]] * 4}),
        "vocoder": Part("transformers:SpeechT5HifiGan", _HIFIGAN),
        "scheduler": Part("diffusers:DDIMScheduler", _LATENT_DIFFUSION),
    },
    {"tokenizer": 512, "tokenizer_2": 128},
    "config.json files of cvssp/audioldm2; CLAP, Flan-T5-large and GPT-2 as diffusers' conversion script has them",
    ("feature_extractor",),
)  # fmt: skip

MUSICLDM = Sizes(
    "MusicLDMPipeline",
    {
        "vae": Part("diffusers:AutoencoderKL", _MEL_VAE),
        "text_encoder": Part("transformers:ClapModel", {"text_config": _CLAP_TEXT,
                             "audio_config": {"patch_embeds_hidden_size": 128, "hidden_size": 1024,
                                              "depths": [2, 2, 12, 2]}}),
        "unet": Part("diffusers:UNet2DConditionModel", {**_MEL_UNET, "cross_attention_dim": [128, 256, 384, 640],
                     "class_embed_type": "simple_projection", "class_embeddings_concat": True,
                     "projection_class_embeddings_input_dim": 512}),
        "vocoder": Part("transformers:SpeechT5HifiGan", _HIFIGAN),
        "scheduler": Part("diffusers:DDIMScheduler", _LATENT_DIFFUSION),
    },
    {"tokenizer": 512},
    "diffusers' conversion script (MusicLDM's configuration and its larger CLAP)",
    ("feature_extractor",),
)  # fmt: skip

ACE_STEP = Sizes(
    "AceStepPipeline",
    {
        "vae": Part("diffusers:AutoencoderOobleck", {"downsampling_ratios": [2, 4, 4, 6, 10], "sampling_rate": 48000}),
        "text_encoder": Part("transformers:Qwen3Model", {"vocab_size": 151669, "hidden_size": 1024,
                             "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
                             "num_key_value_heads": 8, "head_dim": 128}),
        "condition_encoder": Part("diffusers:AceStepConditionEncoder"),
        "transformer": Part("diffusers:AceStepTransformer1DModel"),
        "scheduler": Part("diffusers:FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
    },
    {"tokenizer": 2048},
    "config.json files of Runware/acestep-v15-sft-diffusers and ACE-Step/Ace-Step1.5 (vae); Qwen3-Embedding-0.6B",
    ("audio_tokenizer", "audio_token_detokenizer"),
)  # fmt: skip

LONGCAT_1B = Sizes(
    "LongCatAudioDiTPipeline",
    {
        "vae": Part("diffusers:LongCatAudioDiTVae", {"c_mults": [1, 2, 4, 8, 16], "strides": [2, 4, 4, 8, 8],
                    "use_snake": True}),
        "text_encoder": Part("transformers:UMT5EncoderModel", {"vocab_size": 256384, "d_model": 768, "d_ff": 2048,
                             "num_layers": 12, "num_heads": 12}),
        "transformer": Part("diffusers:LongCatAudioDiTTransformer"),
        "scheduler": Part("diffusers:FlowMatchEulerDiscreteScheduler", {"shift": 1.0, "invert_sigmas": True}),
    },
    {"tokenizer": 512},
    "defaults of diffusers' classes and of the authors' configuration class; UMT5-base",
)  # fmt: skip

STABLE_DIFFUSION_1 = Sizes(
    "StableDiffusionPipeline",
    {
        "vae": Part("diffusers:AutoencoderKL", {**_IMAGE_VAE, "latent_channels": 4, "sample_size": 512}),
        "text_encoder": Part("transformers:CLIPTextModel", _CLIP_LARGE),
        "unet": Part("diffusers:UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        "scheduler": Part("diffusers:PNDMScheduler", {"beta_start": 0.00085, "beta_end": 0.012,
                          "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1}),
    },
    {"tokenizer": 77},
    "config.json files of Stable Diffusion 1.4 and 1.5",
    ("safety_checker", "feature_extractor"),
)  # fmt: skip

STABLE_DIFFUSION_3 = Sizes(
    "StableDiffusion3Pipeline",
    {
        "vae": Part("diffusers:AutoencoderKL", {**_IMAGE_VAE, "latent_channels": 16, "sample_size": 1024,
                    "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
                    "use_post_quant_conv": False}),
        "text_encoder": Part("transformers:CLIPTextModelWithProjection", _CLIP_LARGE),
        "text_encoder_2": Part("transformers:CLIPTextModelWithProjection", {"hidden_size": 1280,
                               "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
                               "projection_dim": 1280}),
        "text_encoder_3": Part("transformers:T5EncoderModel", {**_T5, "d_model": 4096, "d_ff": 10240, "num_layers": 24,
                               "num_heads": 64}),
        "transformer": Part("diffusers:SD3Transformer2DModel", {"num_layers": 24, "num_attention_heads": 24,
                            "caption_projection_dim": 1536, "pos_embed_max_size": 192}),
        "scheduler": Part("diffusers:FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    },
    {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 512},
    "config.json files of stabilityai/stable-diffusion-3-medium-diffusers",
)  # fmt: skip

PUBLISHED: dict[str, Sizes] = {
    "stabilityai/stable-audio-open-1.0": STABLE_AUDIO_OPEN,
    "stabilityai/stable-audio-3-medium-base": STABLE_AUDIO_3_MEDIUM,
    "stabilityai/stable-audio-3-medium": STABLE_AUDIO_3_MEDIUM,
    "cvssp/audioldm2": AUDIOLDM2,
    "cvssp/audioldm2-music": AUDIOLDM2,
    "ucsd-reach/musicldm": MUSICLDM,
    "Runware/acestep-v15-sft-diffusers": ACE_STEP,
    "Runware/acestep-v15-base-diffusers": ACE_STEP,
    "ruixiangma/LongCat-AudioDiT-1B-Diffusers": LONGCAT_1B,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "CompVis/stable-diffusion-v1-4": STABLE_DIFFUSION_1,
    "stabilityai/stable-diffusion-3-medium-diffusers": STABLE_DIFFUSION_3,
}
"""Hub name -> sizes."""
