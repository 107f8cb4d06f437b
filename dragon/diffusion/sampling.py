"""Samplers: from noise to a clean sample along a schedule, as generators of steps.

Know a `Denoise` and a tensor of levels, nothing of networks, parameterisations or guidance. All solve
the probability-flow equation dx / dsigma = (x - denoise(x, sigma)) / sigma from sigmas[0] down to
sigmas[-1]; `churn` adds fresh noise on the way.

    x = sigmas[0] * noise.draw(shape)
    for step in euler(denoise, x, sigmas, cond):    # look at step.x, step.denoised; stop where you like
        ...
    x0 = last(euler(denoise, x, sigmas, cond))      # or only the end

A sampler sets no gradient mode: call it under `torch.no_grad()` unless gradients are wanted. The state
is float32 at least, whatever x is. One Euler step is written as an interpolation, `denoised.lerp(x,
next / sigma)`: the textbook x + (next - sigma) d subtracts numbers of the size of sigma, which at the
first step of a flow (sigma 999) costs three digits. It ends in `denoised` exactly at next = 0.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dragon.diffusion.denoiser import Denoise
from dragon.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Step:
    """The state after one step.

    index: 0, 1, ... sigma: the noise level reached, sigmas[index + 1]. x: (b, *d) the state at that level.
    denoised: (b, *d) the clean sample expected at the start of the step.
    """

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor


class NoiseSource(Protocol):
    """Where fresh noise comes from."""

    def draw(self, event_shape: Sequence[int]) -> Tensor:
        """(b, *event_shape) unit noise, new at each call."""
        ...


class SeededNoise:
    """Unit noise from one seed a sample, so that a sample depends neither on its batch nor on the device.

    Row i is a function of seeds[i] and of how often `draw` was called. Generators live on the CPU.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        if len(seeds) == 0:
            raise ShapeError("SeededNoise got no seeds; expected one a sample")
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        """One a sample, in whatever state the draws so far have left it."""

    def draw(self, event_shape: Sequence[int]) -> Tensor:
        """(b, *event_shape) float32 on the CPU; move it where it is needed."""
        return torch.stack([torch.randn(tuple(event_shape), generator=g) for g in self.generators])


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Any = None) -> Iterator[Step]:
    """First order, one evaluation a step; equal to DDIM, and to Euler steps in flow time.

    x: (b, *d) at level sigmas[0]. sigmas: (n + 1,) descending.

    Source: Song et al. (2020), DDIM, eq. 13; Karras et al. (2022), Algorithm 1, lines 1-5.
    """
    x, levels = _start(x, sigmas)
    for index, (sigma, sigma_next) in enumerate(levels):
        denoised = denoise(x, _rows(sigma, x), cond)
        x = denoised.lerp(x, sigma_next / sigma)
        yield Step(index, sigma_next, x, denoised)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Any = None) -> Iterator[Step]:
    """Second order, two evaluations a step (one where the step ends at 0).

    Source: Karras et al. (2022), Algorithm 1.
    """
    x, levels = _start(x, sigmas)
    for index, (sigma, sigma_next) in enumerate(levels):
        x, denoised = _heun_step(denoise, x, sigma, sigma_next, cond)
        yield Step(index, sigma_next, x, denoised)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Any = None) -> Iterator[Step]:
    """DPM-Solver++ (2M): second order with one evaluation a step, by extrapolating from the previous one.

    The first step and a step to 0 are of first order: the first has no past, and log sigma ends at 0.

    Source: Lu et al. (2022), DPM-Solver++, Algorithm 2.
    """
    x, levels = _start(x, sigmas)
    previous: Tensor | None = None
    length_before = 0.0
    for index, (sigma, sigma_next) in enumerate(levels):
        denoised = denoise(x, _rows(sigma, x), cond)
        length = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        if previous is None or sigma_next == 0:
            ahead = denoised
        else:
            # the line through the last two estimates, read at the middle of this step in log sigma
            ahead = denoised + length / (2 * length_before) * (denoised - previous)
        x = ahead.lerp(x, sigma_next / sigma)
        previous, length_before = denoised, length
        yield Step(index, sigma_next, x, denoised)


def churn(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Any = None,
    *,
    noise_source: NoiseSource,
    s_churn: float,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun steps, each after a small step back up: fresh noise corrects errors made before.

    s_churn: total amount, spread over the steps; 0 is `heun`. s_tmin, s_tmax: the levels at which noise is added.
    s_noise: standard deviation of the added noise; slightly above 1 makes up for a denoiser that removes too much.

    Source: Karras et al. (2022), Algorithm 2.
    """
    if s_churn < 0 or s_noise < 0:
        raise ConfigError(f"s_churn is {s_churn}, s_noise {s_noise}; expected numbers of at least 0")
    x, levels = _start(x, sigmas)
    for index, (sigma, sigma_next) in enumerate(levels):
        gamma = min(s_churn / len(levels), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        if gamma > 0:
            raised = sigma * (1 + gamma)
            noise = noise_source.draw(x.shape[1:]).to(x)
            if noise.shape != x.shape:
                raise ShapeError(
                    f"the noise source drew shape {tuple(noise.shape)} for x of shape {tuple(x.shape)}; "
                    "give it one seed a sample"
                )
            x = x + math.sqrt(raised**2 - sigma**2) * s_noise * noise
            sigma = raised
        x, denoised = _heun_step(denoise, x, sigma, sigma_next, cond)
        yield Step(index, sigma_next, x, denoised)


def last(steps: Iterable[Step]) -> Tensor:
    """(b, *d) the state after all `steps`."""
    return deque(steps, maxlen=1)[0].x


def _heun_step(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, cond: Any) -> tuple[Tensor, Tensor]:
    """(state at sigma_next, clean sample expected at sigma): an Euler step, then half the change of slope."""
    denoised = denoise(x, _rows(sigma, x), cond)
    ahead = denoised.lerp(x, sigma_next / sigma)
    if sigma_next == 0:
        return ahead, denoised
    slope = (x - denoised) / sigma
    slope_next = (ahead - denoise(ahead, _rows(sigma_next, x), cond)) / sigma_next
    return ahead + (sigma_next - sigma) / 2 * (slope_next - slope), denoised


def _start(x: Tensor, sigmas: Tensor) -> tuple[Tensor, list[tuple[float, float]]]:
    """The state in float32 at least, and the (from, to) pair of levels of each step."""
    if sigmas.ndim != 1 or sigmas.shape[0] < 2:
        raise ShapeError(f"sigmas of shape {tuple(sigmas.shape)}; expected (steps + 1,) with at least one step")
    levels: list[float] = sigmas.tolist()
    descending = all(a > b for a, b in zip(levels, levels[1:], strict=False))
    if not (descending and levels[-1] >= 0 and math.isfinite(levels[0])):
        raise ConfigError(f"sigmas are {levels}; expected finite levels that descend strictly and end at 0 or above")
    return x.to(torch.promote_types(x.dtype, torch.float32)), list(zip(levels, levels[1:], strict=False))


def _rows(sigma: float, x: Tensor) -> Tensor:
    return x.new_full((x.shape[0],), sigma)
