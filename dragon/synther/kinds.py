"""What kind of number each column holds, and the numbers it is coded with.

Knows arrays, no rows of a model. A column of two values is a flag; whole numbers stay whole; a column that never
changes is a constant; columns of which one is 1 and the others 0 are a one-hot group where the user says so, and flags
that are drawn together, hence just as valid, where nobody does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dragon.errors import ConfigError, ShapeError
from dragon.synther.transitions import Array, Transitions

Floats = NDArray[np.float64]
Kind = Literal["real", "integer", "constant", "flag", "one_hot"]
FEW = 16  # so many rows must repeat two values, other than 0 and 1, before they are taken for a flag
EPSILON = 1e-5  # added to standard deviations by the release


@dataclass(frozen=True)
class TransitionSpec:
    """What is known of the columns besides their numbers.

    action_low, action_high: the box of the actions; None: that of the transitions, else the data's range.
    discrete_actions: how many there are, if actions are whole numbers; None: the largest in the data and one.
    kinds: kinds of columns or whole arrays that are not as their numbers look: {"rewards": "real", "observations.3":
    "integer", "latents": "one_hot"}. flags: "condition" draws them from the data and the row for them; "column" models
    them as columns that are read back at one half, as the release does. coding: "residual" models what a ridge
    regression leaves of rewards and next observations, "plain" the numbers themselves, standardised as by the release.
    """

    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    discrete_actions: int | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    flags: Literal["condition", "column"] = "condition"
    coding: Literal["residual", "plain"] = "residual"


@dataclass(frozen=True)
class Group:
    """One array of the transitions: its columns' kinds, and what they are coded with.

    mean, scale: (w,) coded = (number - mean) / scale, so that a flag is 0 or 1; a constant is its mean. low, high: (w,)
    bounds of what is given back. hot: numbers of the columns of each one-hot group. discrete: whole numbers of shape
    (n,) that stand for one-hot columns. flat: shape (n,) rather than (n, w).
    """

    name: str
    kinds: tuple[Kind, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str
    hot: tuple[tuple[int, ...], ...] = ()
    discrete: bool = False
    flat: bool = False

    @property
    def modelled(self) -> list[int]:
        """Columns that are part of x where flags are conditions."""
        return [i for i, kind in enumerate(self.kinds) if kind not in ("constant", "flag")]


def group(name: str, value: Array, transitions: Transitions, spec: TransitionSpec) -> Group:
    """The group of one array.

    Raises:
        ConfigError: numbers that are not of the kind they are said to be, or actions outside their box; with the row.
    """
    discrete = name == "actions" and value.ndim == 1
    numbers = one_hot(value, spec.discrete_actions) if discrete else value.reshape(len(value), -1).astype(np.float64)
    kinds = tuple(_kind(name, i, numbers[:, i], value.dtype, discrete, spec) for i in range(numbers.shape[1]))
    low, high = numbers.min(0), numbers.max(0)
    flag, raw = np.array([k == "flag" for k in kinds]), np.array([k == "one_hot" for k in kinds])
    constant, varies = np.array([k == "constant" for k in kinds]), low < high
    # a flag that never changes (no terminals in the data) is 0 or 1 all the same
    mean = np.where(flag, np.where(varies, low, 0.0), np.where(raw, 0.0, np.where(constant, low, numbers.mean(0))))
    scale = np.where(flag & varies, high - low, np.where(flag | raw | constant, 1.0, spread(numbers, spec.coding)))
    if name == "actions" and not discrete:
        low, high = _box(numbers, transitions, spec)
    made = Group(
        name=name,
        kinds=kinds,
        mean=_floats(mean),
        scale=_floats(scale),
        low=_floats(low),
        high=_floats(high),
        dtype=value.dtype.str,
        hot=_hot(name, numbers, kinds),
        discrete=discrete,
        flat=value.ndim == 1,
    )
    check(made, numbers)
    return made


def spread(numbers: Floats, coding: str) -> Floats:
    """(w,) what columns are divided by: the standard deviation, above 0 even for a column of rounding errors."""
    if coding == "plain":
        return np.asarray(numbers.std(0) + EPSILON)
    return np.maximum(numbers.std(0), np.maximum(1e-7 * np.abs(numbers).max(0), 1e-30))


def wide(value: Array, of: Group) -> Floats:
    """(n, w) float64 columns of an array of the group.

    Raises:
        ShapeError: of another width. ConfigError: a discrete action that there is not.
    """
    if of.discrete != (of.name == "actions" and value.ndim == 1):
        raise ShapeError(f"{of.name} has shape {value.shape}; the model was fitted to {_described(of)}")
    found = one_hot(value, len(of.kinds)) if of.discrete else value.reshape(len(value), -1).astype(np.float64)
    if found.shape[1] != len(of.kinds):
        raise ShapeError(f"{of.name} has {found.shape[1]} columns; expected {len(of.kinds)}, as in the data fitted to")
    return found


def one_hot(value: Array, count: int | None) -> Floats:
    """(n, count) rows with a 1 at the place of each whole number; count None: the largest and one."""
    size = int(value.max()) + 1 if count is None else count
    wrong = (value < 0) | (value >= size)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(f"action {int(value[row])} in row {row}; expected a number from 0 to {size - 1}")
    return np.eye(size)[value]


def check(of: Group, numbers: Floats) -> None:
    """Raises ConfigError, with the row, unless these (n, w) numbers are of the group's kinds."""
    for i, kind in enumerate(of.kinds):
        column = numbers[:, i]
        if kind == "constant":
            _demand(
                np.abs(column - of.mean[i]) <= 1e-6 * max(1.0, abs(of.mean[i])), of.name, i, column, f"{of.mean[i]:g}"
            )
        elif kind == "flag":
            ends = (of.mean[i], of.mean[i] + of.scale[i])
            _demand(np.isin(column, ends), of.name, i, column, f"{ends[0]:g} or {ends[1]:g}")
        elif kind == "integer":
            _demand(column == np.round(column), of.name, i, column, "a whole number")
        elif kind == "one_hot":
            _demand(np.isin(column, (0, 1)), of.name, i, column, "0 or 1")
    for columns in of.hot:
        total = numbers[:, list(columns)].sum(1)
        if (total != 1).any():
            row = int((total != 1).argmax())
            raise ConfigError(
                f"{of.name} columns {columns[0]} to {columns[-1]} are a one-hot group and sum to {total[row]:g} in row "
                f"{row}; expected one 1 a row"
            )


def settled(values: Floats, of: Group) -> Floats:
    """Numbers as the data could hold them: whole where they are whole, inside the bounds, one of a one-hot group."""
    low, high = np.array(of.low), np.array(of.high)
    mean, scale, kinds = np.array(of.mean), np.array(of.scale), np.array(of.kinds)
    flags = mean + scale * (values - mean >= 0.5 * scale)
    found = np.where(kinds == "flag", flags, np.where(kinds == "integer", np.round(values), values))
    for columns in of.hot:
        place = list(columns)
        seen = np.where(high[place] > 0, values[:, place], -np.inf)  # what the data never held is not given back
        found[:, place] = np.eye(len(place))[seen.argmax(1)]
    found = np.clip(found, low, high)
    return np.where(kinds == "constant", mean, found)


def _kind(name: str, i: int, column: Floats, dtype: np.dtype[Any], discrete: bool, spec: TransitionSpec) -> Kind:
    for key in (f"{name}.{i}", name):
        if key in spec.kinds:
            return spec.kinds[key]
    if discrete:
        return "one_hot"
    low, high = column.min(), column.max()
    if name == "terminals":
        return "flag"
    if low == high:
        return "constant"
    if ((column == low) | (column == high)).all() and ((low, high) == (0, 1) or len(column) >= FEW):
        return "flag"
    return "integer" if dtype.kind in "iub" or bool((column == np.round(column)).all()) else "real"


def _hot(name: str, numbers: Floats, kinds: tuple[Kind, ...]) -> tuple[tuple[int, ...], ...]:
    """One-hot groups: neighbouring columns, ended where each row has its 1; columns that are never 1 join the last."""
    found: list[list[int]] = []
    run: list[int] = []
    for i in [i for i, kind in enumerate(kinds) if kind == "one_hot"]:
        if not run and found and found[-1][-1] == i - 1 and not numbers[:, i].any():
            found[-1].append(i)
            continue
        run.append(i)
        if (numbers[:, run].sum(1) == 1).all():
            found.append(run)
            run = []
    if run:
        total = numbers[:, run].sum(1)
        row = int((total != 1).argmax())
        raise ConfigError(
            f"{name} columns {run[0]} to {run[-1]} are said to be one_hot and sum to {total[row]:g} in row {row}; "
            "expected one 1 a row in each group"
        )
    return tuple(tuple(columns) for columns in found)


def _box(numbers: Floats, transitions: Transitions, spec: TransitionSpec) -> tuple[Floats, Floats]:
    found = []
    for side, data, asked in (("low", numbers.min(0), spec.action_low), ("high", numbers.max(0), spec.action_high)):
        given = asked if asked is not None else getattr(transitions, f"action_{side}")
        box = data if given is None else np.asarray(given, dtype=np.float64)
        if box.shape != data.shape:
            raise ShapeError(f"action_{side} has shape {box.shape}; expected {data.shape}, one an action")
        found.append(box)
    check_box(numbers, found[0], found[1])
    return found[0], found[1]


def check_box(actions: Floats, low: Floats, high: Floats) -> None:
    """Raises ConfigError, with the row, where an action leaves its box by more than rounding."""
    room = 1e-6 * np.maximum(1.0, np.abs(actions).max(0, initial=0.0))
    outside = np.argwhere((actions < low - room) | (actions > high + room))
    if len(outside):
        row, i = outside[0]
        raise ConfigError(
            f"action {i} is {actions[row, i]:g} in row {row}, outside its box [{low[i]:g}, {high[i]:g}]; give the box "
            "that the actions were taken from, or clip them first"
        )


def check_spec(transitions: Transitions, spec: TransitionSpec) -> None:
    """Raises ConfigError for an unknown column, kind, coding or use of flags."""
    widths = {name: (1 if value.ndim == 1 else value.shape[1]) for name, value in transitions.arrays().items()}
    known = {*widths, *(f"{name}.{i}" for name, width in widths.items() for i in range(width))}
    for key, kind in spec.kinds.items():
        if key not in known:
            raise ConfigError(f"kinds: no column {key!r}; expected an array ({', '.join(widths)}) or ARRAY.NUMBER")
        if kind not in get_args(Kind):
            raise ConfigError(f"kinds: {key} is {kind!r}; expected {', '.join(get_args(Kind))}")
    if spec.flags not in ("condition", "column") or spec.coding not in ("residual", "plain"):
        raise ConfigError(
            f"flags is {spec.flags!r} and coding {spec.coding!r}; expected flags condition or column, coding residual "
            "or plain"
        )


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _demand(right: NDArray[np.bool_], name: str, i: int, column: Floats, wanted: str) -> None:
    if not right.all():
        row = int((~right).argmax())
        raise ConfigError(
            f"{name} column {i} is {column[row]:g} in row {row}; expected {wanted}, by the kind given for it or by the "
            "data fitted to: correct the kinds, or fit a new model"
        )


def _described(of: Group) -> str:
    return "discrete actions of shape (n,)" if of.discrete else f"shape (n, {len(of.kinds)})"
