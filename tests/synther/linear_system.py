"""A system whose next observation is known: s' = A s + B a, r = s0 a, terminal where s'0 > 1."""

from __future__ import annotations

import functools

import numpy as np

from dragon.synther import FitConfig, Transitions, Upsampler, fit

A = np.array([[0.9, 0.2], [-0.2, 0.9]])
B = np.array([[0.5, 0.3]])
QUICK = FitConfig(width=64, inner=64, depth=2, max_steps=1000, batch_size=128, learning_rate=3e-3)


def after(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return observations.astype(np.float64) @ A + actions.astype(np.float64) @ B


def system(n: int = 4000, seed: int = 0) -> Transitions:
    """Every tenth action lies at an end of its box."""
    random = np.random.default_rng(seed)
    observations = random.standard_normal((n, 2)).astype(np.float32)
    actions = random.uniform(-1.1, 1.1, (n, 1)).clip(-1, 1).astype(np.float32)
    following = after(observations, actions)
    return Transitions(
        observations,
        actions,
        observations[:, 0] * actions[:, 0],
        following.astype(np.float32),
        following[:, 0] > 1,
        action_low=np.array([-1], dtype=np.float32),
        action_high=np.array([1], dtype=np.float32),
    )


def scores(data: Transitions) -> np.ndarray:
    """The second number of the observation and as much noise: given a score, that number is half of it in the mean."""
    noise = np.random.default_rng(5).standard_normal(len(data))
    return (data.observations[:, 1] + noise).astype(np.float32)


@functools.cache
def fitted(scored: bool = False) -> Upsampler:
    """A model of the system."""
    return fit(system(), None, QUICK, scores=scores(system()) if scored else None)
