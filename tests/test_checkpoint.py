"""What a checkpoint promises: all of it comes back, or it is not used and the reason is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dragon import checkpoint
from dragon.errors import ConfigError

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
