"""Stable Audio Open (`StableAudioPipeline`): a transformer of v-prediction, 44.1 kHz stereo.

Conditions are T5 states and two tokens of start and end second; guidance's empty condition is zero, not an empty
prompt. The network is told the angle of the cosine process, 2 / pi atan(sigma). It denoises the length it was trained
on (1,024 latents, 47.6 s) unless `frames` says less: a shorter clip is the start of a long one.

The pipeline's own scheduler draws its noise from a tree of Brownian motion, one a sample and on the sample's device:
about 9 ms of one CPU core a clip and step, and other samples on a GPU than on a CPU for the same seed. The sampler
dpmpp_2m has neither.

Source: Evans et al. (2024), arXiv 2407.14358; the pipeline in diffusers.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion import VPrediction
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.clips import in_seconds
from dragon.policy.levels import cosine_draws
from dragon.policy.pipeline import Network, classifier_free, set_to


class StableAudio:
    """seconds: length of the clips, which the network is told; None: the longest. frames: latents to denoise, fewer
    than the network was trained on for short clips at less cost; None: as many as it was trained on.
    """

    name, part = "stable_audio", "transformer"
    text_parts = ("text_encoder", "projection_model")
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    zeroed = ("text",)
    loudness = "as decoded, not clipped"
    scaling = VPrediction()

    def __init__(self, pipe: Any, *, seconds: float | None = None, frames: int | None = None) -> None:
        self._pipe = pipe
        trained = int(pipe.transformer.config.sample_size)
        self._frames = trained if frames is None else frames
        self.rate: int | None = int(pipe.vae.config.sampling_rate)
        if not 1 <= self._frames <= trained:
            raise ConfigError(f"frames is {frames}; expected 1 to {trained}, the latents this network was trained on")
        longest = self._frames * pipe.vae.hop_length / self.rate
        self._seconds = in_seconds(seconds, longest, 1 / self.rate, longest, f"the length of {self._frames} latents")
        self.event_shape = (int(pipe.transformer.config.in_channels), self._frames)

    def encode(self, prompt: str, device: torch.device) -> Cond:
        text = self._pipe.encode_prompt(prompt, device, False)
        start, end = self._pipe.encode_duration(0.0, self._seconds, device, False, 1)
        return Cond({"text": torch.cat([text, start, end], 1), "seconds": torch.cat([start, end], 2)})

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model, text, seconds = self._pipe.transformer, cond.tensors["text"], cond.tensors["seconds"]
        output: Tensor = model(
            z,
            time,
            encoder_hidden_states=text,
            global_hidden_states=seconds,
            rotary_embedding=self._rotary(z.shape[2] + seconds.shape[1], z.device),
            return_dict=False,
        )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        return classifier_free(self.network, empty, guidance)

    def schedule(self, steps: int) -> Any:
        scheduler = set_to(self._pipe.scheduler, steps)
        scheduler.step = _without_notice(scheduler.step)
        return scheduler

    def sigmas(self, steps: int) -> Tensor:
        return self.schedule(steps).sigmas.float().cpu()

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        return cosine_draws(count, generator, t_min, t_max, self._pipe.scheduler.config.sigma_max)

    def decode(self, latents: Tensor) -> Tensor:
        clips: Tensor = self._pipe.vae.decode(latents).sample
        return clips[:, :, : int(self._seconds * self._pipe.vae.config.sampling_rate)]

    def finish(self, clips: Tensor) -> Tensor:
        return clips

    @functools.lru_cache(maxsize=4)  # noqa: B019  as long-lived as the policy
    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        cos, sin = get_1d_rotary_pos_embed(
            self._pipe.rotary_embed_dim, length, use_real=True, repeat_interleave_real=False
        )
        return cos.to(device), sin.to(device)


def _without_notice(step: Callable[..., Any]) -> Callable[..., Any]:
    """torchsde remarks on each time a rounding error outside the range, of which the scheduler asks it for some."""

    @functools.wraps(step)
    def quiet(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchsde")
            return step(*args, **kwargs)

    return quiet
