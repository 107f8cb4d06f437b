"""The moving average: closed form, precision, state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dragon.diffusion import Ema
from dragon.errors import ConfigError, ShapeError


def path(n: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"a": torch.randn(3, generator=generator), "b": torch.randn(2, 2, generator=generator)} for _ in range(n + 1)
    ]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_closed_form(decay: float) -> None:
    start, *rest = path(20)
    ema = Ema(start, decay)
    for parameters in rest:
        ema.update(parameters)
    n = len(rest)
    for name, value in ema.values.items():
        expected = decay**n * start[name] + (1 - decay) * sum(
            decay ** (n - i) * p[name] for i, p in enumerate(rest, start=1)
        )
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_constant_parameters_stay_to_the_bit() -> None:
    start, *_ = path(0)
    ema = Ema(start, 0.99)
    for _ in range(50):
        ema.update(start)
    assert all(torch.equal(ema.values[name], start[name]) for name in start)


def test_the_average_is_a_copy_and_carries_no_gradient() -> None:
    parameter = nn.Parameter(torch.ones(3))
    ema = Ema({"p": parameter}, 0.9)
    with torch.no_grad():
        parameter.mul_(5)
    assert torch.equal(ema.values["p"], torch.ones(3))
    ema.update({"p": parameter})
    torch.testing.assert_close(ema.values["p"], torch.full((3,), 1.4))
    assert not ema.values["p"].requires_grad


def test_half_precision_parameters_are_averaged_in_float32() -> None:
    """One step of 1e-3 from 1 is below bfloat16's resolution of 2^-8: kept in it, the average would never move."""
    ema = Ema({"p": torch.ones(1, dtype=torch.bfloat16)}, 0.999)
    for _ in range(1000):
        ema.update({"p": torch.full((1,), 2.0, dtype=torch.bfloat16)})
    assert ema.values["p"].dtype == torch.float32
    assert ema.values["p"].item() == pytest.approx(2 - 0.999**1000, rel=1e-4)


def test_a_resumed_average_equals_an_unbroken_one_to_the_bit() -> None:
    start, *rest = path(10)
    unbroken = Ema(start, 0.9)
    for parameters in rest[:5]:
        unbroken.update(parameters)
    state = unbroken.state_dict()
    resumed = Ema(rest[0], 0.9)
    resumed.load_state_dict(state)
    for parameters in rest[5:]:
        unbroken.update(parameters)
        resumed.update(parameters)
    assert all(torch.equal(unbroken.values[name], resumed.values[name]) for name in start)
    assert not torch.equal(state["a"], unbroken.values["a"]), "a state is a copy, not a view"


def test_other_names_shapes_and_decays_are_refused() -> None:
    ema = Ema({"a": torch.zeros(3)}, 0.9)
    with pytest.raises(ConfigError, match=r"missing \['a'\], unknown \['b'\]"):
        ema.update({"b": torch.zeros(3)})
    with pytest.raises(ShapeError, match=r"'a' has shape \(4,\); expected \(3,\)"):
        ema.load_state_dict({"a": torch.zeros(4)})
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="decay"):
            Ema({}, decay)
