"""The denoising error of each row, and the densities that noise levels are drawn from in training.

Knows a `Denoiser` and a `torch.Generator`. The error is the plain squared error of the network's own
output. For EDM that is the paper's weighted loss (lambda = 1 / c_out^2 cancels), for the others the
usual epsilon, v and velocity losses; `scaling.convert_error` goes from one to another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion.denoiser import Denoiser
from dragon.diffusion.scaling import per_row
from dragon.diffusion.schedule import flow_sigma
from dragon.errors import ConfigError


def denoising_error(denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Any = None) -> Tensor:
    """(b,) mean over event dimensions of |F - target|^2 at x = x0 + sigma * noise.

    x0, noise: (b, *d); sigma: (b,) or (). A row does not depend on the other rows.

    Source: Karras et al. (2022), eq. 8.
    """
    raw = denoiser.raw(x0 + per_row(sigma, x0) * noise, sigma, cond)
    return (raw - denoiser.scaling.target(x0, sigma, noise)).square().flatten(1).mean(1)


def lognormal_sigmas(n: int, generator: Generator, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """(n,) float32 levels with log sigma normal, on the generator's device.

    Source: Karras et al. (2022), Table 1 (P_mean, P_std).
    """
    _check_std(std)
    return (mean + std * _normal(n, generator)).exp().float()


def logit_normal_sigmas(
    n: int, generator: Generator, mean: float = 0.0, std: float = 1.0, t_min: float = 0.0, t_max: float = 1.0
) -> Tensor:
    """(n,) float32 levels of flow times with logit t normal, restricted to t_min < t < t_max.

    logit t is log sigma, so this is `lognormal_sigmas` cut off at both ends; the density inside keeps its shape.

    Source: Esser et al. (2024), section 3.1.
    """
    _check_std(std)
    _check_times(t_min, t_max)
    ends = torch.tensor([t_min, t_max], dtype=torch.float64, device=generator.device).logit()
    low, high = torch.special.ndtr((ends - mean) / std)
    if high - low < 1e-9:
        raise ConfigError(
            f"the logit-normal density (mean {mean}, std {std}) has nothing between t_min {t_min} and t_max {t_max}; "
            "widen the range or move the mean into it"
        )
    # Inverse of the distribution function; kept off 0 and 1, where the normal's inverse is infinite.
    share = (low + (high - low) * _uniform(n, generator)).clamp(_TINY, 1 - _TINY)
    sigma: Tensor = (mean + std * torch.special.ndtri(share)).exp()
    return sigma.float()


def uniform_flow_sigmas(n: int, generator: Generator, t_min: float = 0.0, t_max: float = 1.0) -> Tensor:
    """(n,) float32 levels of flow times uniform in [t_min, t_max)."""
    _check_times(t_min, t_max)
    return flow_sigma(t_min + (t_max - t_min) * _uniform(n, generator)).float()


_TINY = 2.0**-53


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def _check_std(std: float) -> None:
    if not std > 0:
        raise ConfigError(f"std is {std}; expected a positive number")


def _check_times(t_min: float, t_max: float) -> None:
    if not 0 <= t_min < t_max <= 1:
        raise ConfigError(f"t_min {t_min}, t_max {t_max}; expected 0 <= t_min < t_max <= 1")
