"""Objectives: what policy and reference predicted on both sides of a pair -> the loss of that pair.

Pure functions of tensors in frozen dataclasses; they know no model, no sampler and no reward.
"""

from __future__ import annotations

from dragon.objectives.dpo import DPO
from dragon.objectives.gains import calibrated_beta, gain, squared_error, zero_point
from dragon.objectives.kto import KTO
from dragon.objectives.nft import NFT
from dragon.objectives.sft import BestOfK

__all__ = ["DPO", "KTO", "NFT", "BestOfK", "calibrated_beta", "gain", "squared_error", "zero_point"]
