"""Which sets of clips and which exemplars are named: folders, files, exemplar sets.

Knows places and names, nothing of what lies there. Problems are gathered, not raised.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dragon.audio import EXTENSIONS
from dragon.errors import ConfigError, DragonError
from dragon.exemplars import sets
from dragon.exemplars.sets import SUFFIX, ExemplarSet
from dragon.measure.clips import PathLike, Source
from dragon.registry import nearest


def read_sets(generated: Source | Mapping[str, Source], problems: list[str]) -> dict[str, Source]:
    """Name -> source; files given one by one are one set."""
    if isinstance(generated, Mapping):
        return {str(name): source for name, source in generated.items()}
    given = [generated] if isinstance(generated, str | os.PathLike) else list(generated)
    places = [Path(place) for place in given]
    problems += [f"{place}: no such folder or file" for place in places if not place.exists()]
    folders = [place for place in places if place.is_dir()]
    files = [place for place in places if place.is_file()]
    if not places:
        problems.append("nothing to score; give at least one folder of audio")
    found = _named(folders, problems)
    if files:
        whole = [os.path.abspath(file) for file in files]
        name = Path(os.path.commonpath([os.path.dirname(file) for file in whole])).name or "files"
        found[name if name not in found else f"{name} (files)"] = files if len(files) > 1 else files[0]
    return found


def _named(folders: Sequence[Path], problems: list[str]) -> dict[str, Source]:
    """Folders by their last name, or by their whole path where two share it."""
    short = [folder.resolve().name for folder in folders]
    names = [str(f) if short.count(s) > 1 else s for f, s in zip(folders, short, strict=True)]
    problems += [
        f"{name} is given twice; give each folder once" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    return dict(zip(names, folders, strict=True))


References = PathLike | ExemplarSet | Sequence[PathLike | ExemplarSet] | None
"""Folders, files, names of exemplar sets, or the sets themselves."""


def read_references(exemplars: References, problems: list[str]) -> dict[str, Source | ExemplarSet]:
    """Name -> source or set; audio files given one by one are a source each."""
    given: Sequence[PathLike | ExemplarSet]
    if exemplars is None:
        given = []
    elif isinstance(exemplars, str | os.PathLike | ExemplarSet):
        given = [exemplars]
    else:
        given = exemplars
    folders: list[Path] = []
    found: dict[str, Source | ExemplarSet] = {}
    for one in given:
        if isinstance(one, ExemplarSet):
            loaded = one
        elif Path(one).is_dir() or Path(one).suffix.lower() in EXTENSIONS:
            folders.append(Path(one))
            continue
        else:
            try:
                if not (os.fspath(one).endswith(SUFFIX) or one in sets.available()):
                    raise ConfigError(f"exemplars {os.fspath(one)!r}: {_no_exemplars(os.fspath(one))}")
                loaded = sets.load(one)
            except DragonError as error:
                problems.append(str(error))
                continue
        if loaded.name in found:
            problems.append(f"exemplars {loaded.name!r} are given twice; give each set once")
        found[loaded.name] = loaded
    for name, folder in _named(folders, problems).items():
        found[name if name not in found else f"{name} (folder)"] = folder
    return found


def _no_exemplars(text: str) -> str:
    """What a name that is neither a folder nor a set may have meant."""
    own = f"{text}{SUFFIX}"
    if Path(own).is_file():
        return f"a set of your own is named by its path; that file is here: {own}"
    folders = [path.name for path in Path().iterdir() if path.is_dir()]
    near = nearest(text, [*sets.available(), *folders])
    hint = f"did you mean {near}?" if near else f"shipped sets: {', '.join(sets.available())}"
    return f"neither a folder nor an exemplar set; {hint}"
