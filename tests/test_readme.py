"""The README's Python examples run as printed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dragon.audio import Audio, save

ROOT = Path(__file__).parents[1]


def test_the_first_example_is_short() -> None:
    assert 10 <= len([line for line in examples()[0].splitlines() if line.strip()]) <= 25


def test_the_first_example_tunes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(examples()[0], "README.md", "exec"), {})
    assert (tmp_path / "runs" / "quiet" / "adapter_model.safetensors").stat().st_size > 0


def test_the_second_example_scores_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAGON_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("generated", "reference"):
        (tmp_path / name).mkdir()
        for i in range(4):
            clip = Audio((0.1 * rng.standard_normal((1, 32_000))).astype(np.float32), 16_000)
            save(tmp_path / name / f"{i}.wav", clip)
    exec(compile(examples()[1], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "fad" in printed and "kad" in printed


def test_folders_in_the_tree_exist() -> None:
    named = re.findall(r"^\| `([\w/]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).is_dir()]


def examples() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)
