"""The most memory that tensors take at once while something runs, with or without data behind them.

Knows torch's dispatcher, no models. `Footprint` is a mode: it sees the storage of every tensor that an operation makes,
and when it is freed. Under torch's FakeTensorMode nothing is computed or allocated, and the count is the same. What an
operation takes inside itself (a kernel's workspace), the device's context and the allocator's gaps are not seen.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRAIN = 512
"""Bytes; torch's allocator on a GPU rounds up to a multiple of it."""


class Footprint(TorchDispatchMode):
    """held: tensors that are there before; they count until they are freed.

    >>> with Footprint() as seen:
    ...     (torch.ones(256) + 1).sum()
    tensor(512.)
    >>> seen.peak  # both vectors of 1024 bytes, before the sum
    2048
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self._see(tensor)

    def restart(self) -> int:
        """The peak so far; from now on it is that of what follows."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return found

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = rounded(storage.nbytes())
        self._known[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def rounded(size: int) -> int:
    """As an allocator rounds it."""
    return -(-size // GRAIN) * GRAIN


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each once."""
    storages = {s._cdata: s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(map(rounded, storages.values()))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside it autocast on the CPU treats layer and group norms as it does on a GPU: in float32.

    There they take and give float32, and their inputs, cast, wait for the backward pass: memory that the CPU's rules do
    not need.
    """
    functional = torch.nn.functional
    before = {name: getattr(functional, name) for name in ("layer_norm", "group_norm")}
    try:
        for name, norm in before.items():
            setattr(functional, name, functools.partial(_in_float32, norm))
        yield
    finally:
        for name, norm in before.items():
            setattr(functional, name, norm)


def _in_float32(norm: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return norm(*args, **kwargs)
    return norm(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})


def _float32(value: object) -> object:
    low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return cast(Tensor, value).float() if low else value
