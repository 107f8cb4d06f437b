"""Linear scores of clips from ratings or votes, and the strengths of clips from votes alone.

Ratings: ridge regression (Hoerl & Kennard 1970). Votes: Bradley & Terry (1952), with strengths that are linear in the
clip's coordinates: a logistic regression of the differences of two clips. Both pay `strength` times the squared length
of the weights. Knows arrays and which of their rows are kept, no folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dragon.aesthetics.ratings import Floats, Votes

Mask = NDArray[np.bool_]

PRIOR_SD = 2.0
"""Of a clip's strength in logits: keeps clips that won or lost every vote within a factor of 50 in odds, mostly."""

_PRECISE = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}


class Problem(Protocol):
    """A regression whose rows belong to clips."""

    @property
    def x(self) -> Floats:
        """(n, r) coordinates of the clips."""
        ...

    def weights(self, keep: Mask, strengths: Sequence[float] | Floats) -> Floats:
        """(s, r) weights fitted to the clips `keep` (n,), one row a strength."""
        ...

    def losses(self, keep: Mask, held: Mask, weights: Floats) -> tuple[Floats, int]:
        """(s,) summed losses on the clips `held` of weights fitted to `keep`, and how many terms they sum."""
        ...


@dataclass(frozen=True, eq=False)
class Ridge:
    """Mean squared error + strength * |w|^2, with a free constant; y (n,)."""

    x: Floats
    y: Floats

    def weights(self, keep: Mask, strengths: Sequence[float] | Floats) -> Floats:
        x, y = self.x[keep], self.y[keep]
        x, y = x - x.mean(0), y - y.mean()
        values, basis = np.linalg.eigh(x.T @ x / len(x))
        projected = basis.T @ (x.T @ y / len(x))
        # rounding makes zero eigenvalues slightly negative
        return (projected / (np.maximum(values, 0) + np.asarray(strengths)[:, None])) @ basis.T

    def losses(self, keep: Mask, held: Mask, weights: Floats) -> tuple[Floats, int]:
        constant = self.y[keep].mean() - self.x[keep].mean(0) @ weights.T
        errors = self.x[held] @ weights.T + constant - self.y[held, None]
        return np.square(errors).sum(0), int(held.sum())


class Logistic:
    """Mean of log(1 + exp(-w . (x_winner - x_loser))) + strength / 2 * |w|^2."""

    def __init__(self, x: Floats, votes: Votes) -> None:
        self.x, self._votes = x, votes
        self._differences = x[votes.winner] - x[votes.loser]

    def weights(self, keep: Mask, strengths: Sequence[float] | Floats) -> Floats:
        from scipy.optimize import minimize

        rows = self._differences[self._inside(keep)]
        found = np.zeros((len(strengths), self.x.shape[1]))
        start = found[0]
        # from the strongest down: each solution is near the one before
        for i in np.argsort(-np.asarray(strengths)):

            def loss(w: Floats, strength: float = float(strengths[i])) -> tuple[float, Floats]:
                margin = rows @ w
                gradient = strength * w - _sigmoid(-margin) @ rows / len(rows)
                return float(np.logaddexp(0, -margin).mean() + strength / 2 * (w @ w)), gradient

            found[i] = start = minimize(loss, start, jac=True, method="L-BFGS-B", options=_PRECISE).x
        return found

    def losses(self, keep: Mask, held: Mask, weights: Floats) -> tuple[Floats, int]:
        rows = self._differences[self._inside(held)]
        return np.logaddexp(0, -(rows @ weights.T)).sum(0), len(rows)

    def _inside(self, clips: Mask) -> Mask:
        return clips[self._votes.winner] & clips[self._votes.loser]


def bradley_terry(votes: Votes, prior_sd: float = PRIOR_SD) -> Floats:
    """(n,) strength of each clip in logits: P(i is voted for over j) = sigmoid(strength i - strength j).

    The most probable strengths under a normal prior, which keeps those of clips that always win finite and puts the
    mean of each linked set of clips at 0. Bradley & Terry (1952); the prior is own.
    """
    from scipy.optimize import minimize

    w, b, n = votes.winner, votes.loser, len(votes.files)

    def loss(strength: Floats) -> tuple[float, Floats]:
        margin = strength[w] - strength[b]
        slope = -_sigmoid(-margin)
        gradient = np.bincount(w, slope, n) - np.bincount(b, slope, n) + strength / prior_sd**2
        return float(np.logaddexp(0, -margin).sum() + strength @ strength / (2 * prior_sd**2)), gradient

    found: Floats = minimize(loss, np.zeros(n), jac=True, method="L-BFGS-B", options=_PRECISE).x
    return found


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit

    found: Floats = expit(x)
    return found
