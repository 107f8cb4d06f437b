"""Densities: a Gaussian's denoiser gives the Gaussian's density, a mixture's the mixture's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon.diffusion import exponential_sigmas
from dragon.synther import fit
from dragon.synther.likelihood import denoising_density, log_density
from tests.synther.linear_system import QUICK, system

COV = torch.tensor([[1.5, 0.6, 0.0], [0.6, 0.5, 0.1], [0.0, 0.1, 0.05]])
MEAN = torch.zeros(3)  # as of standardised rows; the prior at sigma 80 has no other


def gaussian(x: Tensor, sigma: Tensor, _: object) -> Tensor:
    return MEAN + (x - MEAN) @ torch.linalg.solve(COV + sigma[0] ** 2 * torch.eye(3), COV)


def mixture(x: Tensor, sigma: Tensor, _: object) -> Tensor:
    """Half around -1, half around 1, deviation .3 each."""
    variance = 0.09 + sigma[0] ** 2
    weights = torch.stack([-(x - m).square() / (2 * variance) for m in (-1.0, 1.0)]).softmax(0)
    means = torch.stack([m + 0.09 / variance * (x - m) for m in (-1.0, 1.0)])
    return (weights * means).sum(0)


def rows(n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return MEAN + torch.randn(n, 3, generator=generator) @ torch.linalg.cholesky(COV).T


def test_a_gaussian_denoiser_gives_the_gaussian_density() -> None:
    """To 5e-3 nats: the flow is float32, and the prior has variance 6,401 for 6,400 and that of the data."""
    expected = torch.distributions.MultivariateNormal(MEAN, COV).log_prob(rows()).double()
    torch.testing.assert_close(log_density(gaussian, rows()), expected, atol=5e-3, rtol=0)


def test_a_mixture_integrates_to_one_and_is_its_density() -> None:
    x = torch.linspace(-3, 3, 241)[:, None]
    got = log_density(mixture, x)
    both = torch.stack([torch.distributions.Normal(m, 0.3).log_prob(x[:, 0]) for m in (-1.0, 1.0)])
    expected = (both.logsumexp(0) - math.log(2)).double()
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)
    assert float(got.exp().sum() * 6 / 240) == pytest.approx(1, abs=0.005)


def test_the_estimated_trace_is_unbiased() -> None:
    """With all eight sign vectors of three numbers the mean is the trace itself."""
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)])
    probes = signs[:, None].expand(8, 40, 3)
    torch.testing.assert_close(
        log_density(gaussian, rows(), probes=probes), log_density(gaussian, rows()), atol=1e-4, rtol=0
    )


def test_denoising_errors_give_the_same_in_the_mean() -> None:
    """Over 200 noises, from sigma .005 to 100; one standard error is .1."""
    generator = torch.Generator().manual_seed(1)
    sigmas = exponential_sigmas(60, 0.005, 100.0)[:-1]
    x = rows(8)
    found = torch.stack(
        [denoising_density(gaussian, x, torch.randn(60, 8, 3, generator=generator), sigmas) for _ in range(200)]
    ).mean(0)
    expected = torch.distributions.MultivariateNormal(MEAN, COV).log_prob(x).double()
    torch.testing.assert_close(found, expected, atol=0.4, rtol=0)
    assert float((found - expected).abs().mean()) < 0.2


def test_the_density_of_rows_is_in_data_units() -> None:
    """Observations in a unit eight times as small: each of the four numbers is spread over eight times as much."""
    data = replace(system(300), terminals=np.zeros(300, dtype=bool))
    other = replace(data, observations=8 * data.observations, next_observations=8 * data.next_observations)
    config, few = replace(QUICK, max_steps=100), slice(0, 20)
    one = fit(data, None, config).log_density(data.rows(few), steps=16)
    eight = fit(other, None, config).log_density(other.rows(few), steps=16)
    np.testing.assert_allclose(one - eight, 4 * math.log(8), atol=0.01)


def test_flags_count_with_their_share_of_the_data() -> None:
    """Neither the seed nor the exact trace matters to which flags a row has; flags nobody has have no density."""
    data = system(400)
    model = fit(data.rows(~data.terminals), None, replace(QUICK, max_steps=5))
    never = data.rows(data.terminals)
    assert np.isneginf(model.log_density(never, steps=2)).all()
    assert np.isneginf(model.denoising_density(never)).all()
    assert np.isfinite(model.log_density(data.rows(~data.terminals), steps=2, probes=2)).all()
