"""What a table of features must be, checked at every door: (n, f), finite, float64 inside.

Knows numpy arrays and torch tensors, not what the features mean.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from dragon.errors import NotFinite, ShapeError

Features: TypeAlias = Tensor | np.ndarray


def as_features(features: Features, what: str, *, size: int | None = None, at_least: int = 1) -> Tensor:
    """(n, f) float64, detached, on the CPU.

    what: how an error calls the table. size: the f it must have. at_least: the n it must have.

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
    table = table.to("cpu", torch.float64)
    if not bool(torch.isfinite(table).all()):
        row = int((~torch.isfinite(table)).any(dim=1).nonzero()[0, 0])
        raise NotFinite(f"{what}: row {row} holds NaN or infinity; expected finite features")
    return table
