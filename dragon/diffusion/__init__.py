"""The diffusion core: schedules, scalings, denoiser, samplers, matching error and EMA.

Torch only. Knows no audio, no transitions, no rewards and no configuration, so that one core serves a
music model and SynthER alike. One coordinate system throughout, Karras et al. (2022):

    x = x0 + sigma * noise

and one contract, `denoise(x, sigma, cond) -> denoised`: x (b, *d), sigma (b,), `cond` opaque (handed on,
never read), the result the expected clean sample (b, *d). Every parameterisation a network may have
been trained in (EDM, epsilon, v, flow) is a `Scaling` between the two.
"""

from __future__ import annotations

from dragon.diffusion.denoiser import Both, Denoise, Denoiser, Guided
from dragon.diffusion.ema import Ema
from dragon.diffusion.matching import denoising_error, logit_normal_sigmas, lognormal_sigmas, uniform_flow_sigmas
from dragon.diffusion.sampling import NoiseSource, SeededNoise, Step, churn, dpmpp_2m, euler, heun, last
from dragon.diffusion.scaling import (
    EDM,
    Clean,
    Epsilon,
    Flow,
    ReversedFlow,
    Scaling,
    VPrediction,
    convert_error,
    cosine_time,
)
from dragon.diffusion.schedule import (
    cosine_sigmas,
    exponential_sigmas,
    flow_sigma,
    flow_sigmas,
    flow_time,
    karras_sigmas,
)

__all__ = [
    "EDM",
    "Both",
    "Clean",
    "Denoise",
    "Denoiser",
    "Ema",
    "Epsilon",
    "Flow",
    "Guided",
    "NoiseSource",
    "ReversedFlow",
    "Scaling",
    "SeededNoise",
    "Step",
    "VPrediction",
    "churn",
    "convert_error",
    "cosine_sigmas",
    "cosine_time",
    "denoising_error",
    "dpmpp_2m",
    "euler",
    "exponential_sigmas",
    "flow_sigma",
    "flow_sigmas",
    "flow_time",
    "heun",
    "karras_sigmas",
    "last",
    "logit_normal_sigmas",
    "lognormal_sigmas",
    "uniform_flow_sigmas",
]
