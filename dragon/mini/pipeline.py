"""The built-in text-to-music pipeline: caption -> about five seconds of music, on a laptop.

An ordinary diffusers pipeline (a folder with model_index.json, each part with config and
safetensors), so that whoever knows diffusers knows it. Rectified flow (Liu et al. 2022): x at time
t is (1 - t) x0 + t noise, the denoiser predicts noise - x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from dragon.errors import ConfigError
from dragon.mini.codec import MiniCodec
from dragon.mini.denoiser import MiniDenoiser
from dragon.mini.words import split

FRAMES = 80


class MiniPipeline(DiffusionPipeline):
    """Parts: tokenizer, text_encoder (T5), denoiser, codec, scheduler. Latents are (b, 80, 64)."""

    model_cpu_offload_seq = "text_encoder->denoiser->codec"

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        denoiser: MiniDenoiser,
        codec: MiniCodec,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, denoiser=denoiser, codec=codec, scheduler=scheduler
        )

    @property
    def rate(self) -> int:
        """Samples a second of the decoded audio, Hz."""
        return int(self.codec.rate)

    def latent_shape(self) -> tuple[int, int]:
        """Shape of one clip's latents: frames, channels."""
        return FRAMES, int(self.denoiser.config.channels)

    def encode_prompt(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> word features (b, 48, f) and which of them count (b, 48) bool; "" is the unconditional prompt."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool()

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the model has never seen; they change nothing in the music."""
        known = self.tokenizer.get_vocab()
        return [word for word in split(prompt) if word not in known]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 12,
        guidance_scale: float = 2.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> AudioPipelineOutput | tuple[Any]:
        """Audio (b, 81920) at 16 kHz, one clip a prompt.

        generator: one, or one a prompt (then a clip does not depend on its batch). latents: the
        initial noise, (b, 80, 64). output_type: "np", "pt", or "latent" for latents.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if output_type not in ("np", "pt", "latent"):
            raise ConfigError(f"output_type {output_type!r}; expected 'np', 'pt' or 'latent'")
        x = (
            latents
            if latents is not None
            else randn_tensor(
                (len(prompts), *self.latent_shape()), generator=generator, device=self.device, dtype=self.denoiser.dtype
            )
        )
        text, mask = self.encode_prompt(prompts)
        if guidance_scale != 1.0:
            empty_text, empty_mask = self.encode_prompt([""])
            text = torch.cat([text, empty_text.expand_as(text)])
            mask = torch.cat([mask, empty_mask.expand_as(mask)])
        self.scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps), device=self.device
        )
        for timestep in self.progress_bar(self.scheduler.timesteps):
            time = (timestep / self.scheduler.config.num_train_timesteps).expand(len(text))
            velocity = self.denoiser(torch.cat([x, x]) if len(text) > len(x) else x, time, text, mask)
            if guidance_scale != 1.0:
                conditional, unconditional = velocity.chunk(2)
                velocity = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(velocity, timestep, x, return_dict=False)[0]
        made: Any = x if output_type == "latent" else self.codec.decode(x)
        if output_type == "np":
            made = made.float().cpu().numpy()
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=made) if return_dict else (made,)
