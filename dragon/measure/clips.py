"""Audio files as a set of clips: which ones, what is wrong with them, and reading them ahead of their user.

Knows files and audio, no encoder. A clip is known by the hash of its file's bytes, so that a renamed file is the same
clip and a changed one is another.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dragon import audio
from dragon.audio import Audio
from dragon.errors import AudioError, ConfigError

PathLike = str | os.PathLike[str]
Source = PathLike | Sequence[PathLike]
"""A folder (all audio below it), one file, or files."""

MIN_SECONDS = 1.0
"""Shorter clips are bad, unless told otherwise; as for exemplar sets."""

AHEAD_BYTES = 1 << 28
"""Decoded samples that may wait for their user: 256 MiB, about 70 clips of 10 s in stereo at 48 kHz."""

_CHUNK = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Bad:
    """A file that cannot be used, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class ClipFile:
    """One file and its name within its set: the path from the set's folder, with forward slashes."""

    name: str
    path: Path


def find_clips(source: Source) -> list[ClipFile]:
    """The files of a folder in the order of their paths, or the given ones in theirs.

    Given files are named from the deepest folder that holds all of them.

    Raises:
        AudioError: there is no such folder, no audio in it, or nothing is given. ConfigError: a file is given twice.
    """
    if isinstance(source, str | os.PathLike):
        place = Path(source)
        if place.is_file():
            return [ClipFile(place.name, place)]
        return [ClipFile(path.relative_to(place).as_posix(), path) for path in audio.list_audio(place)]
    paths = [Path(path) for path in source]
    if not paths:
        raise AudioError("no files are given; expected at least one")
    whole = [os.path.abspath(path) for path in paths]
    twice, times = Counter(whole).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"{twice} is given {times} times; give each file once")
    root = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [
        ClipFile(Path(os.path.relpath(full, root)).as_posix(), path) for path, full in zip(paths, whole, strict=True)
    ]


def file_hash(path: PathLike) -> str:
    """32 hexadecimal digits that identify the file's bytes.

    Raises:
        AudioError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise AudioError(f"{os.fspath(path)}: cannot be read ({error.strerror}); check that it is there") from error
    return digest.hexdigest()


def read_clip(path: PathLike, content: str, min_seconds: float = MIN_SECONDS) -> Audio:
    """The decoded file, whose bytes have the hash `content`.

    Raises:
        AudioError: unreadable, empty, silent, too short, holds NaN or infinity, or no longer these bytes. Its text is
        the reason alone, without the name.
    """
    try:
        clip = audio.load(path)
    except AudioError as error:
        raise AudioError(str(error).removeprefix(f"{os.fspath(path)}: ")) from error
    reason = audio.fault(clip, min_seconds)
    if reason is None and file_hash(path) != content:  # else another clip's features would be stored under this hash
        reason = "changed while it was read; run again when it is complete"
    if reason is not None:
        raise AudioError(reason)
    return clip


def refuse(bad: Sequence[Bad], total: int, source: str, skip_bad: bool) -> None:
    """Raises AudioError with every bad file and its reason; with `skip_bad` only if nothing is left."""
    if not bad or (skip_bad and len(bad) < total):
        return
    step = "nothing is left" if skip_bad else "mend or remove them, or leave them out with --skip_bad"
    listed = "\n".join(f"  {one}" for one in bad)
    raise AudioError(f"{len(bad)} of {total} audio files in {source} cannot be used; {step}:\n{listed}")


def read_ahead(
    jobs: Sequence[Callable[[], T]], size: Callable[[T], int], limit: int = AHEAD_BYTES
) -> Generator[T, None, None]:
    """The result of each job, in order, made by one thread that works while the caller does.

    size: bytes of a result; the thread pauses while `limit` bytes or more wait. An error of a job is raised in its
    turn. Close the iterator (contextlib.closing) to stop the thread.
    """
    made: queue.Queue[T | _Failed] = queue.Queue()
    room = threading.Condition()
    waiting, stopped = 0, False

    def may_go_on() -> bool:
        return stopped or waiting < limit

    def work() -> None:
        nonlocal waiting
        for job in jobs:
            with room:
                room.wait_for(may_go_on)
                if stopped:
                    return
            try:
                result = job()
            except BaseException as error:  # every fault belongs to the caller's thread
                made.put(_Failed(error))
                return
            with room:
                waiting += size(result)
            made.put(result)

    thread = threading.Thread(target=work, name="dragon-read-ahead", daemon=True)
    thread.start()
    try:
        for _ in jobs:
            result = made.get()
            if isinstance(result, _Failed):
                raise result.error
            with room:
                waiting -= size(result)
                room.notify()
            yield result
    finally:
        with room:
            stopped = True
            room.notify()
        thread.join()


@dataclass(frozen=True)
class _Failed:
    error: BaseException
