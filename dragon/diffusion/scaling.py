"""Scalings: what a network was trained to predict, and how that becomes a clean sample.

Knows noise levels and tensors, no networks. Karras et al. (2022), eq. 7, written for every
parameterisation, in the coordinates x = x0 + sigma * noise:

    denoised = c_skip(sigma) * x + c_out(sigma) * net(c_in(sigma) * x, c_noise(sigma))

| scaling       | the network predicts F          | c_skip            | c_out              | c_in              |
| ------------- | ------------------------------- | ----------------- | ------------------ | ----------------- |
| `EDM`         | (s x0 / sd - sd noise) / r      | sd^2 / (s^2+sd^2) | s sd / r           | 1 / r             |
| `Epsilon`     | noise                           | 1                 | -s                 | 1 / sqrt(1 + s^2) |
| `VPrediction` | (noise - s x0) / sqrt(1 + s^2)  | 1 / (1 + s^2)     | -s / sqrt(1 + s^2) | 1 / sqrt(1 + s^2) |
| `Flow`        | noise - x0                      | 1 / (1 + s)       | -s / (1 + s)       | 1 / (1 + s)       |
| `ReversedFlow` | x0 - noise                     | 1 / (1 + s)       | s / (1 + s)        | 1 / (1 + s)       |
| `Clean`       | x0                              | 0                 | 1                  | 1 / sqrt(1 + s^2) |

s = sigma, sd = sigma_data, r = sqrt(s^2 + sd^2). A network of a variance-preserving process sees
alpha x with alpha = 1 / sqrt(1 + s^2) and sigma_vp = s alpha; one of a rectified flow sees (1 - t) x
with t = s / (1 + s). Both are c_in, so no other module knows of alpha or t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.diffusion.schedule import flow_time
from dragon.errors import ConfigError, ShapeError


class Scaling(ABC):
    """One parameterisation. The four coefficients are functions of sigma, elementwise.

    Methods that take x take sigma as (b,), one level a row, or (), one for all. Their results have the
    wider of both precisions.
    """

    @abstractmethod
    def c_skip(self, sigma: Tensor) -> Tensor:
        """Share of x that passes by the network."""

    @abstractmethod
    def c_out(self, sigma: Tensor) -> Tensor:
        """Factor of the network's output; 0 only at sigma = 0."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """Factor of the network's input."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is told as the time."""

    @abstractmethod
    def target(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """(b, *d) the F whose denoised sample is x0: (x0 - c_skip x) / c_out, free of the 0 / 0 at sigma = 0."""

    def denoised(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """(b, *d) the clean sample that the network's output `raw` stands for."""
        sigma = per_row(sigma, x)
        return self.c_skip(sigma) * x + self.c_out(sigma) * raw

    def raw(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """(b, *d) the network output that stands for `denoised`; needs sigma > 0 (the inverse of `denoised`)."""
        sigma = per_row(sigma, x)
        return (denoised - self.c_skip(sigma) * x) / self.c_out(sigma)


@dataclass(frozen=True)
class EDM(Scaling):
    """Input and target of unit variance at every sigma, for data of standard deviation `sigma_data`.

    Source: Karras et al. (2022), Table 1, column "Ours"; derived in their appendix B.6.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ConfigError(f"sigma_data is {self.sigma_data}; expected the data's standard deviation, above 0")

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * self.c_in(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """log(sigma) / 4; needs sigma > 0."""
        return sigma.log() / 4

    def target(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        sigma = per_row(sigma, x0)
        return (sigma / self.sigma_data * x0 - self.sigma_data * noise) * self.c_in(sigma)


def cosine_time(sigma: Tensor) -> Tensor:
    """Time in [0, 1) of the cosine process alpha = cos(pi t / 2): t = (2 / pi) atan(sigma)."""
    return sigma.atan() * (2 / math.pi)


@dataclass(frozen=True)
class Epsilon(Scaling):
    """Noise prediction of a variance-preserving process.

    time: sigma -> what the network is told; the default is that of the cosine process, networks trained on
    a table of discrete steps bring their own.

    Source: Ho et al. (2020), eq. 14; as a scaling, Karras et al. (2022), Table 1, column "VP".
    """

    time: Callable[[Tensor], Tensor] = cosine_time

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.time(sigma)

    def target(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise


@dataclass(frozen=True)
class VPrediction(Scaling):
    """v = alpha noise - sigma_vp x0 of a variance-preserving process; `EDM(1.0)` is the same up to the sign of F.

    time: as for `Epsilon`.

    Source: Salimans & Ho (2022), section 4 and appendix D.
    """

    time: Callable[[Tensor], Tensor] = cosine_time

    def c_skip(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma * self.c_in(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.time(sigma)

    def target(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        sigma = per_row(sigma, x0)
        return (noise - sigma * x0) * self.c_in(sigma)


@dataclass(frozen=True)
class Flow(Scaling):
    """Velocity u = noise - x0 of the rectified flow (1 - t) x0 + t noise; the network is told t in [0, 1).

    time: as for `Epsilon`; the default is t.

    Source: Liu et al. (2022), eq. 1; Lipman et al. (2022), their optimal-transport path.
    """

    time: Callable[[Tensor], Tensor] = flow_time

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.c_in(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -flow_time(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.time(sigma)

    def target(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise - x0


def _time_left(sigma: Tensor) -> Tensor:
    """1 - t of the flow, free of cancellation: 1 / (1 + sigma)."""
    return 1 / (1 + sigma)


@dataclass(frozen=True)
class ReversedFlow(Scaling):
    """Velocity x0 - noise of the rectified flow whose time runs the other way: 0 is noise and 1 the clean sample.

    `Flow` up to the sign of F and the time. time: as for `Epsilon`; the default is 1 - t = 1 / (1 + sigma).

    Source: Lipman et al. (2022), section 4, whose time this is.
    """

    time: Callable[[Tensor], Tensor] = _time_left

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.c_in(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return flow_time(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.time(sigma)

    def target(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return x0 - noise


@dataclass(frozen=True)
class Clean(Scaling):
    """Prediction of x0 itself: F is the denoised sample, so its error is the error of the denoised sample.

    time: as for `Epsilon`.
    """

    time: Callable[[Tensor], Tensor] = cosine_time

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.time(sigma)

    def target(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return x0


def convert_error(error: Tensor, sigma: Tensor, source: Scaling, target: Scaling) -> Tensor:
    """(b,) squared errors of F in `source`'s parameterisation -> those of the same samples in `target`'s.

    x is shared, so two denoised samples differ by c_out times the difference of F, whatever c_skip is:
    the squared errors relate by the ratio of c_out^2. Every conversion known from the papers is a case,
    with D, E, V, U the errors of x0, epsilon, v and flow velocity: D = s^2 E = s^2/(1+s^2) V = t^2 U.

    Needs sigma > 0.
    """
    return error * (source.c_out(sigma) / target.c_out(sigma)) ** 2


def per_row(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma (b,) or () shaped to multiply x (b, *d) row by row, in the wider of both precisions."""
    if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] != x.shape[0]):
        raise ShapeError(
            f"sigma of shape {tuple(sigma.shape)} for x of shape {tuple(x.shape)}; expected ({x.shape[0]},), one level "
            "a row, or () for all rows"
        )
    sigma = sigma.to(torch.promote_types(sigma.dtype, x.dtype))
    return sigma.reshape(-1, *[1] * (x.ndim - 1))
