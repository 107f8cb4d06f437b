"""MAD: what is handed to the package, in which order, and what is refused.

The package is a stand-in with the interface of mad_metric 0.0.6; `test_the_real_package` runs where that is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dragon.errors import ConfigError, MissingExtra, NotFinite, ShapeError
from dragon.rewards.mad import mauve_audio_divergence

STAND_IN = '''
import os
import torch
seen = []
def compute_mad(eval_dir=None, ref_dir=None, eval_embs_dir=None, ref_embs_dir=None, log_csv=None, batch_size=3,
                model_name="mert_330m", layer=24, aggregation="max"):
    """Distance of the means; reads folders of .pt files, each (rows, d), as the package does."""
    sides = []
    for place in (eval_embs_dir, ref_embs_dir):
        sides.append(torch.cat([torch.load(os.path.join(place, f)) for f in os.listdir(place)], dim=0))
    seen[:] = sides
    print("Score", 1)
    far = sides[0].abs().max() > 100
    return float("inf") if far else (sides[0].mean(0) - sides[1].mean(0)).norm().item()
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mad_metric.py").write_text(STAND_IN)
    monkeypatch.delitem(sys.modules, "mad_metric", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mad_metric", None)


def sides(n: int = 30, m: int = 50, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) + 1


def test_rows_and_sides_arrive_in_their_order_and_nothing_is_printed(package: Path, capsys):
    generated, reference = sides()
    found = mauve_audio_divergence(generated, torch.from_numpy(reference))
    assert float(found) == pytest.approx(float(np.linalg.norm(generated.mean(0) - reference.mean(0))), rel=1e-5)
    assert (found.n, found.m, found.d, found.clusters) == (30, 50, 4, 3)
    got = sys.modules["mad_metric"].seen
    np.testing.assert_array_equal(got[0].numpy(), generated.astype(np.float32))
    np.testing.assert_array_equal(got[1].numpy(), reference.astype(np.float32))
    assert capsys.readouterr().out == ""


def test_what_cannot_be_compared_is_refused(package: Path):
    generated, reference = sides()
    with pytest.raises(ConfigError, match="19 and 50 embeddings; expected at least 20 each"):
        mauve_audio_divergence(generated[:19], reference)
    with pytest.raises(ShapeError, match="rows of 3 features; expected 4"):
        mauve_audio_divergence(generated, reference[:, :3])
    with pytest.raises(NotFinite, match="reference embeddings: row 7"):
        mauve_audio_divergence(generated, np.where(np.arange(50)[:, None] == 7, np.nan, reference))
    with pytest.raises(NotFinite, match="the divergence is inf"):
        mauve_audio_divergence(generated * 1e6, reference)


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mad_metric", None)
    with pytest.raises(MissingExtra, match=r"mad-metric .*pip install 'dragon-media\[mad\]'"):
        mauve_audio_divergence(*sides())


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mad_metric"), reason="needs mad-metric")
def test_the_real_package_tells_equal_laws_from_shifted_ones():
    rng = np.random.default_rng(0)
    first, second, third = rng.standard_normal((3, 300, 16))
    assert float(mauve_audio_divergence(first, first)) == pytest.approx(0, abs=1e-6)
    assert float(mauve_audio_divergence(first, second)) < 0.1 < 1 < float(mauve_audio_divergence(first, third + 1))
    assert float(mauve_audio_divergence(first, third + 1)) == float(mauve_audio_divergence(first, third + 1))
