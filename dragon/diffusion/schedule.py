"""Noise schedules: the levels sigma that a sampler visits, as plain tensors.

Knows nothing of samplers and networks. Every schedule returns (steps + 1,) float32, strictly
descending from the highest level, with exactly 0 at the end. It is computed in float64: schedules are
powers, exponentials and tangents of an even grid, and neighbouring levels must stay distinct.

A schedule only says where to step. It is a choice made at sampling time, free of how the network was
trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dragon.errors import ConfigError


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Even in sigma^(1/rho) from sigma_max to sigma_min: a larger rho spends more steps at low noise.

    Source: Karras et al. (2022), eq. 5.

    >>> karras_sigmas(3, 0.01, 1.0, rho=1.0)
    tensor([1.0000, 0.5050, 0.0100, 0.0000])
    """
    _check_range(steps, sigma_min, sigma_max)
    if not (math.isfinite(rho) and rho > 0):
        raise ConfigError(f"rho is {rho}; expected a positive number (7 in the paper)")
    return _ending_in_zero(_even(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho)


def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even in log sigma: equal ratios of neighbouring levels, the limit of `karras_sigmas` for large rho."""
    _check_range(steps, sigma_min, sigma_max)
    return _ending_in_zero(_even(math.log(sigma_max), math.log(sigma_min), steps).exp())


def cosine_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even in the angle atan(sigma): the cosine schedule alpha = cos, sigma_vp = sin of one angle.

    Source: Nichol & Dhariwal (2021), eq. 17, in the continuous form of Salimans & Ho (2022)
    (the two ends take the place of the offset s).
    """
    _check_range(steps, sigma_min, sigma_max)
    return _ending_in_zero(_even(math.atan(sigma_max), math.atan(sigma_min), steps).tan())


def flow_sigmas(steps: int, shift: float = 1.0, t_max: float = 0.999) -> Tensor:
    """Even in flow time from t_max to 0, then shifted: t -> shift t / (1 + (shift - 1) t).

    In sigma the shift is a factor: every level becomes shift times as high. t_max stays below 1, where
    sigma = t / (1 - t) has its pole.

    Source: Esser et al. (2024), section on resolution-dependent shifting of the schedule.
    """
    _check_steps(steps)
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"shift is {shift}; expected a positive number (1 leaves the times even)")
    if not 0 < t_max < 1:
        raise ConfigError(f"t_max is {t_max}; expected 0 < t_max < 1, for example 0.999 (sigma is infinite at t = 1)")
    return _ending_in_zero(shift * flow_sigma(_even(t_max, 0.0, steps + 1)[:-1]))


def flow_sigma(t: Tensor) -> Tensor:
    """Flow time t in [0, 1) -> sigma: (1 - t) x0 + t noise is (1 - t) times x0 + sigma * noise."""
    return t / (1 - t)


def flow_time(sigma: Tensor) -> Tensor:
    """Noise level sigma -> flow time t in [0, 1), the inverse of `flow_sigma`."""
    return sigma / (1 + sigma)


def _even(start: float, end: float, count: int) -> Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64)


def _ending_in_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)]).to(torch.float32)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps is {steps}; a schedule needs at least 1")


def _check_range(steps: int, sigma_min: float, sigma_max: float) -> None:
    _check_steps(steps)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigError(
            f"sigma_min {sigma_min}, sigma_max {sigma_max}; expected 0 < sigma_min < sigma_max, both finite "
            "(the final 0 is added by the schedule)"
        )
