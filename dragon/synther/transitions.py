"""Transitions (s, a, r, s', terminal) as arrays: checked, read from and written to npz.

Knows arrays, no model. Shapes: n transitions, o numbers of an observation, a of an action.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.files import writing

Array = NDArray[Any]
KEYS = ("observations", "actions", "rewards", "next_observations", "terminals")
BOX = ("action_low", "action_high")
_RANKS = {
    "observations": ((2,), "(n, o)"),
    "actions": ((1, 2), "(n, a), or (n,) whole numbers"),
    "rewards": ((1,), "(n,)"),
    "next_observations": ((2,), "(n, o)"),
    "terminals": ((1,), "(n,)"),
}


@dataclass(frozen=True)
class Transitions:
    """n transitions. Discrete actions are whole numbers of shape (n,).

    observations, next_observations: (n, o). actions: (n, a), or (n,) whole numbers. rewards, terminals: (n,).
    blocks: further columns by name, (n, w) or (n,): encoder latents, returns, ... Names are none of those above.
    action_low, action_high: (a,) the box of the actions, where it is known.

    Raises:
        ShapeError: lengths, widths or types do not fit. NotFinite: a NaN or infinity; names the array and the row.
        ConfigError: a terminal that is neither 0 nor 1.
    """

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    terminals: Array
    blocks: Mapping[str, Array] = field(default_factory=dict)
    action_low: Array | None = None
    action_high: Array | None = None

    def __post_init__(self) -> None:
        n = len(np.atleast_1d(self.observations))
        taken = sorted(set(self.blocks) & {*KEYS, *BOX})
        if taken:
            raise ConfigError(f"blocks are called {', '.join(taken)}, which are arrays of their own; rename them")
        for name, value in self.arrays().items():
            if value.dtype.kind not in "biuf":
                raise ShapeError(
                    f"{name} is of type {value.dtype}; expected real numbers, whole numbers or truth values"
                )
            if value.ndim == 0 or len(value) != n:
                raise ShapeError(
                    f"{name} has {len(np.atleast_1d(value))} rows and observations {n}; expected one row a transition"
                )
            ranks, wanted = _RANKS.get(name, ((1, 2), "(n, w) or (n,)"))
            if value.ndim not in ranks:
                raise ShapeError(f"{name} has shape {value.shape}; expected {wanted}")
        if self.observations.shape != self.next_observations.shape:
            raise ShapeError(
                f"observations have shape {self.observations.shape} and next_observations "
                f"{self.next_observations.shape}; expected the same"
            )
        if self.actions.ndim == 1 and not np.issubdtype(self.actions.dtype, np.integer):
            raise ShapeError(
                f"actions are {self.actions.dtype} of shape {self.actions.shape}; expected (n, a), or whole numbers of "
                "shape (n,) for discrete actions"
            )
        self._check_numbers()
        self._check_box()

    def _check_numbers(self) -> None:
        for name, value in self.arrays().items():
            wrong = ~np.isfinite(value)
            if wrong.any():
                row = int(np.argwhere(wrong)[0, 0])
                raise NotFinite(f"{name} holds NaN or infinity in row {row}; drop or mend such rows first")
        wrong = ~np.isin(self.terminals, (0, 1))
        if wrong.any():
            row = int(wrong.argmax())
            raise ConfigError(f"terminals holds {self.terminals[row]} in row {row}; expected 0 or 1 (timeouts are 0)")

    def _check_box(self) -> None:
        for name in BOX:
            box = getattr(self, name)
            if box is not None and np.shape(box) != self.actions.shape[1:]:
                raise ShapeError(f"{name} has shape {np.shape(box)}; expected {self.actions.shape[1:]}, one an action")
            if box is not None and np.isnan(box).any():
                raise NotFinite(f"{name} holds NaN for action {int(np.isnan(box).argmax())}; expected a bound")

    def __len__(self) -> int:
        return len(self.observations)

    def arrays(self) -> dict[str, Array]:
        """Every column group by name, blocks last."""
        return {key: getattr(self, key) for key in KEYS} | dict(self.blocks)

    def rows(self, index: Sequence[int] | Array | slice) -> Transitions:
        """The transitions at `index`, in that order."""
        return replace(
            self,
            **{key: getattr(self, key)[index] for key in KEYS},
            blocks={key: value[index] for key, value in self.blocks.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Transitions]) -> Transitions:
        """All transitions of `parts`, one after another; the first one's box."""
        return replace(
            parts[0],
            **{key: np.concatenate([getattr(part, key) for part in parts]) for key in KEYS},
            blocks={key: np.concatenate([part.blocks[key] for part in parts]) for key in parts[0].blocks},
        )


def read_npz(path: str | os.PathLike[str]) -> Transitions:
    """Transitions of an npz file with the arrays of `KEYS`, optional `action_low` and `action_high`, and blocks.

    Raises:
        ConfigError: no such file, no npz, or an array is missing. What `Transitions` raises.
    """
    place = Path(path)
    if not place.is_file():
        raise ConfigError(f"no file {str(place)!r}; expected an npz of {', '.join(KEYS)}")
    try:
        with np.load(place, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{str(place)!r} cannot be read as npz ({error}); save it again with numpy.savez") from error
    missing = [key for key in KEYS if key not in found]
    if missing:
        raise ConfigError(
            f"{str(place)!r} lacks {', '.join(missing)}; it holds {', '.join(found)}; rename its arrays to "
            f"{', '.join(KEYS)} and save it again"
        )
    blocks = {name: value for name, value in found.items() if name not in (*KEYS, *BOX)}
    return Transitions(**{key: found[key] for key in KEYS}, blocks=blocks, **{k: found[k] for k in BOX if k in found})


def write_npz(transitions: Transitions, path: str | os.PathLike[str]) -> None:
    """Writes what `read_npz` reads, complete or not at all.

    Raises:
        Unwritable: a full disk or the like.
    """
    place = Path(path)
    box = {key: getattr(transitions, key) for key in BOX if getattr(transitions, key) is not None}
    partial = place.with_name(f".{place.name}.partial.npz")
    size = sum(value.nbytes for value in transitions.arrays().values())
    with writing("transitions", place, "make room, or choose another file", size):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.savez(partial, allow_pickle=False, **transitions.arrays(), **box)
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
