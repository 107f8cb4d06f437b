"""Transitions from the files and buffers of other programs, recognised by what they hold.

    npz                       the arrays of `transitions.KEYS`
    HDF5 in D4RL's layout     observations, actions, rewards, terminals; next_observations or the row after; timeouts
    Minari folder or file     episode_0, ...: observations (one more than the steps), terminations, truncations
    d3rlpy's HDF5             observations_0, actions_0, rewards_0, terminated_0, ...
    stable-baselines3, d3rlpy `from_stable_baselines3`, `from_d3rlpy`: objects in memory, which are only looked at

A time limit ends an episode and is no terminal. Knows no package but h5py, and that only where such a file is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dragon.errors import ConfigError, MissingExtra, ShapeError
from dragon.synther.transitions import Array, Transitions, read_npz

_MINARI = ("data/main_data.hdf5", "main_data.hdf5")
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK"


def read_transitions(path: str | os.PathLike[str]) -> Transitions:
    """Transitions of a file or a Minari folder, whatever it is called.

    Raises:
        ConfigError: nothing there, or nothing that is known. MissingExtra: HDF5 without h5py. ShapeError,
            NotFinite: see `Transitions`.
    """
    place = Path(path)
    if place.is_dir():
        inside = [place / file for file in _MINARI if (place / file).is_file()]
        if not inside:
            raise ConfigError(
                f"{str(place)!r} is a folder without data/main_data.hdf5; expected a file, or Minari's folder"
            )
        return _read_hdf5(inside[0])
    try:
        with place.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ConfigError(
            f"{str(place)!r} cannot be read ({error.strerror}); expected npz, HDF5 or a Minari folder"
        ) from error
    if head == _HDF5:
        return _read_hdf5(place)
    if head.startswith(_ZIP):
        return read_npz(place)
    raise ConfigError(
        f"{str(place)!r} is neither npz nor HDF5; save it with numpy.savez (see dragon.synther.Transitions)"
    )


def looks_like_transitions(path: str | os.PathLike[str]) -> bool:
    """Whether a path is named like what `read_transitions` reads: .npz, .hdf5, .h5, or Minari's folder."""
    place = Path(path)
    return place.suffix.lower() in (".npz", ".hdf5", ".h5") or any((place / file).is_file() for file in _MINARI)


def from_stable_baselines3(buffer: Any) -> Transitions:
    """The transitions of a stable-baselines3 `ReplayBuffer`, oldest first, of all its environments in turn.

    Those that a ring buffer has overwritten, and the places it has not yet filled, are left out. Needs no such package.
    """
    size = int(buffer.buffer_size if buffer.full else buffer.pos)
    order = np.arange(size) + (int(buffer.pos) if buffer.full else 0)
    if isinstance(buffer.observations, dict):
        raise ConfigError("the buffer holds observations by name; expected one array (flatten them first)")
    after = getattr(buffer, "next_observations", None)
    if getattr(buffer, "optimize_memory_usage", False) or after is None:
        after = np.roll(buffer.observations, -1, axis=0)
        order = order[1:] if buffer.full else order  # the observation at `pos` is the newest next one, not an old start
    order = order % buffer.buffer_size
    ends = buffer.dones * (1 - buffer.timeouts) if hasattr(buffer, "timeouts") else buffer.dones
    space = getattr(buffer, "action_space", None)
    actions = _flat(buffer.actions[order])
    return _made(
        _flat(buffer.observations[order]),
        actions,
        _flat(buffer.rewards[order])[:, 0],
        _flat(after[order]),
        _flat(ends[order])[:, 0] > 0,
        _bounds(space, actions),
        discrete=type(space).__name__ == "Discrete",
    )


def from_d3rlpy(dataset: Any) -> Transitions:
    """The transitions of a d3rlpy `ReplayBuffer`, `MDPDataset` or list of episodes. Needs no such package.

    d3rlpy stores no observation after the last step: an episode that was cut off gives one transition less, and in one
    that ended, that next observation is the last observation again (d3rlpy itself takes 0; nothing learns from either).
    """
    return _from_episodes(
        (e.observations, e.actions, e.rewards, bool(e.terminated)) for e in getattr(dataset, "episodes", dataset)
    )


def _read_hdf5(place: Path) -> Transitions:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra(f"{str(place)!r} is HDF5 and needs h5py: pip install 'dragon-media[rl]'") from error
    try:
        with h5py.File(place, "r") as file:
            names = sorted(file)
            if "episode_0" in file:
                return _minari(file)
            if "observations_0" in file:
                return _d3rlpy(file)
            if "observations" in file:
                return _d4rl({name: file[name][()] for name in names if hasattr(file[name], "shape")}, place)
    except OSError as error:
        raise ConfigError(f"{str(place)!r} is a damaged HDF5 file ({error}); copy or download it again") from error
    raise ConfigError(f"{str(place)!r} holds {', '.join(names[:8])}; expected D4RL's, Minari's or d3rlpy's arrays")


def _d4rl(found: dict[str, Array], place: Path) -> Transitions:
    missing = [name for name in ("actions", "rewards", "terminals") if name not in found]
    if missing:
        raise ConfigError(f"{str(place)!r} lacks {', '.join(missing)}; it holds {', '.join(found)}")
    now, ends = _flat(found["observations"], 1), _column(found["terminals"]) > 0
    actions, rewards = found["actions"], _column(found["rewards"])
    if "next_observations" in found:
        return _made(now, actions, rewards, _flat(found["next_observations"], 1), ends)
    if "timeouts" not in found:
        raise ConfigError(
            f"{str(place)!r} holds neither next_observations nor timeouts, so nobody can tell where its episodes end; "
            "add one of them"
        )
    if not len({len(now), len(actions), len(rewards), len(ends), len(found["timeouts"])}) == 1:
        raise ShapeError(f"{str(place)!r}: arrays of different lengths; expected one row a step")
    # the row after is the next observation, but not over the end of an episode: after a time limit it is lost, and
    # after a terminal the last observation stands in, from which nothing is learnt
    after = np.concatenate([now[1:], now[-1:]])
    after[ends] = now[ends]
    lost = (_column(found["timeouts"]) > 0) & ~ends
    lost[-1] |= not ends[-1]
    keep = ~lost
    return _made(now[keep], actions[keep], rewards[keep], after[keep], ends[keep])


def _minari(file: Any) -> Transitions:
    parts: list[list[Array]] = [[], [], [], [], []]
    count = sum(name.startswith("episode_") for name in file)
    for number in range(count):
        name = f"episode_{number}"
        if name not in file:
            raise ConfigError(f"{file.filename!r} holds {count} episodes and lacks {name}; copy or download it again")
        group = file[name]
        for key in ("observations", "actions", "rewards", "terminations"):
            if not hasattr(group.get(key), "shape"):
                raise ConfigError(
                    f"{file.filename!r}: {name} has no array {key}; spaces of several parts must be flattened"
                )
        seen, steps = group["observations"][()], len(group["rewards"])
        if len(seen) != steps + 1:
            raise ShapeError(
                f"{file.filename!r}: {name} has {len(seen)} observations and {steps} steps; expected one more"
            )
        values = (seen[:-1], group["actions"][()], group["rewards"][()], seen[1:], group["terminations"][()])
        for part, value in zip(parts, values, strict=True):
            part.append(value)
    now, actions, rewards, after, ends = (np.concatenate(part) for part in parts)
    return _made(_flat(now, 1), actions, rewards, _flat(after, 1), ends > 0)


def _d3rlpy(file: Any) -> Transitions:
    def episodes() -> Iterable[tuple[Array, Array, Array, bool]]:
        number = 0
        while f"observations_{number}" in file:
            found = [file[f"{key}_{number}"][()] for key in ("observations", "actions", "rewards", "terminated")]
            yield found[0], found[1], found[2], bool(found[3])
            number += 1

    return _from_episodes(episodes())


def _from_episodes(episodes: Iterable[tuple[Array, Array, Array, bool]]) -> Transitions:
    parts: list[list[Array]] = [[], [], [], [], []]
    for seen, actions, rewards, ended in episodes:
        if isinstance(seen, list | tuple):
            raise ConfigError(
                "the episodes hold observations of several parts; expected one array (flatten them first)"
            )
        steps = len(seen) if ended else len(seen) - 1
        after = np.concatenate([seen[1:], seen[-1:]])[:steps]
        ends = np.zeros(steps, dtype=bool)
        ends[steps - 1 :] = ended
        for part, value in zip(parts, (seen[:steps], actions[:steps], rewards[:steps], after, ends), strict=True):
            part.append(np.asarray(value))
    if not parts[0]:
        raise ConfigError("the data set holds no episodes; expected at least one")
    now, actions, rewards, after, ends = (np.concatenate(part) for part in parts)
    return _made(_flat(now, 1), actions, _column(rewards), _flat(after, 1), ends)


def _made(
    now: Array,
    actions: Array,
    rewards: Array,
    after: Array,
    ends: Array,
    box: Sequence[Array] | None = None,
    discrete: bool = False,
) -> Transitions:
    actions = np.asarray(actions)
    if actions.ndim == 2 and actions.shape[1] == 1 and (discrete or np.issubdtype(actions.dtype, np.integer)):
        actions = actions[:, 0].astype(np.int64)
    low, high = (None, None) if box is None or actions.ndim == 1 else box
    return Transitions(now, actions, rewards, after, ends, action_low=low, action_high=high)


def _flat(value: Array, leading: int = 2) -> Array:
    """(n, rest) of (n, *rest), or with leading 2 of (steps, environments, *rest)."""
    n = int(np.prod(value.shape[:leading]))
    if leading == 2:
        value = np.swapaxes(value, 0, 1)  # one environment after another
    return np.ascontiguousarray(value).reshape(n, -1)


def _column(value: Array) -> Array:
    value = np.asarray(value)
    return value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value


def _bounds(space: Any, actions: Array) -> Sequence[Array] | None:
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or np.size(low) != actions.shape[1]:
        return None
    return np.ravel(low).astype(actions.dtype), np.ravel(high).astype(actions.dtype)
