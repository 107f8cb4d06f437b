"""The denoiser of rows: a residual MLP told the noise level by random Fourier features.

Knows tensors only. With `cond` 0 it is the network of Lu et al. (2023), appendix C: no layer norm, six residual blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """(x (b, d), time (b,), cond (b, c)) -> (b, d).

    width: of the residual blocks. inner: of the embedded row and time, where they are added. cond: numbers of the
    condition (0: none), added where the time is. flags: how many have logits (0: none), read by `both` where the row is
    known. The Fourier frequencies are drawn once and never trained.

    Source: Lu et al. (2023), SynthER, appendix C.
    """

    frequencies: Tensor

    def __init__(
        self, d: int, *, width: int = 1024, inner: int = 128, depth: int = 6, cond: int = 0, flags: int = 0
    ) -> None:
        super().__init__()
        self.settings = {"d": d, "width": width, "inner": inner, "depth": depth, "cond": cond, "flags": flags}
        self.register_buffer("frequencies", torch.randn(8))
        self.time = nn.Sequential(nn.Linear(17, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.row = nn.Linear(d, inner)
        self.cond = nn.Linear(cond, inner) if cond else None
        self.start = nn.Linear(inner, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.end = nn.Linear(width, d)
        self.flags = nn.Linear(width, flags) if flags else None

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.end(self._hidden(x, time, cond))
        return out

    def both(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same, and the (b, flags) logits of each flag."""
        h = self._hidden(x, time, cond)
        return self.end(h), h.new_empty(len(h), 0) if self.flags is None else self.flags(h)

    def _hidden(self, x: Tensor, time: Tensor, cond: Tensor | None) -> Tensor:
        angles = 2 * math.pi * time[:, None] * self.frequencies
        h = self.row(x) + self.time(torch.cat([time[:, None], angles.sin(), angles.cos()], 1))
        if self.cond is not None:
            h = h + self.cond(cond)
        h = self.start(h)
        for block in self.blocks:
            h = h + block(h.relu())
        return h.relu()
