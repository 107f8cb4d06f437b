"""The rows of a run: read, boxed, split into those of the fit and those held out, with a score each. Knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragon.errors import ConfigError, MissingExtra, NotFinite, ShapeError
from dragon.synther.dynamics import made_quietly
from dragon.synther.readers import read_transitions
from dragon.synther.transitions import BOX, Array, Transitions

MOST_HELD_OUT = 5_000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Data:
    """train, held_out: rows of the file in its order. box: the file's own, if it has one: what is written has its keys.

    scores: of `train`. discrete: how many actions there are, if they are whole numbers. digest: of all rows and scores.
    """

    train: Transitions
    held_out: Transitions
    box: Mapping[str, Array]
    scores: Floats | None
    discrete: int | None
    digest: str


def read_data(source: str, *, environment: str, held_out: float, seed: int, score: str) -> Data:
    """The rows of a file.

    Raises:
        ConfigError, ShapeError, NotFinite: see `read_transitions`; a box or score that does not fit. MissingExtra.
    """
    every = read_transitions(source)
    box = {name: getattr(every, name) for name in BOX if getattr(every, name) is not None}
    discrete = int(every.actions.max()) + 1 if every.actions.ndim == 1 and len(every) else None
    if environment:
        every, discrete = _boxed(every, environment, discrete)
    scores = scores_of(score, every) if score else None
    count = min(MOST_HELD_OUT, round(held_out * len(every)))
    if held_out and (count < 2 or len(every) - count < 2):
        raise ConfigError(
            f"{source} holds {len(every)} transitions, of which held_out {held_out} keeps {count} from the fit; "
            "expected at least 2 on each side, and thousands to fit well: give more, or --held_out 0 --report false"
        )
    order = np.random.default_rng([seed, len(every)]).permutation(len(every))
    kept, left = np.sort(order[count:]), np.sort(order[:count])
    return Data(
        every.rows(kept),
        every.rows(left),
        box,
        None if scores is None else scores[kept],
        discrete,
        digest(every, scores),
    )


def scores_of(text: str, transitions: Transitions) -> Floats:
    """(n,) the column of that name, or the numbers of that file.

    Raises:
        ConfigError: neither. ShapeError: another number of rows. NotFinite: with the row.
    """
    arrays = transitions.arrays()
    name, dot, column = text.rpartition(".")
    if text in arrays and arrays[text].ndim == 1:
        found = arrays[text]
    elif (
        dot and name in arrays and arrays[name].ndim == 2 and column.isdecimal() and int(column) < arrays[name].shape[1]
    ):
        found = arrays[name][:, int(column)]
    elif Path(text).is_file():
        found = _numbers(text)
    else:
        widths = (key if value.ndim == 1 else f"{key}.0 to {key}.{value.shape[1] - 1}" for key, value in arrays.items())
        raise ConfigError(f"score is {text!r}; expected a file of one number a row, or a column: {', '.join(widths)}")
    scores = np.asarray(found, dtype=np.float64)
    if scores.shape != (len(transitions),):
        raise ShapeError(f"score {text!r} has shape {scores.shape}; expected ({len(transitions)},), one a transition")
    if not np.isfinite(scores).all():
        raise NotFinite(f"score {text!r} holds NaN or infinity in row {int(np.flatnonzero(~np.isfinite(scores))[0])}")
    return scores


def digest(transitions: Transitions, scores: Floats | None) -> str:
    """What tells these rows from others: SHA-256 of names, types, shapes and numbers."""
    found = hashlib.sha256()
    arrays: dict[str, Any] = {**transitions.arrays(), **({} if scores is None else {"scores": scores})}
    arrays |= {name: getattr(transitions, name) for name in BOX if getattr(transitions, name) is not None}
    for name, value in arrays.items():
        found.update(f"{name} {value.dtype.str} {value.shape};".encode())
        found.update(np.ascontiguousarray(value).data)
    return found.hexdigest()


def _boxed(transitions: Transitions, environment: str, discrete: int | None) -> tuple[Transitions, int | None]:
    """The transitions with the task's action box, or the number of its discrete actions."""
    space = _action_space(environment)
    if hasattr(space, "n"):
        if discrete is None:
            raise ShapeError(
                f"actions have shape {transitions.actions.shape}; {environment} has {space.n} discrete actions: "
                "expected whole numbers of shape (n,)"
            )
        return transitions, int(space.n)
    low, high = (np.asarray(end) for end in (space.low, space.high))
    if low.shape != transitions.actions.shape[1:]:
        raise ShapeError(
            f"actions have shape {transitions.actions.shape}; {environment} takes actions of shape {low.shape}"
        )
    # an end at infinity bounds nothing: the data's own does
    low = np.where(np.isfinite(low), low, transitions.actions.min(0))
    high = np.where(np.isfinite(high), high, transitions.actions.max(0))
    return replace(transitions, action_low=low, action_high=high), None


def _action_space(environment: str) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtra(f"--env {environment} needs gymnasium: pip install 'dragon-media[rl]'") from error
    try:
        env = made_quietly(environment)
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"env is {environment!r}: {error}; expected a task that gymnasium can make") from error
    space = env.action_space
    env.close()
    if not (hasattr(space, "n") or (hasattr(space, "low") and hasattr(space, "high"))):
        raise ConfigError(f"the actions of {environment} are {space}; expected a box, or discrete ones")
    return space


def _numbers(path: str) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False) if path.endswith(".npy") else np.loadtxt(path, ndmin=1)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"score {path!r} cannot be read ({error}); expected .npy, or one number a line") from error
    found: Array = loaded
    return found
