"""Scores of folders of audio against exemplars, without a trainer: what `dragon score` calls.

    result = score("generated", exemplars="reference", metrics=["fad", "kad"])

Everything that is asked for is checked first; then each folder is decoded and embedded once, for all encoders; then the
metrics read what was embedded. Imports neither diffusers nor peft nor accelerate, unless an encoder does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations

from dragon.encoders.lookup import EncoderSpec
from dragon.errors import ConfigError, DragonError
from dragon.intervals import LEVEL
from dragon.measure.captions import Captioned, CaptionFile, read_captions
from dragon.measure.clips import MIN_SECONDS, Source, find_clips
from dragon.measure.comparison import difference, interval_of
from dragon.measure.gather import Gathered, Progress, gather, staged
from dragon.measure.judged import judge
from dragon.measure.measured import Measured, SetMetric
from dragon.measure.metrics import SongFad
from dragon.measure.picture import Projection, project
from dragon.measure.provenance import provenance
from dragon.measure.request import MetricSpec, Request, read_request
from dragon.measure.result import Pair, ScoreResult, Song, Value
from dragon.measure.sides import GROUPS, Reference, Side, split_groups
from dragon.measure.sources import References
from dragon.measure.store import EmbeddingStore
from dragon.protocols import JointEncoder


def score(
    generated: Source | Mapping[str, Source],
    exemplars: References = None,
    metrics: Sequence[MetricSpec] | None = None,
    *,
    encoder: EncoderSpec | Sequence[EncoderSpec] | None = None,
    captions: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    min_seconds: float = MIN_SECONDS,
    cache: str | os.PathLike[str] | None = "default",
    device: str = "cpu",
    batch: int = 8,
    groups: int = GROUPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScoreResult:
    """Values of every metric for every set, with intervals and differences.

    generated: a folder, several, or {name: folder}; audio files that are given one by one make one set. exemplars:
    folders and exemplar sets (a shipped one's name, a .safetensors file, or an object). metrics: names, {"name": ...,
    "options": {...}}, rewards, or functions as `FunctionReward` takes them; None: fad, kad and vendi, or vendi alone
    where there are no exemplars. encoder: None: that of an exemplar set, or else "mini". captions: a CSV file with the
    columns file and caption. cache: folder that keeps embeddings; None or "none": nowhere; "default":
    $DRAGON_CACHE/embeddings or ~/.cache/dragon/embeddings.

    Raises:
        ConfigError: everything that is wrong with what is asked for, at once, before anything is embedded.
        AudioError: every file that cannot be used, of all folders, with its reason; see `skip_bad`.
    """
    request = read_request(generated, exemplars, metrics, encoder, captions is not None, device)
    rows = None if captions is None else read_captions(captions)
    if rows is not None:  # a clip without a caption is known now, too
        for name, source in request.sets.items():
            files = find_clips(source)
            rows.of([file.name for file in files], [file.path for file in files], name)
    split_groups(2, groups, seed)  # a wrong number is known now
    store = EmbeddingStore.named(cache)
    heard = gather(request, store, skip_bad, min_seconds, batch, progress)
    run = _Run(request, heard, rows, groups, seed)
    run.measure()
    run.judge(batch, progress)
    return run.result(store, captions)


class _Run:
    """Everything that is measured of the embedded sets, gathered."""

    def __init__(self, request: Request, heard: Gathered, captions: CaptionFile | None, groups: int, seed: int) -> None:
        self._request, self._heard, self._groups, self._seed = request, heard, groups, seed
        self._captioned: dict[str, Captioned] = {}
        if captions is not None:
            clips = {name: found[0] for name, found in heard.sets.items()}
            self._captioned = {name: captions.of(one.names, one.paths, name) for name, one in clips.items()}
        self._found: dict[tuple[str, str, str], dict[str, Measured]] = {}  # metric, encoder, reference -> set -> value
        self._songs: dict[str, dict[str, Measured]] = {}  # column -> set -> values
        self._projection: Projection | None = None
        self._failed: list[DragonError] = []  # all are told at once: what was embedded is in the store

    def measure(self) -> None:
        for number, label in enumerate(self._request.labels):
            sides = [self._side(name, number) for name in self._heard.sets]
            references = self._heard.references[number]
            for metric in self._request.metrics:
                if "captions" in metric.needs and not isinstance(self._request.encoders[number], JointEncoder):
                    continue
                for reference in references if "reference" in metric.needs else [None]:
                    self._add(metric, label, sides, reference)
            if not any(isinstance(metric, SongFad) for metric in self._request.metrics):
                for reference in references:  # the table of songs has it in any case
                    self._add(SongFad(), label, sides, reference, songs_only=True)
            if self._projection is None:
                self._projection = project(sides, references[0] if references else None, self._seed)
        if len(self._failed) > 1:
            raise ConfigError("\n".join(["no score:", *(f"  {error}" for error in self._failed)])) from self._failed[0]
        for error in self._failed:
            raise error

    def judge(self, batch: int, progress: Progress | None) -> None:
        if not self._request.rewards:
            return
        for name, found in self._heard.sets.items():
            tell = None if progress is None else staged(progress, f"rewards of {name}")
            groups = split_groups(len(found[0]), self._groups, self._seed)
            for one in judge(found[0], self._request.rewards, self._captioned.get(name), groups, batch, tell):
                self._keep(one, name, "", "")

    def result(self, store: EmbeddingStore, captions: str | os.PathLike[str] | None) -> ScoreResult:
        warnings = self._heard.warnings()
        values, pairs = [], []
        for (metric, label, reference), by_set in self._found.items():
            for name, measured in by_set.items():
                values.append(self._value(name, metric, label, reference, measured))
                warnings += measured.warnings
            for first, second in combinations(by_set, 2):
                found = difference(by_set[first], by_set[second], self._heard.paired(first, second), self._seed)
                if found is not None:
                    pairs.append(Pair(first, second, metric, label, reference, found))
            sizes = {name: len(self._heard.sets[name][0]) for name in by_set}
            if next(iter(by_set.values())).grows and len(set(sizes.values())) > 1:
                listed = ", ".join(f"{name} {count}" for name, count in sizes.items())
                warnings.append(f"{metric} depends on the number of clips, and the sets differ in it: {listed}")
        return ScoreResult(
            tuple(values),
            tuple(pairs),
            tuple(self._rows()),
            tuple(dict.fromkeys(warnings)),
            (*self._request.notes, _intervals_note(values, bool(self._request.references))),
            provenance(
                self._request, self._heard.sets, self._heard.references, self._groups, self._seed, captions, store
            ),
            {column: next(iter(by_set.values())).better for column, by_set in self._songs.items()},
            self._projection,
        )

    def _side(self, name: str, number: int) -> Side:
        embedded = self._heard.sets[name][number]
        captioned = self._captioned.get(name)
        groups = split_groups(len(embedded), self._groups, self._seed)
        return Side(name, embedded, groups, None if captioned is None else captioned.captions)

    def _add(
        self, metric: SetMetric, label: str, sides: list[Side], reference: Reference | None, songs_only: bool = False
    ) -> None:
        against = "" if reference is None else reference.name
        for side in sides:
            try:
                measured = metric.measure(side, reference)
            except DragonError as error:
                failed = type(error)(f"metric {metric.name} of {side.name!r} by {label!r}: {error}")
                failed.__cause__ = error
                self._failed.append(failed)
                continue
            for one in measured:
                self._keep(one, side.name, label, against, songs_only)

    def _keep(self, one: Measured, name: str, label: str, reference: str, songs_only: bool = False) -> None:
        if not songs_only:
            self._found.setdefault((one.metric, label, reference), {})[name] = one
        if one.scores is not None:
            self._songs.setdefault(self._request.column(one.metric, label, reference), {})[name] = one

    def _value(self, name: str, metric: str, label: str, reference: str, measured: Measured) -> Value:
        found = interval_of(measured, self._seed)
        low, high, how = (None, None, "") if found is None else (found[0].low, found[0].high, found[1])
        return Value(name, metric, measured.value, measured.better, low, high, label, reference, how, measured.facts)

    def _rows(self) -> list[Song]:
        rows = []
        for name, found in self._heard.sets.items():
            clips = found[0]
            for i, (file, content, seconds) in enumerate(zip(clips.names, clips.hashes, clips.seconds, strict=True)):
                scores = {c: by_set[name].scores for c, by_set in self._songs.items() if name in by_set}
                row = {c: float(s[i]) for c, s in scores.items() if s is not None}
                rows.append(Song(name, file, content, seconds, {c: None if v != v else v for c, v in row.items()}))
        return rows


def _intervals_note(values: Sequence[Value], reference: bool) -> str:
    how = sorted({value.interval for value in values if value.interval})
    none = "none: too few clips, or clips that do not differ"
    held = "; the reference is held fixed" if reference else ""
    return f"{100 * LEVEL:.0f} % intervals: {', '.join(how) or none}{held}"
