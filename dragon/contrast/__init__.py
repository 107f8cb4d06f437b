"""Contrast: scores of samples and of whole sets -> pairs of a better and a worse sample, D+ and D-.

Knows scores and protocols of rewards; neither clips nor models.
"""

from __future__ import annotations

from dragon.contrast.credit import Credit, Influence, LeaveOneOut
from dragon.contrast.mixture import RewardMixture
from dragon.contrast.pairs import Contrast, Pairs, all_pairs, best_worst, random_labels
from dragon.contrast.swap import Judge, Mean, Swap, SwapTrace, swap_scorer, swap_variance

__all__ = [
    "Contrast",
    "Credit",
    "Influence",
    "Judge",
    "LeaveOneOut",
    "Mean",
    "Pairs",
    "RewardMixture",
    "Swap",
    "SwapTrace",
    "all_pairs",
    "best_worst",
    "random_labels",
    "swap_scorer",
    "swap_variance",
]
