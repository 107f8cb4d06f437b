"""How likely given rows are under a denoiser: by the probability-flow equation, and by denoising errors.

Knows a `denoise(x, sigma, cond)` and rows; not what the columns mean. Densities are those of x; nats.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dragon.diffusion import exponential_sigmas
from dragon.errors import ConfigError
from dragon.synther.sampling import Denoise

LEVELS = (0.002, 80.0)


def log_density(
    denoise: Denoise,
    x: Tensor,
    cond: Any = None,
    *,
    probes: Tensor | None = None,
    steps: int = 64,
    sigma_min: float = LEVELS[0],
    sigma_max: float = LEVELS[1],
    sigma_data: float = 1.0,
) -> Tensor:
    """(b,) float64 log density of rows x (b, d), as the denoiser's probability flow has it.

    log p(x) = log N(x_T; 0, sigma_max^2 + sigma_data^2) + integral of (d - tr J) d log sigma along the flow, J the
    Jacobian of the denoised row. The flow by Runge-Kutta of order 4 in sigma; the integral by the trapezoid rule at
    levels even in log sigma, where its integrand is flat at both ends and the rule hence far better than second order.

    probes: (k, b, d) of mean 0 and covariance 1 (signs): estimates the trace by k products with J, unbiased
    (Hutchinson); None: exact, by d products. Calls: steps times (3 + products).

    Source: Song et al. (2021), score-based SDE, eq. 39; Grathwohl et al. (2019), FFJORD, for the estimate.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; expected at least 1")
    levels: list[float] = exponential_sigmas(steps + 1, sigma_min, sigma_max)[:-1].flip(0).tolist()
    step = math.log(levels[-1] / levels[0]) / steps
    x, total = x.float(), torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def slope(at: Tensor, sigma: float) -> Tensor:
        return (at - denoise(at, at.new_full((len(at),), sigma), cond)) / sigma

    for index, sigma in enumerate(levels):
        weight = step / 2 if index in (0, steps) else step
        total += weight * (x.shape[1] - _trace(denoise, x, sigma, cond, probes).double())
        if index == steps:
            break
        after = levels[index + 1]
        h, middle = after - sigma, (after + sigma) / 2
        k1 = slope(x, sigma)
        k2 = slope(x + h / 2 * k1, middle)
        k3 = slope(x + h / 2 * k2, middle)
        k4 = slope(x + h * k3, after)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    variance = levels[-1] ** 2 + sigma_data**2
    return total - 0.5 * (x.double().square().sum(1) / variance + x.shape[1] * math.log(2 * math.pi * variance))


def denoising_density(denoise: Denoise, x: Tensor, noises: Tensor, sigmas: Tensor, cond: Any = None) -> Tensor:
    """(b,) float64 estimate of the log density of rows x (b, d) from denoising errors alone.

    log p(x) = -d/2 log(2 pi e) + 1/2 integral of (d / (1 + s) - E |x - denoised|^2) ds, s = 1 / sigma^2: exact for the
    true denoiser, in the mean over noise. Errors are read at `sigmas` (k,), even in log sigma, with `noises` (k, b, d).
    Rows that see the same noise can be compared more closely than their densities are known. Calls: k.

    Source: Kong et al. (2023), Information-Theoretic Diffusion.
    """
    d = x.shape[1]
    step = abs(math.log(float(sigmas[0]) / float(sigmas[-1]))) / max(1, len(sigmas) - 1)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for sigma, noise in zip(sigmas.tolist(), noises, strict=True):
        denoised = denoise(x + sigma * noise, x.new_full((len(x),), sigma), cond)
        error = (x - denoised).double().square().sum(1)
        total += step * (d / (sigma**2 + 1) - error / sigma**2)
    return total - d / 2 * math.log(2 * math.pi * math.e)


def _trace(denoise: Denoise, x: Tensor, sigma: float, cond: Any, probes: Tensor | None) -> Tensor:
    """(b,) trace of the Jacobian of each denoised row, or its estimate."""
    levels = x.new_full((len(x),), sigma)

    def product(direction: Tensor) -> Tensor:
        along: Tensor = torch.func.jvp(lambda at: denoise(at, levels, cond), (x,), (direction.expand_as(x),))[1]
        return (along * direction).sum(1)

    if probes is not None:
        return torch.stack([product(probe) for probe in probes]).mean(0)
    found: Tensor = torch.func.vmap(product, chunk_size=16)(torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
    return found.sum(0)
