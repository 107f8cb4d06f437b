"""Whole trajectories equal to diffusers' schedulers: same first noise, same levels, same network.

diffusers keeps its state in the process's own scale (alpha x, or (1 - t) x) and the network's output in
its own parameterisation; ours is x throughout. float32 on both sides over at most 12 steps: 1e-4 of the
size of the state is loose enough for rounding and far below the difference that any wrong coefficient makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from dragon.diffusion import (
    EDM,
    Denoiser,
    Epsilon,
    Flow,
    Scaling,
    Step,
    VPrediction,
    dpmpp_2m,
    euler,
    exponential_sigmas,
    flow_sigma,
    flow_sigmas,
    flow_time,
    heun,
    karras_sigmas,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own numpy use

STEPS = 12
NOISE = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
Sampler = Callable[..., Iterator[Step]]


def net(x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
    """Non-linear, mixes positions; depends on the time it is told where a test gives it one."""
    return 0.9 * torch.tanh(0.7 * x) + 0.1 * x.flip(-1) + 0.2 * torch.sin(time)[:, None, None]


def timeless(x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
    """For schedulers whose time is an index into a table of 1000 steps."""
    return net(x, torch.zeros(len(x)))


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize(
    ("scheduler_name", "sampler"), [("EDMEulerScheduler", euler), ("EDMDPMSolverMultistepScheduler", dpmpp_2m)]
)
def test_edm_schedulers(scheduler_name: str, sampler: Sampler, schedule: str) -> None:
    """Levels, preconditioning, time and every state."""
    scheduler = getattr(diffusers, scheduler_name)(sigma_schedule=schedule)
    scheduler.set_timesteps(STEPS)
    sigmas = {"karras": karras_sigmas, "exponential": exponential_sigmas}[schedule](STEPS, 0.002, 80.0)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-5, atol=0)
    state = NOISE * sigmas[0]
    ours = sampler(Denoiser(net, EDM(0.5)), state, sigmas)
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        raw = net(scheduler.scale_model_input(state, t), t.expand(len(state)))
        state = scheduler.step(raw, t, state).prev_sample
        assert_same(step.x, state)


@pytest.mark.parametrize(("prediction", "scaling"), [("epsilon", Epsilon()), ("v_prediction", VPrediction())])
def test_euler_discrete(prediction: str, scaling: Scaling) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas
    own = karras_sigmas(STEPS, sigmas[-2].item(), sigmas[0].item())
    torch.testing.assert_close(own, sigmas, rtol=1e-5, atol=0)
    state = NOISE * sigmas[0]
    ours = euler(Denoiser(timeless, scaling), state, own)
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        raw = timeless(scheduler.scale_model_input(state, t), t)
        state = scheduler.step(raw, t, state).prev_sample
        assert_same(step.x, state)


@pytest.mark.parametrize(("prediction", "scaling"), [("epsilon", Epsilon()), ("v_prediction", VPrediction())])
def test_heun_discrete(prediction: str, scaling: Scaling) -> None:
    """diffusers calls both halves of a Heun step "a step": every second state is one of ours."""
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type=prediction, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    own = karras_sigmas(STEPS, scheduler.sigmas[-2].item(), scheduler.sigmas[0].item())
    state, states = NOISE * own[0], []
    for t in scheduler.timesteps:
        raw = timeless(scheduler.scale_model_input(state, t), t)
        state = scheduler.step(raw, t, state).prev_sample
        states.append(state)
    ours = list(heun(Denoiser(timeless, scaling), NOISE * own[0], own))
    theirs = [*states[1::2], states[-1]]
    assert len(ours) == len(theirs) == STEPS
    for step, expected in zip(ours, theirs, strict=True):
        assert_same(step.x, expected)


@pytest.mark.parametrize(("prediction", "scaling"), [("epsilon", Epsilon()), ("v_prediction", VPrediction())])
def test_dpmpp_2m_variance_preserving(prediction: str, scaling: Scaling) -> None:
    """Their state is alpha x."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=prediction, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True
    )
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas
    state = NOISE * sigmas[0] * scaling.c_in(sigmas[0])
    ours = dpmpp_2m(Denoiser(timeless, scaling), NOISE * sigmas[0], sigmas)
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        state = scheduler.step(timeless(state, t), t, state).prev_sample
        assert_same(step.x, state / scaling.c_in(torch.tensor(step.sigma)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift: float) -> None:
    """Their state is (1 - t) x, their sigma our t, their time 1000 t."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    even = torch.linspace(0.999, 0, STEPS + 1)[:-1]
    scheduler.set_timesteps(sigmas=even.tolist())
    sigmas = flow_sigmas(STEPS, shift=shift, t_max=0.999)
    torch.testing.assert_close(flow_time(sigmas), scheduler.sigmas, rtol=1e-5, atol=0)
    state = NOISE * scheduler.sigmas[0]
    ours = euler(Denoiser(net, Flow()), NOISE * sigmas[0], sigmas)
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        state = scheduler.step(net(state, (t / 1000).expand(len(state))), t, state).prev_sample
        assert_same(step.x * Flow().c_in(torch.tensor(step.sigma)), state)


def test_dpmpp_2m_on_a_flow() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(STEPS)
    sigmas = flow_sigma(scheduler.sigmas)
    state = NOISE * scheduler.sigmas[0]
    ours = dpmpp_2m(Denoiser(timeless, Flow()), NOISE * sigmas[0], sigmas)
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        state = scheduler.step(timeless(state, t), t, state).prev_sample
        assert_same(step.x * Flow().c_in(torch.tensor(step.sigma)), state)
