"""Samplers against what is known exactly: Gaussian data, where the denoiser and the flow have closed forms.

For data N(0, c^2) the denoiser is x c^2 / (c^2 + sigma^2), and the probability-flow equation keeps
x / sqrt(c^2 + sigma^2) constant. A mixture of two Gaussians adds a non-linear case, measured against
very fine steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dragon.diffusion import (
    Denoiser,
    Flow,
    Guided,
    SeededNoise,
    Step,
    churn,
    dpmpp_2m,
    euler,
    exponential_sigmas,
    flow_sigmas,
    heun,
    karras_sigmas,
    last,
)
from dragon.errors import ConfigError, ShapeError

Sampler = Callable[..., Iterator[Step]]

ORDERS: dict[str, tuple[Sampler, int]] = {"euler": (euler, 1), "heun": (heun, 2), "dpmpp_2m": (dpmpp_2m, 2)}
C = 0.8


def gaussian(x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
    level = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return x * C**2 / (C**2 + level**2)


def mixture(x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
    """N(-1, 0.3^2) and N(1, 0.3^2) in equal shares."""
    variance = 0.09 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
    centre = torch.tanh(x / variance)
    return centre + (x - centre) * 0.09 / variance


class Counted:
    """A denoiser that notes the level of every evaluation."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        self.levels.append(sigma[0].item())
        return gaussian(x, sigma)


def start(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- accuracy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("denoise", [gaussian, mixture])
def test_observed_order_of_convergence(name: str, denoise: Callable[..., Tensor]) -> None:
    """Twice the steps, 2^order less error: the slope over three halvings, from level 5 to 0.05."""
    sampler, order = ORDERS[name]
    x = 5 * start(16, 2)
    levels = {steps: exponential_sigmas(steps, 0.05, 5.0)[:-1].double() for steps in (40, 80, 160, 320, 5120)}
    if denoise is gaussian:
        exact = x * math.sqrt((C**2 + 0.05**2) / (C**2 + 5.0**2))
    else:
        exact = last(heun(denoise, x, levels[5120]))
    counts = [40, 80, 160, 320]
    errors = [(last(sampler(denoise, x, levels[n])) - exact).abs().max().item() for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("name", ORDERS)
def test_few_steps_reach_the_data_distribution(name: str) -> None:
    """40 Karras steps from 80 to 0: the gain x0 / x is C / sqrt(C^2 + 80^2) to within 10 %, 1 % at second order."""
    sampler, order = ORDERS[name]
    sigmas = karras_sigmas(40, 0.002, 80.0)
    x = start(3, 2) * 80
    exact = x * C / math.sqrt(C**2 + 80**2)
    torch.testing.assert_close(last(sampler(gaussian, x, sigmas)), exact, rtol={1: 0.1, 2: 0.01}[order], atol=0)


def test_second_order_beats_first_at_equal_evaluations() -> None:
    x = start(16, 2) * 80
    exact = x * C / math.sqrt(C**2 + 80**2)

    def error(sampler: Sampler, steps: int) -> float:
        return _relative_error(last(sampler(gaussian, x, karras_sigmas(steps, 0.002, 80.0))), exact)

    assert error(heun, 20) < error(euler, 39) / 1.5
    assert error(dpmpp_2m, 39) < error(euler, 39) / 5


def test_euler_is_euler_in_flow_time() -> None:
    """x_t = x / (1 + sigma) moved by (t' - t) u, u = (x_t - denoised) / t, gives the same states."""
    sigmas = flow_sigmas(9, shift=2.0).double()
    x = start(4, 3) * sigmas[0]
    x_t, t = x / (1 + sigmas[0]), sigmas / (1 + sigmas)
    for step in euler(mixture, x, sigmas):
        i = step.index
        u = (x_t - mixture(x_t * (1 + sigmas[i]), sigmas[i])) / t[i]
        x_t = x_t + (t[i + 1] - t[i]) * u
        torch.testing.assert_close(step.x / (1 + sigmas[i + 1]), x_t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m])
def test_float32_keeps_its_digits_from_sigma_999(sampler: Sampler) -> None:
    """The textbook step x + (0.5 - 999) (x - denoised) / 999 leaves the rounding of 999 in a state of size 1."""
    sigmas = torch.tensor([999.0, 0.5])
    x = start(64, 8) * 999
    exact, single = last(sampler(gaussian, x, sigmas)), last(sampler(gaussian, x.float(), sigmas))
    assert _relative_error(single, exact) < 1e-6
    slope = (x.float() - gaussian(x.float(), torch.full((64,), 999.0))) / 999
    textbook = x.float() + (0.5 - 999) * slope
    assert _relative_error(textbook, last(euler(gaussian, x, sigmas))) > 1e-5


def _relative_error(x: Tensor, exact: Tensor) -> float:
    return ((x.double() - exact).abs().max() / exact.abs().max()).item()


# ---- stochastic churn -------------------------------------------------------------------------------------


class Orthogonal:
    """Exactly uncorrelated noise: draw i is the unit vector e_i, so |x|^2 is the variance of a linear sampler."""

    def __init__(self, size: int) -> None:
        self.size, self.drawn = size, 1

    def draw(self, event_shape: Any) -> Tensor:
        noise = torch.zeros(1, self.size, dtype=torch.float64)
        noise[0, self.drawn] = 1
        self.drawn += 1
        return noise


def churned(steps: int, s_noise: float = 1.0) -> tuple[list[Step], Tensor, int]:
    sigmas = karras_sigmas(steps, 0.002, 80.0).double()
    x = torch.zeros(1, steps + 1, dtype=torch.float64)
    x[0, 0] = (C**2 + sigmas[0] ** 2).sqrt()
    source = Orthogonal(steps + 1)
    trajectory = list(churn(gaussian, x, sigmas, noise_source=source, s_churn=40.0, s_noise=s_noise))
    return trajectory, sigmas, source.drawn - 1


def test_churn_leaves_the_variance_of_the_gaussian_right_at_every_level() -> None:
    """Every state has variance C^2 + sigma^2 while the noise is renewed 40-fold. No sampling: see `Orthogonal`."""
    trajectory, sigmas, drawn = churned(400)
    assert drawn == 400
    variance = torch.stack([step.x.square().sum() for step in trajectory])
    torch.testing.assert_close(variance, C**2 + sigmas[1:] ** 2, rtol=5e-3, atol=0)
    assert trajectory[-1].x[0, 0].abs() < 1e-6, "nothing is left of the first noise"


def test_the_error_of_churn_is_of_second_order() -> None:
    """Twice the steps at the same total churn: a quarter of the error in the variance."""
    low, high = (abs(churned(n)[0][-1].x.square().sum().item() / C**2 - 1) for n in (400, 800))
    assert 3 < low / high < 5


def test_more_noise_than_is_due_raises_the_variance() -> None:
    assert churned(200, s_noise=1.05)[0][-1].x.square().sum() > 1.02 * C**2


def test_no_churn_is_heun_to_the_bit() -> None:
    x, sigmas = start(3, 4).float() * 80, karras_sigmas(7, 0.002, 80.0)
    still = churn(mixture, x, sigmas, noise_source=SeededNoise([1, 2, 3]), s_churn=0.0)
    for a, b in zip(still, heun(mixture, x, sigmas), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.denoised, b.denoised)


def test_churn_draws_only_between_its_levels_and_evaluates_at_the_raised_level() -> None:
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])
    counted, source = Counted(), Orthogonal(9)
    list(churn(counted, torch.zeros(1, 9), sigmas, noise_source=source, s_churn=0.4, s_tmin=2.0, s_tmax=5.0))
    assert source.drawn - 1 == 2
    assert counted.levels == pytest.approx([10, 5, 5 * 1.1, 2, 2 * 1.1, 1, 1])
    strong = Counted()
    list(churn(strong, torch.zeros(1, 9), sigmas, noise_source=Orthogonal(9), s_churn=100.0))
    assert strong.levels[0] == pytest.approx(10 * math.sqrt(2)), "at most sqrt(2) times the level"


def test_churn_needs_one_seed_a_sample() -> None:
    with pytest.raises(ShapeError, match="one seed a sample"):
        last(churn(gaussian, start(3, 4), flow_sigmas(4), noise_source=SeededNoise([1, 2]), s_churn=1.0))
    with pytest.raises(ConfigError, match="s_churn"):
        last(churn(gaussian, start(2, 4), flow_sigmas(4), noise_source=SeededNoise([1, 2]), s_churn=-1.0))


# ---- a sample does not depend on its batch ------------------------------------------------------------------


class Net(nn.Module):
    """A convolution and two linear layers with attention over the tokens: kernels that change with the batch size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(16, 64, 3, padding=1)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.out = nn.Linear(64, 16)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x)).transpose(1, 2) + (time + cond)[:, None, None]
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return torch.tanh(self.out(h).transpose(1, 2))


SEEDS, LABELS = [7, 3, 11, 5, 2, 13, 4, 9], torch.arange(8) / 4.0
EVERY: dict[str, Sampler] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "churn": churn}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scale", [1.0, 2.5])
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(name: str, scale: float) -> None:
    denoiser, sigmas = Denoiser(Net(), Flow()).eval(), flow_sigmas(8)

    def samples(rows: list[int]) -> Tensor:
        noise = SeededNoise([SEEDS[i] for i in rows])
        x = sigmas[0] * noise.draw((16, 20))
        denoise = Guided(denoiser, torch.zeros(len(rows)), scale, cat=lambda parts: torch.cat(list(parts)))
        extra = {"noise_source": noise, "s_churn": 1.0} if name == "churn" else {}
        return last(EVERY[name](denoise, x, sigmas, LABELS[rows], **extra))

    together = samples(list(range(8)))
    assert together.std() > 0.1 and (together[0] - together[1]).abs().max() > 0.1, "samples differ, or nothing is shown"
    for rows in ([[i] for i in range(8)], [[6, 1, 4]], [list(range(7, -1, -1))]):
        for some in rows:
            difference = (samples(some) - together[some]).norm() / together[some].norm()
            assert difference <= 1e-5, some


def test_noise_is_a_function_of_the_rows_seed_and_the_number_of_draws() -> None:
    one, many = SeededNoise([5]), SeededNoise([1, 5, 2])
    for shape in [(3, 4), (3, 4), (2,)]:
        torch.testing.assert_close(one.draw(shape)[0], many.draw(shape)[1], rtol=0, atol=0)
    repeated = SeededNoise([5])
    assert not torch.equal(repeated.draw((8,)), repeated.draw((8,)))
    a, b = SeededNoise([5, 6]).draw((100,))
    assert not torch.equal(a, b)


def test_noise_has_unit_variance_and_neighbouring_seeds_are_independent() -> None:
    noise = SeededNoise(range(500)).draw((400,)).double()
    # 200,000 normals: standard error .0022 of the mean, .0032 of the variance
    assert noise.mean().abs() < 0.01 and (noise.var() - 1).abs() < 0.015
    assert (noise[1:] * noise[:-1]).mean().abs() < 0.01


def test_noise_needs_seeds() -> None:
    with pytest.raises(ShapeError, match="one a sample"):
        SeededNoise([])


def test_generators_go_on_where_the_draws_left_them() -> None:
    """A scheduler that draws from them continues each sample's own stream, whatever the batch."""
    noise = SeededNoise([5, 6, 5])
    assert [g.initial_seed() for g in noise.generators] == [5, 6, 5]
    assert len({id(g) for g in noise.generators}) == 3
    first = noise.draw((4,))
    later = torch.stack([torch.randn(4, generator=g) for g in noise.generators])
    again = SeededNoise([5, 6, 5])
    assert torch.equal(again.draw((4,)), first) and torch.equal(again.draw((4,)), later)
    assert torch.equal(later[0], later[2]) and not torch.equal(later[0], first[0])
    alone = SeededNoise([6])
    alone.draw((4,))
    assert torch.equal(torch.randn(4, generator=alone.generators[0]), later[1])


# ---- the shape of a sampler ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "evaluations"), [("euler", [3, 2, 1]), ("heun", [3, 2, 2, 1, 1]), ("dpmpp_2m", [3, 2, 1])]
)
def test_levels_at_which_the_denoiser_is_asked(name: str, evaluations: list[float]) -> None:
    counted = Counted()
    steps = list(EVERY[name](counted, start(2, 3), torch.tensor([3.0, 2.0, 1.0, 0.0])))
    assert counted.levels == evaluations
    assert [s.index for s in steps] == [0, 1, 2] and [s.sigma for s in steps] == [2, 1, 0]


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m])
def test_the_last_state_is_the_last_denoised_sample(sampler: Sampler) -> None:
    *_, end = sampler(mixture, start(4, 3) * 80, karras_sigmas(6, 0.002, 80.0))
    assert end.sigma == 0 and torch.equal(end.x, end.denoised)


def test_samplers_are_lazy_and_stop_where_the_caller_stops() -> None:
    counted = Counted()
    steps = euler(counted, start(2, 3), torch.tensor([3.0, 2.0, 1.0, 0.0]))
    assert counted.levels == []
    next(steps)
    next(steps)
    assert counted.levels == [3, 2]


def test_the_condition_is_handed_on_unread() -> None:
    marker = object()

    def denoise(x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        assert cond is marker and sigma.shape == (2,)
        return gaussian(x, sigma)

    for sampler in (euler, heun, dpmpp_2m):
        last(sampler(denoise, start(2, 3), flow_sigmas(3), marker))


def test_gradients_flow_through_a_sampler_and_the_start_is_not_changed() -> None:
    x = start(2, 3).requires_grad_()
    before = x.detach().clone()
    last(heun(gaussian, x, torch.tensor([3.0, 1.0, 0.0]))).sum().backward()
    assert x.grad is not None and (x.grad != 0).all() and torch.equal(x.detach(), before)


def test_the_state_is_float32_at_least() -> None:
    def denoise(x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        assert x.dtype == sigma.dtype == torch.float32
        return gaussian(x, sigma)

    assert last(euler(denoise, start(2, 3).bfloat16(), flow_sigmas(3))).dtype == torch.float32
    assert last(euler(gaussian, start(2, 3), flow_sigmas(3))).dtype == torch.float64


@pytest.mark.parametrize(
    ("sigmas", "error"),
    [
        (torch.tensor([1.0, 2.0, 0.0]), ConfigError),
        (torch.tensor([1.0, 1.0, 0.0]), ConfigError),
        (torch.tensor([1.0, math.nan, 0.0]), ConfigError),
        (torch.tensor([math.inf, 1.0, 0.0]), ConfigError),
        (torch.tensor([1.0, -1.0]), ConfigError),
        (torch.tensor([1.0]), ShapeError),
        (torch.ones(2, 2), ShapeError),
    ],
)
@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m])
def test_impossible_levels_are_refused(sampler: Sampler, sigmas: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        last(sampler(gaussian, start(2, 3), sigmas))
