"""Transitions <-> rows x that a denoiser models: which columns there are, of what kind, and how they are coded.

Knows arrays, no network. Real and whole-number columns are standardised; constant ones are left out and put back; flags
(terminals and other 0/1 columns) are either conditions of the row or raw columns of it; one-hot groups are raw columns
of which the largest wins. With coding "residual" rewards and next observations are what a ridge regression on the
observation, the action and the flags leaves of them, standardised: what the model must invent is then only the part
that a straight line does not know, and errors shrink by as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.errors import ConfigError, ShapeError
from dragon.synther.transitions import BOX, KEYS, Array, Transitions

Floats = NDArray[np.float64]
Kind = Literal["real", "integer", "constant", "flag", "one_hot"]
EPSILON = 1e-5  # added to standard deviations, as in the release
RIDGE = 1e-6


@dataclass(frozen=True)
class TransitionSpec:
    """What is known of the columns besides their numbers.

    action_low, action_high: the box of the actions; None: that of the transitions, else the data's range.
    discrete_actions: how many there are, if actions are whole numbers; None: the largest in the data and one.
    kinds: kinds of columns or whole groups that are not as their numbers look: {"rewards": "real", "observations.3":
    "integer", "latents": "one_hot"}. flags: "condition" draws them from the data and the row for them; "column" models
    them as columns that are read back at one half, as the release does. coding: see the module.
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

    mean, scale: (w,) of the coded numbers. low, high: (w,) bounds of what is given back. discrete: whole numbers of
    shape (n,) that stand for one-hot columns. flat: shape (n,) rather than (n, w).
    """

    name: str
    kinds: tuple[Kind, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str
    discrete: bool = False
    flat: bool = False

    @property
    def modelled(self) -> list[int]:
        """Columns that are part of x where flags are conditions."""
        return [i for i, kind in enumerate(self.kinds) if kind not in ("constant", "flag")]


class Layout:
    """How transitions become rows and back; fitted to data by `fit_layout`, stored as JSON values and one matrix.

    line: (1 + inputs, outputs) of the ridge regression, or None. d: numbers of a row. c: flags that are conditions.
    """

    def __init__(self, groups: Sequence[Group], *, flags: str, line: Floats | None = None) -> None:
        self.groups = tuple(groups)
        self.flags = flags
        self.line = line
        kinds = [(g, i, kind) for g in self.groups for i, kind in enumerate(g.kinds)]
        inside = [(g, i, k) for g, i, k in kinds if k != "constant" and (k != "flag" or flags == "column")]
        self.columns = tuple((g.name, i) for g, i, _ in inside)
        self.d = len(inside)
        self.conditions = tuple((g.name, i) for g, i, k in kinds if k == "flag" and flags == "condition")
        self.c = len(self.conditions)
        self._low, self._high = self._bounds()

    # ---- both ways

    def encode(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """(n, d) float32 rows and (n, c) float32 flags.

        Raises:
            ShapeError: groups or widths differ from those the layout was fitted to.
        """
        raw = self._raw(transitions)
        flags = (
            np.stack([raw[name][:, i] for name, i in self.conditions], 1) if self.c else np.zeros((len(transitions), 0))
        )
        self._subtract_line(raw, flags, sign=-1)
        coded = [(raw[g.name] - np.array(g.mean)) / np.array(g.scale) for g in self.groups]
        by_name = {g.name: values for g, values in zip(self.groups, coded, strict=True)}
        x = np.stack([by_name[name][:, i] for name, i in self.columns], 1)
        return torch.from_numpy(x).float(), torch.from_numpy(flags).float()

    def decode(self, x: Tensor, flags: Tensor) -> Transitions:
        """Transitions in data units: inside their bounds, whole numbers whole, constants as they were."""
        rows, given = x.double().cpu().numpy(), flags.double().cpu().numpy()
        raw = {g.name: np.tile(np.array(g.low), (len(rows), 1)) for g in self.groups}
        place = {column: j for j, column in enumerate(self.columns)}
        for g in self.groups:
            for i, kind in enumerate(g.kinds):
                if (g.name, i) in place:
                    raw[g.name][:, i] = rows[:, place[g.name, i]] * g.scale[i] + g.mean[i]
                elif kind == "flag":
                    raw[g.name][:, i] = given[:, self.conditions.index((g.name, i))]
        inputs = {"observations", "actions"}
        for g in self.groups:  # what the regression reads is put inside its bounds before it is read
            if g.name in inputs or self.line is None:
                raw[g.name] = _settled(raw[g.name], g)
        self._subtract_line(raw, given, sign=1)
        return self._transitions({g.name: _settled(raw[g.name], g) for g in self.groups})

    def clamp(self, x: Tensor) -> Tensor:
        """(b, d) rows with every number inside the data's bounds, as they are in x; free where a line is subtracted."""
        return x.clamp(self._low.to(x), self._high.to(x))

    # ---- storing

    def to_json(self) -> dict[str, Any]:
        """All but the matrix."""
        return {"groups": [asdict(g) for g in self.groups], "flags": self.flags}

    @staticmethod
    def from_json(stored: Mapping[str, Any], line: Tensor | None) -> Layout:
        """What `to_json` gave."""
        groups = [Group(**{k: tuple(v) if isinstance(v, list) else v for k, v in g.items()}) for g in stored["groups"]]
        return Layout(groups, flags=stored["flags"], line=None if line is None else line.double().numpy())

    # ---- parts

    def _raw(self, transitions: Transitions) -> dict[str, Floats]:
        found = transitions.arrays()
        if sorted(found) != sorted(g.name for g in self.groups):
            raise ShapeError(
                f"transitions hold {', '.join(found)}; expected {', '.join(g.name for g in self.groups)}, as in the "
                "data the model was fitted to"
            )
        return {g.name: _wide(found[g.name], g) for g in self.groups}

    def _subtract_line(self, raw: dict[str, Floats], flags: Floats, sign: int) -> None:
        """Adds (sign 1) or takes away (-1) what the line says of rewards and next observations."""
        if self.line is None:
            return
        inputs = np.concatenate([np.ones((len(flags), 1)), raw["observations"], raw["actions"], flags], 1)
        said = inputs @ self.line
        start = 0
        for g in self.groups:
            if g.name in ("rewards", "next_observations"):
                for i in g.modelled:
                    raw[g.name][:, i] += sign * said[:, start]
                    start += 1

    def _bounds(self) -> tuple[Tensor, Tensor]:
        groups = {g.name: g for g in self.groups}
        low, high = [], []
        for name, i in self.columns:
            g = groups[name]
            free = self.line is not None and name in ("rewards", "next_observations")
            low.append(-np.inf if free else (g.low[i] - g.mean[i]) / g.scale[i])
            high.append(np.inf if free else (g.high[i] - g.mean[i]) / g.scale[i])
        return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)

    def _transitions(self, raw: Mapping[str, Floats]) -> Transitions:
        found: dict[str, Array] = {}
        for g in self.groups:
            values = raw[g.name]
            value = values.argmax(1) if g.discrete else values[:, 0] if g.flat else values
            found[g.name] = value.astype(np.dtype(g.dtype))
        actions = next(g for g in self.groups if g.name == "actions")
        box = {} if actions.discrete else dict(zip(BOX, (actions.low, actions.high), strict=True))
        return Transitions(
            **{key: found[key] for key in KEYS},
            blocks={name: value for name, value in found.items() if name not in KEYS},
            **{name: np.array(value, dtype=found["actions"].dtype) for name, value in box.items()},
        )


def fit_layout(transitions: Transitions, spec: TransitionSpec) -> Layout:
    """The layout of these transitions.

    Raises:
        ConfigError: fewer than 2 rows, an unknown column or kind, or a box that does not hold the data's actions.
    """
    if len(transitions) < 2:
        raise ConfigError(f"{len(transitions)} transitions; expected at least 2 to fit to, and thousands to fit well")
    _check_names(transitions, spec)
    groups = [_group(name, value, transitions, spec) for name, value in transitions.arrays().items()]
    layout = Layout(groups, flags=spec.flags)
    if spec.coding == "plain":
        return layout
    raw = layout._raw(transitions)
    flags = [raw[name][:, i : i + 1] for name, i in layout.conditions]
    inputs = np.concatenate([np.ones((len(transitions), 1)), raw["observations"], raw["actions"], *flags], 1)
    targets = [g for g in groups if g.name in ("rewards", "next_observations")]
    outputs = np.concatenate([raw[g.name][:, g.modelled] for g in targets], 1)
    line = _ridge(inputs, outputs)
    left, start = outputs - inputs @ line, 0
    changed = {}
    for g in targets:
        mean, scale = np.array(g.mean), np.array(g.scale)
        for i in g.modelled:
            mean[i], scale[i] = left[:, start].mean(), left[:, start].std() + EPSILON
            start += 1
        changed[g.name] = replace(g, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))
    return Layout([changed.get(g.name, g) for g in groups], flags=spec.flags, line=line)


def _ridge(inputs: Floats, outputs: Floats) -> Floats:
    spread = inputs.std(0)
    spread[spread == 0] = 1.0
    scaled = inputs / spread
    gram = scaled.T @ scaled / len(inputs)
    line: Floats = np.linalg.solve(gram + RIDGE * np.eye(len(gram)), scaled.T @ outputs / len(inputs))
    return line / spread[:, None]


def _group(name: str, value: Array, transitions: Transitions, spec: TransitionSpec) -> Group:
    discrete = name == "actions" and value.ndim == 1
    wide = _one_hot(value, spec.discrete_actions) if discrete else value.reshape(len(value), -1).astype(np.float64)
    kinds = tuple(_kind(name, i, wide[:, i], value.dtype, discrete, spec) for i in range(wide.shape[1]))
    low, high = wide.min(0), wide.max(0)
    if name == "actions" and not discrete:
        low, high = _box(low, high, transitions, spec)
        kinds = tuple("real" if kind == "constant" and low[i] < high[i] else kind for i, kind in enumerate(kinds))
    raw = [kind in ("flag", "one_hot", "constant") for kind in kinds]
    mean = np.where(raw, 0.0, wide.mean(0))
    scale = np.where(raw, 1.0, wide.std(0) + EPSILON)
    return Group(
        name,
        kinds,
        *(tuple(v.tolist()) for v in (mean, scale, low, high)),
        dtype=value.dtype.str,
        discrete=discrete,
        flat=value.ndim == 1,
    )


def _kind(name: str, i: int, column: Floats, dtype: np.dtype[Any], discrete: bool, spec: TransitionSpec) -> Kind:
    for key in (f"{name}.{i}", name):
        if key in spec.kinds:
            return spec.kinds[key]
    if discrete:
        return "one_hot"
    values = np.unique(column[:4096]) if len(column) > 4096 else np.unique(column)
    if name == "terminals" or (np.isin(values, (0, 1)).all() and np.isin(column, (0, 1)).all() and np.ptp(column) > 0):
        return "flag"
    if np.ptp(column) == 0:
        return "constant"
    whole = np.issubdtype(dtype, np.integer) or dtype == np.bool_ or bool((column == np.round(column)).all())
    return "integer" if whole and name != "actions" else "real"


def _box(low: Floats, high: Floats, transitions: Transitions, spec: TransitionSpec) -> tuple[Floats, Floats]:
    found = []
    for side, data, asked in (("low", low, spec.action_low), ("high", high, spec.action_high)):
        given = asked if asked is not None else getattr(transitions, f"action_{side}")
        box = data if given is None else np.asarray(given, dtype=np.float64)
        if box.shape != data.shape:
            raise ShapeError(f"action_{side} has shape {box.shape}; expected {data.shape}, one an action")
        found.append(box)
    outside = (low < found[0] - 1e-6) | (high > found[1] + 1e-6)
    if outside.any():
        i = int(outside.argmax())
        raise ConfigError(
            f"action {i} of the data lies in [{low[i]:g}, {high[i]:g}], outside its box [{found[0][i]:g}, "
            f"{found[1][i]:g}]; give the box that the actions were taken from, or clip them first"
        )
    return found[0], found[1]


def _check_names(transitions: Transitions, spec: TransitionSpec) -> None:
    widths = {name: (1 if value.ndim == 1 else value.shape[1]) for name, value in transitions.arrays().items()}
    known = {*widths, *(f"{name}.{i}" for name, width in widths.items() for i in range(width))}
    for key, kind in spec.kinds.items():
        if key not in known:
            raise ConfigError(f"kinds: no column {key!r}; expected a group ({', '.join(widths)}) or GROUP.NUMBER")
        if kind not in ("real", "integer", "constant", "flag", "one_hot"):
            raise ConfigError(f"kinds: {key} is {kind!r}; expected real, integer, constant, flag or one_hot")


def _wide(value: Array, group: Group) -> Floats:
    wide = _one_hot(value, len(group.kinds)) if group.discrete else value.reshape(len(value), -1).astype(np.float64)
    if wide.shape[1] != len(group.kinds):
        raise ShapeError(f"{group.name} has {wide.shape[1]} columns; expected {len(group.kinds)}")
    return wide


def _one_hot(value: Array, count: int | None) -> Floats:
    size = int(value.max()) + 1 if count is None else count
    if value.min() < 0 or value.max() >= size:
        row = int(np.flatnonzero((value < 0) | (value >= size))[0])
        raise ConfigError(f"action {int(value[row])} in row {row}; expected a number from 0 to {size - 1}")
    return np.eye(size)[value]


def _settled(values: Floats, group: Group) -> Floats:
    """Numbers as the data could hold them: whole where they are whole, inside the bounds, one of a one-hot group."""
    low, high, kinds = np.array(group.low), np.array(group.high), np.array(group.kinds)
    found = np.where(np.isin(kinds, ("integer", "flag")), np.round(values), values)
    hot = np.flatnonzero(kinds == "one_hot")
    if len(hot):
        found[:, hot] = np.eye(len(hot))[found[:, hot].argmax(1)]
    return np.clip(found, low, high)
