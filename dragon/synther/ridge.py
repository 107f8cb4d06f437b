"""Ridge regression of many outputs on the same inputs, its strength chosen by the data.

Knows matrices only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STRENGTHS = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
"""Added to the correlation matrix of the inputs; the first is as good as none."""
_EXACT = 1e-9  # shares of variance below are rounding


def ridge(inputs: Floats, outputs: Floats) -> Floats:
    """(1 + p, q) intercept and slopes of (n, q) outputs on (n, p) inputs.

    One strength for all outputs: that of the least generalised cross-validation, so that few rows and many inputs do
    not end in a line through every row. Constant inputs have slope 0.

    Source: Golub, Heath & Wahba (1979), Technometrics 21.
    """
    n = len(inputs)
    middle, spread = inputs.mean(0), inputs.std(0)
    varying = spread > 1e-12 * np.abs(inputs).max(0, initial=1e-300)
    scaled = np.where(varying, inputs - middle, 0.0) / np.where(varying, spread, 1.0)
    centre = outputs.mean(0)
    values, axes = np.linalg.eigh(scaled.T @ scaled / n)
    values = values.clip(0)
    along = axes.T @ (scaled.T @ (outputs - centre) / n)
    slopes = axes @ (along / (values + _strength(values, along, outputs.var(0), n))[:, None])
    slopes = slopes / np.where(varying, spread, 1.0)[:, None]
    return np.concatenate([(centre - middle @ slopes)[None], slopes])


def _strength(values: Floats, along: Floats, variance: Floats, n: int) -> float:
    """The strength of the least share of variance left (geometric mean) over (1 - degrees of freedom / n)^2."""
    best, least = STRENGTHS[-1], np.inf
    live = variance > 0
    for strength in STRENGTHS if live.any() else ():
        taken = ((values + 2 * strength) / (values + strength) ** 2) @ np.square(along[:, live])
        left = np.log((1 - taken / variance[live]).clip(_EXACT)).mean()
        freedom = (1 + (values / (values + strength)).sum()) / n
        error = left - 2 * np.log(1 - freedom) if freedom < 1 else np.inf
        if error < least:
            best, least = strength, error
    return best
