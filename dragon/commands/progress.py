"""What long commands show: how far they are, and the table of an evaluation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


class Progress:
    """Messages, and one line that tells how far an evaluation is."""

    def __enter__(self) -> Progress:
        self._open = False
        return self

    def __exit__(self, *error: object) -> None:
        self._end_line()

    def say(self, text: str) -> None:
        self._end_line()
        print(text, flush=True)

    def __call__(self, side: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r  {side}: {done} of {total} samples", end="", file=sys.stderr, flush=True)
            self._open = True
            if done == total:
                self._end_line()

    def _end_line(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False


def print_evaluation(result: Any, folder: Path) -> None:
    """The table of an evaluation, and where to look and listen."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dragon.texts import shown

    table = Table(title=f"{result.prompts} held-out prompts, {result.samples_per_prompt} independent samples a side")
    for column in ("reward", "base", "tuned", "gain / sd", "win rate", "95 % interval"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, found in result.rewards.items():
        table.add_row(
            Text(shown(name if found.trained_on else f"{name} (only watched)")),  # [x] in a name is no markup
            f"{found.base:.4g}",
            f"{found.tuned:.4g}",
            "" if found.gain_sd is None else f"{found.gain_sd:+.2f}",
            f"{100 * found.win_rate:.1f} %",
            f"{100 * found.low:.1f} - {100 * found.high:.1f} %",
        )
    if result.diversity:
        table.add_row("diversity", f"{result.diversity['base']:.4g}", f"{result.diversity['tuned']:.4g}", "", "", "")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    page = folder / "listen.html"
    print(f"listen:  {page if page.exists() else folder / 'samples'}")
    print(f"numbers: {folder / 'evaluation.json'}")
    print(f"weights: {folder / 'final'}")


class PassProgress:
    """One line on a terminal that tells how far the pass is, how fast, and how long it will take."""

    def __enter__(self) -> PassProgress:
        self._open = False
        return self

    def __exit__(self, *error: object) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, stage: str, done: int, total: int, rate: float, left: float) -> None:
        if not sys.stderr.isatty():
            return
        minutes, seconds = divmod(round(left), 60)
        text = f"  {stage}: {done} of {total} clips, {rate:.1f} a second, {minutes}:{seconds:02d} left"
        print(f"\r\x1b[K{text[:110]}", end="", file=sys.stderr, flush=True)
        self._open = True
