"""What exemplars can be made of: a folder of audio, captions, a table of files, or the best clips of a finished run.

Decides which of them a SOURCE is, and hands its clips or captions on (dragon.exemplars.collect embeds them).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dragon.errors import ConfigError

if TYPE_CHECKING:
    from dragon.audio import Audio
    from dragon.exemplars.collect import Clip
    from dragon.report.files import Score

Which = Literal["auto", "clips", "captions"]
BEST = 32
"""Clips taken of a run unless told otherwise."""
EXPECTED = "a folder of audio, a .txt, .csv or .jsonl file, a finished run's folder, or transitions (.npz, .hdf5)"
_TABLES = (".txt", ".csv", ".jsonl")
_BATCH = 16  # clips made at once, where a run has not kept them


@dataclass(frozen=True)
class Clips:
    """total clips that `read` gives one after another; source: what the set says of them unless told otherwise."""

    read: Callable[[], Iterator[Clip]]
    total: int
    source: str


@dataclass(frozen=True)
class Captions:
    texts: tuple[str, ...]
    source: str


def find(place: str, *, of: Which = "auto", best: int | None = None, reward: str = "", device: str) -> Clips | Captions:
    """What lies at `place`. of: which column of a table is meant that has both `file` and `caption`.

    Raises:
        ConfigError: nothing that exemplars can be made of, or `best` or `reward` for what is no run.
        AudioError: a folder without audio.
    """
    from dragon import audio
    from dragon.exemplars.collect import read_files
    from dragon.report.files import SCORES

    path = Path(place)
    unfinished = (path / "config.yaml").is_file() and any((path / part).is_dir() for part in ("checkpoints", "final"))
    if (path / SCORES).is_file() or unfinished:
        return _best_of_run(path, BEST if best is None else best, reward, device)
    if best is not None or reward:
        raise ConfigError(
            f"{place!r} is no run folder; leave out --best and --reward, or give one that `dragon train` made"
        )
    if path.is_dir():
        files = audio.list_audio(path)
        return Clips(lambda: read_files(files, path), len(files), path.resolve().name)
    if path.suffix not in _TABLES:
        raise ConfigError(f"no folder {place!r}; expected {EXPECTED}")
    rows = _rows(path)
    columns = set(rows[0]) if rows else set()
    if {"file", "caption"} <= columns and of == "auto":
        raise ConfigError(
            f"{place!r} has a column of files and one of captions; say which is meant: --of clips or --of captions"
        )
    if "file" in columns and of != "captions":
        return _listed(path, rows)
    if of == "clips" and path.is_file():
        raise ConfigError(f"{place!r} has no column 'file'; --of clips needs one, with paths relative to that file")
    if "caption" in columns:
        return Captions(tuple(str(row.get("caption") or "") for row in rows), path.name)
    if columns and "prompt" not in columns:
        raise ConfigError(
            f"{place!r} has columns {', '.join(sorted(map(str, columns)))}; expected 'caption' (or 'prompt') for "
            "captions, 'file' for audio files: rename the one that is meant"
        )
    from dragon.prompts import load_prompts

    return Captions(load_prompts(place).prompts, path.name)


def _rows(path: Path) -> list[dict[str, object]]:
    """Of a table; none for a .txt file or one that is not there, which the prompt reader knows better."""
    if path.suffix == ".txt" or not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigError(
            f"captions {str(path)!r} cannot be read ({error}); expected UTF-8 text, in .jsonl one object a line"
        ) from error
    return rows if all(isinstance(row, dict) for row in rows) else []


def _listed(table: Path, rows: Sequence[dict[str, object]]) -> Clips:
    """The files that a table names, relative to it; each once."""
    from dragon.exemplars.collect import read_files

    empty = [str(number) for number, row in enumerate(rows, 1) if not str(row.get("file") or "").strip()]
    if empty:
        raise ConfigError(
            f"{str(table)!r}: row {', '.join(empty)} of {len(rows)} names no file; fill it in, or leave it out"
        )
    names = dict.fromkeys(str(row["file"]).strip() for row in rows)
    files = [table.parent / name for name in names]
    return Clips(lambda: read_files(files, table.parent), len(files), table.name)


def _best_of_run(run: Path, best: int, reward: str, device: str) -> Clips:
    """The tuned samples with the highest scores in the run's evaluation; made anew where they were not kept."""
    from dragon.report.files import read_samples, read_scores

    if best < 2:
        raise ConfigError(f"best is {best}; expected at least 2 clips")
    scores = [s for s in read_scores(run) if s.side == "tuned" and not math.isnan(s.score)]
    name = reward or _trained_on(run)
    scored = sorted({s.reward for s in scores})
    if name not in scored:
        raise ConfigError(
            f"run {str(run)!r}: reward {name!r} scored no single clip of its evaluation; "
            f"give --reward with one that did: {', '.join(scored) or 'none did'}"
        )
    ranked = sorted((s for s in scores if s.reward == name), key=lambda s: (-s.score, s.prompt_index, s.sample))
    if len(ranked) < best:
        raise ConfigError(
            f"run {str(run)!r} has {len(ranked)} tuned samples scored by {name!r}, fewer than --best {best}; ask for "
            f"fewer, or evaluate more: dragon evaluate {run} --evaluation.samples_per_prompt 8"
        )
    chosen = ranked[:best]
    kept = {(s.prompt, s.seed): run / "samples" / s.file for s in read_samples(run) if s.side == "tuned" and s.rate}
    files = [kept.get((s.prompt, s.seed)) for s in chosen]
    source = f"the best {best} of {len(ranked)} tuned samples of run {run.resolve().name} by {name}"

    def read() -> Iterator[Clip]:
        from dragon import audio
        from dragon.exemplars.collect import short

        clips = (
            (audio.load(f) for f in files if f is not None) if None not in files else _made_again(run, chosen, device)
        )
        for score, clip in zip(chosen, clips, strict=True):
            yield f"{short(score.prompt)}, seed {score.seed}", clip

    return Clips(read, best, source)


def _trained_on(run: Path) -> str:
    """The one reward of clips that the run was trained on."""
    try:
        rewards = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["rewards"]
        names = [name for name, found in rewards.items() if found["trained_on"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"run {str(run)!r} has no evaluation.json that can be read ({error}); give --reward, or let "
            f"dragon evaluate {run} write it"
        ) from error
    if len(names) != 1:
        raise ConfigError(
            f"run {str(run)!r} was trained on {len(names)} rewards ({', '.join(names)}); say by which: --reward NAME"
        )
    return str(names[0])


def _made_again(run: Path, chosen: Sequence[Score], device: str) -> Iterator[Audio]:
    """The same samples from their prompts and seeds, as the evaluation made them."""
    from dragon import audio
    from dragon.run import load_tuned

    settings = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["settings"]
    _, policy = load_tuned(run, device)
    for start in range(0, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]
        made = policy.generate(
            [s.prompt for s in part], [s.seed for s in part], steps=settings["steps"], guidance=settings["guidance"]
        )
        yield from audio.to_audio(policy.decode(made))
