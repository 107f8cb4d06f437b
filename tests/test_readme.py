"""The README's Python example runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_example_is_short() -> None:
    assert 10 <= len([line for line in example().splitlines() if line.strip()]) <= 25


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example(), "README.md", "exec"), {})
    assert (tmp_path / "runs" / "quiet" / "adapter_model.safetensors").stat().st_size > 0


def test_folders_in_the_tree_exist() -> None:
    named = re.findall(r"^\| `([\w/]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).is_dir()]


def example() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    return code
