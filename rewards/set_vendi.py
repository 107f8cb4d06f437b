"""Vendi score of a set of clips as a reward that can be trained toward: more different clips, higher score.

Knows encoders by their protocol, and vectors. With u the clips' unit vectors and rho = mean of u u^T over a set (its
trace is 1), the score is exp of the Renyi entropy of rho's spectrum (dragon.rewards.vendi). T = tr rho^q is concave in
rho for q < 1 and convex for q > 1, and the entropy itself is concave for q = 1. So the derivative of the score, which
is the credit of a clip, also bounds from above what a swap can reach. Derivative and bounds are own derivations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec, get_encoder
from dragon.encoders.vectors import clip_vectors
from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.features import as_features
from dragon.media import Media
from dragon.protocols import SwapScorer
from dragon.rewards.clap import unit_rows
from dragon.rewards.set_kernel import PairScorer
from dragon.rewards.vendi import checked_order, effective_number, spectrum

_BLOCK_NUMBERS = 1 << 22
_OUTSIDE = 1e-6  # share of a clip outside a queue's span that rounding can explain: about n * max(n, f) * f * eps
_OUTSIDE_ROUNDING = 1e-12  # that share where a bound must hold, or where it is divided by a small 1 - q
_SLACK = 1e-9


class SetVendi:
    """Set reward: the Vendi score of a set's clip embeddings, from 1 (all alike) to the number of clips.

    It pays for noise as for variety: trained toward alone, clips drift away from music and from their prompts. Mix it
    with a reward of prompt fit, such as `clap_score`; compare only sets made from the same prompts.

    encoder: name, name with options, or object; the clip embedding of a joint encoder, else the mean over frames. q:
    order; 1 is the usual one, 2 is the cheapest, and above 1 the frequent kinds of clips count more. device: where a
    named encoder runs. name: what reports call it.

    Raises:
        ConfigError: q is 0, the rank, which has no derivative to train toward; or below 0.
    """

    def __init__(
        self, encoder: EncoderSpec = "mini", q: float = 1.0, *, device: str = "cpu", name: str = "vendi"
    ) -> None:
        self._name = name
        self.q = checked_order(q)
        if self.q == 0:
            raise ConfigError(
                f"{name}: order q = 0 counts dimensions and has no derivative to train toward; use q = 0.5 or 1"
            )
        self.encoder = get_encoder(encoder, device=device)

    @property
    def name(self) -> str:
        return self._name

    def embed(self, media: Media) -> Tensor:
        """(b, 1, f) one unit vector a clip.

        Raises:
            ShapeError: an embedding of zeros. Otherwise as the encoder does.
        """
        return unit_rows(clip_vectors(self.encoder, media), f"{self.name}: embeddings")[:, None]

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        """(k,) float64. Cost O(min(n, f)^3) a set; at q = 2 O(n f min(n, f)).

        Raises:
            ShapeError: features are not (b, 1, f), or a row is all zeros. NotFinite: with the row.
        """
        units = self._units(features, "features")
        n, f = members.shape[1], units.shape[1]
        chunk = max(1, _BLOCK_NUMBERS // (n * f + min(n, f) ** 2))
        return torch.cat([_scores_of_grams(_grams(units[part]), n, f, self.q) for part in members.split(chunk)])

    def swap_scorer(self, features: Tensor) -> SwapScorer:
        """Exact neighbours: by the eigenvalues of each changed Gram; at q = 2 from a table of squared cosines."""
        units = self._units(features, "features")
        if self.q == 2:  # tr rho^2 is a mean over pairs
            none = torch.zeros(len(units), dtype=torch.float64)
            return PairScorer((units @ units.mT).square(), none, lambda pairs, _, n: n * n / pairs)
        return _SpectralScorer(units, self.q)

    def influence(self, queue: Tensor, features: Tensor) -> Tensor:
        """(b,) float64: the derivative of the score as the share of each clip in the queue grows from 0; mean 0 over
        the queue's own clips. With V the score:

            q = 1     V (-u^T log(rho) u - H)
            q         V q / (1 - q) (u^T rho^(q-1) u / tr rho^q - 1)
            q = inf   V (1 - (v.u)^2 / lmax), v the first eigenvector (any one of them where several share lmax)

        At q <= 1 the derivative is infinite for a clip outside the span of the queue: queue the clips first.

        Raises:
            ConfigError: a clip outside the span at q <= 1. ShapeError, NotFinite: as `score_sets`.
        """
        units = self._units(features, "features")
        state = _State.of(self._units(queue, "queue"), self.q)
        found = state.derivative(units, _OUTSIDE)
        if not bool(found.isfinite().all()):
            row = int((~found.isfinite()).nonzero()[0, 0])
            raise ConfigError(
                f"{self.name}: clip {row} lies outside what the queue of {len(queue)} clips spans, where the "
                f"derivative at q = {self.q:g} is infinite; put the clips into the queue first, or use a q above 1"
            )
        return found

    def _units(self, features: Tensor, what: str) -> Tensor:
        """(b, f) float64 unit vectors."""
        if features.ndim != 3 or features.shape[1] != 1:
            raise ShapeError(
                f"{self.name}: {what} of shape {tuple(features.shape)}; expected (clips, 1, f), as embed's"
            )
        return unit_rows(as_features(features[:, 0].cpu(), f"{self.name}: {what}"), f"{self.name}: {what}")


class _SpectralScorer:
    """SwapScorer at any order, over unit vectors (b, f)."""

    def __init__(self, units: Tensor, q: float) -> None:
        self._units, self._q = units, q
        self._members = torch.empty(0, dtype=torch.long)
        self._value = math.nan
        self._state: _State | None = None

    @property
    def value(self) -> float:
        return self._value

    def start(self, members: Tensor) -> None:
        """Made anew from the members, so that no rounding adds up over swaps."""
        self._members = members.clone()
        self._gram = _grams(self._units[members][None])[0]
        self._value = float(_scores_of_grams(self._gram[None], len(members), self._units.shape[1], self._q)[0])
        self._state = None

    def neighbours(self, leaving: Tensor, entering: Tensor) -> Tensor:
        n, f = len(self._members), self._units.shape[1]
        change = self._replace_row if n <= f else self._replace_product
        chunk = max(1, _BLOCK_NUMBERS // min(n, f) ** 2)
        parts = zip(leaving.split(chunk), entering.split(chunk), strict=True)
        return torch.cat([_scores_of_grams(change(there, here), n, f, self._q) for there, here in parts])

    def bounds(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """Upper ones from the derivative, infinite where the entering clip lies outside the set's span and q <= 1."""
        below = torch.full((len(leaving),), -torch.inf, dtype=torch.float64)
        if self._state is None:
            self._state = _State.of(self._units[self._members], self._q)
        state = self._state
        gain = state.derivative(self._units[entering], _OUTSIDE_ROUNDING)
        gain = gain - state.derivative(self._units[leaving], torch.inf)
        return below, state.bound(gain / len(self._members))

    def swap(self, leaving: int, entering: int) -> None:
        self.start(torch.where(self._members == leaving, entering, self._members))

    def _replace_row(self, leaving: Tensor, entering: Tensor) -> Tensor:
        """(c, n, n): row and column of the leaving clip are those of the entering one."""
        each = torch.arange(len(leaving))
        place = (self._members == leaving[:, None]).to(torch.uint8).argmax(dim=1)
        cosines = self._units[entering] @ self._units[self._members].mT
        cosines[each, place] = 1.0
        grams = self._gram.repeat(len(leaving), 1, 1)
        grams[each, place] = cosines
        grams[each, :, place] = cosines
        return grams

    def _replace_product(self, leaving: Tensor, entering: Tensor) -> Tensor:
        """(c, f, f)."""
        out, new = self._units[leaving], self._units[entering]
        return self._gram + new[:, :, None] * new[:, None, :] - out[:, :, None] * out[:, None, :]


@dataclass(frozen=True, eq=False)
class _State:
    """rho of a set: its eigenvalues (r,) above rounding, which sum to 1, their eigenvectors (f, r), and the order."""

    values: Tensor
    vectors: Tensor
    q: float

    @staticmethod
    def of(units: Tensor, q: float) -> _State:
        """From (n, f) unit vectors, by the smaller decomposition."""
        n, f = units.shape
        if n < f:
            _, singular, right = torch.linalg.svd(units, full_matrices=False)
            values, vectors = singular.square(), right.mT
        else:
            values, vectors = torch.linalg.eigh(units.mT @ units)
        kept = values > max(n, f) * torch.finfo(torch.float64).eps * values.max()
        return _State(values[kept] / values[kept].sum(), vectors[:, kept], q)

    @cached_property
    def score(self) -> float:
        return float(effective_number(self.values, self.q))

    def derivative(self, units: Tensor, tolerance: float) -> Tensor:
        """(b,) of the score toward each of `units`; infinite at q <= 1 where more than `tolerance` of it lies outside
        the span."""
        shares = (units @ self.vectors).square()  # (b, r)
        outside = 1 - shares.sum(dim=1)
        slope = self._slope(shares, outside)
        return slope if self.q > 1 else torch.where(outside > tolerance, torch.inf, slope)

    def bound(self, change: Tensor) -> Tensor:
        """(c,) upper bounds of the score after a change of rho that the derivative values at `change`.

        T is replaced by its tangent, which only ever raises the score: V (1 + (1 - q) x)^(1 / (1 - q)) with
        x = change / V; exp x at q = 1 and 1 / (1 - x) at q = inf are its limits.
        """
        x, q = change / self.score, self.q
        if q == 1:
            factor = x.exp()
        elif math.isinf(q):
            factor = torch.where(x < 1, 1 / (1 - x), torch.inf)
        else:
            power = torch.log1p((1 - q) * x) / (1 - q)  # NaN below where a tangent of T has fallen to 0
            factor = torch.where((1 - q) * x > -1, power, torch.inf).exp()
        return self.score * factor * (1 + _SLACK)

    def _slope(self, shares: Tensor, outside: Tensor) -> Tensor:
        q, values = self.q, self.values
        if q == 1:
            return self.score * (-(shares @ values.log()) - math.log(self.score))
        if math.isinf(q):
            first = int(values.argmax())
            return self.score * (1 - shares[:, first] / values[first])
        if abs(q - 1) < 0.5:  # both traces less 1, because their quotient is close to 1
            powers = torch.expm1((q - 1) * values.log())
            trace = values @ powers
            lost = torch.where(outside > _OUTSIDE_ROUNDING, outside, 0.0) if q > 1 else 0.0
            ratio = (shares @ powers - lost - trace) / (1 + trace)
        else:
            powers = (values / values.max()) ** (q - 1)
            ratio = (shares @ powers) / (values @ powers) - 1
        return self.score * q / (1 - q) * ratio


def _grams(tables: Tensor) -> Tensor:
    """(k, r, r) the smaller Gram of each of (k, n, f), r = min(n, f)."""
    return tables @ tables.mT if tables.shape[1] <= tables.shape[2] else tables.mT @ tables


def _scores_of_grams(grams: Tensor, n: int, f: int, q: float) -> Tensor:
    """(k,) scores of sets of n unit vectors of f features."""
    if q == 2:
        return n * n / grams.square().sum(dim=(1, 2))
    return effective_number(spectrum(grams / n, max(n, f)), q)
