"""The denoising error of a row, the densities of noise levels, and one model that learns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor, nn

from dragon.diffusion import (
    EDM,
    Clean,
    Denoiser,
    Epsilon,
    Flow,
    Scaling,
    SeededNoise,
    VPrediction,
    denoising_error,
    flow_time,
    heun,
    karras_sigmas,
    last,
    logit_normal_sigmas,
    lognormal_sigmas,
    uniform_flow_sigmas,
)
from dragon.errors import ConfigError

SCALINGS = [EDM(0.5), Epsilon(), VPrediction(), Flow(), Clean()]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def gaussian(scaling: Scaling, std: float) -> Denoiser:
    """The exact denoiser of N(0, std^2), E[x0 | x] = x std^2 / (std^2 + sigma^2), as a network of `scaling`.

    It takes sigma as its condition, since not every scaling's time can be turned back into sigma.
    """

    def net(x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        sigma = cond[:, None]
        noisy = x / scaling.c_in(sigma)
        return scaling.raw(noisy * std**2 / (std**2 + sigma**2), noisy, cond)

    return Denoiser(net, scaling)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_error_of_the_exact_gaussian_denoiser(scaling: Scaling) -> None:
    """Its x0 error is the posterior variance std^2 sigma^2 / (std^2 + sigma^2), seen through c_out."""
    std, n = 0.5, 400_000
    sigma = torch.tensor([0.1, 0.5, 3.0], dtype=torch.float64)
    x0 = std * torch.randn(3, n, generator=seeded(1), dtype=torch.float64)
    noise = torch.randn(3, n, generator=seeded(2), dtype=torch.float64)
    error = denoising_error(gaussian(scaling, std), x0, sigma, noise, cond=sigma)
    expected = std**2 * sigma**2 / (std**2 + sigma**2) / scaling.c_out(sigma) ** 2
    # a mean of n squared normals has relative deviation sqrt(2 / n) = .0022; 1 % is more than four of them
    torch.testing.assert_close(error, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_error_by_hand(scaling: Scaling) -> None:
    """A network that answers 0 has the mean square of the target as its error, over all event dimensions."""
    x0 = torch.randn(4, 3, 5, generator=seeded(1), dtype=torch.float64)
    noise = torch.randn(4, 3, 5, generator=seeded(2), dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=torch.float64)
    zero = Denoiser(lambda x, time, cond: torch.zeros_like(x), scaling)
    expected = (scaling.target(x0, sigma, noise) ** 2).sum((1, 2)) / 15
    torch.testing.assert_close(denoising_error(zero, x0, sigma, noise), expected)


def test_for_edm_it_is_the_weighted_loss_of_the_paper() -> None:
    """lambda(sigma) |denoised - x0|^2 with lambda = (sigma^2 + sd^2) / (sigma sd)^2 (Karras et al., Table 1)."""
    sd = 0.7
    x0, noise = torch.randn(2, 6, 8, generator=seeded(), dtype=torch.float64)
    sigma = torch.logspace(-2, 2, 6, dtype=torch.float64)
    denoiser = Denoiser(lambda x, time, cond: torch.sin(3 * x), EDM(sd))
    denoised = denoiser(x0 + sigma[:, None] * noise, sigma)
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    expected = weight * (denoised - x0).square().mean(1)
    torch.testing.assert_close(denoising_error(denoiser, x0, sigma, noise), expected)


def test_a_row_does_not_depend_on_the_others() -> None:
    x0, noise = torch.randn(2, 5, 7, generator=seeded())
    sigma = torch.linspace(0.1, 3, 5)
    denoiser = Denoiser(lambda x, time, cond: torch.tanh(x) + time[:, None], Flow())
    together = denoising_error(denoiser, x0, sigma, noise)
    alone = torch.cat([denoising_error(denoiser, x0[i : i + 1], sigma[i : i + 1], noise[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


N = 20_000


def check_density(draws: Tensor, cdf: Callable[[object], object]) -> None:
    """Kolmogorov-Smirnov; the seeds are fixed, so 1e-3 is no lottery."""
    assert draws.shape == (N,) and draws.dtype == torch.float32
    assert stats.kstest(draws.double().numpy(), cdf).pvalue > 1e-3


def test_lognormal_density() -> None:
    check_density(lognormal_sigmas(N, seeded()).log(), stats.norm(-1.2, 1.2).cdf)
    check_density(lognormal_sigmas(N, seeded(), mean=0.4, std=2.0).log(), stats.norm(0.4, 2.0).cdf)


def test_logit_normal_density() -> None:
    check_density(flow_time(logit_normal_sigmas(N, seeded()).double()).logit().float(), stats.norm(0, 1).cdf)
    check_density(flow_time(logit_normal_sigmas(N, seeded(), mean=1.0, std=0.5).double()).logit().float(),
                  stats.norm(1, 0.5).cdf)  # fmt: skip


def test_restricted_logit_normal_keeps_its_shape_inside() -> None:
    low, high = torch.logit(torch.tensor([0.35, 0.95], dtype=torch.float64)).tolist()
    sigma = logit_normal_sigmas(N, seeded(), mean=0.2, std=0.8, t_min=0.35, t_max=0.95)
    inside = stats.truncnorm((low - 0.2) / 0.8, (high - 0.2) / 0.8, loc=0.2, scale=0.8)
    check_density(sigma.log(), inside.cdf)
    t = flow_time(sigma.double())
    assert t.min() > 0.3499 and t.max() < 0.9501


def test_uniform_flow_density() -> None:
    check_density(flow_time(uniform_flow_sigmas(N, seeded()).double()).float(), stats.uniform(0, 1).cdf)
    part = flow_time(uniform_flow_sigmas(N, seeded(), t_min=0.2, t_max=0.6).double()).float()
    check_density(part, stats.uniform(0.2, 0.4).cdf)


@pytest.mark.parametrize("density", [lognormal_sigmas, logit_normal_sigmas, uniform_flow_sigmas])
def test_levels_are_finite_positive_and_a_function_of_the_generator(density: Callable[..., Tensor]) -> None:
    draws = density(N, seeded(3))
    assert draws.isfinite().all() and (draws > 0).all()
    assert torch.equal(draws, density(N, seeded(3))) and not torch.equal(draws, density(N, seeded(4)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: lognormal_sigmas(3, seeded(), std=0.0),
        lambda: logit_normal_sigmas(3, seeded(), std=-1.0),
        lambda: logit_normal_sigmas(3, seeded(), t_min=0.5, t_max=0.5),
        lambda: logit_normal_sigmas(3, seeded(), mean=-9.0, std=0.5, t_min=0.9),
        lambda: uniform_flow_sigmas(3, seeded(), t_min=-0.1),
        lambda: uniform_flow_sigmas(3, seeded(), t_max=1.1),
    ],
)
def test_impossible_densities_are_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ConfigError):
        call()


class _TwoLevels(nn.Module):
    """A small perceptron of (x, time)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        result: Tensor = self.layers(torch.stack([x[:, 0], time], dim=1))
        return result


def test_a_small_network_learns_two_values_and_their_shares() -> None:
    """Data: -0.5 in a quarter of the cases, +0.5 in the rest. Loss, scaling and sampler have to fit together."""
    torch.manual_seed(0)
    denoiser = Denoiser(_TwoLevels(), EDM(0.5))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=5e-3)
    generator = seeded(1)
    for _ in range(600):
        x0 = torch.where(torch.rand(256, 1, generator=generator) < 0.25, -0.5, 0.5)
        sigma = lognormal_sigmas(256, generator)
        loss = denoising_error(denoiser, x0, sigma, torch.randn(256, 1, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x = 80 * SeededNoise(range(1000)).draw((1,))
        samples = last(heun(denoiser, x, karras_sigmas(18, 0.002, 80.0)))
    assert (samples.abs() - 0.5).abs().median() < 0.05
    assert (samples < 0).float().mean().item() == pytest.approx(0.25, abs=0.06)
