"""A fitted model of reinforcement-learning transitions as a policy: the trainer of audio models tunes it as it is.

A sample is one transition. Its clip is the row of its numbers in data units, (b, 1, w) of `Layout.table`, which the
encoder "transitions" turns into features and `media_of` makes of any transitions. A prompt says what the row is
conditioned on; the rest of its text only tells prompts apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor

from dragon.diffusion import Denoiser, Guided, SeededNoise, lognormal_sigmas
from dragon.errors import ConfigError, ShapeError
from dragon.media import Cond, Generation, Media
from dragon.policy.base import DiffusionPolicy
from dragon.policy.tuning import FullTuning
from dragon.synther import SampleConfig, Transitions, Upsampler
from dragon.synther.columns import Layout
from dragon.synther.sampling import NamedSampling, sampling_of, solve


class TransitionPolicy(DiffusionPolicy):
    """An `Upsampler`, of which all weights are trained.

    folder: where one was saved (`model/` of a run of `dragon upsample`), or one in memory, whose network is taken over.
    sampler: of roll-outs, by name, see `SampleConfig`; "paper" is churn at the published levels. clamp: keeps estimates
    inside the data's bounds.
    sigma_mean, sigma_std: of the logarithm of the noise levels that training draws; None: those of the fit.

    Prompts are words. `terminals=1` (any flag that is a condition, by its name) and `score=2.5` (in the data's unit)
    fix what the row is conditioned on. Flags that a prompt leaves open are those of a row of the data, chosen by the
    prompt's text: over many prompts they are as frequent as in the data. A prompt without a score has none, and
    guidance leads away from that.

    Raises:
        ConfigError: no such model or device, LoRA, or an unknown sampler; in `encode`, words like name=value that the
            model is not conditioned on.
    """

    def __init__(
        self,
        folder: str | Upsampler,
        *,
        tuning: Literal["lora", "full"] = "full",
        sampler: NamedSampling = "churn",
        clamp: bool = True,
        sigma_mean: float | None = None,
        sigma_std: float | None = None,
        device: str = "cpu",
    ) -> None:
        if tuning != "full":
            raise ConfigError(f"tuning.kind is {tuning!r}; a model of transitions is small: expected 'full'")
        self.upsampler = Upsampler.load(folder, device) if isinstance(folder, str) else folder
        backbone = _Rows(self.upsampler, sampling_of(sampler, clamp=clamp), sigma_mean, sigma_std)
        super().__init__(backbone, FullTuning(self.upsampler.net, config=""))

    def decode(self, generation: Generation) -> Media:
        """(b, 1, w) rows in data units: inside their bounds, whole numbers whole, flags 0 or 1."""
        layout = self.upsampler.layout
        made = layout.decode(generation.latents, generation.cond.tensors["row"][:, : layout.c])
        return replace(media_of(made, layout), prompts=generation.prompts)

    def write(self, stored: Mapping[str, Tensor], folder: str) -> None:
        """Writes the model as `Upsampler.save` does: `Upsampler.load(folder)` and `dragon upsample` read it."""
        self.upsampler.save(folder, net=stored)

    def save(self, folder: str) -> None:
        """The same, of the weights as they are."""
        self.write(self.stored(), folder)

    def load(self, folder: str) -> None:
        """Takes over the weights of a model of the same network and columns.

        Raises:
            ConfigError: no model there, or another one.
        """
        found = Upsampler.load(folder)
        ours = self.upsampler
        if found.layout.to_json() != ours.layout.to_json() or found.net.settings != ours.net.settings:
            raise ConfigError(
                f"the model in {folder} has other columns or another network than the policy's; build the policy of "
                "the model that it was tuned from"
            )
        ours.net.load_state_dict(found.net.state_dict())


def media_of(transitions: Transitions, layout: Layout) -> Media:
    """Transitions as clips, one a row."""
    table = torch.from_numpy(layout.table(transitions)).float()
    return Media(table[:, None], ("",) * len(transitions))


def transitions_of(media: Media, layout: Layout) -> Transitions:
    """The transitions that are such clips.

    Raises:
        ShapeError: clips of another width.
    """
    if media.tensor.ndim != 3 or media.tensor.shape[1:] != (1, len(layout.names)):
        raise ShapeError(
            f"clips of shape {tuple(media.tensor.shape)}; expected (b, 1, {len(layout.names)}), rows of transitions"
        )
    return layout.of_table(media.tensor[:, 0].double().cpu().numpy())


class _Rows:
    name = "transitions"
    rate: int | None = None

    def __init__(
        self,
        model: Upsampler,
        sampling: SampleConfig,
        sigma_mean: float | None,
        sigma_std: float | None,
    ) -> None:
        self._model, self._sampling = model, sampling
        self._mean = model.config.sigma_mean if sigma_mean is None else sigma_mean
        self._std = model.config.sigma_std if sigma_std is None else sigma_std
        if not self._std > 0:
            raise ConfigError(f"sigma_std is {self._std}; expected more than 0")
        self.event_shape = (model.layout.d,)
        self.denoiser = Denoiser(self._raw, model.denoiser.scaling)

    @property
    def device(self) -> torch.device:
        return self._model.device

    def encode_prompts(self, prompts: Sequence[str]) -> list[Cond]:
        return [self._encoded(prompt) for prompt in prompts]

    def _encoded(self, prompt: str) -> Cond:
        flags, score = self._asked(prompt)
        return Cond({"row": self._model.condition(flags[None], None if score is None else torch.tensor([score]))})

    def _asked(self, prompt: str) -> tuple[Tensor, float | None]:
        """(c,) flags and the standardised score that a prompt asks for."""
        layout, unit = self._model.layout, self._model.score_unit
        names = [f"{name}.{i}" if (name, 1) in layout.conditions else name for name, i in layout.conditions]
        digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
        flags = self._model.flag_rows[int.from_bytes(digest, "big") % len(self._model.flag_rows)].clone()
        score: float | None = None
        for word in prompt.split():
            key, given, value = word.partition("=")
            if not given:
                continue
            if key == "score" and unit is not None and _is_number(value):
                score = (float(value) - unit[0]) / unit[1]
            elif key in names and value in ("0", "1"):
                flags[names.index(key)] = float(value)
            else:
                known = [f"{name}=0, {name}=1" for name in names] + (["score=NUMBER"] if unit is not None else [])
                raise ConfigError(
                    f"prompt {prompt!r} asks for {word!r}, which the model is not conditioned on; expected "
                    f"{' or '.join(known) or 'words without ='}"
                )
        return flags, score

    def decode_latents(self, latents: Tensor) -> Tensor:
        raise AssertionError("rows are decoded with their flags, by the policy")

    def rollout(self, cond: Cond, empty: Cond, seeds: Sequence[int], *, steps: int, guidance: float) -> Tensor:
        layout, sampling = self._model.layout, replace(self._sampling, steps=steps)
        unscored = cond.tensors["row"].clone()
        unscored[:, layout.c :] = 0.0  # the same flags, no score
        guided = Guided(self.denoiser, Cond({"row": unscored}), guidance, cat=Cond.cat)

        def clean(x: Tensor, sigma: Tensor, _: object) -> Tensor:
            found = guided(x, sigma, cond)
            return layout.clamp(found) if sampling.clamp else found

        return solve(clean, SeededNoise(seeds), layout.d, sampling, self.device)

    def draw_sigmas(self, count: int, generator: Generator) -> Tensor:
        return lognormal_sigmas(count, generator, self._mean, self._std)

    def _raw(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        raw: Tensor = self._model.net(x, time, cond.tensors["row"])
        return raw


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False
