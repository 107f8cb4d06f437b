"""What the training stages share: a budget of CPU time, a learning rate that follows it, atomic state files."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch


class Budget:
    """Counts this process's CPU seconds against a budget; `spent` carries over from an earlier run."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.total = minutes * 60.0
        self._start = time.process_time() - spent

    @property
    def spent(self) -> float:
        """CPU seconds."""
        return time.process_time() - self._start

    @property
    def fraction(self) -> float:
        """Of the budget, 0 to 1."""
        return min(1.0, self.spent / self.total)

    def rate(self, peak: float, step: int, warmup: int = 100) -> float:
        """A learning rate: linear warm-up over steps, then a cosine to 2 % over the budget."""
        return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.fraction)))


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes beside, then renames: an interrupt leaves the old file whole."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


class Average:
    """Exponential average of a module's parameters, with a decay that rises from 0."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        """One step; `step` counts from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, p in module.named_parameters():
            self.values[name].lerp_(p, weight)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Sets the module's parameters to the average."""
        for name, p in module.named_parameters():
            p.copy_(self.values[name])
