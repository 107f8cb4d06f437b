"""Trackers: what happens to the report of each step. Lines of JSON, TensorBoard, Weights & Biases, and one line of
progress.

Knows reports, files and the terminal; no policy and no reward. A tracker has `log(report)` and `close()`, and never
changes the run. After a resume it goes on at the resumed step: what an abandoned run logged beyond that is dropped.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import secrets
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from dragon.errors import ConfigError, MissingExtra
from dragon.media import Media
from dragon.record import numbers, record
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
        for name, value in _finite(report).items():
            self._writer.add_scalar(name, value, report.step)
        for clip in _extremes(report, self._every):
            self._add(clip, report.step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

    def _add(self, clip: _Clip, step: int) -> None:
        self._writer.add_text(f"clips/{clip.tag}", clip.text, step)
        if clip.media.rate is not None:
            self._writer.add_audio(f"clips/{clip.tag}", clip.mono()[None], step, sample_rate=clip.media.rate)
            self._writer.add_image(f"spectrograms/{clip.tag}", clip.spectrogram(), step, dataformats="HWC")
        elif clip.media.tensor.ndim == 4:
            self._writer.add_image(f"clips/{clip.tag}", clip.image(), step)


class WandB:
    """The same for Weights & Biases; `WANDB_MODE=offline` needs no account, and `wandb sync` sends it later.

    The run is called like `folder` in a project called like the folder above (`WANDB_PROJECT`, `WANDB_ENTITY` and the
    other variables of wandb win). Its id is kept in folder/wandb, so that a resumed run goes on as the same one; steps
    that it makes again W&B ignores, which is right as long as they are the same ones. Whatever goes wrong with W&B
    after the start is a warning, once: the run goes on.

    config: what the run was made with, shown beside it.

    Raises:
        MissingExtra: wandb is not installed. ConfigError: it cannot be started (not logged in, no connection).
    """

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, object], *, clips_every: int = 5) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra(
                f"report_to wandb needs the package, which cannot be imported ({error}): pip install "
                "'dragon-media[wandb]', or --report_to tensorboard"
            ) from error
        place = Path(folder).resolve()
        project = os.environ.get("WANDB_PROJECT") or re.sub(r"[/\\#?%:]", "-", place.parent.name)[:128] or "dragon"
        try:
            self._run: Any = wandb.init(
                dir=place,
                project=project,
                name=os.environ.get("WANDB_NAME") or place.name,
                id=_run_id(place / "wandb" / "run_id.txt"),
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(console="off"),  # its capture of the terminal would break the progress line
            )
        except Exception as error:  # a message of the service, of the network, or of its own process
            raise ConfigError(
                f"Weights & Biases cannot be started ({type(error).__name__}: {error}); call `wandb login`, set "
                "WANDB_MODE=offline, or use --report_to tensorboard, and go on in this folder with "
                "--resume_from_checkpoint latest"
            ) from error
        self._wandb, self._every, self._failed = wandb, clips_every, False

    def log(self, report: StepReport) -> None:
        """Sends the report's numbers, and clips where it is their turn."""
        with self._harmless():
            values: dict[str, Any] = dict(_finite(report))
            for clip in _extremes(report, self._every):
                values |= self._shown(clip)
            self._run.log(values, step=report.step)

    def close(self) -> None:
        """Sends what is left."""
        with self._harmless():
            self._run.finish()

    def _shown(self, clip: _Clip) -> dict[str, Any]:
        if clip.media.rate is not None:
            sound = self._wandb.Audio(clip.mono().numpy(), sample_rate=clip.media.rate, caption=clip.text)
            picture = self._wandb.Image(clip.spectrogram().numpy(), caption=clip.text)
            return {f"clips/{clip.tag}": sound, f"spectrograms/{clip.tag}": picture}
        if clip.media.tensor.ndim == 4:
            pixels = (255 * clip.image()).round().byte().permute(1, 2, 0)
            return {f"clips/{clip.tag}": self._wandb.Image(pixels.numpy(), caption=clip.text)}
        return {}

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._failed:
                warnings.warn(f"Weights & Biases: {type(error).__name__}: {error}; the run goes on", stacklevel=3)
            self._failed = True


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
        seconds = report.whole_seconds
        self._recent.append(sum(report.seconds.values()) if math.isnan(seconds) else seconds)
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
        with ExitStack() as stack:  # closes all, even where one of them cannot write what it still holds
            for tracker in self._trackers:
                stack.callback(tracker.close)


def _finite(report: StepReport) -> dict[str, float]:
    """What a curve can show."""
    return {name: value for name, value in numbers(report).items() if math.isfinite(value)}


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite for one that was cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _run_id(path: Path) -> str:
    """The id in the file; a new one is written there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class _Clip:
    """One clip to show. tag: best or worst; media: that clip alone; text: prompt, seed and score."""

    tag: str
    media: Media
    text: str

    def mono(self) -> torch.Tensor:
        """(samples,) in [-1, 1]."""
        return self.media.tensor[0].float().mean(0).clamp(-1, 1).cpu()

    def image(self) -> torch.Tensor:
        """(channels, height, width) in [0, 1]."""
        return (self.media.tensor[0].float().clamp(-1, 1).cpu() + 1) / 2

    def spectrogram(self) -> torch.Tensor:
        """(height, width, 3) uint8."""
        import numpy as np
        from PIL import Image

        from dragon.report.spectrogram import spectrogram_png

        assert self.media.rate is not None
        png = spectrogram_png(self.media.tensor[0].float().cpu().numpy(), self.media.rate)
        return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB")))


def _extremes(report: StepReport, every: int) -> Iterator[_Clip]:
    """The best and the worst clip of this process, at the first and at every `every`-th step."""
    scores = report.clip_scores
    if (report.step > 1 and report.step % every) or bool(scores.isnan().all()):
        return
    best, worst = scores.nan_to_num(nan=-math.inf).argmax(), scores.nan_to_num(nan=math.inf).argmin()
    for tag, row in (("best", int(best)), ("worst", int(worst))):
        media = report.media.rows([row])
        yield _Clip(tag, media, f"{media.prompts[0]}  \nseed {report.seeds[row]}, score {float(scores[row]):.4g}")
