"""What a table of features must be, checked at every door: (n, f), finite, float64 inside.

Knows numpy arrays and torch tensors, not what the features mean. A metric runs where its generated side lies: a tensor
stays on its device, an array goes to the CPU, and what it is compared with follows (`like`).
"""

from __future__ import annotations

import operator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError

Features: TypeAlias = Tensor | np.ndarray

LARGEST = 1e140  # sums of squares of larger numbers leave float64's range
_NO_FLOAT64 = ("mps",)  # kinds of device without it: their tensors are worked on by the CPU


def as_features(
    features: Features, what: str, *, size: int | None = None, at_least: int = 1, like: Features | None = None
) -> Tensor:
    """(n, f) float64, detached, on the device that `float64` gives it.

    what: how an error calls the table. size: the f it must have. at_least: the n it must have. like: as `float64`.

    Raises:
        ShapeError: no table of numbers (see `numbers`), not two-dimensional, too few rows, no columns, or another f
            than `size`.
        NotFinite: NaN, infinity, or a number beyond `LARGEST`, with the first row that holds one.
    """
    table = numbers(features, what)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ShapeError(f"{what} of shape {tuple(table.shape)}; expected (n, features)")
    if len(table) < at_least:
        raise ShapeError(f"{what}: {len(table)} rows; expected at least {at_least}; give more clips or frames")
    if size is not None and table.shape[1] != size:
        raise ShapeError(
            f"{what}: rows of {table.shape[1]} features; expected {size}, as in the other set: embed both with the "
            "same encoder"
        )
    table = float64(table, like)
    least, most = torch.aminmax(table)  # NaN where any number is
    if not (float(least) >= -LARGEST and float(most) <= LARGEST):
        row = int((~(table.abs() <= LARGEST)).any(dim=1).nonzero()[0, 0])
        if bool(torch.isfinite(table[row]).all()):
            raise NotFinite(
                f"{what}: row {row} holds {float(table[row].abs().max()):g}, whose square is too large for a number; "
                f"expected at most {LARGEST:g}: scale both sets down"
            )
        raise NotFinite(f"{what}: row {row} holds NaN or infinity; expected finite features")
    return table


def float64(values: Features, like: Features | None = None, what: str = "the numbers") -> Tensor:
    """The numbers in float64, detached, on the device of `like`; None: where they are.

    An array, and a device that has no float64, mean the CPU. What is there already is not copied.
    """
    table = numbers(values, what)
    place = table if like is None else like
    device = place.device if isinstance(place, Tensor) else torch.device("cpu")
    return table.to("cpu" if device.type in _NO_FLOAT64 else device).to(torch.float64)


def numbers(values: Features, what: str) -> Tensor:
    """A detached dense tensor of real numbers, of any shape; lists and other arrays are what numpy makes of them.

    Raises:
        ShapeError: sparse, complex, rows of different lengths, or no numbers at all, with what to do.
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise ShapeError(f"{what}: a sparse tensor; expected a dense one: call .to_dense()")
        if values.is_complex():
            raise ShapeError(f"{what} of type {values.dtype}; expected real numbers")
        return values.detach()
    if hasattr(values, "toarray"):
        raise ShapeError(f"{what}: a sparse matrix; expected a dense array: call .toarray()")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"{what}: numpy makes no array of this {type(values).__name__} ({error})") from None
    if array.dtype.kind not in "biuf":
        found = f"of type {array.dtype}" if isinstance(values, np.ndarray) else f"given as {type(values).__name__}"
        hint = "; give its .features" if hasattr(values, "features") else ""
        raise ShapeError(f"{what} {found}; expected an array or tensor of real numbers{hint}")
    kind = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    if array.dtype != kind or not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.astype(kind, order="C")  # torch reads no such array, or warns of it
    return torch.from_numpy(array)


def whole(value: int, what: str) -> int:
    """An integer of any kind as Python's own. Raises ConfigError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{what} is {value!r}; expected a whole number") from None
