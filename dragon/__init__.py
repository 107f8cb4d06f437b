"""DRAGON: tune media diffusion models toward rewards of clips and of whole sets of clips.

The public names below load on first use, so that `import dragon` needs neither torch nor a network.
`dragon.rewards` and `dragon.exemplars` live in `rewards/` and `exemplars/` at the root of a checkout and are
installed inside this package (CONTRIBUTING.md, "Packaging").
"""

from __future__ import annotations

import os as _os
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if not _os.path.isdir(_os.path.join(_os.path.dirname(__file__), "rewards")):
    # Run from a checkout: rewards/ and exemplars/ lie beside this folder. Nothing may walk this path.
    __path__.append(_os.path.dirname(_os.path.dirname(_os.path.abspath(__file__))))

if TYPE_CHECKING:
    from dragon.build import Run, build_run
    from dragon.config import TrainConfig, load
    from dragon.errors import DragonError
    from dragon.measure import score
    from dragon.media import Cond, Generation, Media
    from dragon.prompts import PromptSet, load_prompts
    from dragon.registry import register
    from dragon.run import train
    from dragon.scoring import WeightedReward
    from dragon.trainer import StepReport, Trainer, TrainSettings

_PUBLIC = {
    "DragonError": "dragon.errors",
    "Media": "dragon.media",
    "Cond": "dragon.media",
    "Generation": "dragon.media",
    "register": "dragon.registry",
    "score": "dragon.measure",
    "PromptSet": "dragon.prompts",
    "load_prompts": "dragon.prompts",
    "TrainConfig": "dragon.config",
    "load": "dragon.config",
    "Run": "dragon.build",
    "build_run": "dragon.build",
    "Trainer": "dragon.trainer",
    "TrainSettings": "dragon.trainer",
    "WeightedReward": "dragon.scoring",
    "StepReport": "dragon.trainer",
    "train": "dragon.run",
}

__all__ = [
    "Cond",
    "DragonError",
    "Generation",
    "Media",
    "PromptSet",
    "Run",
    "StepReport",
    "TrainConfig",
    "TrainSettings",
    "Trainer",
    "WeightedReward",
    "build_run",
    "load",
    "load_prompts",
    "register",
    "score",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(_import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dragon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
