"""Stable Diffusion 1 and 2 (`StableDiffusionPipeline`): a U-Net of epsilon- or v-prediction on a table of 1,000 steps.

What the U-Net predicts and its table are those of the checkpoint's scheduler, so that one with zero terminal SNR is
trained at its own levels. The checker that blackens images is neither loaded nor run: a reward must see what the model
made.

Source: Rombach et al. (2022), arXiv 2112.10752; the pipeline in diffusers. Zero terminal SNR and the rescaled guidance:
Lin et al. (2024), arXiv 2305.08891.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion import Both
from dragon.diffusion.scaling import per_row
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.images import CLIPPED, clipped, in_latents
from dragon.policy.levels import trained_on_table
from dragon.policy.pipeline import Network, classifier_free, set_to


class StableDiffusion:
    """height, width: of the images in pixels, multiples of 8; None: those the U-Net was trained on. guidance_rescale:
    share by which guided predictions get the spread of unguided ones back, which models of zero terminal SNR want (0.7
    in the paper); 0 as in the pipeline.
    """

    name, part = "stable_diffusion", "unet"
    text_parts = ("text_encoder",)
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    unused = ("safety_checker", "feature_extractor", "image_encoder")
    loudness = CLIPPED
    rate: int | None = None

    def __init__(
        self, pipe: Any, *, height: int | None = None, width: int | None = None, guidance_rescale: float = 0.0
    ) -> None:
        if not 0 <= guidance_rescale <= 1:
            raise ConfigError(f"guidance_rescale is {guidance_rescale}; expected 0 to 1")
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise ConfigError(
                "this U-Net is told the guidance scale in place of being guided (a latent consistency model), which "
                "this family cannot train; use the model it was distilled from"
            )
        self._pipe, self._rescale = pipe, guidance_rescale
        own = pipe.unet.config.sample_size
        rows, columns = (own, own) if isinstance(own, int) else own
        latent = int(pipe.vae_scale_factor)
        self.event_shape = (
            int(pipe.unet.config.in_channels),
            in_latents("height", height, rows * latent, latent, math.lcm(8, latent)),
            in_latents("width", width, columns * latent, latent, math.lcm(8, latent)),
        )
        self.scaling, self._times = trained_on_table(pipe.scheduler, ("epsilon", "v_prediction", "sample"))

    def encode(self, prompt: str, device: torch.device) -> Cond:
        text, _ = self._pipe.encode_prompt(prompt, device, 1, False)
        return Cond({"text": text})

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        model = self._pipe.unet
        output: Tensor = model(
            z,
            time,
            encoder_hidden_states=cond.tensors["text"],
            return_dict=False,
        )[0]
        return output

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        if guidance > 1 and self._rescale:
            return _rescaled(self.network, empty, guidance, self._rescale)
        return classifier_free(self.network, empty, guidance)

    def schedule(self, steps: int) -> Any:
        return set_to(self._pipe.scheduler, steps)

    def sigmas(self, steps: int) -> Tensor:
        return self._times.levels(self.schedule(steps).timesteps)

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        return self._times.draw(count, generator, t_min, t_max)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self._pipe.vae
        images: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return images

    def finish(self, clips: Tensor) -> Tensor:
        return clipped(clips)


def _rescaled(network: Network, empty: Cond, guidance: float, share: float) -> Network:
    """Classifier-free guidance whose output has, by `share`, the spread of the unguided one: Lin, section 3.4."""

    both = Both(network, empty, Cond.cat)

    def guided(z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        with_cond, without = both(z, time, cond)
        output = without + guidance * (with_cond - without)
        ratio = with_cond.flatten(1).std(1) / output.flatten(1).std(1)
        return output * per_row(share * ratio + (1 - share), output)

    return guided
