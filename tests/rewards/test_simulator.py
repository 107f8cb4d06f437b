"""The simulator as a reward: rows that it made score 0, and an error costs what it is in units of the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dragon.errors import ShapeError
from dragon.media import Media
from dragon.policy.transitions import media_of
from dragon.rewards import SimulatorReward
from dragon.synther import Transitions, TransitionSpec
from dragon.synther.columns import fit_layout
from dragon.synther.dynamics import simulate


def hopper(n: int = 60) -> Transitions:
    """Rows whose next observation the simulator gave; the first numbers of a state are random."""
    pytest.importorskip("mujoco")
    random = np.random.default_rng(0)
    observations = 0.1 * random.standard_normal((n, 11)) + np.eye(11)[0] * 1.2
    actions = random.uniform(-1, 1, (n, 3))
    after, rewards, terminals = simulate("Hopper-v5", observations, actions)
    terminals[0] = not terminals.all()
    return Transitions(observations, actions, rewards, after, terminals)


def test_rows_of_the_simulator_score_0_and_errors_their_size():
    data = hopper()
    rows = media_of(data, fit_layout(data, TransitionSpec(coding="plain")))
    reward = SimulatorReward("Hopper-v5", data)
    torch.testing.assert_close(reward.score(rows), torch.zeros(60, dtype=torch.float64), atol=1e-8, rtol=0)
    wrong = rows.tensor.clone()
    place = 11 + 3 + 1 + 4
    wrong[5, 0, place] += 0.3
    expected = -(0.3**2) / data.next_observations[:, 4].var() / 11
    found = reward.score(Media(wrong, rows.prompts))
    assert float(found[5]) == pytest.approx(expected, rel=1e-3)
    assert float(found[[i for i in range(60) if i != 5]].abs().max()) < 1e-8


def test_clips_of_another_width_are_refused():
    with pytest.raises(ShapeError, match=r"expected \(b, 1, 27\)"):
        SimulatorReward("Hopper-v5", hopper()).score(Media(torch.zeros(2, 1, 9), ("", "")))
