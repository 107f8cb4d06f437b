"""A 2-D policy whose starting model is exact: a Gaussian mixture for each prompt, denoised in closed form.

For fast tests and for looking at what an objective does; knows no audio. The expected clean point of a Gaussian
mixture at any noise level is known, so the base model has no training error; a small residual network, 0 at
the start, is what training changes, so policy and reference are equal to the bit before the first step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from dragon.diffusion import Denoiser, Flow, Guided, flow_sigmas, logit_normal_sigmas
from dragon.errors import ConfigError
from dragon.media import Cond
from dragon.policy.base import DiffusionPolicy, Sampler, check_sampler, solve, torch_device
from dragon.policy.tuning import FullTuning, freeze

# prompt -> Gaussians (x, y, standard deviation, weight); nearly all mass lies in [-1, 1] x [-1, 1]
DEFAULT_COMPONENTS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "left": ((-0.5, 0.3, 0.15, 1.0), (-0.5, -0.3, 0.15, 1.0)),
    "right": ((0.5, 0.3, 0.15, 1.0), (0.5, -0.3, 0.15, 1.0)),
    "up": ((-0.3, 0.5, 0.15, 1.0), (0.3, 0.5, 0.15, 2.0)),
    "down": ((-0.3, -0.5, 0.15, 2.0), (0.3, -0.5, 0.15, 1.0)),
}


class ToyPolicy(DiffusionPolicy):
    """Points in the plane, conditional on a prompt; `decode` gives Media of shape (b, 2, 1) without a rate.

    seed: of the residual network's hidden layers. components: for each prompt its Gaussians as rows
    (x, y, standard deviation, weight); weights need not sum to 1. The empty prompt is the mixture of all prompts.
    Flow parameterisation; t_min, t_max: range of the flow times that training draws.

    Raises:
        ConfigError: malformed components; in `encode` and `generate`, a prompt that has none.
    """

    def __init__(
        self,
        seed: int = 0,
        components: Mapping[str, Sequence[Sequence[float]]] | None = None,
        *,
        hidden: int = 32,
        sampler: Sampler = "euler",
        t_min: float = 0.0,
        t_max: float = 1.0,
        device: str = "cpu",
    ) -> None:
        check_sampler(sampler)
        logit_normal_sigmas(
            0, Generator(), t_min=t_min, t_max=t_max
        )  # refuses a wrong range now, not at the first step
        backbone = _ToyBackbone(
            components or DEFAULT_COMPONENTS, hidden, seed, sampler, (t_min, t_max), device=torch_device(device)
        )
        config = json.dumps({"policy": "toy", "seed": seed, "hidden": hidden, "prompts": list(backbone.prompts)})
        super().__init__(backbone, FullTuning(backbone.residual, config=config))
        self.prompts: tuple[str, ...] = backbone.prompts
        self._exact = backbone.exact

    def moments(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Mean (2,) and covariance (2, 2) of the starting model's distribution, exactly, float64."""
        return self._exact.moments(self.encode([prompt]).tensors["weights"][0])


class ExactMixture(nn.Module):
    """Closed-form flow velocity of a mixture of isotropic Gaussians: `forward(z, t, cond)`, z = (1 - t) x0 + t noise.

    With x = z / (1 - t) = x0 + sigma noise and s_c the components' standard deviations: component c is answerable
    with r_c proportional to w_c N(x; mean_c, s_c^2 + sigma^2), and
    E[noise | x] = sum_c r_c sigma (x - mean_c) / v_c, E[x0 | x] = sum_c r_c (mean_c + s_c^2 (x - mean_c) / v_c),
    v_c = s_c^2 + sigma^2. Float64 inside: x grows like 1 / (1 - t).
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.means: Tensor
        self.sds: Tensor
        self.register_buffer("means", rows[:, :2].to(torch.float64))
        self.register_buffer("sds", rows[:, 2].to(torch.float64))

    def forward(self, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """(b, 2) noise minus clean point, both expected; cond.tensors["weights"] (b, n) weighs the components."""
        x, sigma = z.double() / (1 - t.double())[:, None], (t.double() / (1 - t.double()))[:, None]
        variance = self.sds**2 + sigma**2  # (b, n)
        away = x[:, None] - self.means  # (b, n, 2)
        logits = cond.tensors["weights"].log() - away.square().sum(2) / (2 * variance) - variance.log()
        share = logits.softmax(1)  # (b, n)
        noise = ((share * sigma / variance)[..., None] * away).sum(1)
        clean = self.means + (self.sds**2 / variance)[..., None] * away  # (b, n, 2), each component's own
        clean = (share[..., None] * clean).sum(1)
        return (noise - clean).to(z.dtype)

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the mixture with these component weights (n,)."""
        weights = weights.double()
        mean = weights @ self.means
        away = self.means - mean
        spread = (weights * self.sds**2).sum() * torch.eye(2, dtype=torch.float64, device=mean.device)
        return mean, away.T @ (weights[:, None] * away) + spread


class _Residual(nn.Module):
    """A small network of (z, t, component weights), exactly 0 until it is trained."""

    def __init__(self, components: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 1 + components, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
        )
        output = self.layers[-1]
        assert isinstance(output, nn.Linear)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)

    def forward(self, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        weights = cond.tensors["weights"].to(z.dtype)
        return self.layers(torch.cat([z, t[:, None].to(z.dtype), weights], 1))


class _Sum(nn.Module):
    def __init__(self, exact: ExactMixture, residual: _Residual) -> None:
        super().__init__()
        self.exact, self.residual = exact, residual

    def forward(self, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.exact(z, t, cond) + self.residual(z, t, cond)


class _ToyBackbone:
    name = "toy"
    event_shape = (2,)
    rate: int | None = None

    def __init__(
        self,
        components: Mapping[str, Sequence[Sequence[float]]],
        hidden: int,
        seed: int,
        sampler: Sampler,
        t_range: tuple[float, float],
        device: torch.device,
    ) -> None:
        rows, owners = _checked(components)
        self.prompts = tuple(components)
        self.device = device
        self._sampler, self._t_range = sampler, t_range
        self._weights = {prompt: rows[:, 3] * (owners == i) for i, prompt in enumerate(components)}
        self._weights = {prompt: w / w.sum() for prompt, w in self._weights.items()}
        self._weights.setdefault("", torch.stack(list(self._weights.values())).mean(0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.residual = _Residual(len(rows), hidden).to(device)
        self.exact = ExactMixture(rows).to(device)
        freeze(self.exact)
        self.denoiser = Denoiser(_Sum(self.exact, self.residual), Flow())

    def encode_prompts(self, prompts: Sequence[str]) -> list[Cond]:
        return [self._encoded(prompt) for prompt in prompts]

    def _encoded(self, prompt: str) -> Cond:
        if prompt not in self._weights:
            raise ConfigError(f"prompt {prompt!r} is unknown to the toy policy; expected one of {list(self.prompts)}")
        return Cond({"weights": self._weights[prompt][None].to(self.device)})

    def decode_latents(self, latents: Tensor) -> Tensor:
        return latents[..., None]

    def rollout(self, cond: Cond, empty: Cond, seeds: Sequence[int], *, steps: int, guidance: float) -> Tensor:
        guided = Guided(self.denoiser, empty, guidance, cat=Cond.cat)
        return solve(self._sampler, guided, cond, seeds, flow_sigmas(steps), self.event_shape, self.device)

    def draw_sigmas(self, count: int, generator: Generator) -> Tensor:
        return logit_normal_sigmas(count, generator, t_min=self._t_range[0], t_max=self._t_range[1])


def _checked(components: Mapping[str, Sequence[Sequence[float]]]) -> tuple[Tensor, Tensor]:
    """Rows (n, 4) float64 of all prompts' Gaussians, and the number of each row's prompt."""
    rows = [tuple(float(v) for v in row) for group in components.values() for row in group]
    good = all(components.values()) and all(len(row) == 4 and row[2] > 0 and row[3] > 0 for row in rows)
    if not rows or not good or not all(torch.tensor(row).isfinite().all() for row in rows):
        raise ConfigError(
            f"components are {dict(components)!r}; expected for each prompt rows (x, y, standard deviation > 0, "
            "weight > 0)"
        )
    owners = [i for i, group in enumerate(components.values()) for _ in group]
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(owners)
