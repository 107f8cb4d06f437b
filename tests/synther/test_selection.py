"""Selection keeps what is likely: rows that break the dynamics go first."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from dragon.errors import ConfigError
from dragon.synther import Upsampler, fit, likelihoods, select
from tests.synther.linear_system import QUICK, system


@functools.cache
def world() -> Upsampler:
    return fit(system(2000), None, replace(QUICK, max_steps=600, predict_share=0.4))


def test_by_hand() -> None:
    likely = np.array([0.1, 0.9, 0.5, 0.5, 0.2])
    np.testing.assert_array_equal(select(likely, 0.2), [1])
    np.testing.assert_array_equal(select(likely, 0.4), [1, 2])
    np.testing.assert_array_equal(select(likely, 1.0), range(5))
    np.testing.assert_array_equal(select(likely, 1e-9), [1])
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="share is"):
            select(likely, share)


@pytest.mark.parametrize("measure", ["model", "dynamics", "data"])
def test_rows_with_a_wrong_reward_are_left_out(measure: str) -> None:
    """Half of 400 new rows get another row's reward: of the likelier half at most a third are such."""
    new, data = system(400, seed=3), system(2000)
    wrong = np.arange(400) % 2 == 0
    rewards = new.rewards.copy()
    rewards[wrong] = np.roll(rewards[wrong], 1)
    likely = likelihoods(world(), replace(new, rewards=rewards), measure, data=data)  # type: ignore[arg-type]
    chance = wrong[select(likely, 0.5)].mean()
    assert chance < 1 / 3, f"{chance} of the rows kept are wrong; by chance one half would be"


def test_a_row_of_the_data_has_distance_zero_and_one_with_new_flags_is_never_kept() -> None:
    data = system(200)
    model = fit(data, None, replace(QUICK, max_steps=2))
    np.testing.assert_allclose(likelihoods(model, data, "data", data=data), 0, atol=0.02)
    alive = data.rows(~data.terminals)
    assert np.isneginf(likelihoods(model, data, "data", data=alive)[data.terminals]).all()
    with pytest.raises(ConfigError, match="needs data"):
        likelihoods(model, data, "data")
    with pytest.raises(ConfigError, match="measure is 'luck'"):
        likelihoods(model, data, "luck")  # type: ignore[arg-type]
