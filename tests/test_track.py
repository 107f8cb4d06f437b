"""Trackers: every step once, in a form that other programs read; the clips can be heard and seen."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import sys
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dragon.errors import ConfigError, MissingExtra
from dragon.media import Media
from dragon.record import numbers, record
from dragon.track import JsonLines, ProgressLine, TensorBoard, WandB, progress_text, tracking
from dragon.trainer import StepReport

RATE = 8000


def report(step: int = 1, *, media: Media | None = None, **changes: Any) -> StepReport:
    """Two prompts, two samples each; sample 2 is best, sample 1 worst, sample 3 was not scored."""
    seconds = torch.arange(2048) / RATE
    tones = torch.stack([torch.sin(2 * math.pi * hz * seconds) for hz in (500, 1000, 2000, 3000)])
    media = media or Media(0.5 * tones[:, None].repeat(1, 2, 1), ("a", "a", "b", "b"), RATE)
    values: dict[str, Any] = {
        "step": step, "rewards": {"clap": 0.5, "fad": -60.0}, "reward": 1.0, "figures": {"fad/positive": -50.0},
        "gap": 0.25, "loss": 0.7,
        "implicit_accuracy": 0.75, "gain_positive": 0.1, "gain_negative": -0.1, "z0": math.nan, "beta": None,
        "beta_gain_median": math.nan, "grad_norm": 2.0, "learning_rate": 1e-4, "pairs": 2, "ties_dropped": 1,
        "seconds": {"rollout": 2.0, "decode": 0.5, "score": 0.5, "search": 0.0, "train": 3.0},
        "reward_seconds": {"clap": 0.2, "fad": 0.3}, "skipped": "", "media": media, "seeds": (11, 12, 13, 14),
        "scores": torch.tensor([[0.5, 0.1], [0.9, math.nan]], dtype=torch.float64),
    }  # fmt: skip
    return StepReport(**{**values, **changes})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_has_the_contracts_fields_and_strict_json(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "run" / "log.jsonl")
    log.log(report())
    (line,) = lines(tmp_path / "run" / "log.jsonl")  # on disk before it is closed
    log.close()
    fields = {"step", "reward", "gap", "loss", "implicit_accuracy", "beta_gain_median", "grad_norm", "seconds"}
    assert fields <= line.keys()
    assert line["rewards"] == {"clap": 0.5, "fad": -60.0} and line["step"] == 1
    assert list(line["seconds"]) == ["rollout", "decode", "score", "search", "train"]
    assert line["beta_gain_median"] is None and line["z0"] is None and line["beta"] is None


def test_every_number_of_the_report_is_logged() -> None:
    left_out = {"media", "seeds", "scores", "first_row"}
    assert record(report()).keys() == set(StepReport.__dataclass_fields__) - left_out


def test_a_resumed_log_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = JsonLines(path)
    for step in (1, 2, 3, 4):
        first.log(report(step))
    first.close()
    with path.open("a") as file:
        file.write('{"step": 5, "rew')  # the machine went down here
    resumed = JsonLines(path, after=2)
    for step in (3, 4):
        resumed.log(report(step, loss=0.1))
    resumed.close()
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(1, 0.7), (2, 0.7), (3, 0.1), (4, 0.1)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_run_does_not_keep_another_runs_lines(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nnot json\n')
    JsonLines(tmp_path / "log.jsonl").close()
    assert lines(tmp_path / "log.jsonl") == []


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"audio": 0, "images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_holds_scalars_and_clips_that_can_be_heard(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, clips_every=2)
    for step in (1, 2, 3):
        board.log(report(step))
    board.close()
    found = events(tmp_path)
    assert [s.step for s in found.Scalars("loss")] == [1, 2, 3]
    assert found.Scalars("rewards/fad")[0].value == -60.0 and found.Scalars("seconds/train")[0].value == 3.0
    shown = {name for name, value in numbers(report()).items() if math.isfinite(value)}
    assert set(found.Tags()["scalars"]) == shown and "z0" not in shown  # NaN: not drawn
    clips = found.Audio("clips/best")
    assert [clip.step for clip in clips] == [1, 2]
    for name, hz in (("best", 2000), ("worst", 1000)):  # rows 2 and 1; the row that was not scored is neither
        clip = found.Audio(f"clips/{name}")[0]
        with wave.open(io.BytesIO(clip.encoded_audio_string)) as file:
            assert file.getframerate() == clip.sample_rate == RATE and file.getnframes() == 2048
            sound = torch.frombuffer(bytearray(file.readframes(2048)), dtype=torch.int16).double()
        loudest = torch.fft.rfft(sound).abs().argmax() * RATE / 2048
        assert float(loudest) == pytest.approx(hz, abs=RATE / 2048)
        assert float(sound.abs().max()) == pytest.approx(0.5 * 32767, rel=0.01)


def test_tensorboard_spectrogram_shows_the_tone(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    board = TensorBoard(tmp_path)
    board.log(report())
    board.close()
    image = events(tmp_path).Images("spectrograms/best")[0]
    picture = np.array(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"), dtype=float)
    assert picture.shape == (image.height, image.width) and picture.shape[1] > 100
    middle = picture[:, picture.shape[1] // 2 - 20 : picture.shape[1] // 2 + 20].mean(1)
    inside = middle[10 : int(len(middle) * 0.7)]
    assert inside.max() - np.median(inside) > 50  # one bright line on dark ground


def test_tensorboard_shows_images_as_images(tmp_path: Path) -> None:
    tensor = torch.linspace(-1, 1, 4)[:, None, None, None].expand(4, 3, 6, 5)
    board = TensorBoard(tmp_path)
    board.log(report(media=Media(tensor, ("a", "a", "b", "b"))))
    board.close()
    found = events(tmp_path)
    image = found.Images("clips/best")[0]
    assert (image.height, image.width) == (6, 5) and not found.Tags()["audio"]


def test_a_step_without_any_score_has_no_clips(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.log(report(scores=torch.full((2, 2), math.nan, dtype=torch.float64)))
    board.close()
    assert not events(tmp_path).Tags()["audio"]
    with pytest.raises(ConfigError, match="clips_every is 0"):
        TensorBoard(tmp_path, clips_every=0)


def test_a_resumed_tensorboard_hides_the_abandoned_steps(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        board.log(report(step))
    board.close()
    resumed = TensorBoard(tmp_path, after=1)
    resumed.log(report(2, loss=0.1))
    resumed.close()
    scalars = [(s.step, round(s.value, 3)) for s in events(tmp_path).Scalars("loss")]
    assert scalars == [(1, 0.7), (2, 0.1)]


def test_several_processes_show_the_clips_that_are_there(tmp_path: Path) -> None:
    """The second of two processes holds the clips of rows 2 and 3; best and worst are among them."""
    whole = report().media
    board = TensorBoard(tmp_path)
    board.log(report(media=whole.rows([2, 3]), seeds=(13, 14), first_row=2))
    board.close()
    for tag in ("best", "worst"):
        (text,) = events(tmp_path).Tensors(f"clips/{tag}/text_summary")
        assert text.tensor_proto.string_val[0].decode() == "b  \nseed 13, score 0.9"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB__DISABLE_STATS", "true")):
        monkeypatch.setenv(name, value)
    return pytest.importorskip("wandb", reason="extra [wandb]")


def sent(folder: Path) -> list[Any]:
    """What the offline runs of the folder would send. Their files are logs as LevelDB's after a header of 7 bytes:
    blocks of 32 KiB of pieces, each with a checksum (4 bytes), length (2) and kind (1; 1 and 4 end a record)."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, place, content = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            rest = 32768 - place % 32768
            length, kind = struct.unpack("<HB", data[place + 4 : place + 7]) if rest >= 7 else (rest - 7, 0)
            content += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                found.append(wandb_internal_pb2.Record.FromString(content))
                content = b""
    return found


def test_wandb_gets_every_number_and_clips_and_a_resumed_run_is_the_same_one(tmp_path: Path, offline: Any) -> None:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    for steps in ((1, 2), (3,)):  # the second run resumes the first
        board = WandB(folder, {"seed": 0}, clips_every=2)
        for step in steps:
            board.log(report(step))
        board.close()
    records = sent(folder)
    runs = [r.run for r in records if r.HasField("run")]
    assert {(run.project, run.display_name, run.run_id) for run in runs} == {
        ("runs", "first", (folder / "wandb" / "run_id.txt").read_text())
    }
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    assert [(row["_step"], row["loss"], row["rewards/fad"]) for row in rows] == [(n, 0.7, -60.0) for n in (1, 2, 3)]
    assert [any(name.startswith("clips/best") for name in row) for row in rows] == [True, True, False]
    assert "z0" not in rows[0]
    media = next(folder.glob("wandb/offline-run-*/files/media"))
    assert len(list(media.glob("images/spectrograms/*.png"))) == len(list(media.glob("audio/clips/*.wav"))) == 4
    with wave.open(str(next(media.glob("audio/clips/best_*.wav")))) as file:
        assert file.getframerate() == RATE and file.getnframes() == 2048


def test_wandb_names_the_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'dragon-media\[wandb\]'"):
        WandB(tmp_path, {})


class Service:
    """A stand-in for the package wandb: what it was called with, and a fault where it is told to have one."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.started: dict[str, Any] = {}
        self.Settings = dict
        self.Audio = self.Image = lambda data, **more: (data.shape, more)

    def init(self, **more: Any) -> Service:
        self.started = more
        if self.fault == "init":
            raise RuntimeError("api_key not configured")
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fault == "log":
            raise ConnectionError("no route")
        self.rows.append((step, values))

    def finish(self) -> None:
        if self.fault == "log":
            raise ConnectionError("no route")


def test_a_broken_service_never_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Service("log"))
    board = WandB(tmp_path, {})
    with pytest.warns(UserWarning, match="Weights & Biases: ConnectionError: no route; the run goes on") as caught:
        board.log(report(1))
        board.log(report(2))
        board.close()
    assert len(caught) == 1
    monkeypatch.setitem(sys.modules, "wandb", Service("init"))
    with pytest.raises(ConfigError, match=r"cannot be started \(RuntimeError: api_key not configured\); call `wandb"):
        WandB(tmp_path, {})


def test_wandb_shows_images_and_takes_its_own_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tensor = torch.linspace(-1, 1, 4)[:, None, None, None].expand(4, 3, 6, 5)
    WandB(tmp_path, {}).log(report(media=Media(tensor, ("a", "a", "b", "b"))))
    ((step, values),) = service.rows
    assert (step, service.started["project"]) == (1, "mine")
    assert values["clips/best"] == ((6, 5, 3), {"caption": "b  \nseed 13, score 0.9"})


def test_progress_is_one_plain_line_a_step_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = ProgressLine(4, stream=stream)
    for step in (1, 2):
        progress.log(report(step))
    progress.close()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("step 1/4  clap 0.5  fad -60  gap 0.25  accuracy 0.75")
    assert "rollout 2.0s" in first and "train 3.0s" in first and first.endswith("left 0:18")  # 3 steps of 6 s
    assert second.startswith("step 2/4") and second.endswith("left 0:12")
    assert "\x1b" not in stream.getvalue()


def test_progress_moves_in_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    progress = ProgressLine(4, stream=stream)
    progress.log(report(1, rewards={"[red]": 1.0}))
    progress.close()
    assert "step 1/4  [red] 1" in stream.getvalue() and "\x1b" in stream.getvalue()


def test_a_skipped_step_says_why() -> None:
    text = progress_text(report(skipped="reward 'x' abstained on every sample"), 4, 61.0)
    assert "no update: reward 'x' abstained on every sample" in text and "accuracy" not in text
    assert text.endswith("left 1:01")


def test_trackers_are_closed_whatever_happens(tmp_path: Path) -> None:
    class Noted:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.closed = False

        def log(self, report: StepReport) -> None:
            self.steps.append(report.step)

        def close(self) -> None:
            self.closed = True

    trackers = [Noted(), Noted()]
    with pytest.raises(KeyboardInterrupt), tracking(trackers) as tracker:
        tracker.log(replace(report(), step=7))
        raise KeyboardInterrupt
    assert all(t.closed and t.steps == [7] for t in trackers)


def test_importing_it_loads_neither_tensorboard_nor_matplotlib() -> None:
    import subprocess

    heavy = ("tensorboard", "wandb", "matplotlib", "rich", "PIL")
    code = f"import sys, dragon.track; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
