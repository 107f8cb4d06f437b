"""LongCat-AudioDiT (`LongCatAudioDiTPipeline`): a transformer of reversed flow, 24 kHz mono, time the first axis.

Conditions are UMT5 states with their number; guidance's empty condition is as many zeros. The network's time runs from
0 (noise) to 1. Its convolutions over the text take no mask, so that a prompt's result would depend on how far it is
padded, in the pipeline's own call on how long the others are: here padding is held at zero inside them, and every
prompt is what it is alone. Training draws flow times uniformly, as conditional flow matching does.

The pipeline's own call takes each clip's length from its text if none is given; a policy has one length for all.

Source: Xin et al. (2026), arXiv 2603.29339; the pipeline in diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dragon.diffusion import ReversedFlow, Scaling, uniform_flow_sigmas
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.clips import in_seconds
from dragon.policy.levels import flow_levels
from dragon.policy.pipeline import Network, classifier_free, set_to

_TEXT_TOKENS = 256


class LongCat:
    """seconds: length of the clips, rounded down to whole latents of .09 s; None: the longest the pipeline makes (30).
    text_tokens: every prompt is padded to so many, and a longer one refused; None: 256, or the tokenizer's limit.
    """

    name, part = "longcat", "transformer"
    text_parts = ("text_encoder",)
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.ff.0", "ffn.ff.3")
    zeroed = ("text",)
    loudness = "as decoded, not clipped"

    def __init__(self, pipe: Any, *, seconds: float | None = None, text_tokens: int | None = None) -> None:
        self._pipe = pipe
        self.rate: int | None = int(pipe.sample_rate)
        frame, longest = pipe.vae_scale_factor / self.rate, float(pipe.max_wav_duration)
        length = in_seconds(seconds, longest, frame, longest)
        self._limit = _token_limit(pipe.tokenizer)
        self._tokens = min(_TEXT_TOKENS, self._limit) if text_tokens is None else text_tokens
        if not 1 <= self._tokens <= self._limit:
            raise ConfigError(f"text_tokens is {text_tokens}; expected 1 to {self._limit}, the tokenizer's limit")
        self.event_shape = (max(int(length * self.rate // pipe.vae_scale_factor), 1), int(pipe.latent_dim))
        self._last_time = int(pipe.scheduler.config.num_train_timesteps)
        self.scaling: Scaling = ReversedFlow(time=self._time)
        self._padding = _Padding.of(pipe.transformer)

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
        with self._padding.masked(~present[:, :, None]):
            output: Tensor = model(
                z,
                text,
                present,
                time / self._last_time,
                latent_cond=torch.zeros_like(z),  # an example to continue; none
                return_dict=False,
            )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        return classifier_free(self.network, empty, guidance)

    def schedule(self, steps: int) -> Any:
        return set_to(self._pipe.scheduler, sigmas=torch.linspace(1, 1 / steps, steps).tolist())

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


class _Padding:
    """Holds padding at zero in the convolutions over the text, by hooks that do nothing in the pipeline's own call."""

    @classmethod
    def of(cls, model: Any) -> _Padding:
        """The network's own: a second policy of a pipeline adds no hooks."""
        if not hasattr(model, "_dragon_padding"):
            model._dragon_padding = cls(model)
        found: _Padding = model._dragon_padding
        return found

    def __init__(self, model: Any) -> None:
        self._where: Tensor | None = None
        for block in model.text_conv_layer if model.text_conv else ():
            block.register_forward_pre_hook(self._emptied)
            block.grn.register_forward_pre_hook(self._emptied)  # a norm over all tokens

    @contextmanager
    def masked(self, where: Tensor) -> Iterator[None]:
        """Inside it the tokens at `where` (b, l, 1) are padding."""
        self._where = where
        try:
            yield
        finally:
            self._where = None

    def _emptied(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs if self._where is None else (inputs[0].masked_fill(self._where, 0.0),)


def _token_limit(tokenizer: Any) -> int:
    """What the pipeline's own call cuts prompts to."""
    limit = getattr(tokenizer, "model_max_length", 512)
    return limit if isinstance(limit, int) and 0 < limit <= 32768 else 512
