"""What a checkpoint promises: all of it comes back, or it is not used and the reason is said."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dragon import checkpoint
from dragon.errors import ConfigError, Unwritable

STATE = {
    "weights": {
        "layer.0.a": torch.tensor([1.0, float("nan"), -0.0]),
        "b": torch.arange(6, dtype=torch.int64).view(2, 3),
    },
    "history": [{"x": torch.tensor(2.5, dtype=torch.float64)}, None, True],
    "beta": 0.1 + 0.2,
    "prompts": ["a", "ü"],
    "empty": {},
}
CONFIG = {"seed": 1, "betas": (0.9, 0.99), "rollout": {"steps": 8}}


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.numpy().tobytes() == b.numpy().tobytes()
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 10, STATE, CONFIG)
    assert path == tmp_path / "step-000010"
    loaded = checkpoint.load(path)
    assert equal(STATE, loaded.state)
    assert loaded.step == 10
    checkpoint.check_same_config(loaded.config, CONFIG)


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    path = checkpoint.save(tmp_path, 1, {"whole": base, "part": base[1:3], "turned": base.view(2, 2).T}, {})
    state = checkpoint.load(path).state
    assert equal(state["part"], torch.tensor([1.0, 2.0])) and equal(state["turned"], torch.tensor([[0.0, 2], [1, 3]]))


def test_there_is_no_pickle(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, STATE, CONFIG)
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "state.json", "state.safetensors"]
    json.loads((path / "state.json").read_text())
    with pytest.raises(TypeError, match="'hook/0'"):
        checkpoint.save(tmp_path, 2, {"hook": [object()]}, {})
    assert checkpoint.latest(tmp_path) == path


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, {"step": step}, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000004"]
    checkpoint.save(tmp_path, 5, {}, {}, keep=0)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json", "policy/adapter.bin"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path, name: str, how: str) -> None:
    def adapter(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "adapter.bin").write_bytes(b"0123456789")

    good = checkpoint.save(tmp_path, 1, STATE, CONFIG, extra=adapter)
    bad = checkpoint.save(tmp_path, 2, STATE, CONFIG, extra=adapter)
    file = bad / name
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        file.unlink()
    with pytest.warns(UserWarning, match="step-000002 is damaged"):
        assert checkpoint.latest(tmp_path) == good
    with pytest.raises(ConfigError, match="step-000002 cannot be used"):
        checkpoint.load(bad)


def test_a_crash_while_writing_leaves_the_last_checkpoint_and_no_rubbish(tmp_path: Path) -> None:
    first = checkpoint.save(tmp_path, 1, STATE, CONFIG)

    def crash(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, STATE, CONFIG, extra=crash)
    assert checkpoint.latest(tmp_path) == first
    checkpoint.save(tmp_path, 2, STATE, CONFIG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000002"]


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the `moment`-th change of the disk on every further one fails: what a dead process leaves is left."""
    done = 0

    def dying(function):
        def call(*arguments, **keywords):
            nonlocal done
            done += 1
            if done > moment:
                raise Killed
            return function(*arguments, **keywords)

        return call

    for owner, name in (
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "write_text"),
        (shutil, "rmtree"),
        (checkpoint, "save_file"),
        (checkpoint, "_to_disk"),
    ):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


@pytest.mark.parametrize("step", [2, 3])
def test_no_moment_of_a_kill_loses_the_last_complete_checkpoint(tmp_path: Path, monkeypatch, step: int) -> None:
    """Killed before every change of the disk in turn, when a step is saved again (2) and when a new one is (3)."""
    saved = False
    for moment in range(100):
        root = tmp_path / str(moment)
        for earlier in (1, 2):
            checkpoint.save(root, earlier, {"value": f"old {earlier}"}, {}, keep=2)
        with monkeypatch.context() as patch:
            killed_at(moment, patch)
            try:
                checkpoint.save(root, step, {"value": "new"}, {}, keep=2)
                saved = True
            except Killed:
                pass
        found = checkpoint.latest(root)
        assert found is not None and checkpoint.load(found).state["value"] in ("old 2", "new")
        checkpoint.save(root, 4, {}, {}, keep=2)
        names = sorted(p.name for p in root.iterdir())
        assert len(names) == 2 and names[1] == "step-000004" and not names[0].startswith(".partial"), names
        if saved:
            break
    assert saved and moment > 10


def test_the_best_is_kept_beside_the_newest_and_can_be_asked_for(tmp_path: Path) -> None:
    for step, score in enumerate((0.2, 0.9, None, 0.9, float("nan"), 0.1, 0.3), start=1):
        checkpoint.save(tmp_path, step, {}, {}, keep=2, score=score)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["step-000004", "step-000006", "step-000007"], "of two best ones the newer"
    assert checkpoint.best(tmp_path) == tmp_path / "step-000004"
    assert checkpoint.load(tmp_path / "step-000004").score == 0.9
    (tmp_path / "step-000004" / "state.json").unlink()
    with pytest.warns(UserWarning, match="step-000004 is damaged"):
        assert checkpoint.best(tmp_path) == tmp_path / "step-000007"


def test_scores_of_another_measure_are_not_compared(tmp_path: Path) -> None:
    """A mean reward of 35 is not better than a win rate of 0.7."""
    for step, score, measure in ((1, 35.0, "reward"), (2, 0.7, "win rate"), (3, 0.6, "win rate")):
        checkpoint.save(tmp_path, step, {}, {}, keep=1, score=score, score_of=measure)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000002", "step-000003"]
    assert checkpoint.best(tmp_path) == tmp_path / "step-000002"


def test_without_scores_the_newest_is_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = checkpoint.save(tmp_path, step, {}, {}, score=float("nan"))
    assert checkpoint.best(tmp_path) == path and checkpoint.load(path).score is None
    assert checkpoint.best(tmp_path / "nowhere") is None


def test_what_it_was_made_with_comes_back(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {}, {}, versions={"packages": {"torch": "2.14"}, "processes": 2})
    assert checkpoint.load(path).versions == {"packages": {"torch": "2.14"}, "processes": 2}


@pytest.mark.parametrize("function", ["save_file", "_write_json", "_to_disk"])
def test_a_full_disk_is_one_message_and_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch, function: str
) -> None:
    first = checkpoint.save(tmp_path, 1, STATE, CONFIG)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, full)
        with pytest.raises(Unwritable) as caught:
            checkpoint.save(tmp_path, 2, STATE, CONFIG)
    message = str(caught.value)
    for part in (
        "checkpoint of step 2 cannot be written",
        "No space left on device",
        "needed",
        "free",
        f"the last complete one is {first}",
        "--resume_from_checkpoint latest",
    ):
        assert part in message
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"] and checkpoint.latest(tmp_path) == first


def test_a_limit_on_file_sizes_is_met_the_same_way(tmp_path: Path, root: Path) -> None:
    """What the system itself does at a quota: the tensors' writer is not Python and has its own errors."""
    script = """
import resource, torch
from dragon import checkpoint
from dragon.errors import Unwritable
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoint.save("c", 1, {"x": torch.zeros(10)}, {})
try:
    checkpoint.save("c", 2, {"x": torch.zeros(100_000)}, {})
except Unwritable as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "checkpoint of step 2 cannot be written to 'c': File too large (at least 400 kB needed" in done.stdout
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-000001"], done.stderr


def test_a_folder_that_may_not_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match="there is no complete one yet; make room"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, {}, {})


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"value": 1}, {})
    checkpoint.save(tmp_path, 1, {"value": 2}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.load(tmp_path / "step-000001").state == {"value": 2}


def test_later_steps_of_an_abandoned_run_are_put_aside(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, {}, {}, keep=0)
    with pytest.warns(UserWarning, match="step-000030 is later than step 20"):
        checkpoint.save(tmp_path, 20, {}, {}, keep=0)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000020"
    assert (tmp_path / "step-000030.abandoned").is_dir()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None
    (tmp_path / "step-12").mkdir()
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(ConfigError, match="no such folder"):
        checkpoint.load(tmp_path / "step-000001")


def test_another_configuration_is_refused_with_every_key_that_differs() -> None:
    now = {"seed": 2, "betas": (0.9, 0.95), "rollout": {"steps": 8, "guidance": 2.0}, "max_steps": 5}
    with pytest.raises(ConfigError) as caught:
        checkpoint.check_same_config(CONFIG, now, ignore=frozenset({"max_steps"}))
    message = str(caught.value)
    assert "seed: checkpoint 1, now 2" in message
    assert "betas[1]: checkpoint 0.99, now 0.95" in message
    assert "rollout.guidance: checkpoint '(not set)', now 2.0" in message
    assert "betas[0]" not in message and "rollout.steps" not in message and "max_steps" not in message


def test_an_ignored_key_covers_what_lies_below_and_nothing_beside() -> None:
    checkpoint.check_same_config({"a": {"b": 1}}, {"a": {"b": 2}}, ignore=frozenset({"a"}))
    with pytest.raises(ConfigError, match="ab"):
        checkpoint.check_same_config({"ab": 1}, {"ab": 2}, ignore=frozenset({"a"}))
    with pytest.raises(ConfigError, match="rewards"):
        checkpoint.check_same_config({"rewards": []}, {"rewards": [{"name": "x"}]})
