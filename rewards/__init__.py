"""Rewards and metrics, imported as dragon.rewards; README.md tells how to write one."""

if __name__ != "dragon.rewards":
    # under a second name every class would exist twice, and isinstance and the registry would disagree
    raise ImportError(f"import this package as dragon.rewards, not as {__name__!r}")

from dragon.rewards.clap import ClapResult, ClapScore, clap_score
from dragon.rewards.control import RandomReward
from dragon.rewards.diversity import DiversityResult, diversity
from dragon.rewards.frechet import (
    FrechetResult,
    SongFrechet,
    frechet_distance,
    frechet_distance_from_moments,
    per_song_frechet,
)
from dragon.rewards.function import FunctionReward
from dragon.rewards.judge import JudgeScore
from dragon.rewards.kernel import KernelResult, kernel_distance, median_distance

__all__ = [
    "ClapResult",
    "ClapScore",
    "DiversityResult",
    "FrechetResult",
    "FunctionReward",
    "JudgeScore",
    "KernelResult",
    "RandomReward",
    "SongFrechet",
    "clap_score",
    "diversity",
    "frechet_distance",
    "frechet_distance_from_moments",
    "kernel_distance",
    "median_distance",
    "per_song_frechet",
]
