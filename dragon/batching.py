"""How many rows go through a network in one call: as many as were asked for, half of them when memory runs out.

Knows rows by their numbers. No result depends on the size but by rounding, so a run that meets the limit of its memory
says so and goes on.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from dragon.errors import OutOfMemory
from dragon.texts import first_line

T = TypeVar("T")


class Batching:
    """Rows cut into batches of at most `size`; where one does not fit, `size` is halved for good, with a warning.

    what: the work, as a user knows it ("roll-out"). setting: the key that gives the size. fixed: a size that all
    processes share because they make their calls together; it is never halved.
    """

    def __init__(
        self, size: int, what: str = "batch", setting: str = "rollout.batch_size", *, fixed: bool = False
    ) -> None:
        self.asked = self.size = size
        self._what, self._setting, self._fixed = what, setting, fixed

    @property
    def halved(self) -> list[int]:
        """[size asked for, size that fits] once they differ; else empty. What a checkpoint keeps."""
        return [self.asked, self.size] if self.size < self.asked else []

    def restore(self, halved: Sequence[int]) -> None:
        """Goes on with a size that was found before; not where another one is asked for now."""
        if halved and halved[0] == self.asked:
            self.size = min(self.size, halved[1])

    def run(self, rows: int, function: Callable[[range], T], *, calls: int = 0) -> list[T]:
        """What `function` gives for each batch of rows 0 ... rows - 1, in order; `calls` as for `each`."""
        return list(self.each(rows, function, calls=calls))

    def each(self, rows: int, function: Callable[[range], T], *, calls: int = 0) -> Iterator[T]:
        """The same, batch by batch.

        calls: at least so many calls are made, for calls that all processes make together; those beyond the rows
        are of row 0, which must then exist, and their results are dropped.

        Raises:
            OutOfMemory: one row does not fit, or the size is fixed.
        """
        start = made = 0
        while start < rows:
            batch = range(start, min(start + self.size, rows))
            found, problem = _tried(function, batch)
            if problem:
                self.halve(len(batch), problem)
                continue
            start, made = batch.stop, made + 1
            yield from found
        for _ in range(made, calls):
            function(range(1))

    def halve(self, rows: int, problem: str) -> None:
        """Takes note that `rows` rows did not fit: from now on half as many.

        Raises:
            OutOfMemory: there is no half, or the size is fixed.
        """
        if self._fixed:
            raise OutOfMemory(
                f"out of memory in a {self._what} of {rows} rows ({problem}); processes that share a model's weights "
                f"keep one size: set {self._setting} below {self.size} and resume"
            )
        if rows <= 1:
            raise OutOfMemory(
                f"out of memory in a {self._what} of one row ({problem}); expected room for one at least: free "
                "memory, use shorter clips or a smaller model, or another device"
            )
        self.size = rows // 2
        warnings.warn(
            f"out of memory in a {self._what} of {rows} rows; going on with {self.size} "
            f"(set {self._setting} to that size to start with it)",
            stacklevel=3,
        )
        free_memory()


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch, CUDA or Python raise when memory runs out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in told or "out of memory" in told)


def free_memory() -> None:
    """Gives back what a call that failed has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tried(function: Callable[[range], T], batch: range) -> tuple[list[T], str]:
    """([result], ""), or ([], what was said) where memory ran out.

    The error itself is not kept: its traceback holds the frames, and these the tensors that are in the way.
    """
    try:
        return [function(batch)], ""
    except Exception as error:
        if not out_of_memory(error):
            raise
        return [], first_line(error)
