"""Every folder that a score is asked for, embedded by every encoder, and what is odd about the files.

Knows requests and embedded sets, no metric.
"""

from __future__ import annotations

from collections.abc import Callable

from dragon.errors import AudioError
from dragon.exemplars.sets import ExemplarSet
from dragon.measure.clips import Source
from dragon.measure.embed import Embedded, embed_folder
from dragon.measure.request import Request
from dragon.measure.sides import FolderReference, Reference, SetReference
from dragon.measure.store import EmbeddingStore

Progress = Callable[[str, int, int, float, float], None]
"""(what is being done, clips done, clips in all, clips a second, seconds left)."""


class Gathered:
    """What was embedded: of each set and of each reference, one entry an encoder."""

    def __init__(self, sets: dict[str, list[Embedded]], references: list[list[Reference]]) -> None:
        self.sets, self.references = sets, references

    def paired(self, first: str, second: str) -> bool:
        """Whether clip i of both has the same name."""
        return self.sets[first][0].names == self.sets[second][0].names

    def warnings(self) -> list[str]:
        """What is odd about the files: left out, given twice, or also in the reference."""
        found = []
        for name, (clips, *_) in self.sets.items():
            if clips.bad:
                listed = "; ".join(str(one) for one in clips.bad[:3]) + ("; ..." if len(clips.bad) > 3 else "")
                found.append(f"{name}: {len(clips.bad)} of {len(clips.bad) + len(clips)} files left out: {listed}")
            if (again := len(clips) - len(set(clips.hashes))) > 0:
                found.append(f"{name}: {again} files repeat another file of the set, byte for byte")
            for reference in self.references[0]:
                if isinstance(reference, FolderReference) and (
                    shared := len(set(clips.hashes) & set(reference.embedded.hashes))
                ):
                    found.append(
                        f"{name}: {shared} of its files are also in the reference {reference.name}, byte for byte; "
                        "distances to it are too small"
                    )
        for reference in self.references[0]:
            if isinstance(reference, FolderReference) and reference.embedded.bad:
                found.append(f"{reference.name}: {len(reference.embedded.bad)} files left out")
        cut = {
            r.name: r.exemplars.settings.get("seconds")
            for row in self.references
            for r in row
            if isinstance(r, SetReference)
        }
        found += [
            f"exemplar set {name!r} was cut into pieces of {seconds:g} s before its encoder heard them, and clips are "
            "heard whole here, which can move a distance; build it again without --seconds"
            for name, seconds in cut.items()
            if isinstance(seconds, int | float)
        ]
        return found


def gather(
    request: Request,
    store: EmbeddingStore,
    skip_bad: bool,
    min_seconds: float,
    batch: int,
    progress: Progress | None,
) -> Gathered:
    """Every folder by every encoder; the bad files of all folders in one error."""
    errors: list[str] = []

    def embedded(name: str, source: Source) -> list[Embedded]:
        tell = None if progress is None else staged(progress, name)
        try:
            return embed_folder(
                source,
                request.encoders,
                store=store,
                skip_bad=skip_bad,
                min_seconds=min_seconds,
                batch=batch,
                progress=tell,
            )
        except AudioError as error:
            errors.append(str(error))
            return []

    sets = {name: embedded(name, source) for name, source in request.sets.items()}
    folders = {
        name: embedded(name, source)
        for name, source in request.references.items()
        if not isinstance(source, ExemplarSet)
    }
    if errors:
        raise AudioError("\n".join(errors))
    references: list[list[Reference]] = [[] for _ in request.encoders]
    for name, source in request.references.items():
        for number, encoder in enumerate(request.encoders):
            if not isinstance(source, ExemplarSet):
                references[number].append(FolderReference(name, folders[name][number]))
            elif source.encoder_hash == encoder.fingerprint:
                references[number].append(SetReference(source))
    return Gathered(sets, references)


def staged(progress: Progress, stage: str) -> Callable[[int, int, float, float], None]:
    def tell(done: int, total: int, rate: float, left: float) -> None:
        progress(stage, done, total, rate, left)

    return tell
