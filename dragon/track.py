"""Trackers: what happens to the report of each step. Lines of JSON, TensorBoard, and one line of progress.

Knows reports, files and the terminal; no policy and no reward. A tracker has `log(report)` and `close()`, and never
changes the run. After a resume it goes on at the resumed step: what an abandoned run logged beyond that is dropped.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

import torch

from dragon.errors import ConfigError
from dragon.media import Media
from dragon.trainer import StepReport


class Tracker(Protocol):
    """Takes the report of each step."""

    def log(self, report: StepReport) -> None: ...

    def close(self) -> None: ...


@contextmanager
def tracking(trackers: Sequence[Tracker]) -> Iterator[Tracker]:
    """All `trackers` as one; each is closed on leaving, whatever happened inside."""
    try:
        yield _All(trackers)
    finally:
        _All(trackers).close()


def record(report: StepReport) -> dict[str, object]:
    """The report without its clips, as JSON values: one line of a run's log.jsonl. NaN becomes null."""
    fields = {
        "step": report.step,
        "reward": report.reward,
        "rewards": dict(report.rewards),
        "figures": dict(report.figures),
        "gap": report.gap,
        "loss": report.loss,
        "implicit_accuracy": report.implicit_accuracy,
        "gain_positive": report.gain_positive,
        "gain_negative": report.gain_negative,
        "z0": report.z0,
        "beta": report.beta,
        "beta_gain_median": report.beta_gain_median,
        "grad_norm": report.grad_norm,
        "learning_rate": report.learning_rate,
        "pairs": report.pairs,
        "ties_dropped": report.ties_dropped,
        "seconds": dict(report.seconds),
        "reward_seconds": dict(report.reward_seconds),
        "skipped": report.skipped,
    }
    return {name: _json(value) for name, value in fields.items()}


class JsonLines:
    """One JSON object a step, on disk as soon as the step is done.

    after: the step a resumed run starts from; later lines of `path`, and a line that was cut off, are removed.
    """

    def __init__(self, path: str | os.PathLike[str], *, after: int = 0) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= after]
            beside = self._path.with_name(self._path.name + ".partial")
            beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            beside.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, report: StepReport) -> None:
        """Appends the report."""
        self._file.write(json.dumps(record(report), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Scalars at every step; at the first and at every `clips_every`-th step the best and the worst clip.

    Audio is playable (mono mix) beside its spectrogram, images are images, each with prompt, seed and score as text.
    after: the step a resumed run starts from; TensorBoard hides what was logged beyond it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, after: int = 0, clips_every: int = 5) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if clips_every < 1:
            raise ConfigError(f"clips_every is {clips_every}; expected at least 1")
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)
        self._every = clips_every

    def log(self, report: StepReport) -> None:
        """Adds the report's scalars, and clips where it is their turn."""
        for name, value in _scalars(record(report)):
            self._writer.add_scalar(name, value, report.step)
        if report.step == 1 or report.step % self._every == 0:
            scores = report.scores.flatten()
            if not scores.isnan().all():
                self._clip("best", report, int(scores.nan_to_num(nan=-math.inf).argmax()))
                self._clip("worst", report, int(scores.nan_to_num(nan=math.inf).argmin()))
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

    def _clip(self, tag: str, report: StepReport, row: int) -> None:
        media, step = report.media.rows([row]), report.step
        score = float(report.scores.flatten()[row])
        text = f"{media.prompts[0]}  \nseed {report.seeds[row]}, score {score:.4g}"
        self._writer.add_text(f"clips/{tag}", text, step)
        if media.rate is not None:
            mono = media.tensor[0].float().mean(0).clamp(-1, 1).cpu()
            self._writer.add_audio(f"clips/{tag}", mono[None], step, sample_rate=media.rate)
            self._writer.add_image(f"spectrograms/{tag}", _spectrogram(media), step, dataformats="HWC")
        elif media.tensor.ndim == 4:
            self._writer.add_image(f"clips/{tag}", (media.tensor[0].float().clamp(-1, 1).cpu() + 1) / 2, step)


class ProgressLine:
    """Where the run is: rewards, gap, implicit accuracy, seconds of each stage, time left.

    One moving line on a terminal; elsewhere (a file, a pipe, CI) one plain line a step.
    done: steps that an earlier run has made.
    """

    def __init__(self, total: int, *, done: int = 0, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._total = total
        self._recent: deque[float] = deque(maxlen=10)
        self._stream = stream or sys.stdout
        console = Console(file=self._stream)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=12), TextColumn("{task.description}", markup=False), console=console
            )
            self._task = self._bar.add_task("sampling the first batch", total=total, completed=done)
            self._bar.start()

    def log(self, report: StepReport) -> None:
        """Shows the report."""
        self._recent.append(sum(report.seconds.values()))
        left = (self._total - report.step) * sum(self._recent) / len(self._recent)
        line = progress_text(report, self._total, left)
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.update(self._task, completed=report.step, description=line)

    def close(self) -> None:
        """Leaves the line where it is."""
        if self._bar is not None:
            self._bar.stop()


def progress_text(report: StepReport, total: int, seconds_left: float) -> str:
    """One line about a step."""
    rewards = "  ".join(f"{name} {value:.4g}" for name, value in report.rewards.items())
    learnt = f"gap {report.gap:.3g}  accuracy {report.implicit_accuracy:.2f}"
    if report.skipped:
        learnt = f"no update: {report.skipped}"
    stages = " ".join(f"{name} {seconds:.1f}s" for name, seconds in report.seconds.items())
    minutes, seconds = divmod(round(seconds_left), 60)
    return f"step {report.step}/{total}  {rewards}  {learnt}  {stages}  left {minutes}:{seconds:02d}"


class _All:
    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, report: StepReport) -> None:
        for tracker in self._trackers:
            tracker.log(report)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def _json(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _json(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """("seconds/rollout", 1.5) and the like of every number in the record but the step itself."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            yield prefix + name, float(value)


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite for one that was cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _spectrogram(media: Media) -> torch.Tensor:
    """(height, width, 3) uint8 picture of one clip of audio."""
    import numpy as np
    from PIL import Image

    from dragon.report.spectrogram import spectrogram_png

    assert media.rate is not None
    png = spectrogram_png(media.tensor[0].float().cpu().numpy(), media.rate)
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB")))
