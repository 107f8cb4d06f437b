"""Transitions <-> rows x that a denoiser models: standardised columns, fitted to data and stored with the model.

Knows arrays, no network. Real and whole-number columns are standardised; constant ones are left out and put back; flags
(terminals and other columns of two values) are either conditions of the row or raw columns of it; one-hot groups are
raw columns of which the largest wins. With coding "residual" rewards and next observations are what a ridge regression
on the observation and the action leaves of them, standardised: what the model must invent is then only the part that a
straight line does not know, and errors shrink by as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.errors import ConfigError, ShapeError
from dragon.synther.kinds import Group, Kind, TransitionSpec, check, check_box, check_spec, group, settled, spread, wide
from dragon.synther.ridge import ridge
from dragon.synther.transitions import BOX, KEYS, Array, Transitions

__all__ = ["Group", "Kind", "Layout", "TransitionSpec", "fit_layout"]

Floats = NDArray[np.float64]
INPUTS, OUTPUTS = ("observations", "actions"), ("rewards", "next_observations")
"""What the regression reads, and what it explains."""


class Layout:
    """How transitions become rows and back; fitted to data by `fit_layout`, stored as JSON values and one matrix.

    line: (1 + inputs, outputs) of the ridge regression, or None. d: numbers of a row. c: flags that are conditions.
    columns, conditions: (array, column) of each.
    """

    def __init__(self, groups: Sequence[Group], *, flags: str, line: Floats | None = None) -> None:
        self.groups = tuple(groups)
        self.flags = flags
        self.line = line
        kinds = [(g, i, kind) for g in self.groups for i, kind in enumerate(g.kinds)]
        inside = [(g, i) for g, i, k in kinds if k != "constant" and (k != "flag" or flags == "column")]
        self.columns = tuple((g.name, i) for g, i in inside)
        self.scales = torch.tensor([g.scale[i] for g, i in inside], dtype=torch.float64)
        self.d = len(inside)
        self.conditions = tuple((g.name, i) for g, i, k in kinds if k == "flag" and flags == "condition")
        self.c = len(self.conditions)
        self._low, self._high = self._bounds()

    @property
    def names(self) -> tuple[str, ...]:
        """(w,) name of each column of `table`: observations.0, rewards, actions=2 of discrete actions, ..."""
        return tuple(
            f"{g.name}={i}" if g.discrete else g.name if g.flat else f"{g.name}.{i}"
            for g in self.groups
            for i in range(len(g.kinds))
        )

    @property
    def known(self) -> Tensor:
        """(d,) whether each number of a row belongs to the observation or the action."""
        return torch.tensor([name in INPUTS for name, _ in self.columns])

    @property
    def open_flags(self) -> Tensor:
        """(c,) whether each flag belongs to neither."""
        return torch.tensor([name not in INPUTS for name, _ in self.conditions], dtype=torch.bool)

    # ---- both ways

    def encode(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """(n, d) float32 rows and (n, c) float32 flags, 0 or 1.

        Raises:
            ShapeError: arrays or widths differ from those the layout was fitted to. ConfigError: a column is of another
                kind (a constant that changes, ...); with the row.
        """
        raw = self._raw(transitions)
        flags = self._flags(raw, len(transitions))
        self._add_line(raw, sign=-1)
        coded = {g.name: (raw[g.name] - np.array(g.mean)) / np.array(g.scale) for g in self.groups}
        x = np.stack([coded[name][:, i] for name, i in self.columns], 1)
        return torch.from_numpy(x).float(), torch.from_numpy(flags).float()

    def decode(self, x: Tensor, flags: Tensor) -> Transitions:
        """Transitions in data units: inside their bounds, whole numbers whole, constants as they were."""
        rows, given = x.double().cpu().numpy(), flags.double().cpu().numpy()
        raw = {g.name: np.tile(np.array(g.mean), (len(rows), 1)) for g in self.groups}
        groups = {g.name: g for g in self.groups}
        for values, places in ((rows, self.columns), (given, self.conditions)):
            for j, (name, i) in enumerate(places):
                raw[name][:, i] = values[:, j] * groups[name].scale[i] + groups[name].mean[i]
        for name in INPUTS:  # what the regression reads is put inside its bounds before it is read
            raw[name] = settled(raw[name], groups[name])
        self._add_line(raw, sign=1)
        return self._transitions({g.name: settled(raw[g.name], g) for g in self.groups})

    def table(self, transitions: Transitions) -> Floats:
        """(n, w) all columns in data units, of one array after another; discrete actions are one-hot columns.

        Raises:
            ShapeError: an array is of another width than in the data fitted to.
        """
        arrays = transitions.arrays()
        return np.concatenate([wide(arrays[g.name], g) for g in self.groups], 1)

    def of_table(self, table: Floats) -> Transitions:
        """The transitions of a table."""
        ends = np.cumsum([len(g.kinds) for g in self.groups])[:-1]
        return self._transitions({g.name: part for g, part in zip(self.groups, np.split(table, ends, 1), strict=True)})

    def clamp(self, x: Tensor) -> Tensor:
        """(b, d) rows with every number inside the data's bounds, as they are in x; free where a line is subtracted."""
        return x.clamp(self._low.to(x), self._high.to(x))

    def widened(self, transitions: Transitions) -> Layout:
        """The same coding with bounds that hold these transitions, too; the action box stays. What `encode` raises."""
        raw = self._raw(transitions)
        changed = []
        for g in self.groups:
            low, high = np.array(g.low), np.array(g.high)
            if g.name == "actions" and not g.discrete:
                check_box(raw[g.name], low, high)
                changed.append(g)
                continue
            low, high = np.minimum(low, raw[g.name].min(0)), np.maximum(high, raw[g.name].max(0))
            changed.append(replace(g, low=tuple(low.tolist()), high=tuple(high.tolist())))
        return Layout(changed, flags=self.flags, line=self.line)

    # ---- storing

    def to_json(self) -> dict[str, Any]:
        """All but the matrix."""
        return {"groups": [asdict(g) for g in self.groups], "flags": self.flags}

    @staticmethod
    def from_json(stored: Mapping[str, Any], line: Tensor | None) -> Layout:
        """What `to_json` gave."""
        groups = [Group(**{key: _tuples(value) for key, value in g.items()}) for g in stored["groups"]]
        return Layout(groups, flags=stored["flags"], line=None if line is None else line.double().numpy())

    # ---- parts

    def _raw(self, transitions: Transitions) -> dict[str, Floats]:
        found = transitions.arrays()
        if sorted(found) != sorted(g.name for g in self.groups):
            raise ShapeError(
                f"transitions hold {', '.join(found)}; expected {', '.join(g.name for g in self.groups)}, as in the "
                "data the model was fitted to"
            )
        raw = {g.name: wide(found[g.name], g) for g in self.groups}
        for g in self.groups:
            check(g, raw[g.name])
        return raw

    def _flags(self, raw: Mapping[str, Floats], n: int) -> Floats:
        groups = {g.name: g for g in self.groups}
        flags = np.zeros((n, self.c))
        for j, (name, i) in enumerate(self.conditions):
            flags[:, j] = (raw[name][:, i] - groups[name].mean[i]) / groups[name].scale[i]
        return flags

    def _add_line(self, raw: dict[str, Floats], sign: int) -> None:
        """Adds (sign 1) or takes away (-1) what the line says of rewards and next observations."""
        if self.line is None:
            return
        said = self.line[0] + _inputs(raw) @ self.line[1:]
        start = 0
        for g in self.groups:
            if g.name in OUTPUTS:
                for i in g.modelled:
                    raw[g.name][:, i] += sign * said[:, start]
                    start += 1

    def _bounds(self) -> tuple[Tensor, Tensor]:
        groups = {g.name: g for g in self.groups}
        low, high = [], []
        for name, i in self.columns:
            g = groups[name]
            free = self.line is not None and name in OUTPUTS and i in g.modelled
            low.append(-np.inf if free else (g.low[i] - g.mean[i]) / g.scale[i])
            high.append(np.inf if free else (g.high[i] - g.mean[i]) / g.scale[i])
        return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)

    def _transitions(self, raw: Mapping[str, Floats]) -> Transitions:
        found: dict[str, Array] = {}
        for g in self.groups:
            values, dtype = raw[g.name], np.dtype(g.dtype)
            value = values.argmax(1) if g.discrete else values[:, 0] if g.flat else values
            found[g.name] = (np.round(value) if dtype.kind in "iub" else value).astype(dtype)
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
        ConfigError: fewer than 2 rows, an unknown column or kind, nothing that varies, or a box that does not hold the
            data's actions.
    """
    if len(transitions) < 2:
        raise ConfigError(f"{len(transitions)} transitions; expected at least 2 to fit to, and thousands to fit well")
    check_spec(transitions, spec)
    groups = [group(name, value, transitions, spec) for name, value in transitions.arrays().items()]
    layout = Layout(groups, flags=spec.flags)
    if not layout.d:
        raise ConfigError("every column is constant or a flag; expected at least one number to model")
    if spec.coding == "plain":
        return layout
    raw = layout._raw(transitions)
    inputs = _inputs(raw)
    targets = [g for g in groups if g.name in OUTPUTS]
    outputs = np.concatenate([raw[g.name][:, g.modelled] for g in targets], 1)
    line = ridge(inputs, outputs)
    left = outputs - line[0] - inputs @ line[1:]
    # a column that the line explains to the last digit keeps a scale above its rounding errors
    scales = np.maximum(spread(left, spec.coding), 1e-7 * np.abs(outputs).max(0, initial=0.0))
    changed, start = {}, 0
    for g in targets:
        mean, scale = np.array(g.mean), np.array(g.scale)
        part = slice(start, start + len(g.modelled))
        mean[g.modelled], scale[g.modelled] = left[:, part].mean(0), scales[part]
        start = part.stop
        changed[g.name] = replace(g, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))
    return Layout([changed.get(g.name, g) for g in groups], flags=spec.flags, line=line)


def _inputs(raw: Mapping[str, Floats]) -> Floats:
    return np.concatenate([raw[name] for name in INPUTS], 1)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
