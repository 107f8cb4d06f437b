"""From a raw network to `denoise(x, sigma, cond)`, and classifier-free guidance as a wrapper of it.

Knows nothing of what a condition is: `cond` is handed on to the network unread. Samplers and losses
see a `Denoise` only, so neither knows of parameterisations or guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dragon.diffusion.scaling import Scaling, per_row
from dragon.errors import ShapeError

Denoise = Callable[[Tensor, Tensor, Any], Tensor]
"""(x (b, *d), sigma (b,), cond) -> the expected clean sample (b, *d)."""


class Denoiser(nn.Module):
    """A network with its scaling: Karras et al. (2022), eq. 7.

    net: (input (b, *d), time (b,), cond) -> raw output F (b, *d). It is given the precision of x; one that
    computes in half precision converts inside.
    """

    def __init__(self, net: Callable[[Tensor, Tensor, Any], Tensor], scaling: Scaling) -> None:
        super().__init__()
        self.net = net
        self.scaling = scaling

    def forward(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """(b, *d) the expected clean sample of x = x0 + sigma * noise; sigma (b,) or ()."""
        return self.scaling.denoised(self.raw(x, sigma, cond), x, sigma)

    def raw(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """(b, *d) the network's own output F, the thing to compare with `scaling.target`."""
        level = per_row(sigma, x)
        time = self.scaling.c_noise(level.reshape(-1).expand(x.shape[0])).to(x.dtype)
        raw = self.net((self.scaling.c_in(level) * x).to(x.dtype), time, cond)
        if raw.shape != x.shape:
            raise ShapeError(
                f"the network returned shape {tuple(raw.shape)} for x of shape {tuple(x.shape)}; expected the same"
            )
        return raw


class Guided:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional).

    Scale 1 is the conditional denoiser and 0 the unconditional one, each in one call; above 1 the condition
    is exaggerated. (The paper's w is scale - 1.) Guiding the denoised sample equals guiding epsilon, v or
    the velocity, since each is an affine function of it at fixed x.

    uncond: the empty condition, row i for row i of x.
    cat: joins conditions by rows, [cond, uncond] -> one of 2b rows; guidance is then one call of 2b rows
        in place of two calls of b.

    Source: Ho & Salimans (2022), eq. 6.
    """

    def __init__(
        self, denoise: Denoise, uncond: Any, scale: float, cat: Callable[[Sequence[Any]], Any] | None = None
    ) -> None:
        self.denoise = denoise
        self.uncond = uncond
        self.scale = scale
        self._joint = None if cat is None else Both(denoise, uncond, cat)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """(b, *d) the guided clean sample."""
        if self.scale == 1:
            return self.denoise(x, sigma, cond)
        if self.scale == 0:
            return self.denoise(x, sigma, self.uncond)
        with_cond, without = self._both(x, sigma, cond)
        return without + self.scale * (with_cond - without)

    def _both(self, x: Tensor, sigma: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        if self._joint is None:
            return self.denoise(x, sigma, cond), self.denoise(x, sigma, self.uncond)
        return self._joint(x, sigma, cond)


class Both:
    """With the condition and with the empty one, in one call of 2b rows. Made anew for each roll-out.

    The joint condition is kept and used again as long as the same object is given: that of a roll-out is one.
    uncond, cat: as for `Guided`.
    """

    def __init__(self, denoise: Denoise, uncond: Any, cat: Callable[[Sequence[Any]], Any]) -> None:
        self._denoise, self._uncond, self._cat = denoise, uncond, cat
        self._given: Any = self  # a condition that nobody gives
        self._doubled: Any = None

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        """(b, *d) of the condition, (b, *d) of the empty one."""
        if cond is not self._given:
            self._given, self._doubled = cond, self._cat([cond, self._uncond])
        levels = sigma.expand(x.shape[0])
        both = self._denoise(torch.cat([x, x]), torch.cat([levels, levels]), self._doubled)
        with_cond, without = both.chunk(2)
        return with_cond, without
