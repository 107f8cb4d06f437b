"""The processes that share a run, seen from one of them: who does what, and what all of them must know.

Knows tensors, accelerate's view of the launch, and no training. `accelerate launch -m dragon train ...` (or torchrun)
starts the processes; each draws the same numbers, does its share of rows, and gathers what concerns all. A run of one
process goes through the same calls, which then do nothing.

An error in one process is an error in all of them: `together` passes it on, so that no process waits for another that
has stopped. A process that was killed is noticed by the next call that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dragon.batching import out_of_memory
from dragon.errors import ConfigError, OtherProcess, PluginError
from dragon.launch import launched_count, local_rank, sharding_asked
from dragon.texts import first_line

T = TypeVar("T")

_BUCKET = 2**24
"""Numbers that are summed over processes in one message: 64 MB of float32."""


class Processes(Protocol):
    """What every part of a run may ask. All calls are made by every process, in the same order."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def count(self) -> int: ...

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) all processes' rows, in the order of their ranks; their numbers may differ, even be 0."""
        ...

    def gather_values(self, value: T) -> list[T]:
        """One small value (numbers, text) of each process."""
        ...

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over processes, in place; of equal shapes in all of them, and one dtype."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """An error inside it, in any process, is raised in all: there as it is, elsewhere as `OtherProcess`.

        The processes need not call anything of each other's inside.
        """
        ...


class Alone:
    """The only process."""

    rank, count, main = 0, 1, True

    def gather(self, rows: Tensor) -> Tensor:
        """The rows as they are."""
        return rows

    def gather_values(self, value: T) -> list[T]:
        """The value."""
        return [value]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to add."""

    def together(self) -> AbstractContextManager[None]:
        """Nothing to share."""
        return nullcontext()


class Launched:
    """One of several processes that accelerate or torchrun started.

    Raises:
        ConfigError: accelerate was told to shard (FSDP) on a CPU, where it would copy the model instead.
    """

    def __init__(self, cpu: bool) -> None:
        from accelerate import PartialState

        if cpu and sharding_asked():
            raise ConfigError(
                "accelerate's FSDP on a CPU silently becomes plain data parallelism; launch without FSDP (leave out "
                "--use_fsdp), or give each process a GPU"
            )
        self._state = PartialState(cpu=cpu)
        self.rank, self.count = self._state.process_index, self._state.num_processes
        self.main = self._state.is_main_process

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) by rank."""
        from accelerate.utils import gather

        told = self.gather_values((len(rows), tuple(rows.shape[1:]), str(rows.dtype)))
        if len({(shape, dtype) for _, shape, dtype in told}) > 1:
            raise PluginError(
                f"the processes hold rows of different kinds, (rows, shape, type) {told}; expected one shape and type: "
                "a reward or a policy gives others for another batch"
            )
        counts = [count for count, *_ in told]
        most = max(counts)
        if most == 0:
            return rows
        rest = rows.new_zeros((most - len(rows), *rows.shape[1:]))
        mine = torch.cat([rows, rest]).to(self._state.device).contiguous()
        with _peers():
            padded: Tensor = gather(mine)
        kept = torch.cat([torch.arange(rank * most, rank * most + n) for rank, n in enumerate(counts)])
        return padded[kept.to(padded.device)].to(rows.device)

    def gather_values(self, value: T) -> list[T]:
        """One a process."""
        from accelerate.utils import gather_object

        with _peers():
            found: list[T] = gather_object([value])
        return found

    def add(self, tensors: Sequence[Tensor]) -> None:
        """In place, many in one message."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().flatten() for tensor in bucket]).to(self._state.device)
            with _peers():
                torch.distributed.all_reduce(flat)
            with torch.no_grad():
                for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(total.view_as(tensor))

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `Processes.together`."""
        found: Exception | None = None
        try:
            yield
        except OtherProcess:
            raise  # it was shared already
        except Exception as error:
            found = error
        try:
            told = self.gather_values("" if found is None else f"{type(found).__name__}: {found}")
        except OtherProcess:
            if found is not None:
                raise found from None  # says more than that another process is gone
            raise
        if found is not None:
            raise found
        for rank, text in enumerate(told):
            if text:
                raise OtherProcess(f"process {rank} of {self.count} has stopped: {text}")


def launched(device: str) -> Processes:
    """The processes of this launch; `Alone` without one."""
    return Launched(cpu=not device.startswith("cuda")) if launched_count() > 1 else Alone()


def local_device(device: str) -> str:
    """The device of this process: with several on GPUs, "cuda" is the one of the local rank.

    Raises:
        ConfigError: all processes would use one GPU.
    """
    if launched_count() > 1 and device.startswith("cuda:"):
        raise ConfigError(
            f"device is {device!r} for {launched_count()} processes; give cuda: each takes a GPU of its own"
        )
    return f"cuda:{local_rank()}" if launched_count() > 1 and device == "cuda" else device


def share(total: int, processes: Processes) -> range:
    """Numbers of the rows that this process takes of `total`: contiguous, in order of rank, equal but for one."""
    each, more = divmod(total, processes.count)
    start = processes.rank * each + min(processes.rank, more)
    return range(start, start + each + (processes.rank < more))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, as many together as `_BUCKET` numbers hold: few messages, and little memory beside them."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _peers() -> Iterator[None]:
    """A connection that breaks is a process that is gone; a lack of memory is this one's own."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise OtherProcess(
            f"another process of this run is gone ({first_line(error)}); see its own message, then go on with "
            "--resume_from_checkpoint latest"
        ) from error
