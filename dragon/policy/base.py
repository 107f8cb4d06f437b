"""A diffusion model as a policy: sampling, noising, prediction, and the frozen start beside the trained weights.

Everything here is common to all models. What differs is a `Backbone`: how prompts become conditions, noise becomes
latents and latents become clips, which denoiser and which noise levels belong to it. What is trained is a `Tuning`.
A new model is a backbone of some forty lines; `DiffusionPolicy(backbone, tuning)` then satisfies
`dragon.protocols.Policy`. For diffusers' pipelines there is one backbone already (`dragon.policy.pipeline`).
Noise levels are in the coordinates x = x0 + sigma * noise for every parameterisation (`dragon.diffusion`).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from dragon.diffusion import Denoise, Denoiser, SeededNoise, dpmpp_2m, euler, heun, last
from dragon.diffusion.scaling import per_row
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.media import Cond, Generation, Media
from dragon.policy.tuning import Tuning, swapped
from dragon.protocols import Noising, Precision

Sampler = Literal["euler", "heun", "dpmpp_2m"]
_SAMPLERS = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REMEMBERED = 2 * 1024**3  # bytes


class Backbone(Protocol):
    """What one model brings."""

    @property
    def name(self) -> str: ...

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """d: shape of one latent."""
        ...

    @property
    def rate(self) -> int | None:
        """Samples a second (Hz) of audio; None for other media."""
        ...

    @property
    def device(self) -> torch.device: ...

    def encode_prompts(self, prompts: Sequence[str]) -> list[Cond]:
        """Condition of each prompt, one row, whatever the others are; No gradient."""
        ...

    def rollout(self, cond: Cond, empty: Cond, seeds: Sequence[int], *, steps: int, guidance: float) -> Tensor:
        """(b, *d) one clean sample a row of `cond`, guided away from `empty`, the encoded negative prompt; see
        `solve`. Called without gradient."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(b, c, ...) float32 clips of (b, *d) latents. Called without gradient."""
        ...

    def draw_sigmas(self, count: int, generator: Generator) -> Tensor:
        """(count,) noise levels of training, on the CPU."""
        ...


def check_sampling(steps: int, guidance: float) -> None:
    """Raises ConfigError where no sample can be drawn so."""
    if steps < 1 or not guidance >= 0:
        raise ConfigError(f"steps is {steps} and guidance {guidance}; expected steps >= 1 and guidance >= 0")


class DiffusionPolicy:
    """A `Policy` made of a backbone and a tuning of its denoiser.

    precision: "bfloat16" and "float16" run the network under autocast, in roll-outs and in `predict`; trained weights,
    latents, predictions, losses and the optimiser's state stay float32. With float16 the learner scales the loss. On a
    CPU without instructions for them both are slower than float32, and a warning says so.
    negative: the prompt that guidance leads away from; "" is the empty one.
    """

    def __init__(
        self, backbone: Backbone, tuning: Tuning, *, precision: Precision = "float32", negative: str = ""
    ) -> None:
        if precision not in DTYPES:
            raise ConfigError(f"precision is {precision!r}; expected one of {list(DTYPES)}")
        if backbone.device.type == "cpu" and not fast_on_this_cpu(precision):
            warnings.warn(
                f"precision is {precision}, for which this CPU has no instructions: the network runs about ten times "
                "slower than in float32; set precision to float32 on this machine",
                stacklevel=3,
            )
        self._backbone, self._tuning = backbone, tuning
        self.precision: Precision = precision
        self._negative = negative
        self._encoded: OrderedDict[str, Cond] = OrderedDict()

    @property
    def name(self) -> str:
        return self._backbone.name

    @property
    def event_shape(self) -> tuple[int, ...]:
        """d: shape of one latent."""
        return self._backbone.event_shape

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditions of `prompts`; row i belongs to prompt i.

        Each prompt is encoded by itself: a resumed run, whose memory is empty, then gets the same bits. The prompts
        used last are remembered on the CPU, in 2 GB.
        """
        if not prompts:
            raise ShapeError("no prompts to encode; expected at least one")
        return self._together(prompts, self._each(prompts))

    def _each(self, prompts: Sequence[str]) -> dict[str, Cond]:
        """One row a different prompt, on the CPU."""
        rows = {prompt: self._encoded[prompt] for prompt in prompts if prompt in self._encoded}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]
        if new:
            for prompt, cond in zip(new, self._backbone.encode_prompts(new), strict=True):
                self._encoded[prompt] = rows[prompt] = cond.to(torch.device("cpu"))
        for prompt in rows:
            self._encoded.move_to_end(prompt)
        size = next(iter(rows.values())).nbytes  # all prompts' shapes are one
        while len(self._encoded) * size > _REMEMBERED:
            self._encoded.popitem(last=False)
        return rows

    def _together(self, prompts: Sequence[str], rows: Mapping[str, Cond]) -> Cond:
        """Sent to the device once, however often a prompt occurs."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        unique = Cond.cat([rows[prompt] for prompt in places]).to(self._backbone.device)
        return unique.rows([places[prompt] for prompt in prompts])

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float) -> Generation:
        """One sample a prompt; the same prompt, seed and weights give the same sample in any batch.

        Raises:
            ShapeError: not one seed a prompt. ConfigError: steps below 1 or guidance below 0.
            NotFinite: a latent is NaN or infinite; names its prompt and seed.
        """
        if len(prompts) != len(seeds):
            raise ShapeError(f"{len(seeds)} seeds for {len(prompts)} prompts; expected one a prompt")
        check_sampling(steps, guidance)
        rows = self._each([*prompts, self._negative])  # in one call: text encoders come to the device once
        cond = self._together(prompts, rows)
        empty = self._together([self._negative], rows).repeated(len(prompts))
        with self._autocast():
            latents = self._backbone.rollout(cond, empty, seeds, steps=steps, guidance=guidance).float()
        broken = (~latents.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if broken:
            row = broken[0]
            raise NotFinite(
                f"policy {self.name!r} sampled a NaN or infinity for prompt {prompts[row]!r}, seed {seeds[row]} "
                f"({len(broken)} of {len(prompts)} samples); lower learning_rate, or resume from an earlier checkpoint"
            )
        return Generation(latents, cond, tuple(prompts), tuple(int(seed) for seed in seeds))

    @torch.no_grad()
    def decode(self, generation: Generation) -> Media:
        """Latents -> clips, without the prompt file's columns."""
        clips = self._backbone.decode_latents(generation.latents.to(self._backbone.device))
        return Media(clips.float(), generation.prompts, self._backbone.rate)

    def draw_noising(self, latents: Tensor, generator: Generator) -> Noising:
        """Noise levels from the backbone's training density, one a row, and unit noise; drawn on the CPU."""
        sigma = self._backbone.draw_sigmas(latents.shape[0], generator)
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32)
        return Noising(sigma.to(latents.device, torch.float32), noise.to(latents.device))

    def predict(self, latents: Tensor, noising: Noising, cond: Cond) -> Tensor:
        """(b, *d) the network's raw output for x = latents + sigma * noise; gradient reaches `trainable()`."""
        x = latents + per_row(noising.sigma, latents) * noising.noise
        with self._autocast():
            prediction = self._backbone.denoiser.raw(x, noising.sigma, cond)
        return prediction.float()

    def _autocast(self) -> torch.autocast:
        low = self.precision != "float32"
        dtype = DTYPES[self.precision] if low else None
        return torch.autocast(self._backbone.device.type, dtype=dtype, enabled=low)

    def target(self, latents: Tensor, noising: Noising) -> Tensor:
        """(b, *d) what `predict` was trained to equal."""
        return self._backbone.denoiser.scaling.target(latents, noising.sigma, noising.noise)

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the policy is the frozen starting model."""
        return self._tuning.reference()

    def weights(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside it the trainable parameters have these values; restored on leaving. Do not train inside."""
        return swapped(self._tuning.trainable(), values)

    def trainable(self) -> dict[str, Parameter]:
        """The parameters that training changes, by name."""
        return self._tuning.trainable()

    def shard(self) -> None:
        """Shards the denoiser over all processes (`dragon.sharding`); `trainable()` is new afterwards."""
        self._tuning.shard()

    def stored(self) -> dict[str, Tensor]:
        """What `save` would write, whole and on the CPU; with sharded weights a call of all, for the first alone."""
        return self._tuning.stored()

    def write(self, stored: Mapping[str, Tensor], folder: str) -> None:
        """Writes what `stored` gave, without other processes; the files are those of `save`."""
        self._tuning.write(stored, folder)

    def save(self, folder: str) -> None:
        """Writes what was trained: an adapter in PEFT's format, or full weights with their config."""
        self._tuning.save(folder)

    def load(self, folder: str) -> None:
        """Reads what `save` wrote."""
        self._tuning.load(folder)


def fast_on_this_cpu(precision: Precision) -> bool:
    """Whether the CPU computes in that format at least about as fast as in float32; True where torch cannot tell.

    Without oneDNN's kernels torch falls back to loops: linear layers of bfloat16 took 5 times as long as of float32 on
    an EPYC with AVX2 alone, convolutions 100 times.
    """
    query = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}.get(precision)
    if query is None or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, query):
        return True
    return bool(getattr(torch.ops.mkldnn, query)())


def check_sampler(name: str, *others: str) -> None:
    """Raises ConfigError unless `solve` knows the sampler, or it is one of `others`."""
    if name not in _SAMPLERS and name not in others:
        raise ConfigError(f"sampler is {name!r}; expected one of {[*others, *_SAMPLERS]}")


def solve(
    sampler: Sampler,
    denoise: Denoise,
    cond: Cond,
    seeds: Sequence[int],
    sigmas: Tensor,
    event_shape: Sequence[int],
    device: torch.device,
) -> Tensor:
    """(b, *d) clean samples: the noise of each seed, solved along `sigmas` (steps + 1,), the last of which is 0."""
    noise = SeededNoise(seeds).draw(event_shape).to(device, torch.float32)
    return last(_SAMPLERS[sampler](denoise, float(sigmas[0]) * noise, sigmas, cond))


def torch_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: no such device on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r} and {torch.cuda.device_count()} CUDA devices are visible; use cpu")
    return device
