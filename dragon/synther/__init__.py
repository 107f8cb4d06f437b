"""SynthER: more transitions for reinforcement learning, from a diffusion model of those there are (arXiv 2303.06614).

`fit(transitions, spec, config) -> Upsampler`; `.sample(n, seed)`. On the same denoiser, EDM scaling, samplers, loss and
average as the audio models (`dragon.diffusion`); knows no audio and no rewards of clips.
"""

from __future__ import annotations

from dragon.synther.columns import TransitionSpec
from dragon.synther.fitting import fit
from dragon.synther.readers import from_d3rlpy, from_stable_baselines3, read_transitions
from dragon.synther.selection import likelihoods, select
from dragon.synther.training import PRESETS, FitConfig, preset
from dragon.synther.transitions import Transitions, read_npz, write_npz
from dragon.synther.upsampler import PAPER_SAMPLING, SampleConfig, Upsampler

__all__ = [
    "PAPER_SAMPLING",
    "PRESETS",
    "FitConfig",
    "SampleConfig",
    "TransitionSpec",
    "Transitions",
    "Upsampler",
    "fit",
    "preset",
    "from_d3rlpy",
    "from_stable_baselines3",
    "read_transitions",
    "likelihoods",
    "select",
    "read_npz",
    "write_npz",
]
