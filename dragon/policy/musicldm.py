"""MusicLDM and AudioLDM (`MusicLDMPipeline`, `AudioLDMPipeline`): a 2D network of noise prediction over mel latents.

The prompt is one vector of CLAP, of length 1, which the network is given as a class. Latents are those of a
mel-spectrogram, (channels, time, mel bands); time is the first of the two axes. Decoding is a VAE and a vocoder, 16 kHz
mono. Both pipelines denoise only as many frames as `seconds` needs.

MusicLDM's own call, asked for several clips of a prompt, sorts them by their CLAP score; here every sample stays at
its seed's place. The text is encoded here, because newer transformers give MusicLDM's own encoding an object that it
cannot read.

Source: Chen et al. (2023), arXiv 2308.01546; Liu et al. (2023), arXiv 2301.12503; the pipelines in diffusers.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion import Epsilon
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.levels import DiscreteTimes
from dragon.policy.pipeline import Network, classifier_free, fresh


class MusicLDM:
    """seconds: length of the clips; None: the length that the network was trained on (10.24 s of MusicLDM's)."""

    part = "unet"
    text_parts = ("text_encoder",)
    # the prompt enters by the time embedding's projections alone
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj")
    loudness = "as decoded, in [-1, 1] by the vocoder"

    def __init__(self, pipe: Any, *, seconds: float | None = None) -> None:
        self.name = type(pipe).__name__.removesuffix("Pipeline").lower()
        kind = pipe.scheduler.config.get("prediction_type")
        if kind != "epsilon":
            raise ConfigError(f"prediction_type of the scheduler is {kind!r}; {self.name} expects 'epsilon'")
        self._pipe = pipe
        self._times = DiscreteTimes(pipe.scheduler.alphas_cumprod)
        self.scaling = Epsilon(time=self._times.time)
        vocoder, factor = pipe.vocoder.config, int(pipe.vae_scale_factor)
        self.rate: int | None = int(vocoder.sampling_rate)
        frame = math.prod(vocoder.upsample_rates) / vocoder.sampling_rate
        shortest = frame * factor
        if seconds is not None and not (shortest <= seconds < math.inf):
            raise ConfigError(f"seconds is {seconds}; expected a number from {shortest:g} (one latent) on")
        length = pipe.unet.config.sample_size * factor * frame if seconds is None else seconds
        self._samples = int(length * vocoder.sampling_rate)
        self.event_shape = (
            int(pipe.unet.config.in_channels),
            math.ceil(int(length / frame) / factor),
            int(vocoder.model_in_dim) // factor,
        )

    def encode(self, prompt: str, device: torch.device) -> Cond:
        tokenizer, model = self._pipe.tokenizer, self._pipe.text_encoder
        limit = tokenizer.model_max_length
        tokens = tokenizer(prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        whole = len(tokenizer(prompt).input_ids)
        if whole > limit:
            warnings.warn(
                f"prompt of {whole} tokens cut to the {limit} that the text encoder of {self.name} reads: {prompt!r}",
                stacklevel=2,
            )
        states = model.text_model(tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device))
        vector = torch.nn.functional.normalize(model.text_projection(states.pooler_output), dim=-1)
        return Cond({"text": vector})

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model = self._pipe.unet
        output: Tensor = model(
            z,
            time,
            encoder_hidden_states=None,
            class_labels=cond.tensors["text"],
            return_dict=False,
        )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        return classifier_free(self.network, empty, guidance)

    def schedule(self, steps: int) -> Any:
        scheduler = fresh(self._pipe.scheduler)
        scheduler.set_timesteps(steps)
        return scheduler

    def sigmas(self, steps: int) -> Tensor:
        # sorted and without repetitions: PNDM visits a step twice
        return self._times.levels(self.schedule(steps).timesteps.unique().flip(0))

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        return self._times.draw(count, generator, t_min, t_max)

    def decode(self, latents: Tensor) -> Tensor:
        mel = self._pipe.vae.decode(latents / self._pipe.vae.config.scaling_factor).sample
        clips: Tensor = self._pipe.vocoder(mel[:, 0])
        return clips[:, None, : self._samples]

    def finish(self, clips: Tensor) -> Tensor:
        return clips
