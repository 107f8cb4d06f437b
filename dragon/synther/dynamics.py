"""How far transitions are from what the simulator does: it is put into (s, a) and asked for (s', r, terminal).

Knows gymnasium's MuJoCo tasks whose observation is qpos without the first, unobserved coordinates, then qvel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragon.errors import ConfigError, MissingExtra, ShapeError
from dragon.synther.transitions import Transitions

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Dynamics:
    """What the simulator says of transitions.

    error: mean squared error of next observations over the variance of the true ones, averaged over columns whose true
    values vary. reward_error: the same of rewards. terminal_recall: share of truly terminal rows that are flagged;
    terminal_precision: share of flagged rows that are truly terminal (NaN where there are none).
    """

    n: int
    error: float
    reward_error: float
    terminal_rate: float
    true_terminal_rate: float
    terminal_recall: float
    terminal_precision: float
    column_errors: tuple[float, ...]

    def __float__(self) -> float:
        return self.error


def simulate(environment: str, observations: Floats, actions: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(n, o) next observations, (n,) rewards and (n,) terminals of one step from each row.

    Raises:
        MissingExtra: gymnasium or mujoco is not installed. ConfigError: no such task, or one whose state its
            observation does not give. ShapeError: rows of another width.
    """
    env = _make(environment)
    inner = env.unwrapped
    model = inner.model
    hidden = model.nq + model.nv - observations.shape[1]
    if hidden < 0 or hidden >= model.nq or actions.shape[1] != model.nu:
        raise ShapeError(
            f"observations have {observations.shape[1]} numbers and actions {actions.shape[1]}; {environment} has "
            f"{model.nq} + {model.nv} of state and {model.nu} of action, of which only the first few may be unobserved"
        )
    env.reset(seed=0)
    after, rewards = np.empty_like(observations, dtype=np.float64), np.empty(len(observations))
    terminals = np.zeros(len(observations), dtype=bool)
    for i, (row, action) in enumerate(zip(observations.astype(np.float64), actions, strict=True)):
        position = np.concatenate([np.zeros(hidden), row[: model.nq - hidden]])
        inner.set_state(position, row[model.nq - hidden :])
        after[i], rewards[i], terminals[i], _, _ = inner.step(action)
    env.close()
    return after, rewards, terminals


def dynamics(
    transitions: Transitions, environment: str, *, rows: int | None = None, like: Transitions | None = None
) -> Dynamics:
    """The first `rows` transitions (None: all) beside the simulator. What `simulate` raises.

    like: transitions whose variances errors are divided by; None: those of the simulator's answers. Rows that lie far
    out have answers of a large variance, so that different sets of rows are compared by one.
    """
    part = transitions if rows is None else transitions.rows(slice(0, rows))
    after, rewards, terminals = simulate(environment, part.observations, part.actions)
    difference = np.square(part.next_observations.astype(np.float64) - after).mean(0)
    spread = after.var(0) if like is None else like.next_observations.astype(np.float64).var(0)
    reward_spread = float(rewards.var() if like is None else like.rewards.astype(np.float64).var())
    varying = spread > 1e-12
    columns = difference[varying] / spread[varying]
    flagged = part.terminals.astype(bool)
    return Dynamics(
        n=len(part),
        error=float(columns.mean()),
        reward_error=float(np.square(part.rewards.astype(np.float64) - rewards).mean() / max(reward_spread, 1e-12)),
        terminal_rate=float(flagged.mean()),
        true_terminal_rate=float(terminals.mean()),
        terminal_recall=_share(flagged, terminals),
        terminal_precision=_share(terminals, flagged),
        column_errors=tuple(columns.tolist()),
    )


def _share(which: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    return float(which[of].mean()) if of.any() else float("nan")


def made_quietly(environment: str) -> Any:
    """gymnasium.make, without the file MUJOCO_LOG.TXT that MuJoCo leaves in the working folder over a deprecated word
    in gymnasium's own models. Raises what gymnasium raises."""
    import gymnasium

    try:
        import mujoco
    except ImportError:  # tasks of other simulators need none
        return gymnasium.make(environment)
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        return gymnasium.make(environment)
    finally:
        mujoco.set_mju_user_warning(before)


def _make(environment: str) -> Any:
    try:
        import gymnasium
        import gymnasium.envs.mujoco  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"{environment} needs gymnasium and mujoco ({error}): pip install 'dragon-media[rl]'"
        ) from error
    try:
        env = made_quietly(environment)
    except gymnasium.error.Error as error:
        raise ConfigError(f"no environment {environment!r}: {error}") from error
    if not hasattr(env.unwrapped, "set_state"):
        raise ConfigError(f"{environment} cannot be put into a state; expected one of gymnasium's MuJoCo tasks")
    return env
