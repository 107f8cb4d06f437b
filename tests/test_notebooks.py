"""Every notebook runs from top to bottom, from a configuration to a picture, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_a_configuration_to_a_picture(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh kernel, in its own folder, as a reader would; what it writes goes to a temporary folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = set(path.parent.iterdir())
    notebook = nbformat.read(path, as_version=4)
    assert 'configs"' in "".join(cell.source for cell in notebook.cells)
    nbclient.NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert any("image/png" in data for data in outputs(notebook))
    assert set(path.parent.iterdir()) == before
    assert list(tmp_path.rglob("*.safetensors"))


def outputs(notebook: Any) -> list[dict[str, Any]]:
    """What the cells displayed, by media type."""
    return [out.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
