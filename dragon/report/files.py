"""The run folder's record of an evaluation: numbers, every single score, and the clips that were kept.

Knows the file formats and how to read them back; makes no pictures. Each file is written beside and renamed,
so a reader never meets half of one.

    evaluation.json           version 1, one result a reward
    evaluation_scores.csv     reward,side,prompt_index,prompt,sample,seed,score - enough to recompute every win rate
    samples/{base,tuned}/     .wav of audio, .png of images, .npy of anything else
    samples/samples.csv       file,prompt,seed,rate,seconds; file relative to samples/
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dragon.clips import write_clip
from dragon.errors import ConfigError
from dragon.files import write_whole, writing
from dragon.image import EXTENSION
from dragon.media import Media
from dragon.tables import csv_rows, csv_text
from dragon.texts import short

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

    @property
    def is_picture(self) -> bool:
        return self.rate is None and self.file.endswith(EXTENSION)


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
    """Writes evaluation.json, evaluation_scores.csv and samples/ into `folder`, in place of what was there.

    Raises:
        Unwritable: no room, or no permission. ConfigError: `samples` is a link, so that clips elsewhere would go.
    """
    root = Path(folder)
    with writing("the evaluation", root, "make room or allow it, then evaluate again: dragon evaluate RUN"):
        root.mkdir(parents=True, exist_ok=True)
        samples = own_folder(root, "samples")
        _write(root / SCORES, csv_text(SCORE_COLUMNS, _score_lines(evaluation)))
        lines: list[Sequence[object]] = []
        for side in ("base", "tuned"):
            if (samples / side).is_symlink():
                (samples / side).unlink()
            elif (samples / side).exists():
                shutil.rmtree(samples / side)
            lines += _write_clips(evaluation.sides[side], side, samples)
        (samples / "samples.csv").unlink(missing_ok=True)  # it would name clips that are gone
        if lines:
            _write(samples / "samples.csv", csv_text(SAMPLE_COLUMNS, lines))
        # last: where evaluation.json is, everything it speaks of is there
        _write(root / "evaluation.json", json.dumps(evaluation.to_json(), indent=1, allow_nan=False) + "\n")


def own_folder(root: Path, name: str) -> Path:
    """`root`/`name`; refused where that is a link, since what is written or removed in it would lie elsewhere."""
    if (root / name).is_symlink():
        raise ConfigError(
            f"{root / name} is a link to {os.readlink(root / name)}, where files would be replaced; remove the link"
        )
    return root / name


def read_scores(folder: str | os.PathLike[str]) -> list[Score]:
    """The lines of evaluation_scores.csv. Raises ConfigError where there is none, or a damaged one."""
    path = Path(folder) / SCORES
    with _damaged(path):
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
            for row in _read(path, SCORE_COLUMNS)
        ]


def read_samples(folder: str | os.PathLike[str]) -> list[Sample]:
    """The lines of samples/samples.csv; none where no clips were kept.

    Raises:
        ConfigError: a damaged table, or one that names files outside `samples`, which no run writes.
    """
    path = Path(folder) / "samples" / "samples.csv"
    if not path.exists():
        return []
    with _damaged(path):
        found = [
            Sample(
                row["file"],
                row["prompt"],
                int(row["seed"]),
                int(row["rate"]) if row["rate"] else None,
                float(row["seconds"]) if row["seconds"] else None,
            )
            for row in _read(path, SAMPLE_COLUMNS)
        ]
        home = path.parent.resolve()
        for sample in found:
            if not (home / sample.file).resolve().is_relative_to(home):
                raise ConfigError(f"{path} names {short(sample.file)}, which lies outside {path.parent}")
    return found


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
    for row, prompt in enumerate(got.kept_prompts):
        written = write_clip(got.kept, row, samples / side / f"{prompt:04d}")
        rate = "" if written.rate is None else written.rate
        seconds = "" if written.seconds is None else f"{written.seconds:.3f}"
        yield f"{side}/{written.path.name}", got.prompts[prompt], got.seeds[prompt][0], rate, seconds


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; expected a run folder with an evaluation (dragon evaluate writes one)"
        )
    return csv_rows(path, columns)


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:  # a number that is none; a name that no file can have
        raise ConfigError(f"{path} is damaged ({error}); evaluate again: dragon evaluate RUN") from error


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # a prompt given in memory may hold anything
