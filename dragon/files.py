"""Writing a file so that it is complete or absent, whatever stops the writer."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dragon.errors import ConfigError, Unwritable


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside the place, to the disk, and renames; makes the folder.

    Raises:
        OSError: the place cannot be written; nothing is left there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


@contextmanager
def writing(what: str, place: Path, hint: str, needed: int = 0) -> Iterator[None]:
    """What the system refuses inside becomes one message: what, where, why, the room there is, and what to do.

    hint: the last part of the message. needed: bytes, where they are known.

    Raises:
        Unwritable: a full disk, a quota, a size limit, no permission.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        size = f"at least {readable(needed)} needed, " if needed else ""
        raise Unwritable(
            f"{what} cannot be written to {str(place)!r}: {_reason(error)} ({size}{readable(room(place))} free); {hint}"
        ) from error


def room(place: Path) -> int:
    """Free bytes where `place` is or would be."""
    return shutil.disk_usage(standing(place)).free


def check_writable(folder: Path, what: str) -> None:
    """Raises ConfigError unless files may be written to `folder`, or it may be made; `what` names it."""
    place = standing(folder)
    if not place.is_dir():
        raise ConfigError(f"{what} {str(folder)!r}: {str(place)!r} is a file; choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{what} {str(folder)!r}: {str(place)!r} may not be written to; choose another folder")


def standing(place: Path) -> Path:
    """`place`, or the nearest folder above it that is there."""
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    return place


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable(count: int) -> str:
    """1500 -> '1.5 kB'; steps of 1000.

    >>> readable(1_500_000)
    '1.5 MB'
    """
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def _reason(error: OSError | SafetensorError) -> str:
    """'No space left on device', as the system says it or as safetensors repeats it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"I/O error: (.*?) \(os error", str(error))
    return found[1] if found else str(error)
