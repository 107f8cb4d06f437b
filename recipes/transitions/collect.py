"""Transitions of a MuJoCo task under a scripted policy, as an npz that `dragon upsample` reads.

    python recipes/transitions/collect.py HalfCheetah-v5 --rows 20000 --seed 0 --out runs/halfcheetah.npz

The policy is a sine a joint (phases one golden angle apart, a period of 20 steps) of an amplitude drawn anew for every
episode, and noise on top: it moves, it falls, and it reaches the ends of the action box. Needs the extra `rl`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium
import numpy as np

from dragon.synther import Transitions, write_npz
from dragon.synther.transitions import KEYS

PERIOD = 20
GOLDEN = np.pi * (3 - np.sqrt(5))


def collect(environment: str, rows: int, seed: int) -> Transitions:
    """The first `rows` transitions of as many episodes as they take; the same for the same seed and versions."""
    env = gymnasium.make(environment)
    random = np.random.default_rng(seed)
    low, high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
    middle, half = (low + high) / 2, (high - low) / 2
    found: dict[str, list] = {name: [] for name in KEYS}
    episode = 0
    while len(found["rewards"]) < rows:
        now, _ = env.reset(seed=seed * 1_000_003 + episode)
        amplitude, start, ended = random.uniform(0.2, 1.0), random.uniform(0, 2 * np.pi), False
        step, episode = 0, episode + 1
        while not ended and len(found["rewards"]) < rows:
            wave = amplitude * np.sin(start + 2 * np.pi * step / PERIOD + GOLDEN * np.arange(len(low)))
            action = np.clip(middle + half * (wave + 0.3 * random.standard_normal(len(low))), low, high)
            action = action.astype(np.float32)
            after, reward, terminal, truncated, _ = env.step(action)
            for name, value in zip(found, (now, action, reward, after, terminal), strict=True):
                found[name].append(value)
            now, step, ended = after, step + 1, terminal or truncated
    env.close()
    return Transitions(
        observations=np.asarray(found["observations"], dtype=np.float32),
        actions=np.asarray(found["actions"], dtype=np.float32),
        rewards=np.asarray(found["rewards"], dtype=np.float32),
        next_observations=np.asarray(found["next_observations"], dtype=np.float32),
        terminals=np.asarray(found["terminals"], dtype=bool),
        action_low=low.astype(np.float32),
        action_high=high.astype(np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    made = collect(options.environment, options.rows, options.seed)
    write_npz(made, options.out)
    print(f"{len(made)} transitions of {options.environment}, {made.terminals.mean():.4f} terminal, in {options.out}")


if __name__ == "__main__":
    main()
