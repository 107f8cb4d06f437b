"""Contrast: scores of the samples of each prompt -> pairs of a better and a worse sample.

Knows scores only; neither clips nor models.
"""

from __future__ import annotations

from dragon.contrast.mixture import RewardMixture
from dragon.contrast.pairs import Contrast, Pairs, all_pairs, best_worst, random_labels

__all__ = ["Contrast", "Pairs", "RewardMixture", "all_pairs", "best_worst", "random_labels"]
