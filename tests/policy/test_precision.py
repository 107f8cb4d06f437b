"""Number formats that a CPU is slow with are said at construction, and only there where it matters."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from dragon.policy import base
from dragon.policy.base import DiffusionPolicy, fast_on_this_cpu
from dragon.policy.tuning import FullTuning
from dragon.protocols import Precision


class Nothing:
    """A backbone that is somewhere and does nothing."""

    name = "nothing"

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


def warned(precision: Precision, device: str = "cpu") -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        DiffusionPolicy(Nothing(device), FullTuning(nn.Linear(1, 1), config=""), precision=precision)  # type: ignore[arg-type]
    return [str(warning.message) for warning in said]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_cpu_without_instructions_for_a_format_is_warned_of_once(precision, monkeypatch):
    monkeypatch.setattr(base, "fast_on_this_cpu", lambda wanted: wanted == "float32")
    (said,) = warned(precision)
    assert f"precision is {precision}" in said and "ten times slower" in said and "set precision to float32" in said
    assert warned(precision, "cuda") == warned("float32") == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_cpu_that_has_them_is_not(precision, monkeypatch):
    monkeypatch.setattr(base, "fast_on_this_cpu", lambda wanted: True)
    assert warned(precision) == []


def test_what_torch_says_of_this_cpu_is_what_is_said():
    assert fast_on_this_cpu("float32")
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        assert fast_on_this_cpu("bfloat16") == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_where_torch_cannot_tell_nothing_is_said(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fast_on_this_cpu("bfloat16") and fast_on_this_cpu("float16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_query_agrees_with_a_clock(precision):
    """Where torch says no, a convolution is at least twice as slow as in float32 (100 times on AVX2)."""
    import time

    if fast_on_this_cpu(precision):
        pytest.skip("this CPU has instructions for it")
    layer, x = nn.Conv2d(32, 32, 3, padding=1), torch.randn(2, 32, 32, 32)
    seconds = []
    for wanted in (torch.float32, base.DTYPES[precision]):
        a, b = layer.to(wanted), x.to(wanted)
        with torch.no_grad():
            a(b)
            began = time.process_time()
            for _ in range(3):
                a(b)
        seconds.append(time.process_time() - began)
    assert seconds[1] > 2 * seconds[0]
