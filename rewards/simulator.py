"""How well transitions obey their simulator, as a reward of single rows: an exact oracle for experiments.

Knows rows of transitions as the policy "transitions" makes them, and gymnasium's MuJoCo tasks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dragon.errors import ShapeError
from dragon.media import Media
from dragon.synther import Transitions, read_transitions
from dragon.synther.dynamics import simulate


class SimulatorReward:
    """Instance reward: minus the squared error of the next observation, over the data's variances, mean of columns.

    The simulator is put into (s, a) and asked for s'; a row that obeys it scores 0. environment: a MuJoCo task of
    gymnasium ("Hopper-v5"). data: a file or transitions, whose variances errors are divided by.

    Raises:
        MissingExtra, ConfigError, ShapeError: see `dragon.synther.dynamics.simulate`.
    """

    name = "dynamics"
    abstains = False

    def __init__(self, environment: str, data: str | Transitions) -> None:
        self._environment = environment
        found = read_transitions(data) if isinstance(data, str) else data
        self._observations = found.observations.shape[1]
        self._actions = found.actions.reshape(len(found), -1).shape[1]
        spread = found.next_observations.astype(np.float64).var(0)
        self._varies, self._spread = spread > 1e-12, spread
        # what cannot work is said before a run, not in its first step
        simulate(environment, found.observations[:1], found.actions.reshape(len(found), -1)[:1])

    def score(self, media: Media) -> Tensor:
        """(b,) float64, at most 0."""
        o, a = self._observations, self._actions
        if media.tensor.ndim != 3 or media.tensor.shape[2] < 2 * o + a + 2:
            raise ShapeError(
                f"dynamics: clips of shape {tuple(media.tensor.shape)}; expected (b, 1, {2 * o + a + 2}), rows of "
                "transitions"
            )
        rows = media.tensor[:, 0].double().cpu().numpy()
        told, actions, said = rows[:, :o], rows[:, o : o + a], rows[:, o + a + 1 : 2 * o + a + 1]
        after, _, _ = simulate(self._environment, told, actions)
        wrong = np.square(said - after)[:, self._varies] / self._spread[self._varies]
        return -torch.from_numpy(wrong.mean(1))
