"""Policies: diffusion models that can be sampled and trained beside their frozen start.

`base.DiffusionPolicy` is common to all; `toy` and `mini` each bring one model, `transitions` any model of transitions
that `dragon.synther` fitted, `pipeline` any diffusers pipeline of a family that has its file here.
"""

from __future__ import annotations

from dragon.policy.base import Backbone, DiffusionPolicy
from dragon.policy.mini import MiniPolicy
from dragon.policy.pipeline import Family, PipelinePolicy
from dragon.policy.toy import ToyPolicy
from dragon.policy.transitions import TransitionPolicy
from dragon.policy.tuning import FullTuning, LoraTuning, Tuning

__all__ = [
    "Backbone",
    "DiffusionPolicy",
    "Family",
    "FullTuning",
    "LoraTuning",
    "MiniPolicy",
    "PipelinePolicy",
    "ToyPolicy",
    "TransitionPolicy",
    "Tuning",
]
