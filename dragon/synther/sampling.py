"""How rows are drawn: settings, the noise of each row, and the way from noise to a row.

Knows tensors and the diffusion core. Noise is drawn in blocks of 1,024 rows, each from its own seed, so that row i of a
seed is the same however many rows are asked for and whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dragon.diffusion import NoiseSource, SeededNoise, churn, dpmpp_2m, euler, heun, karras_sigmas, last
from dragon.errors import ConfigError

BLOCK = 1024
Denoise = Callable[[Tensor, Tensor, Any], Tensor]
Sampler = Literal["churn", "heun", "dpmpp_2m", "euler"]
NamedSampling = Literal[Sampler, "paper"]
Purpose = Literal["noise", "flags", "levels", "probes"]
_PURPOSES = ("noise", "flags", "levels", "probes")


@dataclass(frozen=True)
class SampleConfig:
    """How rows are drawn.

    sampler: "churn" is stochastic Heun; the others solve without fresh noise. steps: `heun` and `churn` call the
    network 2 steps - 1 times. sigma_min, sigma_max: the levels that fits see; the paper's reach farther on both sides,
    where a network has learnt next to nothing and steps are wasted. clamp: keeps every estimate of a row inside the
    data's bounds on the way. s_churn, s_tmin, s_tmax, s_noise: of `churn`, as in Karras et al. (2022), Algorithm 2.
    batch_size: rows at once, rounded down to whole blocks.
    """

    sampler: Sampler = "churn"
    steps: int = 32
    sigma_min: float = 0.02
    sigma_max: float = 10.0
    rho: float = 7.0
    s_churn: float = 10.0
    s_tmin: float = 0.02
    s_tmax: float = 3.0
    s_noise: float = 1.0
    clamp: bool = True
    batch_size: int = 8 * BLOCK

    def __post_init__(self) -> None:
        if self.sampler not in get_args(Sampler):
            raise ConfigError(
                f"sampler is {self.sampler!r}; expected one of {', '.join(get_args(Sampler))}, or, where settings are "
                "given by name, paper (in Python PAPER_SAMPLING)"
            )
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")


_SAMPLERS = {"heun": heun, "dpmpp_2m": dpmpp_2m, "euler": euler}
SAMPLING = SampleConfig()
PAPER_SAMPLING = SampleConfig(
    steps=128,
    sigma_min=0.002,
    sigma_max=80.0,
    s_churn=80.0,
    s_tmin=0.05,
    s_tmax=50.0,
    s_noise=1.003,
    clamp=False,
)


def sampling_of(name: NamedSampling, **changes: Any) -> SampleConfig:
    """The settings of a sampler's name, or the published ones ("paper"); both with changes."""
    return replace(PAPER_SAMPLING, **changes) if name == "paper" else SampleConfig(name, **changes)


def solve(
    denoise: Denoise,
    noise: NoiseSource,
    d: int,
    sampling: SampleConfig,
    device: torch.device,
    given: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(b, d) rows from noise, as many as it draws.

    given: rows (b, d) and a mask (d,) of their columns that are known; denoise is then one of rows whose known columns
    are estimated as what they are, by a network that is told them. They start at their values and noise and so stay at
    their values and the noise of the level, step for step and after each bit of fresh noise.
    """
    sigmas = karras_sigmas(sampling.steps, sampling.sigma_min, sampling.sigma_max, sampling.rho).to(device)
    x = sigmas[0] * noise.draw((d,)).to(device)
    if given is not None:
        values, known = given[0].to(device), given[1].to(device)
        x = torch.where(known, values + x, x)
    if sampling.sampler == "churn":
        steps = churn(
            denoise,
            x,
            sigmas,
            noise_source=noise,
            s_churn=sampling.s_churn,
            s_tmin=sampling.s_tmin,
            s_tmax=sampling.s_tmax,
            s_noise=sampling.s_noise,
        )
        return last(steps)
    return last(_SAMPLERS[sampling.sampler](denoise, x, sigmas))


class BlockNoise:
    """Unit noise of rows start ... start + count - 1 of a seed; start is a multiple of `BLOCK`."""

    def __init__(self, seed: int, start: int, count: int, purpose: Purpose = "noise") -> None:
        first, end = start // BLOCK, -(-(start + count) // BLOCK)
        self._count = count
        self._blocks = SeededNoise([block_seed(seed, block, purpose) for block in range(first, end)])

    def draw(self, event_shape: Sequence[int]) -> Tensor:
        """(count, *event_shape) float32 on the CPU, new at each call."""
        return self._blocks.draw((BLOCK, *event_shape)).flatten(0, 1)[: self._count]


def block_seed(seed: int, block: int, purpose: Purpose) -> int:
    """The seed of a block, another one for each purpose.

    Raises:
        ConfigError: seed below 0.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected 0 or above")
    words = np.random.SeedSequence([seed, block, _PURPOSES.index(purpose)]).generate_state(2, np.uint32)
    return int(words[0]) << 31 ^ int(words[1])


def batches(n: int, batch_size: int) -> list[tuple[int, int]]:
    """(first row, rows) of batches of whole blocks."""
    size = max(BLOCK, batch_size // BLOCK * BLOCK)
    return [(start, min(size, n - start)) for start in range(0, n, size)]
