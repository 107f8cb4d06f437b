"""Gains: how much likelier the policy makes a sample than the reference does, and how beta is set from them.

Knows predictions and targets in the model's own parameterisation. The denoising error of a row at a shared
noise level bounds its negative log-likelihood, so the difference of two errors stands for a log-likelihood
ratio (Wallace et al. 2023, Diffusion-DPO, eq. 14). Errors are MEANS over event dimensions, which is why
beta is not portable between models: it is calibrated once, then frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.protocols import Side


def squared_error(target: Tensor, prediction: Tensor) -> Tensor:
    """(b,) mean over event dimensions of |target - prediction|^2; at least float32.

    Raises:
        ShapeError: the shapes differ (they are never broadcast) or have no event dimension.
    """
    if target.shape != prediction.shape or target.ndim < 2:
        raise ShapeError(
            f"target of shape {tuple(target.shape)}, prediction of shape {tuple(prediction.shape)}; "
            "expected two equal shapes (b, *d)"
        )
    return (_wide(target) - _wide(prediction)).square().flatten(1).mean(1)


def gain(side: Side) -> Tensor:
    """(b,) error of the reference (detached) minus the policy's; positive: likelier than under the reference."""
    return squared_error(side.target, side.reference.detach()) - squared_error(side.target, side.policy)


def winner_term(winner: Side, weight: float) -> Tensor | float:
    """(b,) weight times the plain denoising error of a pair's winner; 0 for weight 0.

    It keeps the likelihoods of both sides from falling together. TangoFlux (arXiv 2412.21037).
    """
    return weight * squared_error(winner.target, winner.policy) if weight else 0.0


def zero_point(gains: Tensor) -> Tensor:
    """KTO's z0 = max(0, mean gain) of the whole batch (both sides), without gradient; a scalar.

    Source: Li et al. (2024), Diffusion-KTO (its estimate of the KL term). Over the GLOBAL batch, so that
    accumulation does not change it.
    """
    return gains.detach().mean().clamp(min=0)


def calibrated_beta(gains: Tensor, target: float = 1.0) -> float:
    """beta for which the median of |beta * gain| is `target`.

    gains: any shape, those of the first updates (at the very first step every gain is 0).

    Raises:
        NotFinite: a gain is NaN or infinite.
        ConfigError: there are no gains, or their median is 0 (the policy still equals the reference).
    """
    values = gains.detach().to(torch.float64).flatten().abs()
    if not values.isfinite().all():
        raise NotFinite("a gain is NaN or infinite, so beta cannot be calibrated; lower learning_rate or beta")
    median = float(values.quantile(0.5)) if values.numel() else 0.0
    if median == 0.0:
        raise ConfigError(
            f"median |gain| of {values.numel()} gains is 0: the policy still equals its reference; expected some "
            "updates before beta is calibrated: raise beta_calibration_updates, or set it to 0 to keep beta as stated"
        )
    return target / median


def checked_beta(beta: float) -> None:
    """Raises ConfigError unless beta is a positive finite number."""
    if not 0 < beta < float("inf"):
        raise ConfigError(f"beta is {beta}; expected a positive finite number (5000 is the published start)")


def checked_weight(name: str, value: float) -> None:
    """Raises ConfigError unless the weight of a loss term is finite and at least 0."""
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} is {value}; expected a finite number, at least 0 (0 switches the term off)")


def no_beta(name: str) -> ConfigError:
    """The error of an objective that is asked for another beta and has none."""
    return ConfigError(f"objective {name!r} has no beta; set beta_calibration_updates to 0 or use dpo or kto")


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
