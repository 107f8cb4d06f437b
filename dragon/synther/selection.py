"""Which rows to keep: those that the fitted model, its dynamics or the real data make likely.

Knows a fitted model and transitions. After the model-based experience selection of Gai, Wang & He (2023), "OER"
(arXiv 2305.13804), which keeps the experience nearest to what a model of the transitions generates; the
three measures of nearness are ours.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dragon.errors import ConfigError
from dragon.synther.transitions import Transitions
from dragon.synther.upsampler import Upsampler

Measure = Literal["model", "dynamics", "data"]
Floats = NDArray[np.float64]


def likelihoods(
    model: Upsampler,
    transitions: Transitions,
    measure: Measure = "model",
    *,
    data: Transitions | None = None,
    seed: int = 0,
    draws: int = 2,
) -> Floats:
    """(n,) the higher, the more likely; for comparing rows with each other.

    measure: "model" is the log density by denoising errors (`draws` noises a level); "dynamics" minus the squared
    distance of reward and next observation, as they are coded, to the mean of `draws` predictions from observation and
    action; "data" minus the distance to the nearest row of `data`, rows with other flags left out.
    """
    if measure == "model":
        return model.denoising_density(transitions, seed=seed, draws=draws)
    if measure == "dynamics":
        return _dynamics(model, transitions, seed, draws)
    if measure == "data":
        if data is None:
            raise ConfigError('measure "data" needs data; give the transitions that the model was fitted to')
        return _nearness(model, transitions, data)
    raise ConfigError(f"measure is {measure!r}; expected model, dynamics or data")


def select(likely: Floats, share: float) -> NDArray[np.int64]:
    """Rows, in order, of the `share` that is most likely; at least one.

    >>> select(np.array([0.3, 0.1, 0.2]), 2 / 3)
    array([0, 2])
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; expected above 0 and at most 1")
    count = max(1, round(share * len(likely)))
    return np.sort(np.argsort(-likely, kind="stable")[:count])


def _dynamics(model: Upsampler, transitions: Transitions, seed: int, draws: int) -> Floats:
    rows, flags = model.layout.encode(transitions)
    mean = torch.zeros_like(rows)
    for draw in range(draws):
        predicted = model.predict(
            transitions.observations, transitions.actions, seed + draw, flags=flags.numpy() if model.layout.c else None
        )
        mean += model.layout.encode(predicted)[0] / draws
    distance: Floats = (rows - mean)[:, ~model.layout.known].double().square().sum(1).numpy()
    return -distance


def _nearness(model: Upsampler, transitions: Transitions, data: Transitions) -> Floats:
    rows, flags = model.layout.encode(transitions)
    real, real_flags = model.layout.encode(data)
    found = torch.full((len(rows),), -np.inf, dtype=torch.float64)
    for kind in torch.unique(flags, dim=0):
        ours = (flags == kind).all(1).nonzero()[:, 0]
        theirs = real[(real_flags == kind).all(1)]
        for part in ours.split(1024) if len(theirs) else ():
            found[part] = -torch.cdist(rows[part], theirs).amin(1).double()
    return found.numpy()
