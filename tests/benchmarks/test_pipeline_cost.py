"""benchmarks/pipeline_cost.py and pipeline_gpu.py: what is compared, what the page says, and what a failure costs."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def cost(root: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("pipeline_cost")


@pytest.fixture
def gpu(cost: Any) -> Any:
    return importlib.import_module("pipeline_gpu")


# ---- the policy beside the pipeline's own call


def rounds(policy: float, noise: float = 0.0, outside: float = 0.01) -> dict[str, list[list[float]]]:
    """Twelve rounds of a network of 1 s: (whole, inside) of each side; noise: share by which its time varies."""
    found: dict[str, list[list[float]]] = {"own": [], "policy": [], "reference": []}
    for number in range(12):
        wobble = noise * math.cos(2.1 * number)
        found["own"].append([1.0 - wobble + outside, 1.0 - wobble])
        found["policy"].append([1.0 + wobble + outside + policy, 1.0 + wobble])
        found["reference"].append([0.8, 0.79])
    return found


def test_a_ratio_is_of_rounds_and_its_interval_holds_the_value(cost: Any) -> None:
    seconds = {"own": [[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]], "policy": [[1.1, 1.0], [2.2, 2.0], [4.4, 4.0]]}
    assert cost.ratio(seconds, "policy", "own") == pytest.approx((1.1, 1.1, 1.1))
    seconds["policy"] = [[1.1, 1.0], [2.0, 2.0], [4.4, 4.0]]
    value, low, high = cost.ratio(seconds, "policy", "own")
    assert value == pytest.approx((1.1 * 1.0 * 1.1) ** (1 / 3)) and low < value < high
    # by hand: log 1.1 twice and 0, standard error log 1.1 / 3, Student's t of 2 degrees of freedom 4.3027
    assert math.log(high / value) == pytest.approx(4.302653 * math.log(1.1) / 3, rel=1e-5)


def test_what_is_more_outside_the_network_does_not_see_the_networks_noise(cost: Any) -> None:
    quiet, noisy = rounds(0.01), rounds(0.01, noise=0.2)
    for seconds in (quiet, noisy):
        value, low, high = cost.extra(seconds)
        assert value == pytest.approx(0.01, rel=0.15)  # of the median call, which is 1.01 s or a little more
        assert high - low < 1e-9
    _, low, high = cost.ratio(noisy, "policy", "own")
    assert high - low > 0.1


def case(seconds: dict[str, list[list[float]]]) -> dict[str, Any]:
    return {
        "machine": "a machine", "versions": "torch 1", "family": "stable_audio", "parameters": 33_000_000,
        "latent": [64, 64], "rows": 1, "steps": 6, "guidance": 7.0, "difference": 3e-6, "seconds": seconds, "load": 0.1,
    }  # fmt: skip


def test_the_page_says_whether_the_claim_holds_and_by_which_measure(cost: Any) -> None:
    good = cost.page({"a": case(rounds(0.005))}, {})
    assert "It holds: no interval of the ratio reaches above 1.005" in good
    assert "| stable_audio | 33 M | 64 x 64 | 1 | 1.01 s | 1.01 s |" in " ".join(good.split())
    noisy = cost.page({"a": case(rounds(0.005)), "b": case(rounds(0.005, noise=0.2))}, {})
    assert "It holds by the clocks around the network" in noisy and "shares" in noisy
    assert "does NOT hold" in cost.page({"a": case(rounds(0.005)), "b": case(rounds(0.05))}, {})
    assert "1.2" in good.split("Against the reference")[1]  # what LoRA costs


def test_clocks_around_a_module_count_its_time_alone(cost: Any) -> None:
    module = nn.Linear(300, 300)
    inside = cost.Inside(module)
    x = torch.randn(3000, 300)
    for _ in range(3):
        module(x)
        torch.linalg.svd(torch.randn(150, 150))
    assert inside.calls == 3 and 0 < inside.seconds < cost.time.process_time()


def tiny(cost: Any, family: str) -> Any:
    """A case of the smallest networks, whole in a second."""
    made: Any = importlib.import_module("random_pipelines")
    make = {
        "stable_audio": lambda: made.stable_audio(made.TOY, decoder_channels=4, text_tokens=8),
        "stable_diffusion": lambda: made.stable_diffusion((32, 64), latent=8),
    }[family]
    return replace(cost.CASES[0], name=family, family=family, make=make, rows=2)


@pytest.mark.parametrize("family", ["stable_audio", "stable_diffusion"])
def test_both_sides_sample_the_same_latents_with_equally_many_calls(cost: Any, family: str) -> None:
    found = cost.measure(tiny(cost, family), rounds=2, steps=2)
    assert found["difference"] < 1e-4 and found["rows"] == 2
    for side in cost.SIDES:
        assert len(found["seconds"][side]) == 2  # fewer rounds than those with the reference
        assert all(0 < inside < whole for whole, inside in found["seconds"][side])
    assert json.loads(json.dumps(found)) == found


def test_sides_that_sample_other_latents_are_not_compared(cost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cost.own_conditions

    def other(pipe: Any, prompts: Any) -> dict[str, Any]:
        given = own(pipe, prompts)
        return given | {"prompt_embeds": given["prompt_embeds"] + 1.0}

    monkeypatch.setattr(cost, "own_conditions", other)
    with pytest.raises(SystemExit, match="differ from the pipeline's"):
        cost.measure(tiny(cost, "stable_audio"), rounds=2, steps=2)


# ---- one GPU


def test_without_a_gpu_the_table_stays_open_whatever_the_toy_gave(cost: Any, gpu: Any) -> None:
    toy = {"toy": {"toy": True, "card": gpu.TOY_CARD, "versions": "torch 1", "cells": {"rate": {"tflops": 0.1}}}}
    for cards in ({}, toy):
        page = cost.page({}, cards)
        assert "**OPEN: not measured yet.**" in page and "| OPEN |" in page and "TFLOP/s" not in page


def test_a_cards_table_has_shares_of_its_own_rate_and_says_what_failed(cost: Any, gpu: Any) -> None:
    plain, compiled = gpu.VARIANTS[:2]
    figures = {"tflop": 600.0, "seconds": 2.0, "peak_gb": 21.5, "first": 3.0}
    cells = {
        "rate": {"tflops": 700.0},
        "rollout": gpu.described("rollout", plain, gpu.FULL) | figures,
        "train_compiled": gpu.described("train", compiled, gpu.FULL) | {"failed": "out of memory"},
    }
    card = {"toy": False, "card": "NVIDIA X", "versions": "torch 1", "cells": cells}
    page = cost.page({}, {"nvidia_x": card})
    assert "OPEN" not in page and "NVIDIA X" in page and "700 TFLOP/s" in page
    assert "| roll-out, 8 clips x 16 steps | no | no | 2.00 | 43% | 21.5 GB | 3.0 s |" in page
    assert "| update, 8 pairs | yes | no | out of memory |" in page
    del cells["rate"]
    assert "not measured" in cost.page({}, {"nvidia_x": card})


def test_the_counted_work_is_that_of_the_closed_form(gpu: Any) -> None:
    """Rows times 2 operations a weight of each product, and twice that again for a backward pass of all weights."""
    layer, x = nn.Linear(32, 48, bias=False), torch.randn(5, 32, requires_grad=True)
    assert gpu.flop(lambda: layer(x)) == 2 * 5 * 32 * 48
    assert gpu.flop(lambda: layer(x).sum().backward()) == 3 * 2 * 5 * 32 * 48
    layer.weight.requires_grad_(False)
    assert gpu.flop(lambda: layer(x).sum().backward()) == 2 * 2 * 5 * 32 * 48
    compiled = nn.Linear(32, 48, bias=False)
    compiled.compile(backend="eager")
    assert gpu.flop(lambda: compiled(x)) == 2 * 5 * 32 * 48


def test_the_full_size_is_stable_audio_opens(gpu: Any) -> None:
    from diffusers import StableAudioDiTModel

    with torch.device("meta"):
        network = StableAudioDiTModel(**gpu.FULL.network)
    assert 1.05e9 < gpu.parameters(network) < 1.07e9
    assert (network.config.in_channels, network.config.sample_size) == (64, 1024)
    own = {name: p.default for name, p in inspect.signature(StableAudioDiTModel.__init__).parameters.items()}
    assert all(own[name] == value for name, value in gpu.FULL.network.items())


@pytest.mark.slow
def test_every_cell_is_measured_at_toy_size(gpu: Any) -> None:
    found: dict[str, dict[str, Any]] = {}
    for variant in gpu.VARIANTS:
        if not variant.compiled:
            gpu.measure(variant, gpu.SMALLEST, "cpu", found.__setitem__)
    assert set(found) == {"rollout", "train", "decode", "train_checkpointed"}
    assert all(cell["seconds"] > 0 and cell["peak_gb"] > 0 and "failed" not in cell for cell in found.values())
    # checkpointing computes the forward pass twice, and its useful work is the same
    assert found["train_checkpointed"]["tflop"] == found["train"]["tflop"] > 0
    rate = gpu.matrix_rate(gpu.SMALLEST, "cpu")
    assert rate["tflops"] == max(rate["by_size"].values()) > 0 and rate["format"] == "float32"


def test_a_cell_without_memory_costs_no_other(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, clips: int, steps: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nlong story")

    monkeypatch.setattr(gpu.Subject, "rollout", fails)
    found: dict[str, dict[str, Any]] = {}
    gpu.measure(gpu.VARIANTS[0], gpu.SMALLEST, "cpu", found.__setitem__)
    assert found["rollout"]["failed"] == "out of memory" and "seconds" not in found["rollout"]
    assert "failed" not in found["train"] and "failed" not in found["decode"]
    assert gpu.reason(ValueError("a | b\nc")) == "ValueError: a / b"


def test_an_update_that_was_cut_to_fit_is_no_measurement(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = gpu.Subject(gpu.VARIANTS[0], gpu.SMALLEST, "cpu")
    monkeypatch.setattr(subject._all._batching, "size", 1)
    with pytest.raises(MemoryError, match="micro-batches of 1"):
        subject.train(gpu.SMALLEST.pairs)


def child(tmp_path: Any, body: str) -> list[str]:
    """A command that stands in for the measuring process; `job` is its job and `add` keeps a cell."""
    script = tmp_path / "child.py"
    script.write_text(
        "import sys, time, os, pipeline_gpu\n"
        "from pathlib import Path\n"
        f"results = pipeline_gpu.Results(Path({str(tmp_path)!r}), 'Card 1', False)\n"
        "job, add = sys.argv[-1], results.add\n" + body
    )
    return [sys.executable, str(script)]


@pytest.mark.slow
def test_crashes_and_the_end_of_the_time_lose_no_other_cell(
    gpu: Any, root: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{root / 'benchmarks'}:{root}")
    results = gpu.Results(tmp_path, "Card 1", False)
    body = (
        "add('rollout' if job == '0' else 'train_checkpointed', {'seconds': 1.0 + int(job) / 2})\n"
        "if job == '0': os.abort()\n"
    )
    gpu.run_all(results, ["0", "2"], 5, child(tmp_path, body))
    cells = results.read()["cells"]
    assert cells["rollout"]["seconds"] == 1.0 and cells["train_checkpointed"]["seconds"] == 2.0
    assert cells["train"]["failed"].startswith("the process ended with -") and cells["decode"]["failed"]
    assert list(cells) == ["rollout", "train", "decode", "train_checkpointed"]
    results.forget()
    gpu.run_all(results, ["2", "3"], 15 / 60, child(tmp_path, "time.sleep(600)\n"))
    cells = results.read()["cells"]
    assert cells["train_checkpointed"]["failed"] == "not finished: no time left"
    assert cells["train_compiled_checkpointed"]["failed"] == "not run: no time left"
    assert json.loads((tmp_path / "card_1.json").read_text())["card"] == "Card 1"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_script_runs_without_a_gpu(gpu: Any, root: Any, tmp_path: Any) -> None:
    """Some two CPU minutes, most of them compiling."""
    import subprocess

    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which the script would use")
    call = [sys.executable, str(root / "benchmarks" / "pipeline_gpu.py"), "--minutes", "50"]
    call += ["--results", str(tmp_path), "--out", str(tmp_path / "page.md")]
    said = subprocess.run(call, check=True, capture_output=True, text=True, cwd=root).stdout
    assert "stays open" in said
    cells = json.loads((tmp_path / "toy.json").read_text())["cells"]
    assert len(cells) == 8 and not any("failed" in cell for cell in cells.values())
