"""Exponential moving average of named parameters.

Knows tensors by name, not modules: the values are a plain mapping, to be put in place by whoever owns
the parameters (a policy's `weights` context).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dragon.errors import ConfigError, ShapeError


class Ema:
    """values <- decay * values + (1 - decay) * parameters, once an `update`, starting at the parameters.

    After n updates: decay^n * start + (1 - decay) * sum over i of decay^(n - i) * parameters_i. The values are
    float32 at least: in bfloat16 a decay of 0.999 would round every update away.
    They lie where the parameters lie: on their device, and sharded (a DTensor) where those are.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"EMA decay is {decay}; expected 0 <= decay < 1 (0 follows the parameters at once)")
        self.decay = decay
        self._values = {name: _copy(p) for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """One step toward `parameters`, which have the names and shapes given at the start."""
        self._check(parameters)
        for name, value in self._values.items():
            value.lerp_(parameters[name].detach().to(value), 1 - self.decay)

    @property
    def values(self) -> dict[str, Tensor]:
        """The averages, by name. They change with the next `update`; clone what must stay."""
        return dict(self._values)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the averages, by name: all the state there is."""
        return {name: value.clone() for name, value in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from what `state_dict` gave (sharded where the values are), on the device of the present values."""
        self._check(state)
        for name, value in self._values.items():
            value.copy_(state[name])

    def _check(self, parameters: Mapping[str, Tensor]) -> None:
        missing = sorted(self._values.keys() - parameters.keys())
        unknown = sorted(parameters.keys() - self._values.keys())
        if missing or unknown:
            raise ConfigError(f"EMA of other parameters: missing {missing}, unknown {unknown}; expected the same names")
        for name, value in self._values.items():
            if parameters[name].shape != value.shape:
                raise ShapeError(
                    f"EMA parameter {name!r} has shape {tuple(parameters[name].shape)}; expected {tuple(value.shape)}"
                )


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
