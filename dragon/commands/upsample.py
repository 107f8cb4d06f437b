"""dragon upsample IN --out OUT.npz --samples N [--preset P] [--seed S] [--env ID]"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from dragon.commands.arguments import parsed, positional
from dragon.upsample.settings import UpsampleSettings

if TYPE_CHECKING:
    from dragon.synther.quality import Quality

USAGE = "dragon upsample IN --out OUT.npz --samples N [--preset paper|small|tiny] [--seed S] [--env ID]"


def run(arguments: list[str]) -> None:
    source, flags = positional(arguments, "file of transitions", USAGE)
    settings = parsed(UpsampleSettings, flags, "dragon upsample IN")

    from dragon.upsample.run import upsample

    with UpsampleProgress() as progress:
        found = upsample(source, settings, say=progress.say, progress=progress)
    if found is not None:
        print_verdicts(found)


class UpsampleProgress:
    """How far fitting and sampling are: one moving line on a terminal, elsewhere a line each tenth."""

    def __enter__(self) -> UpsampleProgress:
        self._open, self._tenth = False, ("", -1)
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._clear()
        print(text, flush=True)

    def __call__(self, stage: str, done: int, total: int, rate: float, more: str) -> None:
        line = progress_text(stage, done, total, rate, more)
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line[:110]}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif self._tenth != (stage, 10 * done // total):
            self._tenth = (stage, 10 * done // total)
            print(line, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False


def progress_text(stage: str, done: int, total: int, rate: float, more: str) -> str:
    """One line; `rate` is in units a second.

    >>> progress_text("fitting", 500, 1000, 50.0, "loss 0.1")
    '  fitting: 500 of 1,000 steps, 50 a second, 0:10 left, loss 0.1'
    """
    unit = "steps" if stage == "fitting" else "rows"
    left = round((total - done) / rate) if rate > 0 else 0
    clock = f"{left // 60}:{left % 60:02d}" if left < 3600 else time.strftime("%H:%M:%S", time.gmtime(left))
    tail = f", {more}" if more else ""
    return f"  {stage}: {done:,} of {total:,} {unit}, {rate:.3g} a second, {clock} left{tail}"


def print_verdicts(found: Quality) -> None:
    """One line an aspect: what was found, what real rows and a Gaussian get, and what is asked."""
    from dragon.report.transitions import number

    print(f"{'':5}{'new':>8} {'real':>8} {'Gaussian':>9}")
    for verdict in found.verdicts:
        figures = f"{number(verdict.new):>8} {number(verdict.real):>8} {number(verdict.gaussian):>9}"
        print(f"{'ok' if verdict.passed else 'look':5}{figures}  {verdict.aspect}: {verdict.words}")
    for note in found.notes:
        print(f"note: {note}")
