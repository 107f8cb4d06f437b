"""Scores of folders of audio, without a trainer: one decoding and one embedding pass, then metrics."""

from __future__ import annotations

from dragon.measure.result import ScoreResult, Value
from dragon.measure.scores import score

__all__ = ["ScoreResult", "Value", "score"]
