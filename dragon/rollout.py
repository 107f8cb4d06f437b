"""From prompts and seeds to judged clips, batch by batch: sample, decode, judge.

Knows a policy by its protocol, and not what is done with the clips. With `overlap` a batch is decoded and judged in one
thread beside the main one while the next batch is sampled. The batches and their order are the same, so the results are
equal to the bit; only a judge that draws from a global random generator may get other numbers, where the policy draws
from it too.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from dragon.aside import Aside
from dragon.batching import Batching
from dragon.errors import ShapeError
from dragon.media import Generation, Media, check_finite
from dragon.processes import Processes
from dragon.protocols import Policy
from dragon.sharding import is_sharded
from dragon.verdicts import Verdicts

Judge = Callable[[Media, Sequence[int]], Verdicts]
"""Clips and their seeds -> what is said of them."""
M = TypeVar("M", Media, Generation)

_PATIENCE = 5.0
"""Seconds that an interrupt or error waits for the thread to finish its batch."""


@dataclass
class Stopwatch:
    """Seconds of each stage, by the wall clock. Every stage ends in a check that waits for the device."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the seconds spent inside."""
        start = time.perf_counter()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Judged:
    """Samples, their clips, and what the rewards say of them: row i of each is one sample."""

    generation: Generation
    media: Media
    verdicts: Verdicts

    def __len__(self) -> int:
        return len(self.generation)

    def none(self) -> Judged:
        """No samples, of the same shapes."""
        return Judged(self.generation.rows([]), self.media.rows([]), self.verdicts.each(lambda rows: rows[:0]))

    @staticmethod
    def cat(parts: Sequence[Judged]) -> Judged:
        """All samples, one after another."""
        return Judged(
            Generation.cat([part.generation for part in parts]),
            Media.cat([part.media for part in parts]),
            Verdicts.cat([part.verdicts for part in parts]),
        )


class Rollout:
    """Draws and judges samples of the policy as it is, in batches that are halved where memory runs out.

    batch_size: samples in one call. With sharded weights all processes make their calls together, each as many as the
    one with most rows, and the size stays.
    """

    def __init__(self, policy: Policy, *, steps: int, guidance: float, batch_size: int, overlap: bool = False) -> None:
        self._policy, self._steps, self._guidance, self._overlap = policy, steps, guidance, overlap
        self._sharded = is_sharded(policy.trainable())
        self._sampling = Batching(batch_size, "roll-out", fixed=self._sharded)
        self._decoding = Batching(batch_size, "decoding batch")
        self._judging = Batching(batch_size, "scoring batch")

    def together(self, processes: Processes) -> AbstractContextManager[None]:
        """Around a roll-out: an error in one process is one in all.

        With sharded weights the calls themselves are made together, so a process that meets an error must end instead
        of waiting for the others; its launcher then ends them.
        """
        return nullcontext() if self._sharded else processes.together()

    def each(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        judge: Judge,
        watch: Stopwatch,
        *,
        columns: Mapping[str, Sequence[object]] | None = None,
        rows: range | None = None,
        most: int = 0,
    ) -> Iterator[Judged]:
        """Batch by batch, one sample for each prompt, seed and value of `columns`.

        rows: those that this process draws; None: all. A process with no rows samples row 0 and discards it, to learn
        the shapes of the tensors that are gathered. most: the largest number of rows of any process, which sharded
        weights need.

        Raises:
            NotFinite: a sample or a clip is; names its prompt and seed. ShapeError: `decode` changes the prompts.
            OutOfMemory: one row does not fit. What `judge` raises.
        """
        mine = range(len(prompts)) if rows is None else rows
        asked = mine or range(1)

        def sample(batch: range) -> tuple[slice, Generation]:
            part = _slice(asked[_slice(batch)])
            with watch("rollout"), torch.no_grad():
                made = self._policy.generate(prompts[part], seeds[part], steps=self._steps, guidance=self._guidance)
                check_finite("a sample of the policy", made.latents, made)
            return part, made

        def judged(part: slice, made: Generation) -> Judged:
            with watch("decode"), torch.no_grad():
                found = {name: tuple(values[part]) for name, values in (columns or {}).items()}
                media = replace(self._decoded(made), columns=found)
            with watch("score"):
                said = self._judging.run(len(made), lambda b: judge(_part(media, b), made.seeds[_slice(b)]))
            whole = Judged(made, media, Verdicts.cat(said))
            return whole if mine else whole.none()

        calls = -(-most // self._sampling.size) if self._sharded else 0
        batches = self._sampling.each(len(asked), sample, calls=calls)
        return self._beside(judged, batches) if self._overlap else (judged(*batch) for batch in batches)

    @staticmethod
    def _beside(
        judged: Callable[[slice, Generation], Judged], batches: Iterator[tuple[slice, Generation]]
    ) -> Iterator[Judged]:
        """Each batch is judged while the next one is drawn."""
        waiting: Aside[Judged] | None = None
        try:
            for batch in batches:
                done = waiting.result() if waiting else None
                waiting = Aside(functools.partial(judged, *batch))
                if done:
                    yield done
            if waiting:
                yield waiting.result()
        finally:
            if waiting:
                waiting.settle(_PATIENCE)

    def state_dict(self) -> dict[str, list[int]]:
        """The sizes that were halved."""
        return {name: batching.halved for name, batching in self._batchings().items() if batching.halved}

    def load_state_dict(self, state: Mapping[str, Sequence[int]]) -> None:
        """Goes on with these sizes."""
        for name, batching in self._batchings().items():
            batching.restore(state.get(name, ()))

    def _batchings(self) -> dict[str, Batching]:
        return {"rollout": self._sampling, "decode": self._decoding, "score": self._judging}

    def _decoded(self, made: Generation) -> Media:
        media = Media.cat(self._decoding.run(len(made), lambda rows: self._policy.decode(_part(made, rows))))
        if media.prompts != made.prompts:
            raise ShapeError(
                f"policy.decode gave prompts {media.prompts[:2]}...; expected those of its generation, in order"
            )
        check_finite("a decoded clip", media.tensor, made)
        return media


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def _part(whole: M, rows: range) -> M:
    """Those rows; not a copy where they are all."""
    return whole if len(rows) == len(whole) else whole.rows(rows)
