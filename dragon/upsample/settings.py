"""What an upsampling run can be told, as flags of the command and from Python. Knows neither torch nor arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dragon.errors import ConfigError


@dataclass(frozen=True)
class UpsampleSettings:
    """More transitions: fits a diffusion model to those of a file, draws new ones, and reports on their quality."""

    out: str = ""
    """File to write (.npz), of the keys and types of the one that is read. One that exists is refused."""
    samples: int = 0
    """Transitions to draw."""
    preset: Literal["paper", "small", "tiny"] = "tiny"
    """paper: width 2048, 100,000 steps, for a GPU. small: 1024 and 50,000. tiny: 256 and 10,000, minutes on a CPU."""
    seed: int = 0
    """Of held-out rows, weights, batches and noise."""
    sample_seed: int | None = None
    """Of the rows that are drawn; default: seed. The first N rows of a seed are the same whatever --samples is."""
    env: str = ""
    """Gymnasium task that the transitions come from: gives the action box, and errors of the dynamics in the report."""
    max_steps: int = 0
    """Steps of training; 0: the preset's."""
    learning_rate: float = 0.0
    """At the first step, falling to 0 by a cosine; 0: the preset's."""
    batch_size: int = 0
    """Rows a step; 0: 256, and 1,024 from 800,000 rows."""
    device: str = "cpu"
    flags: Literal["condition", "column"] = "condition"
    """Terminals and other columns of two values: drawn as often as in the data (condition), or modelled as numbers and
    rounded as the published method does (column)."""
    coding: Literal["residual", "plain"] = "residual"
    """Rewards and next observations: what a linear regression on the rest leaves of them, or the numbers themselves."""
    sampler: Literal["churn", "heun", "dpmpp_2m", "euler", "paper"] = "churn"
    """paper with --steps 128 is the published one, at four times the cost."""
    steps: int = 32
    """Of the sampler; churn, heun and paper call the network 2 steps - 1 times."""
    score: str = ""
    """Draw rows of a high score: a column (rewards, NAME, NAME.3), or a file of one number a row (.npy, .txt)."""
    score_quantile: float = 0.9
    """The score to draw for, as a quantile of the data's."""
    guidance: float = 1.0
    """Above 1 exaggerates the score."""
    start: str = ""
    """Model to start from instead of random weights: the folder of another run, whose data has grown since."""
    output_dir: str = ""
    """Folder of model, checkpoints and report; default: --out without .npz."""
    resume_from_checkpoint: str = ""
    """true or latest: go on where the run in the folder stopped; a finished fit is only sampled again. Or a
    checkpoint's folder."""
    save_steps: int = 0
    """Steps between checkpoints; 0: a tenth of all."""
    save_total_limit: int = 2
    """Checkpoints to keep; 0: all."""
    held_out: float = 0.05
    """Share of the rows, at most 5,000, that the fit does not see and the report compares with."""
    report: bool = True
    """Measure the new rows and write quality.json, report.html and pictures."""
    replace: bool = False
    """Write over a file of the name --out."""

    def __post_init__(self) -> None:
        if self.samples < 0 or self.max_steps < 0 or self.save_steps < 0 or self.save_total_limit < 0:
            raise ConfigError(
                f"samples is {self.samples}, max_steps {self.max_steps}, save_steps {self.save_steps} and "
                f"save_total_limit {self.save_total_limit}; expected none of them below 0"
            )
        if self.seed < 0 or (self.sample_seed or 0) < 0:
            raise ConfigError(f"seed is {self.seed} and sample_seed {self.sample_seed}; expected 0 or above")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}; expected a share of the rows, from 0 to below 1")
        if not 0 <= self.score_quantile <= 1:
            raise ConfigError(f"score_quantile is {self.score_quantile}; expected a number from 0 to 1")
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"guidance is {self.guidance}; expected 0 or above, 1 for no exaggeration")
        if self.guidance != 1 and not self.score:
            raise ConfigError(f"guidance is {self.guidance} without a score to guide to; give --score, or leave it 1")
        if self.report and not self.held_out:
            raise ConfigError("held_out is 0 and a report needs rows that the fit has not seen; give --report false")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or self.out.removesuffix(".npz"))

    @property
    def resumed(self) -> bool:
        return self.resume_from_checkpoint.lower() not in ("", "false", "none")
