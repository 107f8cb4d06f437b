"""Rows of reinforcement-learning transitions as features: columns, standardised or whitened; and how they end.

Knows the rows that the policy "transitions" makes and the data they are compared with; no model.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.encoders.identity import fingerprint
from dragon.errors import ConfigError, ShapeError
from dragon.media import Media
from dragon.synther import Transitions, TransitionSpec, read_transitions
from dragon.synther.columns import fit_layout

Floats = NDArray[np.float64]


class TransitionEncoder:
    """(b, 1, f): one frame a transition.

    data: the file (npz, HDF5 or a Minari folder) or the transitions whose means and deviations standardise the columns;
    discrete_actions: how many there are, if more than in the data. columns: names of single columns
    ("observations.3", "terminals") or of whole arrays ("next_observations"); none: all that vary in the data.
    whiten: turned and scaled to unit covariance of the data, so that a departure counts the more, the less the data
    varies along it: also that from the near-linear relation of s' to s and a. floor: variance, in units of a column's,
    that is added to every direction first, so that those of nearly none do not outweigh all others.

    Raises:
        ConfigError: no such column, or one that never changes. What `read_transitions` raises.
    """

    name = "transitions"

    def __init__(
        self,
        data: str | Transitions,
        *,
        columns: tuple[str, ...] = (),
        whiten: bool = False,
        floor: float = 0.0,
        discrete_actions: int | None = None,
    ) -> None:
        if not 0 <= floor < float("inf") or (floor and not whiten):
            raise ConfigError(
                f"floor is {floor} and whiten {whiten}; expected at least 0, and only where rows are whitened"
            )
        transitions = read_transitions(data) if isinstance(data, str) else data
        layout = fit_layout(transitions, TransitionSpec(discrete_actions=discrete_actions, coding="plain"))
        table = layout.table(transitions)
        self._width = table.shape[1]
        self._places = _places(columns, layout.names, table.std(0) > 0)
        part = table[:, self._places]
        self._mean, self._turn = part.mean(0), np.diag(1 / part.std(0))
        if whiten:
            values, vectors = np.linalg.eigh(np.cov(part @ self._turn, rowvar=False, ddof=0).reshape(part.shape[1], -1))
            kept = values > 1e-12 * values.max()
            self._turn = self._turn @ (vectors[:, kept] / np.sqrt(values[kept] + floor))
        self.settings = {
            "kind": "rows of transitions, version 1",
            "columns": [layout.names[i] for i in self._places],
            "whiten": whiten,
            "floor": floor,
            "numbers": hashlib.blake2b(self._mean.tobytes() + self._turn.tobytes(), digest_size=8).hexdigest(),
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return int(self._turn.shape[1])

    def embed_media(self, media: Media) -> Tensor:
        """(b, 1, f) float32.

        Raises:
            ShapeError: clips of another width than the data's rows.
        """
        rows = _table(media, self._width)[:, self._places]
        return torch.from_numpy((rows - self._mean) @ self._turn).float()[:, None]


class TerminalEncoder:
    """(b, 1, 3): whether a row is flagged as terminal; how likely what follows ends an episode; the product of both.

    For `set_mean`: the means over a set are the rate of flags, that of ends, and that of both at once. Where all three
    are the data's, ends are flagged and nothing else is. Which next observations end an episode is learnt from the data
    itself, by a logistic regression of the flag on them and their squares (`strength`: weight of its squared length).

    data: the file (npz, HDF5 or a Minari folder) or the transitions.

    Raises:
        ConfigError: no row of the data is terminal, or all are. What `read_transitions` raises.
    """

    name = "terminals"
    features = 3

    def __init__(self, data: str | Transitions, *, strength: float = 1e-5) -> None:
        if not 0 < strength < float("inf"):
            raise ConfigError(f"strength is {strength}; expected more than 0")
        transitions = read_transitions(data) if isinstance(data, str) else data
        flags = transitions.terminals.astype(np.float64)
        if not 0 < flags.mean() < 1:
            raise ConfigError(
                f"{flags.mean():.0%} of the data's rows are terminal; expected some that are and some not"
            )
        layout = fit_layout(transitions, TransitionSpec(coding="plain"))
        self._width = len(layout.names)
        self._flag = layout.names.index("terminals")
        self._after = [i for i, name in enumerate(layout.names) if name.startswith("next_observations")]
        after = layout.table(transitions)[:, self._after]
        self._mean, self._std = after.mean(0), np.where(after.std(0) > 0, after.std(0), 1.0)
        self._weights = _logistic(self._inputs(after), flags, strength)
        self.settings = {
            "kind": "ends of episodes, version 1",
            "strength": strength,
            "numbers": hashlib.blake2b(after.tobytes() + flags.tobytes(), digest_size=8).hexdigest(),
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    def embed_media(self, media: Media) -> Tensor:
        """(b, 1, 3) float32.

        Raises:
            ShapeError: clips of another width than the data's rows.
        """
        from scipy.special import expit  # not with the module: rewards are imported without scipy

        rows = _table(media, self._width)
        flagged = rows[:, self._flag]
        ends = expit(self._inputs(rows[:, self._after]) @ self._weights)
        return torch.from_numpy(np.stack([flagged, ends, flagged * ends], 1)).float()[:, None]

    def _inputs(self, after: Floats) -> Floats:
        """(n, 1 + 2 o)"""
        units = (after - self._mean) / self._std
        return np.concatenate([np.ones((len(after), 1)), units, np.square(units)], 1)


def _logistic(inputs: Floats, labels: Floats, strength: float) -> Floats:
    """(p,) weights; the first, that of the constant, is free."""
    from scipy.optimize import minimize
    from scipy.special import expit

    paid = np.r_[0.0, np.full(inputs.shape[1] - 1, strength)]

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = inputs @ weights
        value = np.mean(np.logaddexp(0, logits) - labels * logits) + paid @ np.square(weights) / 2
        return float(value), inputs.T @ (expit(logits) - labels) / len(labels) + paid * weights

    found: Floats = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 5000}).x
    return found


def _table(media: Media, width: int) -> Floats:
    """(b, width) of clips that are rows."""
    if media.tensor.ndim != 3 or media.tensor.shape[1:] != (1, width):
        raise ShapeError(
            f"clips of shape {tuple(media.tensor.shape)}; expected (b, 1, {width}), rows of transitions as the policy "
            "'transitions' makes them"
        )
    return media.tensor[:, 0].double().cpu().numpy()


def _places(wanted: tuple[str, ...], names: tuple[str, ...], varies: np.ndarray) -> list[int]:
    """Where the wanted columns stand among `names`."""
    if not wanted:
        return [i for i, there in enumerate(varies) if there]
    places: list[int] = []
    for word in wanted:
        found = [i for i, name in enumerate(names) if word in (name, name.rpartition(".")[0], name.partition("=")[0])]
        if not found:
            raise ConfigError(f"columns: no column {word!r}; there are {', '.join(names)}")
        still = [names[i] for i in found if not varies[i]]
        if len(found) == 1 and still:
            raise ConfigError(f"columns: {word!r} never changes in the data; leave it out")
        places += [i for i in found if varies[i] and i not in places]
    return places
