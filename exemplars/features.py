"""What a table of features must be, checked at every door: (n, f), finite, float64 inside.

Knows numpy arrays and torch tensors, not what the features mean. A metric runs where its generated side lies: a tensor
stays on its device, an array goes to the CPU, and what it is compared with follows (`like`).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from dragon.errors import NotFinite, ShapeError

Features: TypeAlias = Tensor | np.ndarray

_NO_FLOAT64 = ("mps",)  # kinds of device without it: their tensors are worked on by the CPU


def as_features(
    features: Features, what: str, *, size: int | None = None, at_least: int = 1, like: Features | None = None
) -> Tensor:
    """(n, f) float64, detached, on the device that `float64` gives it.

    what: how an error calls the table. size: the f it must have. at_least: the n it must have. like: as `float64`.

    Raises:
        ShapeError: not two-dimensional, too few rows, no columns, or another f than `size`.
        NotFinite: NaN or infinity, with the first row that holds one.
    """
    table = torch.as_tensor(features).detach()
    if table.ndim != 2 or table.shape[1] == 0:
        raise ShapeError(f"{what} of shape {tuple(table.shape)}; expected (n, features)")
    if len(table) < at_least:
        raise ShapeError(f"{what}: {len(table)} rows; expected at least {at_least}")
    if size is not None and table.shape[1] != size:
        raise ShapeError(f"{what}: rows of {table.shape[1]} features; expected {size}, as in the other set")
    if table.is_complex():
        raise ShapeError(f"{what} of type {table.dtype}; expected real numbers")
    table = float64(table, like)
    if not bool(torch.isfinite(table).all()):
        row = int((~torch.isfinite(table)).any(dim=1).nonzero()[0, 0])
        raise NotFinite(f"{what}: row {row} holds NaN or infinity; expected finite features")
    return table


def float64(values: Features, like: Features | None = None) -> Tensor:
    """The numbers in float64, detached, on the device of `like`; None: where they are.

    An array, and a device that has no float64, mean the CPU. What is there already is not copied.
    """
    table = torch.as_tensor(values).detach()
    device = (table if like is None else torch.as_tensor(like)).device
    return table.to("cpu" if device.type in _NO_FLOAT64 else device).to(torch.float64)
