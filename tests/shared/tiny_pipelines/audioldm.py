"""AudioLDMPipeline: MusicLDM's parts with a text encoder that has no audio tower."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from tiny_pipelines import latents_of
from tiny_pipelines.musicldm import GUIDANCE, OPTIONS, parts, text_config

__all__ = ["GUIDANCE", "KIND", "OPTIONS", "call", "tiny"]

KIND = "AudioLDMPipeline"


def tiny() -> Any:
    from diffusers import AudioLDMPipeline
    from transformers import ClapTextModelWithProjection

    return AudioLDMPipeline(**parts(ClapTextModelWithProjection(text_config())))


def call(pipe: Any, prompt: str, generator: Generator, steps: int, guidance: float, output: str) -> Tensor:
    """output: "latent" (which this pipeline gives only to its callback) or "pt"."""
    latents: list[Tensor] = []
    clips = latents_of(
        pipe(
            prompt,
            audio_length_in_s=OPTIONS["seconds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
            callback=lambda step, time, now: latents.append(now),
        )
    )
    return latents[-1] if output == "latent" else clips
