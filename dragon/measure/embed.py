"""One pass over a set of clips: each file is decoded once, for all encoders, and embedded once in its life.

Knows encoders by their protocol. Features go to an `EmbeddingStore` and are read from there, so memory does not grow
with the number of clips. A thread reads and checks files ahead; encoders mix and resample by their own settings
(dragon.encoders.windows: mean of the channels, soxr HQ).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dragon.audio import Audio
from dragon.errors import AudioError, ConfigError
from dragon.measure.clips import (
    MIN_SECONDS,
    Bad,
    ClipFile,
    Source,
    file_hash,
    find_clips,
    read_ahead,
    read_clip,
    refuse,
)
from dragon.measure.embedded import Embedded
from dragon.measure.heard import run_encoder
from dragon.measure.store import EmbeddingStore, Shelf, Stored
from dragon.media import Media
from dragon.protocols import Encoder

__all__ = ["Embedded", "Progress", "embed_folder"]

Progress = Callable[[int, int, float, float], None]
"""(clips done, clips in all, clips a second of late, seconds left)."""

BATCH_SAMPLES = 1 << 24
"""Samples of all channels that one batch holds, unless one clip has more: 64 MiB."""

_MARKS = 32  # calls that a rate is taken over


def embed_folder(
    source: Source,
    encoders: Sequence[Encoder],
    *,
    store: EmbeddingStore | None = None,
    skip_bad: bool = False,
    min_seconds: float = MIN_SECONDS,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[Embedded]:
    """One `Embedded` an encoder, all of the same clips in the same order.

    source: a folder, a file or files. store: None keeps the features in a temporary folder that goes with the result.
    batch: clips of one length, rate and number of channels that an encoder hears at once; changes no feature beyond
    rounding. An interrupted pass keeps what it has embedded, and the same call goes on from there.

    Raises:
        AudioError: files that are unreadable, empty, silent, shorter than `min_seconds`, hold NaN, or are refused by an
        encoder: all of them, each with its reason. With `skip_bad` only if nothing is left. After the first such file
        the others are only checked. NotFinite, ShapeError: an encoder gave NaN or the wrong shape, with the clip.
    """
    if batch < 1 or not min_seconds >= 0 or not encoders:
        raise ConfigError(
            f"batch {batch}, min_seconds {min_seconds}, {len(encoders)} encoders; expected a batch of at least 1, "
            "min_seconds of at least 0 and at least one encoder"
        )
    files = find_clips(source)
    name = f"{len(files)} given files" if isinstance(source, list | tuple) else str(source)
    store = EmbeddingStore(None) if store is None else store
    shelves = [store.shelf(encoder) for encoder in encoders]
    work, pace = _Pass(encoders, shelves, batch, skip_bad), _Pace(len(files), progress)
    jobs = [partial(_look, file, shelves, min_seconds) for file in files]
    with closing(read_ahead(jobs, _Look.bytes)) as looks:
        for look in looks:
            pace.add(work.take(look))
    pace.add(work.flush())
    bad = work.bad()
    refuse(bad, len(files), name, skip_bad)
    return [work.result(number, name, bad) for number in range(len(encoders))]


@dataclass(frozen=True)
class _Facts:
    """Of a decoded clip; counts: frames by the number of the encoder."""

    samples: int
    rate: int
    channels: int
    counts: dict[int, int]


@dataclass(frozen=True, eq=False)
class _Look:
    """What reading a file found: its hash, what the store has of it, and its audio where an encoder lacks it."""

    file: ClipFile
    content: str = ""
    stored: tuple[Stored | None, ...] = ()
    audio: Audio | None = None
    reason: str | None = None

    def bytes(self) -> int:
        frames = sum(found.frames.nbytes for found in self.stored if found)
        return frames + (self.audio.samples.nbytes if self.audio else 0)

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(number for number, found in enumerate(self.stored) if found is None)


def _look(file: ClipFile, shelves: Sequence[Shelf], min_seconds: float) -> _Look:
    try:
        content = file_hash(file.path)
        stored = tuple(shelf.read(content) for shelf in shelves)
        if all(found and found.seconds >= min_seconds for found in stored):
            return _Look(file, content, stored)
        return _Look(file, content, stored, read_clip(file.path, content, min_seconds))
    except AudioError as error:
        return _Look(file, reason=str(error))


class _Pass:
    """Gathers clips that are alike, runs the encoders that lack them, and remembers each file's outcome."""

    def __init__(self, encoders: Sequence[Encoder], shelves: Sequence[Shelf], batch: int, skip_bad: bool) -> None:
        self._encoders, self._shelves, self._batch, self._skip_bad = encoders, shelves, batch, skip_bad
        self._order: list[tuple[ClipFile, str, str | None]] = []  # file, hash, what is wrong with it
        self._facts: dict[str, _Facts] = {}
        self._refused: dict[str, str] = {}  # by an encoder; the reason
        self._waiting: list[_Look] = []
        self._in_vain = False  # no result will come of this pass, so encoders need not run

    def take(self, look: _Look) -> int:
        """The next file. Returns how many clips are now done."""
        self._order.append((look.file, look.content, look.reason))
        self._in_vain |= look.reason is not None and not self._skip_bad
        alike = [w.content for w in self._waiting]
        if look.reason is not None or look.content in (*alike, *self._refused) or look.content in self._facts:
            return 1
        if not look.missing:
            self._facts[look.content] = _facts(look)
            return 1
        done = 0
        if self._waiting and (_kind(look) != _kind(self._waiting[0]) or self._full()):
            done = self.flush()
        self._waiting.append(look)
        return done + (self.flush() if len(self._waiting) == self._batch else 0)

    def _full(self) -> bool:
        audio = self._waiting[0].audio
        return audio is not None and (len(self._waiting) + 1) * audio.samples.size > BATCH_SAMPLES

    def flush(self) -> int:
        """Embeds the clips that wait. Returns how many."""
        looks, self._waiting = self._waiting, []
        if looks and not self._in_vain:
            self._embed(looks)
        return len(looks)

    def _embed(self, looks: list[_Look]) -> None:
        made: list[dict[int, int]] = [{} for _ in looks]
        for number in looks[0].missing:
            encoder = self._encoders[number]
            try:
                found = run_encoder(encoder, _media(looks))
            except AudioError as error:
                if len(looks) > 1:  # whose fault it is shows alone
                    for look in looks:
                        self._embed([look])
                    return
                self._refused[looks[0].content] = f"encoder {encoder.name!r}: {error}"
                self._in_vain |= not self._skip_bad
                return
            for look, (frames, vector), counts in zip(looks, found, made, strict=True):
                self._shelves[number].write(look.content, _stored(look, frames, vector))
                counts[number] = len(frames)
        for look, counts in zip(looks, made, strict=True):
            self._facts[look.content] = _facts(look, counts)

    def bad(self) -> list[Bad]:
        """In the order of the files."""
        reasons = [(file, reason or self._refused.get(content)) for file, content, reason in self._order]
        return [Bad(file.name, reason) for file, reason in reasons if reason is not None]

    def result(self, number: int, source: str, bad: Sequence[Bad]) -> Embedded:
        """What one encoder hears of the clips that are not bad."""
        good = [(f, c, self._facts[c]) for f, c, reason in self._order if reason is None and c not in self._refused]
        return Embedded(
            source=source,
            encoder=self._encoders[number],
            names=tuple(file.name for file, _, _ in good),
            hashes=tuple(content for _, content, _ in good),
            seconds=tuple(facts.samples / facts.rate for _, _, facts in good),
            rates=tuple(facts.rate for _, _, facts in good),
            channels=tuple(facts.channels for _, _, facts in good),
            counts=tuple(facts.counts[number] for _, _, facts in good),
            bad=tuple(bad),
            paths=tuple(file.path for file, _, _ in good),
            shelf=self._shelves[number],
        )


def _kind(look: _Look) -> object:
    """Looks of one kind may share a batch."""
    return look.missing, look.audio and (look.audio.samples.shape, look.audio.rate)


def _stored(look: _Look, frames: Tensor, vector: Tensor) -> Stored:
    assert look.audio is not None
    channels, samples = look.audio.samples.shape
    return Stored(frames, vector, samples, look.audio.rate, channels)


def _facts(look: _Look, made: dict[int, int] | None = None) -> _Facts:
    counts = {number: len(found.frames) for number, found in enumerate(look.stored) if found} | (made or {})
    if look.audio is not None:
        return _Facts(look.audio.samples.shape[1], look.audio.rate, look.audio.samples.shape[0], counts)
    known = next(found for found in look.stored if found)
    return _Facts(known.samples, known.rate, known.channels, counts)


def _media(looks: Sequence[_Look]) -> Media:
    """A copy of their samples, since an encoder might change what it hears; names stand for prompts, in errors."""
    clips = [look.audio for look in looks if look.audio is not None]
    samples = torch.from_numpy(np.stack([clip.samples for clip in clips]))
    return Media(samples, tuple(look.file.name for look in looks), clips[0].rate)


class _Pace:
    """Tells how far a pass is. The rate is that of the last calls: stored clips come fast, others do not."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._count = total, progress, 0
        self._marks = deque([(time.monotonic(), 0)], maxlen=_MARKS)

    def add(self, clips: int) -> None:
        if clips == 0 or self._progress is None:
            return
        self._count += clips
        start, before = self._marks[0]
        rate = (self._count - before) / max(time.monotonic() - start, 1e-9)
        self._marks.append((time.monotonic(), self._count))
        self._progress(self._count, self._total, rate, (self._total - self._count) / rate)
