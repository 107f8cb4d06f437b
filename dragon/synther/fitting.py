"""Transitions -> a fitted `Upsampler`: layout, training, the averaged weights.

Knows each of them, and what a model to start from must have in common with the new fit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.synther.columns import Layout, TransitionSpec, fit_layout
from dragon.synther.network import ResidualMLP
from dragon.synther.training import Fit, FitConfig
from dragon.synther.transitions import Transitions
from dragon.synther.upsampler import Scores, Upsampler, unit_of

Progress = Callable[[int, int, float], None]
"""(step, of how many, loss)."""

KEPT = 65_536  # rows of flags and scores that a model keeps


def fit(
    transitions: Transitions,
    spec: TransitionSpec | None = None,
    config: FitConfig | None = None,
    *,
    scores: Scores | None = None,
    start: Upsampler | None = None,
    progress: Progress | None = None,
) -> Upsampler:
    """A model of `transitions`; spec and config: None for their defaults.

    scores: (n,) one number a row that samples can be asked for (return, curiosity, TD error). start: a model to begin
    from, with whose layout these transitions are coded: data that has grown.

    Raises:
        ConfigError, ShapeError, NotFinite: see `Transitions`, `fit_layout`, `prepare` and `Fit.steps`.
    """
    if start is not None and spec is not None:
        raise ConfigError("both spec and start are given; expected one: a model goes on with the layout it has")
    training, layout, score_rows = prepare(
        transitions, spec or TransitionSpec(), config or FitConfig(), scores=scores, start=start
    )
    for loss in training.steps():
        if progress:
            progress(training.step, training.config.max_steps, loss)
    return finished(training, layout, score_rows)


def prepare(
    transitions: Transitions,
    spec: TransitionSpec,
    config: FitConfig,
    *,
    scores: Scores | None = None,
    start: Upsampler | None = None,
) -> tuple[Fit, Layout, Tensor | None]:
    """The fit at step 0, the layout and the (n,) scores: for those who run the loop themselves.

    With `start` the layout is its own, of bounds that hold the new rows, too; spec counts for nothing then.

    Raises:
        ConfigError: scores on one side only of `start` and the new fit, or another network than that of `start`.
    """
    layout = fit_layout(transitions, spec) if start is None else start.layout.widened(transitions)
    score_rows = None if scores is None else _checked(scores, len(transitions))
    if start is not None:
        _check_start(start, config, score_rows is not None)
    rows, flags = layout.encode(transitions)
    standard = None
    if score_rows is not None:
        mean, std = unit_of(score_rows)
        standard = (score_rows - mean) / std
    training = Fit(rows, flags, standard, config, known=layout.known, open_flags=layout.open_flags)
    if start is not None:
        training.warm_start(start.net.state_dict())
    return training, layout, score_rows


def finished(training: Fit, layout: Layout, score_rows: Tensor | None) -> Upsampler:
    """The model with the averaged weights."""
    net = ResidualMLP(**training.net.settings).to(training.rows.device)
    net.load_state_dict(training.net.state_dict() | training.ema.state_dict())
    flags = training.flags.cpu()
    keys = [*([] if score_rows is None else [score_rows.numpy()]), *flags.T.numpy()[::-1]]
    order = torch.from_numpy(np.lexsort(keys)) if keys else torch.arange(len(flags))
    kept = order[torch.linspace(0, len(order) - 1, min(len(order), KEPT), dtype=torch.float64).round().long()]
    return Upsampler(
        net,
        layout,
        training.config,
        flags[kept].contiguous(),
        None if score_rows is None else score_rows[kept].contiguous(),
        None if score_rows is None else unit_of(score_rows),
    )


def _check_start(start: Upsampler, config: FitConfig, scored: bool) -> None:
    if scored != (start.score_rows is not None):
        raise ConfigError(
            f"the model to start from was fitted {'without' if scored else 'with'} scores and the new data comes "
            f"{'with' if scored else 'without'}; give scores to both or to none"
        )
    for name in ("width", "inner", "depth", "sigma_data"):
        there, here = getattr(start.config, name), getattr(config, name)
        if there != here:
            raise ConfigError(f"{name} is {here}; expected {there}, as in the model to start from")
    if (start.config.predict_share > 0) != (config.predict_share > 0):
        raise ConfigError(
            f"predict_share is {config.predict_share} and was {start.config.predict_share} in the model to start from; "
            "expected both above 0, or neither"
        )


def _checked(scores: Scores, n: int) -> Tensor:
    found = torch.as_tensor(np.asarray(scores, dtype=np.float32))
    if found.shape != (n,):
        raise ShapeError(f"scores have shape {tuple(found.shape)}; expected ({n},), one a transition")
    if not bool(found.isfinite().all()):
        raise NotFinite(f"scores hold NaN or infinity in row {int((~found.isfinite()).nonzero()[0])}")
    if bool((found == found[0]).all()):
        raise ConfigError(f"scores are {float(found[0]):g} in every row; expected scores that differ")
    return found
