"""benchmarks/published_loop.py is the published loop; benchmarks/upsampling.py makes its page."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragon.diffusion import EDM, karras_sigmas
from dragon.synther.columns import fit_layout
from tests.synther.linear_system import system
from tests.synther.test_selection import world


@pytest.fixture
def loop(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("published_loop")


@pytest.fixture
def upsampling(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("upsampling")


def test_its_scalings_are_those_of_the_shared_core(loop: Any) -> None:
    sigma, edm = torch.tensor([0.002, 0.5, 80.0]), EDM(1.0)
    for mine, theirs in zip(loop.scale(sigma), (edm.c_skip, edm.c_out, edm.c_in, edm.c_noise), strict=True):
        torch.testing.assert_close(mine, theirs(sigma))


def test_it_learns_and_its_rows_come_back_in_data_units(loop: Any) -> None:
    data = system(2000)
    layout = fit_layout(data, loop.RELEASED)
    rows, _ = layout.encode(data)
    plain = loop.PlainLoop(rows, 64, 64, 0, 600)
    plain.train(600)
    plain.average = plain.net  # of so short a fit the published average is mostly its random start
    new = loop.released(plain.sample(1000, layout.d, steps=16), layout, data)
    # s' = A s + B a: a line explains the new rows' next observations, as it does the data's
    known = np.concatenate([new.observations, new.actions], 1)
    left = new.next_observations - known @ np.linalg.lstsq(known, new.next_observations, rcond=None)[0]
    assert left.var() < 0.3 * new.next_observations.var()
    assert abs(new.observations.std() - 1) < 0.3


def test_rows_are_the_datas_own_where_nothing_was_drawn(loop: Any) -> None:
    data = system(100)
    layout = fit_layout(data, loop.RELEASED)
    back = loop.released(layout.encode(data)[0], layout, data)
    for name, value in data.arrays().items():
        np.testing.assert_allclose(back.arrays()[name], value, atol=1e-5, err_msg=name)


def test_its_sampler_walks_down_karras_levels(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def clean(net: object, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(float(sigma[0]))
        return torch.zeros_like(x)

    monkeypatch.setattr(loop, "denoised", clean)
    plain = loop.PlainLoop(torch.zeros(10, 2), 8, 8, 0, 10)
    assert torch.count_nonzero(plain.sample(3, 2, steps=128)) == 0
    expected = karras_sigmas(128, 0.002, 80.0, 7.0)
    assert len(seen) == 255
    np.testing.assert_allclose(seen[1::2], expected[1:-1], rtol=1e-5)


def test_the_page_shows_means_over_seeds(upsampling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "RESULTS", tmp_path)
    for seed, error in enumerate((0.1, 0.2, 0.3)):
        run: dict[str, Any] = dict.fromkeys(("reward_error", "marginal", "ceiling", "nearest", "inside"), 0.9)
        run |= {"task": "Hopper-v5", "side": "ours", "seed": seed, "error": error, "recall": float("nan")}
        run |= {"terminal_rate": None, "data_rate": None, "training_seconds": 10.0, "sampling_seconds": 1.0}
        run["as_published"] = run | {"error": 0.1}
        (tmp_path / f"Hopper-v5_ours_{seed}.json").write_text(json.dumps(run))
    # Student's 4.303 times 0.1 / sqrt 3
    assert "| Hopper-v5 | dragon, 63 calls | 3 | 0.2000 ± 0.2484 |" in upsampling.page()
    assert "| Hopper-v5 | dragon, 255 calls | 3 | 0.1000 ± 0.0000 |" in upsampling.page()
    assert "## Speed" not in upsampling.page()


def test_linear_data_is_predicted_by_the_ridge_and_a_product_by_the_model(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/transition_uses.py where the answer is known: s' is linear in s and a, the reward is not."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    uses = importlib.import_module("transition_uses")
    monkeypatch.setattr(uses, "FUTURES", 2)
    held_out = system(200, seed=1)
    found = uses.world(world(), system(2000), held_out, 0)
    assert found["linear"]["error"] < 1e-6 < found["still"]["error"] and found["linear"]["reward_error"] > 0.5
    assert found["mean"]["reward_error"] < 0.5
