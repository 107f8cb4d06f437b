"""LongCat-AudioDiT (`LongCatAudioDiTPipeline`): a transformer of reversed flow, 24 kHz mono, time the first axis.

Conditions are UMT5 states with their number; guidance's empty condition is as many zeros. The network's time runs from
0 (noise) to 1. Its convolutions over the text take no mask, so that a prompt's result would depend on how far it is
padded, in the pipeline's own call on how long the others are: here padding is held at zero inside them, and every
prompt is what it is alone. Training draws flow times uniformly, as conditional flow matching does.

The pipeline's own call takes each clip's length from its text if none is given; a policy has one length for all.

Source: Xin et al. (2026), arXiv 2603.29339; the pipeline in diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from dragon.diffusion import ReversedFlow, Scaling, uniform_flow_sigmas
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.levels import flow_levels
from dragon.policy.pipeline import Network, classifier_free, fresh

_TEXT_TOKENS = 256


class LongCat:
    """seconds: length of the clips, rounded down to whole latents of .09 s; None: the longest the pipeline makes (30).
    text_tokens: every prompt is padded to so many, and a longer one refused; None: 256, or the tokenizer's limit.
    """

    name, part = "longcat", "transformer"
    text_parts = ("text_encoder",)
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.ff.0", "ffn.ff.3")
    loudness = "as decoded, not clipped"

    def __init__(self, pipe: Any, *, seconds: float | None = None, text_tokens: int | None = None) -> None:
        self._pipe = pipe
        self.rate: int | None = int(pipe.sample_rate)
        frame, longest = pipe.vae_scale_factor / self.rate, float(pipe.max_wav_duration)
        length = longest if seconds is None else float(seconds)
        if not frame <= length <= longest:
            raise ConfigError(f"seconds is {seconds}; expected {frame:g} (one latent) to {longest:g}")
        self._limit = _token_limit(pipe.tokenizer)
        self._tokens = min(_TEXT_TOKENS, self._limit) if text_tokens is None else text_tokens
        if not 1 <= self._tokens <= self._limit:
            raise ConfigError(f"text_tokens is {text_tokens}; expected 1 to {self._limit}, the tokenizer's limit")
        self.event_shape = (max(int(length * self.rate // pipe.vae_scale_factor), 1), int(pipe.latent_dim))
        self._last_time = int(pipe.scheduler.config.num_train_timesteps)
        self.scaling: Scaling = ReversedFlow(time=self._time)
        self._padding: Tensor | None = None
        for block in pipe.transformer.text_conv_layer if pipe.transformer.text_conv else ():
            block.register_forward_pre_hook(self._without_padding)
            block.grn.register_forward_pre_hook(self._without_padding)  # a norm over all tokens

    def encode(self, prompt: str, device: torch.device) -> Cond:
        from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import _normalize_text

        text = _normalize_text(prompt)
        count = len(self._pipe.tokenizer(text).input_ids)
        if count > self._tokens:
            raise ConfigError(
                f"prompt {prompt!r} has {count} tokens and text_tokens is {self._tokens}; raise text_tokens (at most "
                f"{self._limit}) or shorten the prompt"
            )
        states, length = self._pipe.encode_prompt(text, device)
        return Cond({"text": nn.functional.pad(states, (0, 0, 0, self._tokens - states.shape[1])), "length": length})

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model, text = self._pipe.transformer, cond.tensors["text"]
        present = torch.arange(text.shape[1], device=text.device) < cond.tensors["length"][:, None]
        self._padding = ~present[:, :, None]
        try:
            output: Tensor = model(
                z,
                text,
                present,
                time / self._last_time,
                latent_cond=torch.zeros_like(z),  # an example to continue; none
                return_dict=False,
            )[0]
        finally:
            self._padding = None
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        nothing = Cond(dict(cond.tensors) | {"text": torch.zeros_like(cond.tensors["text"])})
        return classifier_free(self.network, nothing, guidance)

    def schedule(self, steps: int) -> Any:
        scheduler = fresh(self._pipe.scheduler)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
        return scheduler

    def sigmas(self, steps: int) -> Tensor:
        return flow_levels(1 - self.schedule(steps).sigmas)

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        return uniform_flow_sigmas(count, generator, t_min, t_max)

    def decode(self, latents: Tensor) -> Tensor:
        clips: Tensor = self._pipe.vae.decode(latents.permute(0, 2, 1)).sample
        return clips

    def finish(self, clips: Tensor) -> Tensor:
        return clips

    def _time(self, sigma: Tensor) -> Tensor:
        return self._last_time / (1 + sigma)

    def _without_padding(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._padding is None:  # the pipeline's own call
            return inputs
        return (inputs[0].masked_fill(self._padding, 0.0),)


def _token_limit(tokenizer: Any) -> int:
    """What the pipeline's own call cuts prompts to."""
    limit = getattr(tokenizer, "model_max_length", 512)
    return limit if isinstance(limit, int) and 0 < limit <= 32768 else 512
