"""Ctrl-C and SIGTERM: each run hears one of them, and not while it is writing something.

Knows signals alone. The first one raises KeyboardInterrupt, whose handler saves the run; any further one (an impatient
second Ctrl-C, a launcher that passes the first one on) comes while that is being done, and changes nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """The signals of a run. `arrived`: whether there was one, raised or still held back."""

    def __init__(self) -> None:
        self.arrived = False
        self._holding = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal inside raises KeyboardInterrupt on leaving; not if an error leaves, which ends the run anyway."""
        before = self.arrived
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if self.arrived and not before and not self._holding:
            raise KeyboardInterrupt

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        first, self.arrived = not self.arrived, True
        if first and not self._holding:
            raise KeyboardInterrupt


@contextmanager
def one_interrupt() -> Iterator[Interrupts]:
    """Handles both signals until it is left; in another thread than the main one nothing can be handled.

    A signal that the process was told to ignore (`nohup`, a job of a script in the background) stays ignored.
    """
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, found)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
