"""Times of pipelines' schedulers as noise levels: exact on a table's steps, and drawn with the density they claim."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from dragon.diffusion import VPrediction, cosine_time, flow_sigma, flow_time
from dragon.policy.levels import LAST_TIME, DiscreteTimes, cosine_draws, draw_of, falling, flow_clock, flow_levels

RARE = 1e-3  # of the draws a right density would fail at; they are seeded, so a test that passes keeps passing


def table(kind: str = "scaled_linear", steps: int = 1000) -> Tensor:
    """Shares of signal power, as diffusers' DDPM scheduler has them."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=steps, beta_start=0.0015, beta_end=0.0195, beta_schedule=kind)
    found: Tensor = scheduler.alphas_cumprod
    return found


def without_signal(kind: str) -> Tensor:
    """Of a schedule whose last step is noise alone; its last number is 0, or stands for it."""
    import diffusers

    found: Tensor = getattr(diffusers, kind)(rescale_betas_zero_snr=True).alphas_cumprod
    assert len(found) == 1000 and (found[-1] == 0 or found[-1] > found[-2])
    return found


TABLES = {
    "scaled_linear": table(),
    "linear": table("linear"),
    "few": table(steps=10),
    "no signal": without_signal("DDIMScheduler"),
    "written as signal": without_signal("EulerDiscreteScheduler"),
}
every = pytest.mark.parametrize("power", TABLES.values(), ids=TABLES.keys())


# ---- a table of steps


@every
def test_on_a_step_times_and_levels_are_those_of_the_table(power):
    times, steps, power = DiscreteTimes(power), torch.arange(len(power)), power.double()
    sigma = ((1 - power) / power).sqrt()
    if power[-1] <= 0 or power[-1] >= power[-2]:  # without signal the level would be infinite
        sigma[-1] = times.table[-1]
        assert 2 * sigma[-2] <= sigma[-1] < 1e6 and sigma[-1] >= 4095
    torch.testing.assert_close(times.levels(steps.flip(0))[:-1].flip(0), sigma.float())
    torch.testing.assert_close(times.time(sigma), steps.double(), rtol=0, atol=1e-6)
    # in float32, as a policy holds its levels, within a thousandth of a step
    torch.testing.assert_close(times.time(sigma.float()), steps.float(), rtol=0, atol=1e-3)


def test_the_network_of_a_step_sees_the_noise_that_the_step_stands_for():
    """sqrt(power) x0 + sqrt(1 - power) noise is c_in of x0 + sigma * noise."""
    power = TABLES["scaled_linear"].double()
    sigma = DiscreteTimes(power).table
    torch.testing.assert_close(VPrediction().c_in(sigma), power.sqrt())
    torch.testing.assert_close(VPrediction().c_in(sigma) * sigma, (1 - power).sqrt())


@every
def test_time_rises_with_the_level_and_stays_in_the_table(power):
    times = DiscreteTimes(power)
    found = times.time(torch.logspace(-4, 5, 5000, dtype=torch.float64))
    assert (found.diff() >= 0).all() and found[0] == 0 and found[-1] == len(power) - 1
    inside = (found > 0) & (found < len(power) - 1)
    assert (found[inside].diff() > 0).all() and int(inside.sum()) >= 500


@every
def test_time_and_levels_are_inverse_between_steps_too(power):
    times = DiscreteTimes(power)
    steps = torch.linspace(len(power) - 1.25, 0.25, 777, dtype=torch.float64)
    levels = times.levels(steps)
    assert levels[-1] == 0 and (levels.diff() < 0).all()
    torch.testing.assert_close(times.time(levels[:-1].double()), steps, rtol=0, atol=2e-3)


def test_between_steps_log_sigma_is_linear():
    times = DiscreteTimes(table())
    low, high = times.table[400].log(), times.table[401].log()
    (found,) = times.levels(torch.tensor([400.25]))[:-1].double().log()
    assert float(found) == pytest.approx(float(low + 0.25 * (high - low)), abs=1e-6)


def test_time_is_of_the_levels_shape_and_of_single_precision_at_least():
    times = DiscreteTimes(table())
    assert times.time(torch.tensor(1.0)).shape == () and times.time(torch.ones(2, 3)).shape == (2, 3)
    assert times.time(torch.ones(2).bfloat16()).dtype == torch.float32
    assert times.time(torch.ones(2).double()).dtype == torch.float64


@pytest.mark.parametrize(("t_min", "t_max"), [(0.0, 1.0), (0.2, 0.7), (0.07, 0.29), (0.0, 0.001), (0.999, 1.0)])
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_drawn_steps_are_uniform_among_those_of_the_range(t_min, t_max, steps):
    power = table(steps=steps)
    times = DiscreteTimes(power)
    drawn = times.draw(20_000, Generator().manual_seed(0), t_min, t_max)
    found = times.time(drawn.double()).round().long()
    torch.testing.assert_close(times.table[found].float(), drawn)  # levels of the table, and no others
    # exact shares: as fractions, where 0.07 * 100 is 7 and not a little more
    allowed = [s for s in range(steps) if round(t_min * 1000) * steps <= s * 1000 < round(t_max * 1000) * steps]
    allowed = allowed or [min(int(t_min * steps), steps - 1)]  # a range between two steps: the one it lies behind
    counts = torch.bincount(found, minlength=steps)
    assert set(counts.nonzero().flatten().tolist()) <= set(allowed)
    if len(allowed) > 1:
        assert stats.chisquare(counts[allowed].numpy()).pvalue > RARE
    assert drawn.dtype == torch.float32


def test_steps_that_a_scheduler_names_twice_are_levels_once():
    times = DiscreteTimes(table())
    twice = torch.tensor([900, 500, 500, 500, 20])
    assert falling(twice).tolist() == [900, 500, 20]
    assert torch.equal(times.levels(twice), times.levels(torch.tensor([900, 500, 20])))


def test_one_of_a_few_levels_is_as_likely_as_another():
    levels = torch.tensor([5.0, 2.0, 0.5])
    drawn = draw_of(levels, 9_000, Generator().manual_seed(0))
    counts = [int((drawn == level).sum()) for level in levels]
    assert sum(counts) == 9_000 and stats.chisquare(counts).pvalue > RARE


# ---- flows


def test_a_flows_clock_counts_to_its_unit():
    clock = flow_clock(1000.0)
    torch.testing.assert_close(clock(flow_sigma(torch.tensor([0.0, 0.25, 0.999]))), torch.tensor([0.0, 250.0, 999.0]))


def test_flow_levels_are_those_of_their_times_and_end_in_zero():
    times = torch.linspace(1, 0, 9)
    found = flow_levels(times)
    assert found.dtype == torch.float32 and found[-1] == 0
    torch.testing.assert_close(flow_time(found[1:]), times[1:])
    assert float(flow_time(found[0])) == pytest.approx(LAST_TIME, abs=1e-6)
    torch.testing.assert_close(flow_levels(times[1:]), flow_sigma(times[1:].double()).float())  # no t = 1: as it is


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_flow_levels_fall_strictly_whatever_the_shift(shift, steps):
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    found = flow_levels(shift * t / (1 + (shift - 1) * t))
    assert len(found) == steps + 1 and found.isfinite().all() and found[-1] == 0
    assert (found.diff() < 0).all()
    assert float(flow_time(found[0].double())) >= LAST_TIME - 1e-6


# ---- the cosine process


@pytest.mark.parametrize(("t_min", "t_max"), [(0.0, 1.0), (0.25, 0.5)])
def test_cosine_draws_are_uniform_in_time(t_min, t_max):
    drawn = cosine_draws(20_000, Generator().manual_seed(0), t_min, t_max, 1e9)
    assert drawn.dtype == torch.float32 and (drawn > 0).all()
    times = cosine_time(drawn.double()).numpy()
    assert stats.kstest(times, stats.uniform(t_min, t_max - t_min).cdf).pvalue > RARE
    # and in closed form: the median level is that of the middle of the range
    assert float(drawn.median()) == pytest.approx(math.tan(math.pi / 4 * (t_min + t_max)), rel=0.05)


def test_cosine_draws_end_at_the_largest_level():
    drawn = cosine_draws(20_000, Generator().manual_seed(0), 0.0, 1.0, 500.0)
    assert drawn.max() == 500
    # the share that is held there: times beyond 2 / pi atan(500), 0.13 %
    share = 1 - float(cosine_time(torch.tensor(500.0, dtype=torch.float64)))
    count = int((drawn == 500).sum())
    assert stats.binomtest(count, 20_000, share).pvalue > RARE


def test_draws_are_those_of_their_generator():
    one, other = (cosine_draws(5, Generator().manual_seed(seed), 0.0, 1.0, 500.0) for seed in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(one, cosine_draws(5, Generator().manual_seed(1), 0.0, 1.0, 500.0))
    times = DiscreteTimes(table())
    one, again = (times.draw(50, Generator().manual_seed(1), 0.0, 1.0) for _ in range(2))
    assert torch.equal(one, again)
