"""What a resumed run may change, what it says about it, and what becomes of a run that is stopped or cannot write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dragon import checkpoint, run, runfolder, steps
from dragon.commands.arguments import _flags_of_bools
from dragon.config import ResumeConfig, TrainConfig, from_dict
from dragon.diffusion.ema import Ema
from dragon.errors import ConfigError, Unwritable
from dragon.learner import Learner
from dragon.runfolder import check_folder, what_cannot_be_equal
from dragon.trainer import StepReport, Trainer

VALUES: dict[str, object] = {
    "output_dir": "out",
    "prompts": "train.txt",
    "eval_prompts": "test.txt",
    "policy": {"name": "toy"},
    "rewards": [{"name": "random"}],
    "evaluation": {"prompts": 2, "samples_per_prompt": 1, "steps": 2, "guidance": 1},
    "rollout": {"guidance": 1, "prompts_per_step": 2, "steps": 2},
    "update": {"beta_calibration_updates": 2},
    "max_steps": 2,
    "save_steps": 1,
    "report_to": "none",
}


def config(**changes: object) -> TrainConfig:
    return from_dict(VALUES | changes)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.txt").write_text("left\nright\n")
    (tmp_path / "test.txt").write_text("up\ndown\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resumed(allow: list[str] | None = None, **changes: object) -> TrainConfig:
    return config(resume_from_checkpoint="latest", resume={"allow": allow or []}, max_steps=3, **changes)


def test_a_changed_key_is_refused_with_its_name_and_how_to_allow_it() -> None:
    run.train(config(), say=lambda text: None)
    changed = resumed(learning_rate=0.5, rewards=[{"name": "random", "options": {"seed": 1}}])
    with pytest.raises(ConfigError) as caught:
        check_folder(changed, print)
    message = str(caught.value)
    assert "learning_rate: checkpoint 0.0002, now 0.5" in message and "rewards[0].options" in message
    assert message.endswith("or let them differ: --resume.allow learning_rate rewards")
    with pytest.raises(ConfigError, match="rewards"):
        check_folder(replace(changed, resume=ResumeConfig(allow=("learning_rate",))), print)


def test_allowed_parts_start_anew_and_the_others_go_on() -> None:
    run.train(config(), say=lambda text: None)
    said: list[str] = []
    change = {"objective": {"name": "kto"}, "credit": {"name": "leave_one_out"}}
    start = check_folder(resumed(["objective", "credit.name", "credit.options"], **change), said.append)
    assert start.anew == {"objective", "optimizer", "credit"}
    assert "these parts start anew: credit, objective, optimizer" in said
    run.train(resumed(["objective", "credit"], **change), say=said.append)
    newest = checkpoint.latest("out/checkpoints")
    assert newest is not None and newest.name == "step-000003"
    assert checkpoint.load(newest).state["learner"]["objective"] == "kto"  # type: ignore[index]


def test_one_item_of_a_list_can_be_allowed_by_its_number() -> None:
    run.train(config(), say=lambda text: None)
    for key in ("rewards.0.weight", "rewards[0].weight", "rewards"):
        start = check_folder(resumed([key], rewards=[{"name": "random", "weight": 2.0}]), lambda text: None)
        assert start.anew == {"rewards", "credit"}


def test_an_unknown_key_to_allow_is_an_error_with_the_nearest() -> None:
    run.train(config(), say=lambda text: None)
    with pytest.raises(ConfigError, match="no key is called 'objectiv'; did you mean 'objective'"):
        check_folder(resumed(["objectiv"]), print)


def test_a_prompt_file_that_has_changed_is_refused_unless_allowed(folder: Path) -> None:
    run.train(config(), say=lambda text: None)
    (folder / "train.txt").write_text("left\nup\n")
    with pytest.raises(ConfigError, match="prompts or their columns have changed .* --resume.allow prompts"):
        run.train(resumed(), say=lambda text: None)
    assert checkpoint.latest("out/checkpoints").name == "step-000002"  # type: ignore[union-attr]
    run.train(resumed(["prompts"]), say=lambda text: None)


def test_nothing_is_said_where_a_run_goes_on_as_it_was() -> None:
    run.train(config(), say=lambda text: None)
    said: list[str] = []
    run.train(resumed(), say=said.append)
    assert not [text for text in said if "elsewhere" in text or "anew" in text or "differ" in text]


def test_going_on_elsewhere_says_what_cannot_be_equal() -> None:
    """A checkpoint of a GPU, of another torch and of eight processes, on a CPU."""
    here = runfolder.describe(config())
    gpu = {"device": "cuda:3", "hardware": "H100", "processes": 8, "packages": {"torch": "2.11.0"}}
    (text,) = what_cannot_be_equal(here | gpu, here)
    for part in ("device cuda there, cpu here", "H100 there", "torch 2.11.0 there", "processes 8"):
        assert part in text
    assert "to the bit" in text and "prompts, seeds" in text
    assert not list(what_cannot_be_equal({}, here)), "a checkpoint that did not record it"
    assert not list(what_cannot_be_equal(here | {"device": "cuda:1"}, here | {"device": "cuda:0"}))


def test_a_checkpoint_holds_what_it_was_made_with_and_how_good_it_is() -> None:
    run.train(config(eval_steps=1), say=lambda text: None)
    found = checkpoint.load("out/checkpoints/step-000002")
    assert found.versions["processes"] == 1 and found.versions["packages"]["torch"]  # type: ignore[index]
    probe = json.loads(Path("out/probes.jsonl").read_text().splitlines()[-1])
    assert found.score == pytest.approx(probe["rewards"]["random"]["win_rate"])
    run.train(config(output_dir="plain"), say=lambda text: None)
    log = [json.loads(line) for line in Path("plain/log.jsonl").read_text().splitlines()]
    assert checkpoint.load("plain/checkpoints/step-000002").score == pytest.approx(log[-1]["reward"])


def test_a_probe_that_a_kill_left_out_is_made_up_for() -> None:
    run.train(config(eval_steps=1), say=lambda text: None)
    path = Path("out/probes.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:20])  # cut off
    run.train(resumed(eval_steps=1), say=lambda text: None)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_two_signals_while_a_checkpoint_is_written_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = steps.weights_writer

    def impatient(*arguments: object) -> Callable[[Path], None]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return writer(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "weights_writer", impatient)
    with pytest.raises(steps.Interrupted, match="saved out/checkpoints/step-000001; go on with"):
        run.train(config(), say=lambda text: None)
    assert checkpoint.latest("out/checkpoints") == Path("out/checkpoints/step-000001")
    assert len(Path("out/log.jsonl").read_text().splitlines()) == 1


def test_a_signal_between_a_whole_step_and_its_line_loses_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of = Trainer.run

    def struck(self: Trainer, *arguments: Any) -> Iterator[StepReport]:
        for report in steps_of(self, *arguments):
            if report.step == 2:
                raise KeyboardInterrupt  # as the handler would, before the report is seen
            yield report

    monkeypatch.setattr(Trainer, "run", struck)
    with pytest.raises(steps.Interrupted, match="saved out/checkpoints/step-000002"):
        run.train(config(max_steps=5, save_steps=0), say=lambda text: None)
    assert [json.loads(line)["step"] for line in Path("out/log.jsonl").read_text().splitlines()] == [1, 2]


def test_a_signal_while_a_failed_step_is_taken_back_does_not_save_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a launch: one process fails, and the launcher stops the others while they go back."""
    run.train(config(max_steps=3, save_steps=0), say=lambda text: None)
    update, load = Learner.update, Ema.load_state_dict
    calls: list[str] = []

    def failing(self: Learner, *arguments: Any, **keywords: Any) -> Any:
        found = update(self, *arguments, **keywords)
        calls.append("update")
        if len(calls) == 11:  # the second update of the fourth step
            raise RuntimeError("boom")
        return found

    def stopped(self: Ema, state: Any) -> None:
        if len(calls) == 11:
            calls.append("signal")
            signal.raise_signal(signal.SIGTERM)
        load(self, state)

    monkeypatch.setattr(Learner, "update", failing)
    monkeypatch.setattr(Ema, "load_state_dict", stopped)
    with pytest.raises(steps.Interrupted, match="saved broken/checkpoints/step-000003"):
        run.train(config(output_dir="broken", max_steps=6, save_steps=0), say=lambda text: None)
    assert calls[-1] == "signal"
    whole, broken = (checkpoint.load(f"{place}/checkpoints/step-000003").state for place in ("out", "broken"))
    assert str(broken["learner"]) == str(whole["learner"])


def test_a_signal_that_somebodys_code_swallows_still_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    follow = Learner.follow

    def deaf(self: Learner) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        follow(self)

    monkeypatch.setattr(Learner, "follow", deaf)
    with pytest.raises(steps.Interrupted, match="saved out/checkpoints/step-000001"):
        run.train(config(max_steps=5), say=lambda text: None)


def test_an_interrupt_before_the_first_new_step_names_a_checkpoint_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run.train(config(), say=lambda text: None)
    monkeypatch.setattr(Learner, "update", lambda self, *rest, **more: signal.raise_signal(signal.SIGINT))
    elsewhere = config(output_dir="new", resume_from_checkpoint="out/checkpoints/step-000002", max_steps=4)
    with pytest.raises(steps.Interrupted, match="saved new/checkpoints/step-000002"):
        run.train(elsewhere, say=lambda text: None)
    assert checkpoint.latest("new/checkpoints") == Path("new/checkpoints/step-000002")


def test_a_run_that_was_extended_and_stopped_before_its_end_gets_the_new_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run.train(config(), say=lambda text: None)
    with monkeypatch.context() as patch:
        patch.setattr(run, "save_final", full)
        with pytest.raises(OSError, match="No space"):
            run.train(resumed(), say=lambda text: None)
    run.train(resumed(), say=lambda text: None)
    stored = [next(Path(place).glob("*.safetensors")) for place in ("out/final", "out/checkpoints/step-000003/weights")]
    assert stored[0].read_bytes() == stored[1].read_bytes()


def test_a_callback_stops_a_run_that_is_saved_and_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stop = [{"name": "stop_when", "options": {"figure": "reward", "above": -1e9}}]
    run.train(config(max_steps=9, save_steps=0, callbacks=stop), say=said.append)
    assert any(text.startswith("stopped after step 1: reward is") for text in said)
    assert [p.name for p in Path("out/checkpoints").iterdir()] == ["step-000001"]
    assert Path("out/final").is_dir() and Path("out/evaluation.json").is_file()


def full(*arguments: object, **keywords: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_a_checkpoint_ends_the_run_with_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seal = checkpoint._seal
    monkeypatch.setattr(
        checkpoint, "_seal", lambda place, step, *rest: full() if step == 2 else seal(place, step, *rest)
    )
    said: list[str] = []
    with pytest.raises(Unwritable, match=r"step 2 cannot be written.*No space.*last complete one is .*step-000001"):
        run.train(config(), say=said.append)
    assert not any("was saved" in text for text in said), "one attempt is enough"
    assert [p.name for p in Path("out/checkpoints").iterdir()] == ["step-000001"]


def test_a_log_that_cannot_be_written_loses_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    log = steps.JsonLines.log
    monkeypatch.setattr(steps.JsonLines, "log", lambda self, report: full() if report.step == 2 else log(self, report))
    said: list[str] = []
    with pytest.raises(Unwritable, match="log of a step cannot be written to 'out': No space left"):
        run.train(config(save_steps=0), say=said.append)
    assert "the last whole step was saved: out/checkpoints/step-000002" in said


@pytest.mark.parametrize("part", ["weights_writer", "write_evaluation"])
def test_a_disk_that_is_full_at_the_end_leaves_no_half_files(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = getattr(run, part)
    monkeypatch.setattr(run, part, (lambda *_: full) if part == "weights_writer" else full)
    with pytest.raises(Unwritable, match="make room, then"):
        run.train(config(), say=lambda text: None)
    assert Path("out/final").exists() is (part == "write_evaluation")
    assert not [p for p in Path("out").rglob("*") if "partial" in p.name]
    monkeypatch.setattr(run, part, before)
    found = run.train(config(resume_from_checkpoint="latest"), say=lambda text: None)
    assert found.rewards


def test_a_size_limit_of_the_system_is_one_message_and_status_2(folder: Path, root: Path) -> None:
    """RLIMIT_FSIZE, as a quota does it, between the size of the log and that of the weights."""
    (folder / "run.yaml").write_text(yaml.safe_dump(VALUES))
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
    script += "from dragon.cli import main; sys.exit(main(['train', 'run.yaml']))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "checkpoint of step 1 cannot be written to 'out/checkpoints': File too large" in done.stderr
    assert not list((folder / "out" / "checkpoints").iterdir())


def test_a_log_that_cannot_even_be_closed_hides_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file still holds is written on closing, which a full disk refuses again."""
    for name in ("log", "close"):
        monkeypatch.setattr(steps.JsonLines, name, full)
    with pytest.raises(Unwritable, match="log of a step"):
        run.train(config(save_steps=0), say=lambda text: None)
    monkeypatch.setattr(steps.JsonLines, "log", lambda self, report: None)
    with pytest.raises(Unwritable, match="log of a run cannot be written.*No space"):
        run.train(config(output_dir="closing"), say=lambda text: None)
    assert checkpoint.latest("closing/checkpoints") == Path("closing/checkpoints/step-000002")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--dry_run", "--dry_run"),
        ("--dry_run true --seed 1", "--dry_run --seed 1"),
        ("--dry-run=False", "--no_dry_run"),
        ("--rollout.overlap_scoring false", "--rollout.no_overlap_scoring"),
        ("--rollout.overlap_scoring=true --dry_run", "--rollout.overlap_scoring --dry_run"),
        ("--rollout.overlap_scoring --dry_run false", "--rollout.overlap_scoring --no_dry_run"),
        ("--output_dir dry_run --seed 1", "--output_dir dry_run --seed 1"),
    ],
)
def test_every_yes_or_no_takes_true_and_false(given: str, expected: str) -> None:
    assert _flags_of_bools(given.split(), TrainConfig) == expected.split()


def test_what_is_neither_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--dry_run is 'perhaps'; expected true or false"):
        _flags_of_bools(["--dry_run=perhaps"], TrainConfig)
