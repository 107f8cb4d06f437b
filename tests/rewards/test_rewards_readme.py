"""rewards/README.md is true: its Python runs, in order, and says what it claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dragon import registry


def test_the_examples_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (root / "rewards" / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "rewards/README.md", "exec"), scope)
    scores = [abs(float(x)) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", capsys.readouterr().out.split("dtype")[0])]
    assert len(scores) == 2 and max(scores) < 1e-3


def test_the_table_lists_every_built_in_reward(root: Path) -> None:
    text = (root / "rewards" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)\(", text, re.M)
    assert dict(listed) == {name: place.split(":")[1] for name, place in registry.BUILT_IN["reward"].items()}
