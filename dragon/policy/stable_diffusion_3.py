"""Stable Diffusion 3 and 3.5 (`StableDiffusion3Pipeline`): a transformer of flow velocity, told 1,000 t.

Conditions are the states of two CLIP encoders and of T5 one after another, and a pooled vector of the CLIP encoders.
A checkpoint without T5 has zeros in its place, as in the pipeline; without a CLIP encoder the pipeline encodes nothing,
and neither does this. The scheduler shifts times toward noise, in sampling and in training.

Source: Esser et al. (2024), arXiv 2403.03206; the pipeline in diffusers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion import Flow, logit_normal_sigmas
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.images import CLIPPED, clipped, in_latents
from dragon.policy.levels import falling, flow_clock, flow_levels
from dragon.policy.pipeline import Network, classifier_free, set_to

_TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_MOST_TOKENS = 512


class StableDiffusion3:
    """height, width: of the images in pixels, multiples of 16; None: the pipeline's own. text_tokens: length that T5
    reads, 256 as in the pipeline, at most 512.
    """

    name, part = "stable_diffusion_3", "transformer"
    text_parts: tuple[str, ...] = _TEXT_PARTS
    # all but the feed-forward layers, image and text side
    targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    unused = ("image_encoder", "feature_extractor")
    loudness = CLIPPED
    rate: int | None = None

    def __init__(
        self, pipe: Any, *, height: int | None = None, width: int | None = None, text_tokens: int = 256
    ) -> None:
        self._pipe = pipe
        self.text_parts = tuple(name for name in _TEXT_PARTS if getattr(pipe, name) is not None)
        lacking = [name for name in _TEXT_PARTS[:2] if name not in self.text_parts]
        if lacking:
            raise ConfigError(
                f"{type(pipe).__name__} has no {' and no '.join(lacking)}; only text_encoder_3 (T5) can be absent: "
                "save the pipeline with its CLIP encoders"
            )
        if not 1 <= text_tokens <= _MOST_TOKENS:
            raise ConfigError(f"text_tokens is {text_tokens}; expected 1 to {_MOST_TOKENS}")
        kind = pipe.scheduler.config.get("prediction_type", "flow_prediction")
        if kind != "flow_prediction":
            raise ConfigError(
                f"{type(pipe.scheduler).__name__} has prediction_type {kind!r}; this network predicts a flow: expected "
                "FlowMatchEulerDiscreteScheduler, or a scheduler with flow_prediction and use_flow_sigmas"
            )
        self._tokens = text_tokens
        config, latent = pipe.transformer.config, int(pipe.vae_scale_factor)
        self._patch = int(config.patch_size)
        multiple = latent * self._patch
        own, longest = pipe.default_sample_size * latent, config.pos_embed_max_size * multiple
        self.event_shape = (
            int(config.in_channels),
            in_latents("height", height, own, latent, multiple, longest),
            in_latents("width", width, own, latent, multiple, longest),
        )
        self._unit = float(pipe.scheduler.config.num_train_timesteps)
        self.scaling = Flow(time=flow_clock(self._unit))

    def encode(self, prompt: str, device: torch.device) -> Cond:
        states, _, pooled, _ = self._pipe.encode_prompt(
            prompt, None, None, device, 1, False, max_sequence_length=self._tokens
        )
        return Cond({"text": states, "pooled": pooled})

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model = self._pipe.transformer
        output: Tensor = model(
            hidden_states=z,
            timestep=time,
            encoder_hidden_states=cond.tensors["text"],
            pooled_projections=cond.tensors["pooled"],
            return_dict=False,
        )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        return classifier_free(self.network, empty, guidance)

    def schedule(self, steps: int) -> Any:
        moving = self._pipe.scheduler.config.get("use_dynamic_shifting", False)
        return set_to(self._pipe.scheduler, steps, **({"mu": self._log_shift()} if moving else {}))

    def sigmas(self, steps: int) -> Tensor:
        times = falling(self.schedule(steps).timesteps) / self._unit
        return flow_levels(torch.cat([times, torch.zeros(1, dtype=torch.float64)]))

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        """Times whose logit is normal around that of the scheduler's shift: section 3.1 and the resolution's shift."""
        return logit_normal_sigmas(count, generator, mean=math.log(self._shift()), t_min=t_min, t_max=t_max)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self._pipe.vae
        images: Tensor = vae.decode(
            latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0), return_dict=False
        )[0]
        return images

    def finish(self, clips: Tensor) -> Tensor:
        return clipped(clips)

    def _shift(self) -> float:
        """a of the shifted time a t / (1 + (a - 1) t)."""
        config = self._pipe.scheduler.config
        if config.get("use_dynamic_shifting", False):
            return math.exp(self._log_shift())
        return float(config.get("shift", config.get("flow_shift", 1.0)))

    def _log_shift(self) -> float:
        """The pipeline's `mu`: it grows with the number of patches."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        config, (_, rows, columns) = self._pipe.scheduler.config, self.event_shape
        names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.16}
        settings = [config.get(name, value) for name, value in names.items()]
        return float(calculate_shift((rows // self._patch) * (columns // self._patch), *settings))
