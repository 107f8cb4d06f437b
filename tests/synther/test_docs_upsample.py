"""The Python examples of docs/upsample.md run as printed (with a preset of a few steps), and its flags exist."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dragon.synther import training
from dragon.upsample.settings import UpsampleSettings

TEXT = (Path(__file__).parents[2] / "docs" / "upsample.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = replace(training.PRESETS["tiny"], width=32, max_steps=20, batch_size=16)
    monkeypatch.setitem(training.PRESETS, "tiny", tiny)
    random = np.random.default_rng(0)
    state, action = random.standard_normal((600, 2)), random.uniform(-1, 1, (600, 1))
    np.savez(
        "cheetah.npz",
        observations=state,
        actions=action,
        rewards=state.sum(1),
        next_observations=0.9 * state + 0.1 * action,
        terminals=state[:, 0] > 1.5,
        action_low=[-1.0],
        action_high=[1.0],
    )
    examples = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(examples) == 3
    names: dict[str, object] = {}  # the second example goes on where the first ends
    for number, example in enumerate(examples):
        exec(compile(example, f"docs/upsample.md, example {number + 1}", "exec"), names)
    assert "columns, 1 - KS (mean): " in capsys.readouterr().out
    for made in ("model/model.safetensors", "new.npz", "report/report.html", "report/quality.json", "more.npz"):
        assert Path(made).stat().st_size > 0, made


def test_the_flags_it_names_exist() -> None:
    known = {field.name for field in fields(UpsampleSettings)}
    commands = re.sub(r"(python recipes|dragon exemplars)(.*\\\n)*.*", "", TEXT)
    named = set(re.findall(r"--(\w+)", commands))
    assert len(named) > 10 and named <= known
