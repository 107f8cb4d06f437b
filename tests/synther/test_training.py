"""The fit: the published formulas, and a state that resumes to the bit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dragon.diffusion import EDM, karras_sigmas
from dragon.errors import ConfigError, NotFinite
from dragon.synther.training import PRESETS, Fit, FitConfig, loss_of, preset

SMALL = FitConfig(width=16, inner=8, depth=2, max_steps=40, batch_size=32, ema_every=3)


def data(n: int = 200, d: int = 4, c: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(n, d, generator=generator)
    return rows, (rows[:, :1].repeat(1, c) > 0).float(), rows[:, 1].clone()


def made(config: FitConfig, scored: bool = False) -> Fit:
    rows, flags, scores = data()
    known, open_flags = torch.tensor([True, True, False, False]), torch.tensor([True])
    return Fit(rows, flags, scores if scored else None, config, known=known, open_flags=open_flags)


def test_scalings_are_those_of_the_paper() -> None:
    """Karras et al. (2022), Table 1, with sigma_data 1; to 1e-6."""
    scaling = EDM(PRESETS["paper"].sigma_data)
    for s in (0.002, 0.05, 0.3, 1.0, 7.5, 80.0):
        sigma = torch.tensor(s, dtype=torch.float64)
        assert float(scaling.c_skip(sigma)) == pytest.approx(1 / (s * s + 1), rel=1e-6)
        assert float(scaling.c_out(sigma)) == pytest.approx(s / math.sqrt(s * s + 1), rel=1e-6)
        assert float(scaling.c_in(sigma)) == pytest.approx(1 / math.sqrt(s * s + 1), rel=1e-6)
        assert float(scaling.c_noise(sigma)) == pytest.approx(math.log(s) / 4, rel=1e-6)


def test_the_sigma_table_is_that_of_the_paper() -> None:
    table = karras_sigmas(128, 0.002, 80.0, 7.0).double().numpy()
    ramp = np.arange(128) / 127
    expected = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(table[:-1], expected, rtol=1e-6)
    assert table[-1] == 0


def test_the_loss_is_the_weighted_loss_written_out() -> None:
    """lambda |D - x0|^2 with lambda = (sigma^2 + 1) / sigma^2, mean over numbers; to 1e-5."""
    fit = made(SMALL)
    index, generator = torch.arange(50), torch.Generator().manual_seed(2)
    sigma, noise = torch.randn(50, generator=generator).mul(1.2).sub(1.2).exp(), torch.randn(50, 4, generator=generator)
    with torch.no_grad():
        got = loss_of(fit, sigma, noise, index)
        x0, s = fit.rows[index], sigma[:, None]
        x = x0 + s * noise
        raw = fit.net(x / (s**2 + 1).sqrt(), sigma.log() / 4, fit.flags[index])
        denoised = x / (s**2 + 1) + s / (s**2 + 1).sqrt() * raw
        plain = ((s**2 + 1) / s**2 * (denoised - x0) ** 2).mean()
    assert float(got) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, predict_share=0.3)], ids=["plain", "predicting"])
def test_a_fit_resumes_to_the_bit(config: FitConfig) -> None:
    """Weights, average, optimiser, generator, learning rate: 20 + 20 steps are 40."""
    whole, first = made(config, scored=True), made(config, scored=True)
    losses = list(whole.steps())
    list(first.steps(until=20))
    state = first.state_dict()
    list(first.steps())  # the state is a copy: going on does not change it
    second = made(config, scored=True)
    second.load_state_dict(state)
    rest = list(second.steps())
    assert len(rest) == 20 and losses[-1] == rest[-1]
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, second.ema.state_dict()[name]), name
    assert torch.equal(whole.state_dict()["generator"], second.state_dict()["generator"])
    third = made(config, scored=True)
    third.load_state_dict(state)
    assert third.step == 20, "a state can be loaded twice"


def test_the_learning_rate_is_a_cosine_of_the_step_also_after_resuming() -> None:
    fit = made(SMALL)
    list(fit.steps(until=10))
    again = made(SMALL)
    again.load_state_dict(fit.state_dict())
    list(again.steps(until=31))
    (group,) = again.state_dict()["optimiser"]["param_groups"]
    assert group["lr"] == pytest.approx(3e-4 * (1 + math.cos(math.pi * 30 / 40)) / 2)
    assert group["betas"] == (0.9, 0.99) and group["weight_decay"] == 0


def test_the_average_follows_a_short_fit() -> None:
    """With a decay of .995 from the start, 13 updates would leave 94 % of the random weights in it."""
    fit = made(replace(SMALL, learning_rate=0.01))
    start = {name: value.detach().clone() for name, value in fit.net.named_parameters()}
    list(fit.steps())
    end = {name: value.detach() for name, value in fit.net.named_parameters()}
    moved = sum(float((value - start[name]).square().sum()) for name, value in end.items())
    behind = sum(float((fit.ema.values[name] - value).square().sum()) for name, value in end.items())
    assert behind < 0.1 * moved


def test_seeds() -> None:
    one, same, other = made(SMALL), made(SMALL), made(replace(SMALL, seed=1))
    for fit in (one, same, other):
        list(fit.steps(until=5))
    assert torch.equal(one.net.end.weight, same.net.end.weight)
    assert not torch.equal(one.net.end.weight, other.net.end.weight)
    before = torch.random.get_rng_state()
    list(made(SMALL).steps(until=2))
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"


def test_batches_grow_from_800_000_rows() -> None:
    rows = torch.zeros(1, 2).expand(800_000, 2)
    assert Fit(rows, torch.zeros(800_000, 0), None, replace(SMALL, batch_size=0))._batch == 1024
    assert Fit(rows[1:], torch.zeros(799_999, 0), None, replace(SMALL, batch_size=0))._batch == 256


def test_the_loss_falls_on_a_line() -> None:
    """Rows on a diagonal: half of what unit noise has is known from the other number."""
    rows = torch.randn(500, 1).repeat(1, 2)
    fit = Fit(rows, torch.zeros(500, 0), None, replace(SMALL, max_steps=300, learning_rate=1e-2))
    losses = list(fit.steps())
    assert math.isfinite(losses[0]) and losses[-1] < 0.8 * losses[0]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="width is 0"):
        FitConfig(width=0)
    with pytest.raises(ConfigError, match="predict_share is 1"):
        FitConfig(predict_share=1.0)
    with pytest.raises(ConfigError, match="preset is 'huge'; expected one of paper, small, tiny"):
        preset("huge")
    with pytest.raises(ConfigError, match="device is 'abacus'"):
        made(replace(SMALL, device="abacus"))
    with pytest.raises(ConfigError, match="missing"):
        made(SMALL).warm_start({})
    broken = made(SMALL)
    broken.rows[:] = torch.nan
    with pytest.raises(NotFinite, match="the loss is nan at step 1"):
        list(broken.steps())
