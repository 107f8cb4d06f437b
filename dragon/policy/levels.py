"""Times of pipelines' schedulers as noise levels of x = x0 + sigma * noise, and the densities training draws from.

Knows times and schedulers, no pipelines: `DiscreteTimes` for networks trained on a table of steps, `flow_levels` for
flows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion import Clean, Epsilon, Scaling, VPrediction, flow_sigma, flow_time
from dragon.errors import ConfigError

LAST_TIME = 0.999
"""Flows start at t = 1, where sigma is infinite; solvers in sigma start here."""


def falling(times: Tensor) -> Tensor:
    """(n,) times as float64 on the CPU, each once: schedulers of higher order name some twice, which no solver can."""
    return times.double().cpu().unique().flip(0)


def draw_of(levels: Tensor, count: int, generator: Generator) -> Tensor:
    """(count,) of the (n,) `levels`, each as likely as another; float32 on the CPU."""
    return levels.float().cpu()[torch.randint(len(levels), (count,), generator=generator)]


def flow_clock(unit: float) -> Callable[[Tensor], Tensor]:
    """Noise levels -> times of a flow that ends, at noise, at `unit`."""
    return functools.partial(_flow_clock, unit)


def _flow_clock(unit: float, sigma: Tensor) -> Tensor:
    return unit * flow_time(sigma)


def flow_levels(times: Tensor) -> Tensor:
    """(n,) falling flow times, the last one 0 -> finite noise levels, which fall too.

    t = 1 becomes `LAST_TIME`, or where the next time lies above it (many steps, a strong shift) the middle of both.
    """
    times = times.double().cpu()
    if times[0] >= 1:
        times = torch.cat([torch.clamp((1 + times[1:2]) / 2, min=LAST_TIME), times[1:]])
    return flow_sigma(times).float()


def cosine_draws(count: int, generator: Generator, t_min: float, t_max: float, sigma_max: float) -> Tensor:
    """(count,) levels of times uniform in [t_min, t_max) of the cosine process, sigma = tan(pi t / 2) <= sigma_max."""
    t = t_min + (t_max - t_min) * torch.rand(count, generator=generator, dtype=torch.float64)
    return (t * (math.pi / 2)).tan().clamp(1e-4, sigma_max).float()


class DiscreteTimes:
    """The table of a network trained on steps 0 ... n - 1 of a variance-preserving process.

    alphas_cumprod: (n,) falling shares of signal power, as diffusers' schedulers hold them. Between two steps log sigma
    is linear in the step; on a step `time` and `levels` are exact. A last step without signal becomes a finite level,
    at least twice the one before it.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        power = alphas_cumprod.double().cpu()
        # some schedulers write 2^-24 for 0, which lies above its neighbours; no `if`, where memory is only estimated
        last, before = power[-1:], power[-2:-1]
        low = torch.where((last <= 0) | (last >= before), (before / 4).clamp(max=2.0**-24), last)
        power = torch.cat([power[:-1], low])
        self.table = ((1 - power) / power).sqrt()
        self._logs = {self.table.device: self.table.log()}

    def time(self, sigma: Tensor) -> Tensor:
        """Noise levels -> steps, with fractions, held inside the table."""
        known = self._log_on(sigma.device)
        wanted = sigma.double().log()
        above = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        low, high = known[above - 1], known[above]
        step = above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
        return step.to(torch.promote_types(sigma.dtype, torch.float32))

    def levels(self, timesteps: Tensor) -> Tensor:
        """(n,) steps, `falling` -> (n + 1,) noise levels ending in 0; fewer where steps are named twice."""
        steps = falling(timesteps).clamp(0, len(self.table) - 1)
        low = steps.floor().long()
        high = (low + 1).clamp(max=len(self.table) - 1)
        logs = torch.lerp(self.table[low].log(), self.table[high].log(), steps - low)
        return torch.cat([logs.exp(), torch.zeros(1, dtype=torch.float64)]).float()

    def draw(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        """(count,) levels of steps uniform among those of [t_min, t_max) as a share of the table."""
        # 0.07 * 100 is a little above 7, and 0.29 * 100 a little below 29
        first, end = (math.ceil(t * len(self.table) - 1e-9) for t in (t_min, t_max))
        end = max(end, 1)
        steps = torch.randint(min(first, end - 1), end, (count,), generator=generator)
        return self.table[steps].float()

    def _log_on(self, device: torch.device) -> Tensor:
        """log of the table; copied once, since a copy to a GPU waits for it."""
        if device not in self._logs:
            self._logs[device] = self._logs[self.table.device].to(device)
        return self._logs[device]


def trained_on_table(
    scheduler: Any, allowed: tuple[str, ...] = ("epsilon", "v_prediction")
) -> tuple[Scaling, DiscreteTimes]:
    """What a network predicts and the table it was trained on, of its scheduler. allowed: values of prediction_type.

    Raises:
        ConfigError: another prediction, no table, or noise predicted where there is no signal.
    """
    kind, power = scheduler.config.get("prediction_type", "epsilon"), getattr(scheduler, "alphas_cumprod", None)
    if kind not in allowed or power is None:
        raise ConfigError(
            f"the scheduler, a {type(scheduler).__name__}, has prediction_type {kind!r} and "
            f"{'no table' if power is None else 'a table'} of steps (alphas_cumprod); expected one with a table, and "
            f"one of {list(allowed)}"
        )
    if kind == "epsilon" and scheduler.config.get("rescale_betas_zero_snr", False):
        raise ConfigError(
            "the scheduler has rescale_betas_zero_snr and prediction_type 'epsilon': from noise alone, predicted noise "
            "tells nothing of the sample; expected v_prediction, or rescale_betas_zero_snr false"
        )
    times = DiscreteTimes(power)
    return _PREDICTIONS[kind](time=times.time), times


_PREDICTIONS: dict[str, type[Epsilon | VPrediction | Clean]] = {
    "epsilon": Epsilon,
    "v_prediction": VPrediction,
    "sample": Clean,
}
