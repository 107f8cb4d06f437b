"""A page of HTML in one file: headings, text, tables, pictures and players, without any outside resource.

Knows nothing of what it shows: text is escaped, drawn pictures are embedded as PNG, files of sounds and pictures are
embedded or named by a path relative to the page. Light and dark follow the reader's system.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dragon.files import write_whole
from dragon.texts import shown

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --mark: #2a7; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2rem }
p.note { color: var(--soft); max-width: 48rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem }
.card h3 { margin: 0 0 .4rem; font-size: .95rem }
img { width: 100%; display: block } audio { width: 100%; margin: .4rem 0 }
.small { font-size: .85rem; color: var(--soft); font-variant-numeric: tabular-nums }
"""

# one player at a time: comparing two clips by ear needs silence from the other
_SCRIPT = """
const players = [...document.querySelectorAll("audio")];
for (const p of players) p.addEventListener("play", () => { for (const q of players) if (q !== p) q.pause(); });
"""

_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".png": "image/png",
}


class Page:
    """Parts are added in reading order; `str(page)` is the whole document."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = [f"<h1>{_text(title)}</h1>"]

    def heading(self, text: str) -> None:
        """A section's title."""
        self._parts.append(f"<h2>{_text(text)}</h2>")

    def note(self, text: str) -> None:
        """A paragraph of explanation."""
        self._parts.append(f'<p class="note">{_text(text)}</p>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of text cells; the first column is the row's name."""
        cells = "".join(f"<tr>{''.join(f'<td>{_text(c)}</td>' for c in row)}</tr>" for row in rows)
        top = "".join(f"<th>{_text(c)}</th>" for c in head)
        self._parts.append(f"<table><thead><tr>{top}</tr></thead><tbody>{cells}</tbody></table>")

    def picture(self, png: bytes, alt: str) -> None:
        """A PNG, embedded."""
        self._parts.append(picture(png, alt))

    def columns(self, cards: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Cards side by side, each a title with parts made by `picture`, `picture_file`, `player` and `small`."""
        made = "".join(f'<div class="card"><h3>{_text(title)}</h3>{"".join(parts)}</div>' for title, parts in cards)
        self._parts.append(f'<div class="columns">{made}</div>')

    def __str__(self) -> str:
        body = "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self._title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page beside and renames it to `path`."""
        target = Path(path)
        write_whole(target, str(self).encode())
        return target


def picture(png: bytes, alt: str) -> str:
    """An embedded PNG as an HTML part."""
    return f'<img alt="{_text(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def player(path: str | os.PathLike[str], *, page_folder: str | os.PathLike[str], embed: bool, label: str) -> str:
    """A sound file as an HTML part: embedded, or by its path relative to the page's folder."""
    source = _source(Path(path), page_folder, embed)
    return f'<audio controls preload="metadata" aria-label="{_text(label)}" src="{source}"></audio>'


def picture_file(path: str | os.PathLike[str], *, page_folder: str | os.PathLike[str], embed: bool, label: str) -> str:
    """The same of a picture file."""
    return f'<img alt="{_text(label)}" loading="lazy" src="{_source(Path(path), page_folder, embed)}">'


def small(text: str) -> str:
    """A line of small text as an HTML part."""
    return f'<div class="small">{_text(text)}</div>'


def _source(file: Path, page_folder: str | os.PathLike[str], embed: bool) -> str:
    if embed:
        return f"data:{_TYPES[file.suffix.lower()]};base64,{base64.b64encode(file.read_bytes()).decode()}"
    return quote(Path(os.path.relpath(file, page_folder)).as_posix())


def _text(value: str) -> str:
    return html.escape(shown(value), quote=True)
