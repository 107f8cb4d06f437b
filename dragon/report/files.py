"""The run folder's record of an evaluation: numbers, every single score, and the clips that were kept.

Knows the file formats and how to read them back; makes no pictures. Each file is written beside and renamed,
so a reader never meets half of one.

    evaluation.json           version 1, one result a reward
    evaluation_scores.csv     reward,side,prompt_index,prompt,sample,seed,score - enough to recompute every win rate
    samples/{base,tuned}/     audio, or .npy arrays for media without a rate
    samples/samples.csv       file,prompt,seed,rate,seconds; file relative to samples/
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dragon import audio
from dragon.errors import ConfigError
from dragon.media import Media

SCORES = "evaluation_scores.csv"
SCORE_COLUMNS = ("reward", "side", "prompt_index", "prompt", "sample", "seed", "score")
SAMPLE_COLUMNS = ("file", "prompt", "seed", "rate", "seconds")


@dataclass(frozen=True)
class Score:
    """One line of evaluation_scores.csv; `score` is NaN where the reward abstained."""

    reward: str
    side: str
    prompt_index: int
    prompt: str
    sample: int
    seed: int
    score: float


@dataclass(frozen=True)
class Sample:
    """One line of samples.csv; `rate` and `seconds` are None for what is not audio."""

    file: str
    prompt: str
    seed: int
    rate: int | None
    seconds: float | None

    @property
    def side(self) -> str:
        return self.file.split("/")[0]


class Side(Protocol):
    """One side's samples, as `dragon.collect` gives them."""

    @property
    def prompts(self) -> Sequence[str]: ...

    @property
    def seeds(self) -> Sequence[Sequence[int]]: ...

    @property
    def scores(self) -> Mapping[str, NDArray[np.float64]]: ...

    @property
    def kept(self) -> Media | None: ...

    @property
    def kept_prompts(self) -> Sequence[int]: ...


class Evaluated(Protocol):
    """A finished comparison, as `dragon.evaluate` gives it."""

    @property
    def sides(self) -> Mapping[str, Side]: ...

    def to_json(self) -> dict[str, object]: ...


def write_evaluation(evaluation: Evaluated, folder: str | os.PathLike[str]) -> None:
    """Writes evaluation.json, evaluation_scores.csv and samples/ into `folder`, in place of what was there."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    _write(root / SCORES, _table(SCORE_COLUMNS, _score_lines(evaluation)))
    samples = root / "samples"
    lines: list[Sequence[object]] = []
    for side in ("base", "tuned"):
        if (samples / side).exists():
            shutil.rmtree(samples / side)
        lines += _write_clips(evaluation.sides[side], side, samples)
    (samples / "samples.csv").unlink(missing_ok=True)  # it would name clips that are gone
    if lines:
        _write(samples / "samples.csv", _table(SAMPLE_COLUMNS, lines))
    # last: where evaluation.json is, everything it speaks of is there
    _write(root / "evaluation.json", json.dumps(evaluation.to_json(), indent=1, allow_nan=False) + "\n")


def read_scores(folder: str | os.PathLike[str]) -> list[Score]:
    """The lines of evaluation_scores.csv."""
    return [
        Score(
            row["reward"],
            row["side"],
            int(row["prompt_index"]),
            row["prompt"],
            int(row["sample"]),
            int(row["seed"]),
            float(row["score"]) if row["score"] else math.nan,
        )
        for row in _read(Path(folder) / SCORES, SCORE_COLUMNS)
    ]


def read_samples(folder: str | os.PathLike[str]) -> list[Sample]:
    """The lines of samples/samples.csv; none where no clips were kept."""
    path = Path(folder) / "samples" / "samples.csv"
    if not path.exists():
        return []
    return [
        Sample(
            row["file"],
            row["prompt"],
            int(row["seed"]),
            int(row["rate"]) if row["rate"] else None,
            float(row["seconds"]) if row["seconds"] else None,
        )
        for row in _read(path, SAMPLE_COLUMNS)
    ]


def _score_lines(evaluation: Evaluated) -> Iterable[Sequence[object]]:
    for side, got in evaluation.sides.items():
        for reward, scores in got.scores.items():
            for i, row in enumerate(scores):
                for j, score in enumerate(row):
                    text = "" if math.isnan(score) else repr(float(score))
                    yield reward, side, i, got.prompts[i], j, got.seeds[i][j], text


def _write_clips(got: Side, side: str, samples: Path) -> Iterable[Sequence[object]]:
    """The kept clips as files, one line of samples.csv for each."""
    if got.kept is None:
        return
    (samples / side).mkdir(parents=True, exist_ok=True)
    clips = audio.to_audio(got.kept) if got.kept.rate is not None else None
    for row, prompt in enumerate(got.kept_prompts):
        seed = got.seeds[prompt][0]
        if clips is None:
            name = f"{side}/{prompt:04d}.npy"
            np.save(samples / name, got.kept.tensor[row].numpy())
            yield name, got.prompts[prompt], seed, "", ""
        else:
            name = f"{side}/{prompt:04d}.wav"
            audio.save(samples / name, clips[row])
            yield name, got.prompts[prompt], seed, clips[row].rate, f"{clips[row].seconds:.3f}"


def _table(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; expected a run folder with an evaluation (dragon evaluate writes one)"
        )
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise ConfigError(f"{path}: columns {reader.fieldnames}; expected {list(columns)}")
    return rows


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
