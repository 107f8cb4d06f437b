"""MusicLDM and AudioLDM (`MusicLDMPipeline`, `AudioLDMPipeline`): a 2D network of noise prediction over mel latents.

The prompt is one vector of CLAP, of length 1, which the network is given as a class. Latents are those of a
mel-spectrogram (`dragon.policy.mel`); clips are 16 kHz mono.

MusicLDM's own call, asked for several clips of a prompt, sorts them by their CLAP score; here every sample stays at
its seed's place. The text is encoded here, because newer transformers give MusicLDM's own encoding an object that it
cannot read.

Source: Chen et al. (2023), arXiv 2308.01546; Liu et al. (2023), arXiv 2301.12503; the pipelines in diffusers.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.media import Cond
from dragon.policy.levels import trained_on_table
from dragon.policy.mel import MelClips
from dragon.policy.pipeline import Network, classifier_free, set_to


class MusicLDM:
    """seconds: length of the clips; None: the length that the network was trained on (10.24 s of MusicLDM's)."""

    part = "unet"
    text_parts = ("text_encoder",)
    # the prompt enters by the time embedding's projections alone
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj")
    loudness = "as decoded, in [-1, 1] by the vocoder"

    def __init__(self, pipe: Any, *, seconds: float | None = None) -> None:
        self.name = type(pipe).__name__.removesuffix("Pipeline").lower()
        self._pipe = pipe
        self.scaling, self._times = trained_on_table(pipe.scheduler, ("epsilon",))
        self._clips = MelClips(pipe, seconds)
        self.rate: int | None = self._clips.rate
        self.event_shape = self._clips.event_shape

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
        return set_to(self._pipe.scheduler, steps)

    def sigmas(self, steps: int) -> Tensor:
        return self._times.levels(self.schedule(steps).timesteps)

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        return self._times.draw(count, generator, t_min, t_max)

    def decode(self, latents: Tensor) -> Tensor:
        return self._clips.decode(latents)

    def finish(self, clips: Tensor) -> Tensor:
        return clips
