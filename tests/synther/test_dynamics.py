"""The simulator as an oracle: real rows have no error, spoilt ones the error that was put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dragon.errors import ConfigError, ShapeError
from dragon.synther import Transitions
from dragon.synther.dynamics import dynamics, simulate

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")


def real(environment: str, n: int = 60) -> Transitions:
    """Rows of random actions, a new episode every 20 steps."""
    env = gymnasium.make(environment)
    env.action_space.seed(0)
    found: list[list[object]] = [[], [], [], [], []]
    for step in range(n):
        if step % 20 == 0:
            now, _ = env.reset(seed=step)
        action = env.action_space.sample()
        after, reward, terminal, _, _ = env.step(action)
        for part, value in zip(found, (now, action, reward, after, terminal), strict=True):
            part.append(value)
        now = after
    env.close()
    now, actions, rewards, after, terminals = (np.asarray(part) for part in found)
    return Transitions(now, actions, rewards, after, terminals)


@pytest.mark.parametrize("environment", ["HalfCheetah-v5", "Hopper-v5"])
def test_real_rows_are_what_the_simulator_does(environment: str) -> None:
    """To 1e-4 of the variance: the solver's warm start is not part of an observation."""
    rows = real(environment)
    found = dynamics(rows, environment)
    assert found.n == 60 and float(found) == found.error < 1e-4 and found.reward_error < 1e-4
    assert found.terminal_rate == found.true_terminal_rate


def test_an_error_that_was_put_in_is_found() -> None:
    rows = real("HalfCheetah-v5")
    spread = rows.next_observations.std(0)
    noise = 0.5 * spread * np.random.default_rng(0).standard_normal(rows.next_observations.shape)
    found = dynamics(replace(rows, next_observations=rows.next_observations + noise), "HalfCheetah-v5")
    assert found.error == pytest.approx(0.25, rel=0.15)
    swapped = dynamics(replace(rows, rewards=np.roll(rows.rewards, 1)), "HalfCheetah-v5")
    assert swapped.reward_error > 0.5 and swapped.error < 1e-4


def test_terminals_are_compared_row_by_row() -> None:
    rows = real("Hopper-v5", 120)
    assert 0 < rows.terminals.sum() < 120
    never = dynamics(replace(rows, terminals=np.zeros(120, dtype=bool)), "Hopper-v5")
    assert never.terminal_recall == 0 and np.isnan(never.terminal_precision)
    always = dynamics(replace(rows, terminals=np.ones(120, dtype=bool)), "Hopper-v5")
    assert always.terminal_recall == 1 and always.terminal_precision == pytest.approx(always.true_terminal_rate)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="no environment 'Nowhere-v9'"):
        simulate("Nowhere-v9", np.zeros((1, 3)), np.zeros((1, 1)))
    with pytest.raises(ConfigError, match="cannot be put into a state"):
        simulate("CartPole-v1", np.zeros((1, 4)), np.zeros((1, 1)))
    with pytest.raises(ShapeError, match="observations have 3 numbers"):
        simulate("Hopper-v5", np.zeros((1, 3)), np.zeros((1, 3)))
