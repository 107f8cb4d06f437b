"""Schedules: ends, order, and the coordinate in which each is even."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dragon.diffusion import cosine_sigmas, exponential_sigmas, flow_sigma, flow_sigmas, flow_time, karras_sigmas
from dragon.errors import ConfigError

LOW, HIGH = 0.002, 80.0

RANGED: dict[str, Callable[[int], Tensor]] = {
    "karras": lambda n: karras_sigmas(n, LOW, HIGH),
    "exponential": lambda n: exponential_sigmas(n, LOW, HIGH),
    "cosine": lambda n: cosine_sigmas(n, LOW, HIGH),
}
ALL: dict[str, Callable[[int], Tensor]] = {**RANGED, "flow": lambda n: flow_sigmas(n, shift=3.0)}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_schedules_descend_strictly_to_exactly_zero(name: str, steps: int) -> None:
    sigmas = ALL[name](steps)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0


@pytest.mark.parametrize("name", RANGED)
def test_schedules_start_and_end_at_the_given_levels(name: str) -> None:
    sigmas = RANGED[name](10)
    assert sigmas[0].item() == pytest.approx(HIGH, rel=1e-6)
    assert sigmas[-2].item() == pytest.approx(LOW, rel=1e-6)
    assert RANGED[name](1)[0].item() == pytest.approx(HIGH, rel=1e-6), "a single step starts at the top"


def test_each_schedule_is_even_in_its_own_coordinate() -> None:
    even_in: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [
        (karras_sigmas(12, LOW, HIGH)[:-1], lambda s: s ** (1 / 7)),
        (karras_sigmas(12, LOW, HIGH, rho=1.0)[:-1], lambda s: s),
        (exponential_sigmas(12, LOW, HIGH)[:-1], torch.log),
        (cosine_sigmas(12, LOW, HIGH)[:-1], torch.atan),
        (flow_sigmas(12), flow_time),
    ]
    for sigmas, coordinate in even_in:
        gaps = coordinate(sigmas.double()).diff()
        # float32 levels: 6e-8 relative, up to 1e-5 of a gap after the maps above
        torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-5, atol=0)


def test_karras_with_a_large_rho_is_exponential() -> None:
    torch.testing.assert_close(
        karras_sigmas(9, LOW, HIGH, rho=1e7), exponential_sigmas(9, LOW, HIGH), rtol=1e-4, atol=0
    )


def test_karras_by_hand() -> None:
    """rho 2, from 4 to 1: roots 2, 1.5, 1, so 4, 2.25, 1, then 0."""
    torch.testing.assert_close(karras_sigmas(3, 1.0, 4.0, rho=2.0), torch.tensor([4.0, 2.25, 1.0, 0.0]))


def test_the_flow_shift_is_a_factor_of_sigma_and_the_published_map_of_t() -> None:
    shift, t = 3.0, flow_time(flow_sigmas(8).double())
    shifted = flow_sigmas(8, shift=shift)
    torch.testing.assert_close(shifted, shift * flow_sigmas(8))
    torch.testing.assert_close(flow_time(shifted.double()), shift * t / (1 + (shift - 1) * t), rtol=1e-6, atol=0)


def test_flow_time_and_sigma_are_inverse() -> None:
    t = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(flow_time(flow_sigma(t)), t)
    assert flow_time(torch.tensor(1.0)) == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: karras_sigmas(0, LOW, HIGH),
        lambda: karras_sigmas(4, HIGH, LOW),
        lambda: karras_sigmas(4, 0.0, HIGH),
        lambda: karras_sigmas(4, LOW, math.inf),
        lambda: karras_sigmas(4, LOW, math.nan),
        lambda: karras_sigmas(4, LOW, HIGH, rho=0.0),
        lambda: exponential_sigmas(4, -1.0, HIGH),
        lambda: cosine_sigmas(0, LOW, HIGH),
        lambda: flow_sigmas(4, shift=0.0),
        lambda: flow_sigmas(4, t_max=1.0),
        lambda: flow_sigmas(0),
    ],
)
def test_impossible_schedules_are_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ConfigError, match="expected|at least"):
        call()
