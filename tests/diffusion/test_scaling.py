"""Scalings: limits, variances, and the conversion identities between parameterisations.

Everything in float64 over sigma from 1e-3 to 1e3, where 1e-9 is far above rounding and far below any
wrong factor.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dragon.diffusion import EDM, Clean, Epsilon, Flow, ReversedFlow, Scaling, VPrediction, convert_error, cosine_time
from dragon.diffusion.scaling import per_row
from dragon.errors import ConfigError, ShapeError

SIGMA = torch.logspace(-3, 3, 25, dtype=torch.float64)
SCALINGS: dict[str, Scaling] = {
    "edm": EDM(0.5),
    "edm 1.7": EDM(1.7),
    "epsilon": Epsilon(),
    "v": VPrediction(),
    "flow": Flow(),
    "reversed flow": ReversedFlow(),
    "clean": Clean(),
}
every = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X0, NOISE = draw(len(SIGMA), 3, 4, seed=1), draw(len(SIGMA), 3, 4, seed=2)
X = X0 + SIGMA[:, None, None] * NOISE


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def mix(scaling: Scaling, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of target = a * x0 + b * noise; the target is linear in both."""
    one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
    return scaling.target(one, sigma, zero), scaling.target(zero, sigma, one)


@every
def test_the_target_is_the_output_whose_denoised_sample_is_x0(scaling: Scaling) -> None:
    target = scaling.target(X0, SIGMA, NOISE)
    close(scaling.denoised(target, X, SIGMA), X0)
    torch.testing.assert_close(target, scaling.raw(X0, X, SIGMA), rtol=1e-9, atol=1e-8)


@every
def test_raw_and_denoised_are_inverse(scaling: Scaling) -> None:
    raw = draw(*X.shape, seed=3)
    torch.testing.assert_close(scaling.raw(scaling.denoised(raw, X, SIGMA), X, SIGMA), raw, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", ["edm", "epsilon", "v", "flow", "reversed flow"])
def test_without_noise_the_sample_passes_by_the_network(name: str) -> None:
    scaling, zero = SCALINGS[name], torch.zeros(len(X0), dtype=torch.float64)
    assert torch.equal(scaling.denoised(NOISE, X0, zero), X0)
    assert scaling.target(X0, zero, NOISE).isfinite().all()


def test_coefficients_at_high_noise() -> None:
    infinite = torch.tensor(1e12, dtype=torch.float64)
    for scaling, c_out in [
        (EDM(0.5), 0.5),
        (VPrediction(), -1.0),
        (Flow(), -1.0),
        (ReversedFlow(), 1.0),
        (Clean(), 1.0),
    ]:
        assert scaling.c_skip(infinite).item() == pytest.approx(0, abs=1e-11)
        assert scaling.c_out(infinite).item() == pytest.approx(c_out, rel=1e-11)


@pytest.mark.parametrize(
    ("scaling", "sigma_data"),
    [(EDM(0.5), 0.5), (EDM(1.7), 1.7), (Epsilon(), 1.0), (VPrediction(), 1.0), (Clean(), 1.0)],
)
def test_input_and_target_have_unit_variance_at_every_level(scaling: Scaling, sigma_data: float) -> None:
    input_variance = scaling.c_in(SIGMA) ** 2 * (sigma_data**2 + SIGMA**2)
    a, b = mix(scaling, SIGMA)
    close(input_variance, torch.ones_like(SIGMA))
    close(a**2 * sigma_data**2 + b**2, torch.ones_like(SIGMA))


def test_flow_input_and_target_variance() -> None:
    """Data of variance 1: the input has (1 - t)^2 + t^2, the velocity always 2."""
    t = SIGMA / (1 + SIGMA)
    close(Flow().c_in(SIGMA) ** 2 * (1 + SIGMA**2), (1 - t) ** 2 + t**2)
    a, b = mix(Flow(), SIGMA)
    close(a**2 + b**2, torch.full_like(SIGMA, 2.0))


@pytest.mark.parametrize(("scaling", "sigma_data"), [(EDM(0.5), 0.5), (VPrediction(), 1.0)])
def test_the_target_is_uncorrelated_with_x(scaling: Scaling, sigma_data: float) -> None:
    """What c_skip was chosen for (Karras et al., B.6): the best linear guess is skipped, not learnt."""
    a, b = mix(scaling, SIGMA)
    close(a * sigma_data**2 + b * SIGMA, torch.zeros_like(SIGMA))


def test_v_is_edm_of_unit_data_with_the_sign_turned() -> None:
    close(VPrediction().c_skip(SIGMA), EDM(1.0).c_skip(SIGMA))
    close(VPrediction().c_in(SIGMA), EDM(1.0).c_in(SIGMA))
    close(VPrediction().target(X0, SIGMA, NOISE), -EDM(1.0).target(X0, SIGMA, NOISE))


def test_variance_preserving_formulas() -> None:
    """x_t = alpha x0 + sigma_vp eps: v = alpha eps - sigma_vp x0, x0 = alpha x_t - sigma_vp v."""
    sigma = SIGMA[:, None, None]
    alpha = 1 / (1 + sigma**2).sqrt()
    sigma_vp = sigma * alpha
    x_t = alpha * X0 + sigma_vp * NOISE
    v = VPrediction()
    close(v.c_in(sigma) * X, x_t)
    close(v.target(X0, SIGMA, NOISE), alpha * NOISE - sigma_vp * X0)
    any_v = draw(*X.shape, seed=4)
    close(v.denoised(any_v, X, SIGMA), alpha * x_t - sigma_vp * any_v)
    eps = Epsilon()
    torch.testing.assert_close(eps.denoised(any_v, X, SIGMA), (x_t - sigma_vp * any_v) / alpha, rtol=1e-9, atol=1e-6)


def test_v_without_variance_preservation() -> None:
    """alpha, sigma of any scale r: v / r and x_t / r are ours, so x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)."""
    alpha = torch.linspace(0.3, 2.0, len(SIGMA), dtype=torch.float64)[:, None, None]
    sigma = alpha * SIGMA[:, None, None]
    x_t, v = alpha * X0 + sigma * NOISE, draw(*X.shape, seed=5)
    scale = (alpha**2 + sigma**2).sqrt()
    expected = (alpha * x_t - sigma * v) / (alpha**2 + sigma**2)
    close(VPrediction().denoised(v / scale, x_t / alpha, SIGMA), expected)


def test_flow_formulas() -> None:
    """x_t = (1 - t) x0 + t eps: u = eps - x0, x0 = x_t - t u, eps = x_t + (1 - t) u."""
    flow, sigma = Flow(), SIGMA[:, None, None]
    t = flow.c_noise(sigma)
    x_t = (1 - t) * X0 + t * NOISE
    close(flow.c_in(sigma) * X, x_t)
    u = flow.target(X0, SIGMA, NOISE)
    close(u, NOISE - X0)
    close(x_t + (1 - t) * u, NOISE)
    any_u = draw(*X.shape, seed=6)
    close(flow.denoised(any_u, X, SIGMA), x_t - t * any_u)


def test_reversed_flow_formulas() -> None:
    """Time runs from noise, 0, to the clean sample, 1: x_t = t x0 + (1 - t) eps, u = dx_t / dt = x0 - eps."""
    flow, sigma = ReversedFlow(), SIGMA[:, None, None]
    t = flow.c_noise(sigma)
    x_t = t * X0 + (1 - t) * NOISE
    close(flow.c_in(sigma) * X, x_t)
    u = flow.target(X0, SIGMA, NOISE)
    close(u, X0 - NOISE)
    close(x_t + (1 - t) * u, X0)
    any_u = draw(*X.shape, seed=6)
    close(flow.denoised(any_u, X, SIGMA), x_t + (1 - t) * any_u)


def test_reversed_flow_is_flow_with_sign_and_time_turned() -> None:
    flow, turned = Flow(), ReversedFlow()
    any_u = draw(*X.shape, seed=6)
    close(turned.denoised(-any_u, X, SIGMA), flow.denoised(any_u, X, SIGMA))
    close(turned.target(X0, SIGMA, NOISE), -flow.target(X0, SIGMA, NOISE))
    close(turned.c_noise(SIGMA) + flow.c_noise(SIGMA), torch.ones_like(SIGMA))
    # near noise 1 - t would be rounding alone: 1 - 1e6 / (1e6 + 1) in float32 is off by a tenth
    high = torch.tensor([1e6])
    torch.testing.assert_close(turned.c_noise(high), torch.tensor([1 / (1e6 + 1)]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [Epsilon, VPrediction, Flow, ReversedFlow, Clean])
def test_a_time_of_its_own_changes_what_the_network_is_told_and_nothing_else(kind: type) -> None:
    def thousandths(sigma: Tensor) -> Tensor:
        return 1000 * sigma / (1 + sigma)

    own, other = kind(time=thousandths), kind()
    close(own.c_noise(SIGMA), 1000 * SIGMA / (1 + SIGMA))
    assert not torch.equal(own.c_noise(SIGMA), other.c_noise(SIGMA))
    for coefficient in ("c_skip", "c_out", "c_in"):
        assert torch.equal(getattr(own, coefficient)(SIGMA), getattr(other, coefficient)(SIGMA))
    assert torch.equal(own.target(X0, SIGMA, NOISE), other.target(X0, SIGMA, NOISE))


@every
@pytest.mark.parametrize("other", SCALINGS.values(), ids=SCALINGS.keys())
def test_errors_convert_as_the_outputs_do(scaling: Scaling, other: Scaling) -> None:
    """Two denoised samples at one x: their squared distance, measured as either network's output."""
    left, right = draw(*X.shape, seed=7), draw(*X.shape, seed=8)

    def error(s: Scaling) -> Tensor:
        return (s.raw(left, X, SIGMA) - s.raw(right, X, SIGMA)).square().flatten(1).mean(1)

    torch.testing.assert_close(convert_error(error(scaling), SIGMA, scaling, other), error(other), rtol=1e-6, atol=0)


def test_conversion_identities_of_the_literature() -> None:
    """With D, E, V, U, F the errors of x0, epsilon, v, velocity and the raw EDM output, and any D."""
    d = draw(len(SIGMA), seed=9).abs()
    e, v, u, f = (convert_error(d, SIGMA, Clean(), s) for s in (Epsilon(), VPrediction(), Flow(), EDM(0.5)))
    alpha = 1 / (1 + SIGMA**2).sqrt()
    sigma_vp, t = SIGMA * alpha, SIGMA / (1 + SIGMA)
    torch.testing.assert_close(e, alpha**2 / sigma_vp**2 * d, rtol=1e-9, atol=0)
    torch.testing.assert_close(d, sigma_vp**2 * v, rtol=1e-9, atol=0)
    torch.testing.assert_close(e, alpha**2 * v, rtol=1e-9, atol=0)
    torch.testing.assert_close(d, t**2 * u, rtol=1e-9, atol=0)
    torch.testing.assert_close(e, (1 - t) ** 2 * u, rtol=1e-9, atol=0)
    torch.testing.assert_close(d, SIGMA**2 * 0.25 / (SIGMA**2 + 0.25) * f, rtol=1e-9, atol=0)


def test_what_networks_are_told_as_time() -> None:
    torch.testing.assert_close(EDM().c_noise(SIGMA), SIGMA.log() / 4)
    torch.testing.assert_close(Flow().c_noise(torch.tensor([0.0, 1.0, 3.0])), torch.tensor([0.0, 0.5, 0.75]))
    # alpha = cos(pi t / 2) and sigma_vp = sin(pi t / 2) of one angle
    torch.testing.assert_close((cosine_time(SIGMA) * torch.pi / 2).tan(), SIGMA)
    table = Epsilon(time=lambda sigma: 1000 * sigma)
    assert torch.equal(table.c_noise(SIGMA), 1000 * SIGMA)


def test_sigma_is_one_a_row_or_one_for_all() -> None:
    x = draw(2, 3, 4)
    assert per_row(torch.ones(2), x).shape == (2, 1, 1)
    assert per_row(torch.ones(2), x).dtype == torch.float64
    torch.testing.assert_close(
        Flow().denoised(x, x, torch.tensor(0.3)), Flow().denoised(x, x, torch.tensor([0.3, 0.3]))
    )
    for wrong in (torch.ones(3), torch.ones(1), torch.ones(2, 1)):
        with pytest.raises(ShapeError, match="expected"):
            per_row(wrong, x)


def test_edm_needs_a_positive_sigma_data() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="sigma_data"):
            EDM(wrong)
