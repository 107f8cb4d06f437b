"""Times of pipelines' schedulers as noise levels of x = x0 + sigma * noise, and the densities training draws from.

Knows tables of times, no pipelines: `DiscreteTimes` for networks trained on a table of steps, `flow_levels` for flows.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from dragon.diffusion import flow_sigma

LAST_TIME = 0.999
"""Flows start at t = 1, where sigma is infinite; solvers in sigma start here."""


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

    def time(self, sigma: Tensor) -> Tensor:
        """Noise levels -> steps, with fractions, held inside the table."""
        known = self.table.to(sigma.device).log()
        wanted = sigma.double().log()
        above = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        low, high = known[above - 1], known[above]
        step = above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
        return step.to(torch.promote_types(sigma.dtype, torch.float32))

    def levels(self, timesteps: Tensor) -> Tensor:
        """(n,) falling steps -> (n + 1,) noise levels ending in 0."""
        steps = timesteps.double().cpu().clamp(0, len(self.table) - 1)
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
