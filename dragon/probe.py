"""Short held-out evaluations while a run trains: a line of `probes.jsonl` each, and a word on how good the weights are.

Knows a built run and the evaluation, not the loop that asks for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from dragon.build import Run
from dragon.collect import Collected, Progress
from dragon.evaluate import Evaluation
from dragon.files import writing
from dragon.intervals import SMALLEST_SPLIT
from dragon.processes import Processes

PROMPTS = 32
"""Held-out prompts of a probe, one sample each."""


class Probe:
    """Evaluates weights on the first held-out prompts; the base is sampled once.

    after: the step a resumed run starts from; later lines of `path`, of a run that is given up, are removed.
    Every process of a run calls it; the main one writes and speaks.
    """

    def __init__(
        self,
        run: Run,
        path: Path,
        processes: Processes,
        say: Callable[[str], None],
        progress: Progress | None,
        *,
        after: int,
    ) -> None:
        self._run, self._path, self._processes, self._say, self._progress = run, path, processes, say, progress
        self._base: Collected | None = None
        lines = _lines(path, after)
        if processes.main and path.is_file():
            beside = path.with_name(f".{path.name}.partial")
            beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            beside.replace(path)
        self.step = int(lines[-1]["step"]) if lines else -1
        """Step of the last probe; -1 before the first."""
        self.score = _score(lines[-1]["rewards"]) if lines else math.nan
        """Mean win rate of the rewards that are trained on, at the last probe; NaN before the first."""

    def __call__(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Evaluates `weights` and writes what it found."""
        prompts = self._run.eval_prompts.first(PROMPTS)
        result = self._run.evaluate(
            prompts,
            weights,
            samples_per_prompt=1,
            set_size=min(self._run.config.evaluation.set_size, len(prompts) // SMALLEST_SPLIT),
            keep=0,
            same_seed=False,
            base=self._base,
            progress=self._progress,
            processes=self._processes,
        )
        self._base = result.sides["base"]
        line = {
            "step": step,
            "prompts": len(prompts),
            "rewards": {name: found.to_json() for name, found in result.rewards.items()},
            "diversity": result.diversity,
        }
        self.step, self.score = step, _score(line["rewards"])
        with self._processes.together():
            if self._processes.main:
                hint = "make room, then go on with --resume_from_checkpoint latest"
                with writing("a probe", self._path, hint), self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        self._say(f"held out, step {step}: {_in_words(result)}")


def _lines(path: Path, after: int) -> list[dict[str, Any]]:
    """What was found up to step `after`; a line that was cut off is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["step"] <= after:
            found.append(line)
    return found


def _score(rewards: Any) -> float:
    trained = [float(found["win_rate"]) for found in rewards.values() if found["trained_on"]]
    return fmean(trained) if trained else math.nan


def _in_words(result: Evaluation) -> str:
    return ", ".join(
        f"{name} {f.base:.4g} -> {f.tuned:.4g}, win {f.win_rate:.2f} [{f.low:.2f}, {f.high:.2f}]"
        for name, f in result.rewards.items()
    )
