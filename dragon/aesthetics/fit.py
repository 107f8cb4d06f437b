"""Opinions and clip vectors -> a linear head, with the score that each clip gets from a head that never saw its group.

Knows tables, neither audio nor the encoder that made them. Features are standardised, then dragon.aesthetics.regression
fits them. Clips are held out by groups: prompts, or files where there are no prompts. Held-out scores are of nested
cross-validation: the strength of the penalty of the head that scores a fold is chosen on the other folds alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike

from dragon.aesthetics.ratings import Floats, Ints, Opinions, Ratings, Votes
from dragon.aesthetics.regression import Logistic, Problem, Ridge, bradley_terry
from dragon.encoders.lookup import EncoderSpec, kept_spec
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.protocols import Encoder
from dragon.rewards.aesthetics import AestheticsHead

STRENGTHS: Floats = np.logspace(-3, 4, 15)
FOLDS = 5
FEWEST_CLIPS = 20


@dataclass(frozen=True, eq=False)
class Fit:
    """A head for raw clip vectors, and what it is worth.

    weight, mean, scale: (f,), bias, unit: as in dragon.rewards.aesthetics. strength: the penalty of the head.
    group, fold: (n,) of each clip. held_out: (n,) score by the head of the other folds, without its constant, so that
    scores compare within a fold. target: (n,) what they are compared with: mean ratings, or strengths by votes.
    """

    weight: Floats
    mean: Floats
    scale: Floats
    bias: float
    unit: str
    strength: float
    group: Ints
    fold: Ints
    held_out: Floats
    target: Floats


def fit(opinions: Opinions, vectors: ArrayLike, *, seed: int = 0) -> Fit:
    """The head, and held-out scores of all clips; vectors (n, f): row i is of opinions.files[i].

    seed: which group falls into which fold.

    Raises:
        ConfigError: fewer than 20 clips, fewer than 5 groups, ratings that are all equal, or votes that never have
            both clips in one fold. ShapeError, NotFinite: of the vectors.
    """
    table = np.asarray(vectors, np.float64)
    n = len(opinions.files)
    if table.ndim != 2 or len(table) != n:
        raise ShapeError(f"clip vectors of shape {table.shape} for {n} clips; expected (clips, features)")
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        raise NotFinite(f"the vector of {opinions.files[row]} holds NaN or infinity")
    check_sizes(opinions)
    group, _ = groups(opinions)
    fold = _folds(group, seed)
    mean, scale = table.mean(0), table.std(0)
    # a feature that hardly varies tells nothing: rounding noise must not be blown up to unit size
    flat = scale <= 1e-9 * np.abs(table).max(0)
    scale[flat] = 1.0
    coordinates, basis = _rotated(np.where(flat, 0.0, (table - mean) / scale))
    problem: Problem = (
        Ridge(coordinates, opinions.means) if isinstance(opinions, Ratings) else Logistic(coordinates, opinions)
    )
    strengths, strength = _choose(problem, fold)
    weight = problem.weights(np.ones(n, bool), [strength])[0]
    return Fit(
        weight=basis @ weight,
        mean=mean,
        scale=scale,
        bias=float(opinions.means.mean()) if isinstance(opinions, Ratings) else 0.0,
        unit="rating" if isinstance(opinions, Ratings) else "logit",
        strength=strength,
        group=group,
        fold=fold,
        held_out=_held_out(problem, fold, strengths),
        target=opinions.means if isinstance(opinions, Ratings) else bradley_terry(opinions),
    )


def head_of(
    fitted: Fit,
    encoder: Encoder,
    spec: EncoderSpec | None = None,
    *,
    figures: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    source: str = "",
    licence: str = "",
) -> AestheticsHead:
    """What the reward `aesthetics` reads: the head with all that it needs to hear clips as it did in fitting.

    spec: how the encoder was named, where its name alone does not make it again. figures, settings: kept in the file.

    Raises:
        ConfigError: options of the encoder that no file can keep.
    """
    plugin, options = ("", {}) if spec is None else kept_spec(spec)
    return AestheticsHead(
        weight=torch.from_numpy(fitted.weight),
        mean=torch.from_numpy(fitted.mean),
        scale=torch.from_numpy(fitted.scale),
        bias=fitted.bias,
        unit=fitted.unit,
        encoder=encoder.name,
        encoder_hash=encoder.fingerprint,
        encoder_plugin=plugin,
        encoder_options=options,
        figures=dict(figures or {}),
        settings={
            "strength": fitted.strength,
            "folds": FOLDS,
            "encoder": dict(getattr(encoder, "settings", {})),
            **(settings or {}),
        },
        source=source,
        licence=licence,
    )


def check_sizes(opinions: Opinions) -> None:
    """Raises ConfigError unless there are enough clips, votes and groups, and ratings that differ."""
    if len(opinions.files) < FEWEST_CLIPS:
        raise ConfigError(
            f"{len(opinions.files)} clips with opinions; a head needs at least {FEWEST_CLIPS}, better hundreds"
        )
    if isinstance(opinions, Votes) and len(opinions.winner) < FEWEST_CLIPS:
        raise ConfigError(f"{len(opinions.winner)} votes; a head needs at least {FEWEST_CLIPS}, better hundreds")
    group, kind = groups(opinions)
    count = int(group.max()) + 1
    if count < FOLDS:
        step = "; without the column prompt, files are held out" if kind == "prompt" else ""
        raise ConfigError(f"{count} groups of clips (each a {kind}); expected at least {FOLDS}, to hold some out{step}")
    if isinstance(opinions, Ratings) and np.ptp(opinions.means) == 0:
        raise ConfigError(f"every clip has the mean rating {opinions.means[0]:g}; expected ratings that differ")


def groups(opinions: Opinions) -> tuple[Ints, str]:
    """(n,) group of each clip, and what a group is. Clips of one group are held out together.

    Votes without prompts: clips that votes link form a group, unless more than half of all clips are linked; then each
    file is one, and a vote between two folds is left out of the heads that score either.
    """
    if opinions.prompts is not None:
        return np.unique(np.array(opinions.prompts), return_inverse=True)[1].astype(np.int64), "prompt"
    if isinstance(opinions, Votes) and np.bincount(linked := opinions.components).max() * 2 <= len(linked):
        return linked, "set of files that votes link"
    return np.arange(len(opinions.files)), "file"


def _choose(problem: Problem, fold: Ints) -> tuple[Floats, float]:
    """The strength for each held-out fold, chosen on the others, and for the head of all clips."""
    lost = np.zeros((FOLDS + 1, len(STRENGTHS)))  # the last row: of heads that saw all but the fold they are tried on
    terms = 0
    for held in range(FOLDS):
        keep = fold != held
        losses, count = problem.losses(keep, ~keep, problem.weights(keep, STRENGTHS))
        lost[FOLDS] += losses
        terms += count
    if not terms:
        raise ConfigError("no vote has both clips in one fold; give more votes a pair of clips, or a column prompt")
    for a, b in combinations(range(FOLDS), 2):  # one fit without both tells of either how it would serve the other
        keep = (fold != a) & (fold != b)
        weights = problem.weights(keep, STRENGTHS)
        lost[a] += problem.losses(keep, fold == b, weights)[0]
        lost[b] += problem.losses(keep, fold == a, weights)[0]
    chosen = STRENGTHS[lost.argmin(1)]
    return chosen[:FOLDS], float(chosen[FOLDS])


def _held_out(problem: Problem, fold: Ints, strengths: Floats) -> Floats:
    """(n,) scores by the heads of the other folds."""
    scores = np.zeros(len(fold))
    for held, strength in enumerate(strengths):
        weight = problem.weights(fold != held, [float(strength)])[0]
        scores[fold == held] = problem.x[fold == held] @ weight
    return scores


def _rotated(x: Floats) -> tuple[Floats, Floats]:
    """(n, r) coordinates and the (f, r) basis of the rows' span: a penalty on length is the same in both.

    With fewer clips than features it makes every fit that much smaller.
    """
    left, values, right = np.linalg.svd(x, full_matrices=False)
    some = values > values[:1].max(initial=0.0) * max(x.shape) * np.finfo(np.float64).eps
    return left[:, some] * values[some], right[some].T


def _folds(group: Ints, seed: int) -> Ints:
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    return (order % FOLDS)[group]
