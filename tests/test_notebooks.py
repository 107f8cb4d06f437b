"""Every notebook runs from top to bottom, ends in a picture, and is kept without outputs.

Those that tune start from a configuration and leave weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FAST = ("first_run",)
"""Seconds; all others are slow tests."""
WITHOUT_TRAINING = ("scores_of_your_folders", "transitions")


def cases() -> list[Any]:
    return [
        pytest.param(
            path, id=path.stem, marks=() if path.stem in FAST else [pytest.mark.slow, pytest.mark.timeout(1500)]
        )
        for path in NOTEBOOKS
    ]


def test_the_notebooks_named_here_exist() -> None:
    assert {*FAST, *WITHOUT_TRAINING} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = code_cells(nbformat.read(path, as_version=4))
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("path", cases())
def test_it_runs_to_a_picture(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh kernel, in its own folder, as a reader would; what it writes goes to a temporary folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("DRAGON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = set(path.parent.iterdir())
    notebook = nbformat.read(path, as_version=4)
    trains = path.stem not in WITHOUT_TRAINING
    assert not trains or 'configs"' in "".join(cell.source for cell in notebook.cells)
    nbclient.NotebookClient(
        notebook,
        timeout=60 if path.stem in FAST else 600,  # of one cell
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    assert any("image/png" in out.get("data", {}) for out in code_cells(notebook)[-1].outputs)
    assert set(path.parent.iterdir()) == before
    assert not trains or list(tmp_path.rglob("tuned/*.safetensors"))


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
