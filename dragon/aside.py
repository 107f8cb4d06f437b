"""Work in a thread beside the main one: to do two things at once, or to stop waiting for one that does not end.

Knows nothing of the work. Python cannot stop a thread: one that hangs is left behind, and ends with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class NotDone(Exception):
    """The time is over and the work is not done."""


class Aside(Generic[T]):
    """`function()`, begun in a thread of its own, on the CUDA device of this one.

    Gradients, autocast and the like are switched for each thread: the work sets what it needs.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        # a daemon, so that work that hangs does not keep the process alive
        threading.Thread(target=self._work, daemon=True).start()

    def result(self, seconds: float | None = None) -> T:
        """What the work gave, or the error that it raised; waits as long as it takes.

        Raises:
            NotDone: after `seconds`.
        """
        if not self._done.wait(seconds):
            raise NotDone
        if self._error is not None:
            raise self._error
        return self._found[0]

    def settle(self, seconds: float) -> None:
        """Waits for the end, at most `seconds`, whatever it brings."""
        self._done.wait(seconds)

    def _work(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            self._found.append(self._function())
        except BaseException as error:  # sys.exit() and the like are for the one who asks for the result
            self._error = error
        finally:
            self._done.set()


def within(seconds: float, function: Callable[[], T]) -> T:
    """`function()`, and no longer than that; 0: as long as it takes, in this thread.

    Raises:
        NotDone: after `seconds`; the work goes on unseen.
    """
    return Aside(function).result(seconds) if seconds else function()
