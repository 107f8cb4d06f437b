"""Collecting what is wrong with a plug-in, so that its author reads all of it at once.

Knows methods by name and laws by text, not what a reward or a policy is (`dragon.testing` does).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from dragon.errors import PluginError

RTOL = 1e-4
"""Batched and single calls may round differently in float32, and deep networks enlarge it; a real dependence on
the batch (a batch norm, padding that is not masked, one shared noise) is far larger."""

T = TypeVar("T")


class TrainsBadly(UserWarning):
    """A plug-in that keeps its contract and will still train badly."""


class Faults:
    """What is wrong so far, each once; a method that raises is a fault, and checks that need its result are skipped."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._found: dict[str, None] = {}

    def add(self, method: str, law: str) -> None:
        self._found[f"{self._owner}.{method}: expected that it {law}"] = None

    def expect(self, holds: object, method: str, law: str) -> None:
        if not bool(holds):
            self.add(method, law)

    def shape(self, method: str, found: Tensor, expected: tuple[int, ...], meaning: str) -> bool:
        if tuple(found.shape) != expected:
            self.add(method, f"gives shape {expected} ({meaning}), not {tuple(found.shape)}")
        return tuple(found.shape) == expected

    def same(self, method: str, left: Tensor | None, right: Tensor | None, law: str) -> None:
        """Equal within RTOL of the larger one's size; NaN equals NaN. A missing side was reported before."""
        if left is None or right is None:
            return
        if left.shape != right.shape:
            self.add(method, f"{law}; shapes {tuple(left.shape)} and {tuple(right.shape)}")
            return
        left, right = left.double(), right.double()  # masks and token numbers are compared, too
        size = float(torch.nan_to_num(left).abs().max()) if left.numel() else 0.0
        if not torch.allclose(left, right, rtol=RTOL, atol=RTOL * size, equal_nan=True):
            apart = float(torch.nan_to_num(left - right).abs().max())
            self.add(method, f"{law}; two results are {apart:.3g} apart, or NaN in different places")

    def call(self, method: str, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except Exception as error:  # a plug-in may raise anything; the author needs to see what
            self.add(method, f"runs; it raised {type(error).__name__}: {error}")
            return None

    def or_other(self, method: str, law: str) -> None:
        """Adds `law` unless something was found already, which then is why there is nothing to look at."""
        if not self._found:
            self.add(method, law)

    def run(self, method: str, function: Callable[[], None]) -> bool:
        count = len(self._found)
        self.call(method, function)
        return len(self._found) == count

    @contextmanager
    def inside(self, method: str, enter: Callable[[], object]) -> Iterator[None]:
        manager = self.call(method, enter)
        if manager is None or not hasattr(manager, "__enter__"):
            self.add(method, f"gives a context manager, not {type(manager).__name__}")
            yield
            return
        with manager:  # type: ignore[attr-defined]
            yield

    def warn(self, method: str, text: str) -> None:
        warnings.warn(f"{self._owner}.{method} {text}", TrainsBadly, stacklevel=4)

    def report(self) -> None:
        if self._found:
            raise PluginError(
                f"{len(self._found)} breach{'es' if len(self._found) > 1 else ''} of contract:\n  "
                + "\n  ".join(self._found)
            )
