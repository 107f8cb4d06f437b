"""Text that others wrote, made fit to be shown: on a terminal, in a message, in a picture. Knows only where it goes."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

# controls but tab and line end; embeddings and overrides that reorder what follows; halves of a character
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PACKAGE = Path(__file__).resolve().parent
_LINE = 120  # letters of a picture's line


def shown(text: object) -> str:
    """The text with what acts on a terminal (or cannot be written at all) as an escape such as \\x1b.

    >>> shown("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def short(value: object, length: int = 200) -> str:
    """The value as Python writes it, its middle left out where that is longer than `length`.

    >>> short("a" * 1000, 20)
    "'aaaaaaaaa...aaaaaaaaa' (1,002 characters)"
    """
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        text = f"a {type(value).__name__} of very many digits"
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def raised(error: BaseException) -> str:
    """An error's kind and first line, and where in its author's own file it arose, if one is known.

    A plug-in's author needs the line; frames of this package and of installed ones say nothing to them.
    """
    kind, text = type(error).__name__, str(error).strip()
    said = f"{kind}: {first_line(error)}" if text else kind
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and "site-packages" not in path.parts and _PACKAGE not in path.resolve().parents:
            return f"{said} ({path.name}, line {frame.lineno})"
    return said


def literal(text: object) -> str:
    """For a title, axis or legend of matplotlib: on one line and cut, as it is and not as a formula, never hidden."""
    line = " ".join(shown(text).split())
    line = (line if len(line) <= _LINE else f"{line[: _LINE - 1]}…").replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # legends leave out names with an underscore in front


def writable(text: str) -> bool:
    """Whether a file, or a file's name, can hold it: no NUL, and no half of a character, which JSON can ask for."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
