"""Stable Audio 3 (`StableAudio3Pipeline`): a transformer of flow velocity, 44.1 kHz stereo, clips of any length.

Conditions are T5Gemma states padded to a fixed length, with a token of the duration behind them; the duration also
modulates every block. The network replaces padding by a vector of its own and attends to it, so the mask belongs to
the condition. The length of the latents follows `seconds`.

The distilled checkpoints are those whose scheduler is stochastic: it jumps to the clean sample and adds fresh noise,
8 times. They know guidance 1 and the sampler's times only; the base checkpoints are the ones to tune at random times.
Training draws flow times uniformly.

Source: Evans et al. (2026), arXiv 2605.17991; the pipeline in diffusers.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion import Flow, uniform_flow_sigmas
from dragon.faults import TrainsBadly
from dragon.media import Cond
from dragon.policy.clips import in_seconds
from dragon.policy.levels import flow_clock, flow_levels
from dragon.policy.pipeline import Network, classifier_free, set_to


class StableAudio3:
    """seconds: length of the clips, which the network is told; None: that of the pipeline's own call (10)."""

    name, part = "stable_audio_3", "transformer"
    text_parts = ("text_encoder", "duration_embedder")
    targets = ("to_qkv", "to_q", "to_kv", "to_out", "ff.proj_in", "ff.proj_out")
    loudness = "clamped to [-1, 1]"

    def __init__(self, pipe: Any, *, seconds: float | None = None) -> None:
        self._pipe = pipe
        self._own = {key: p.default for key, p in inspect.signature(type(pipe).__call__).parameters.items()}
        self._warned: set[str] = set()
        self.rate: int | None = int(pipe.vae.config.sampling_rate)
        longest = float(pipe.duration_embedder.config.max_val)
        self._seconds = in_seconds(seconds, float(self._own["duration"]), 1 / self.rate, longest)
        frames = math.ceil(self._seconds * self.rate / pipe.vae.downsampling_ratio)
        self.event_shape = (int(pipe.vae.config.latent_dim), frames)
        self.scaling = Flow(time=flow_clock(float(pipe.scheduler.config.num_train_timesteps)))

    def encode(self, prompt: str, device: torch.device) -> Cond:
        text, mask = self._pipe.encode_prompt(prompt, device, 1)
        seconds = self._pipe.encode_duration(self._seconds, device, 1, 1)
        text, mask = self._pipe.prepare_cross_attention(text, mask, seconds)
        return Cond({"text": text, "mask": mask, "seconds": seconds})

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model, tensors = self._pipe.transformer, cond.tensors
        output: Tensor = model(
            z,
            time,
            encoder_hidden_states=tensors["text"],
            global_hidden_states=tensors["seconds"],
            encoder_attention_mask=tensors["mask"],
            return_dict=False,
        )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        if self._distilled and guidance != 1:
            self._warn_once(
                f"guidance is {guidance} with a distilled checkpoint (its scheduler samples stochastically), which has "
                "guidance in its weights; use guidance 1, or the base checkpoint"
            )
        return classifier_free(self.network, empty, guidance)

    def schedule(self, steps: int) -> Any:
        from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import logsnr_sigma_schedule

        times = logsnr_sigma_schedule(steps, self._own["logsnr_min"], self._own["logsnr_max"])
        return set_to(self._pipe.scheduler, sigmas=times)

    def sigmas(self, steps: int) -> Tensor:
        return flow_levels(self.schedule(steps).sigmas)

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        if self._distilled:
            self._warn_once(
                "training a distilled checkpoint (its scheduler samples stochastically) at random times makes it need "
                "many steps again; set sampler_times to its number of steps (8), or tune the base checkpoint"
            )
        return uniform_flow_sigmas(count, generator, t_min, t_max)

    def decode(self, latents: Tensor) -> Tensor:
        clips: Tensor = self._pipe.vae.decode(latents).sample
        return clips[:, :, : int(self._seconds * self._pipe.vae.config.sampling_rate)]

    def finish(self, clips: Tensor) -> Tensor:
        return clips.clamp(-1, 1)

    @property
    def _distilled(self) -> bool:
        return bool(self._pipe.scheduler.config.stochastic_sampling)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, TrainsBadly, stacklevel=3)
