"""The built-in text-to-music model as a policy: any `MiniPipeline` folder, sampled and tuned.

Knows the pipeline's parts and their shapes; sampling, LoRA and the reference are `dragon.policy.base` and
`dragon.policy.tuning`, shared with every other pipeline.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from dragon.diffusion import Denoiser, Flow, Guided, flow_sigmas, logit_normal_sigmas
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.base import DiffusionPolicy, Sampler, check_sampler, solve, torch_device
from dragon.policy.tuning import FullTuning, LoraTuning, Tuning, freeze
from dragon.protocols import Precision

if TYPE_CHECKING:
    from dragon.mini import MiniPipeline

# Attention (own and to the words) and feed-forward of every block; not the modulation, which starts at 0.
LORA_TARGETS = ("to_qkv", "to_out", "cross_q", "cross_kv", "cross_out", "ff_in", "ff_out")


class MiniPolicy(DiffusionPolicy):
    """A `MiniPipeline` with LoRA on its denoiser, or with all of the denoiser's weights trained.

    folder: of a saved pipeline; None: the one shipped with the package; a loaded pipeline is taken over (moved to
    the device in float32, its denoiser changed). tuning, rank, alpha, targets, adapter_seed: see `LoraTuning`
    (empty targets: the list above) and `FullTuning`. sampler: of roll-outs; shift: of their flow times.
    precision: see `DiffusionPolicy`. gradient_checkpointing: the backward pass computes each block's activations again
    in place of keeping them: a fraction of the memory for more time, the same gradients. t_min, t_max: range of the
    flow times that training draws, inside the density it was pre-trained with; the default is where a contrast
    teaches most (docs/noise_levels.md).

    Raises:
        ConfigError: an unknown tuning, device, sampler or target, or an empty range of times.
    """

    def __init__(
        self,
        folder: str | MiniPipeline | None = None,
        *,
        tuning: Literal["lora", "full"] = "lora",
        rank: int = 16,
        alpha: float = 16.0,
        targets: tuple[str, ...] = (),
        adapter_seed: int = 0,
        sampler: Sampler = "euler",
        precision: Precision = "float32",
        gradient_checkpointing: bool = False,
        shift: float = 1.0,
        t_min: float = 0.9,
        t_max: float = 1.0,
        device: str = "cpu",
    ) -> None:
        from dragon.mini import load_pipeline

        if tuning not in ("lora", "full"):
            raise ConfigError(f"tuning is {tuning!r}; expected 'lora' or 'full'")
        check_sampler(sampler)
        flow_sigmas(1, shift)  # refuse wrong numbers now, not at the first step
        logit_normal_sigmas(1, Generator(), t_min=t_min, t_max=t_max)
        pipeline = load_pipeline(folder) if folder is None or isinstance(folder, str) else folder
        backbone = _MiniBackbone(pipeline, torch_device(device), sampler, shift, (t_min, t_max))
        model = pipeline.denoiser
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()
        part: Tuning
        if tuning == "lora":
            part = LoraTuning(model, rank=rank, alpha=alpha, targets=targets or LORA_TARGETS, seed=adapter_seed)
        else:
            part = FullTuning(model, config=model.to_json_string())
        super().__init__(backbone, part, precision=precision)


class _MiniBackbone:
    name = "mini"

    def __init__(
        self,
        pipeline: MiniPipeline,
        device: torch.device,
        sampler: Sampler,
        shift: float,
        t_range: tuple[float, float],
    ) -> None:
        pipeline.to(device)
        for part in (pipeline.text_encoder, pipeline.denoiser, pipeline.codec):
            freeze(part.float())
        self._pipeline, self._sampler, self._shift, self._t_range = pipeline, sampler, shift, t_range
        self.device = device
        self.rate: int | None = pipeline.codec.rate
        self.denoiser = Denoiser(self._velocity, Flow())

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self._pipeline.latent_shape()

    def encode_prompts(self, prompts: Sequence[str]) -> list[Cond]:
        return [self._encoded(prompt) for prompt in prompts]

    def _encoded(self, prompt: str) -> Cond:
        unknown = self._pipeline.unknown_words(prompt)
        if unknown:
            warnings.warn(
                f"the model does not know {', '.join(map(repr, unknown))} in prompt {prompt!r}; such words change "
                "nothing (its words are listed in dragon/mini/weights/vocabulary.txt)",
                stacklevel=2,
            )
        text, mask = self._pipeline.encode_prompt([prompt])
        return Cond({"text": text, "mask": mask})

    def decode_latents(self, latents: Tensor) -> Tensor:
        clips: Tensor = self._pipeline.codec.decode(latents)
        return clips.float().clamp(-1, 1)[:, None]

    def rollout(self, cond: Cond, empty: Cond, seeds: Sequence[int], *, steps: int, guidance: float) -> Tensor:
        guided = Guided(self.denoiser, empty, guidance, cat=Cond.cat)
        sigmas = flow_sigmas(steps, self._shift)
        return solve(self._sampler, guided, cond, seeds, sigmas, self.event_shape, self.device)

    def draw_sigmas(self, count: int, generator: Generator) -> Tensor:
        return logit_normal_sigmas(count, generator, t_min=self._t_range[0], t_max=self._t_range[1])

    def _velocity(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        velocity: Tensor = self._pipeline.denoiser(x, time, cond.tensors["text"], cond.tensors["mask"])
        return velocity
