"""Rewards and metrics, imported as dragon.rewards; README.md tells how to write one."""

if __name__ != "dragon.rewards":
    # under a second name every class would exist twice, and isinstance and the registry would disagree
    raise ImportError(f"import this package as dragon.rewards, not as {__name__!r}")

from dragon.rewards.aesthetics import Aesthetics, AestheticsHead, load_head
from dragon.rewards.audiobox import Audiobox
from dragon.rewards.centroid import Centroid
from dragon.rewards.clap import ClapResult, ClapScore, clap_score
from dragon.rewards.control import RandomReward
from dragon.rewards.diversity import DiversityResult, diversity
from dragon.rewards.duplicates import Duplicates, DuplicatesResult, duplicate_share
from dragon.rewards.frechet import (
    FrechetResult,
    SongFrechet,
    frechet_distance,
    frechet_distance_from_moments,
    per_song_frechet,
)
from dragon.rewards.function import FunctionReward
from dragon.rewards.heard import Heard
from dragon.rewards.infinity import FrechetInfinityResult, frechet_distance_infinity
from dragon.rewards.judge import JudgeScore
from dragon.rewards.kernel import KernelResult, kernel_distance, median_distance
from dragon.rewards.labels import InceptionResult, KlResult, inception_score, kl_divergence
from dragon.rewards.loudness import integrated_loudness
from dragon.rewards.mad import MadResult, mauve_audio_divergence
from dragon.rewards.neighbours import PrdcResult, prdc
from dragon.rewards.sanity import AudioSanity, Limits, SanityResult, audio_sanity
from dragon.rewards.set_frechet import SetFrechet
from dragon.rewards.set_kernel import SetKernel
from dragon.rewards.set_mean import SetMean
from dragon.rewards.set_vendi import SetVendi
from dragon.rewards.simulator import SimulatorReward
from dragon.rewards.vendi import VendiResult, vendi_score, vendi_score_from_kernel

__all__ = [
    "Aesthetics",
    "AestheticsHead",
    "AudioSanity",
    "Audiobox",
    "Centroid",
    "ClapResult",
    "ClapScore",
    "DiversityResult",
    "Duplicates",
    "DuplicatesResult",
    "FrechetInfinityResult",
    "FrechetResult",
    "FunctionReward",
    "Heard",
    "InceptionResult",
    "JudgeScore",
    "KernelResult",
    "KlResult",
    "Limits",
    "MadResult",
    "PrdcResult",
    "RandomReward",
    "SanityResult",
    "SetFrechet",
    "SetKernel",
    "SetMean",
    "SetVendi",
    "SimulatorReward",
    "SongFrechet",
    "VendiResult",
    "audio_sanity",
    "clap_score",
    "diversity",
    "duplicate_share",
    "frechet_distance",
    "frechet_distance_from_moments",
    "frechet_distance_infinity",
    "inception_score",
    "kernel_distance",
    "kl_divergence",
    "load_head",
    "integrated_loudness",
    "mauve_audio_divergence",
    "median_distance",
    "per_song_frechet",
    "prdc",
    "vendi_score",
    "vendi_score_from_kernel",
]
