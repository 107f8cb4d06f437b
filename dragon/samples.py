"""Clips of a tuned or untuned model, for the ear: what `dragon sample` does.

Knows policies by their protocol and how a run folder is read; measures nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from dragon.build import build_policy
from dragon.clips import write_clip
from dragon.config import Spec, TrainConfig
from dragon.errors import ConfigError
from dragon.files import writing
from dragon.media import Generation
from dragon.policy.base import check_sampling
from dragon.prompts import load_prompts
from dragon.protocols import Policy
from dragon.registry import available
from dragon.run import load_tuned
from dragon.tables import csv_writer
from dragon.texts import short, writable

SEED_BLOCK = 1_000_003
"""Clip i of `--seed s` is generated with s * SEED_BLOCK + i, as samples.csv says."""


@dataclass(frozen=True)
class SampleRequest:
    """Which clips to make. Clip i has the noise of (seed, i), tuned or not; no two clips of a folder share one."""

    prompt: tuple[str, ...] = ()
    """Prompts, in quotes."""
    prompts: str = ""
    """A prompt file, or mini:train, mini:dev, mini:test; with --count, its first ones."""
    count: int = 8
    """Prompts taken from the file."""
    samples_per_prompt: int = 1
    output_dir: str = "samples"
    """New folder for the clips and samples.csv."""
    seed: int = 0
    steps: int = 0
    """Solver steps; 0: as many as the run's evaluation used."""
    guidance: float = -1.0
    """Classifier-free guidance; below 0: the run's evaluation's."""
    base: bool = False
    """The model as it was before tuning."""
    device: str = "cpu"


def write_samples(model: str, wanted: SampleRequest, batch_size: int = 32) -> Iterator[Path]:
    """Samples `model` (a run folder, or the name of a policy) and writes the clips; yields each file.

    Raises:
        ConfigError: no such model, no prompts, or a folder that holds something. Unwritable: it cannot be written.
    """
    prompts = (*wanted.prompt, *(load_prompts(wanted.prompts).first(wanted.count).prompts if wanted.prompts else ()))
    if not prompts:
        raise ConfigError('no prompts; give --prompt "slow piano" or --prompts FILE')
    for name, value in (("samples_per_prompt", wanted.samples_per_prompt), ("count", wanted.count)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    if wanted.seed < 0:
        raise ConfigError(f"seed is {wanted.seed}; expected 0 or above")
    for text in (*prompts, wanted.output_dir):
        if not writable(text):
            raise ConfigError(f"{short(text)} holds a NUL or half a character; expected text")
    folder = Path(wanted.output_dir)
    if os.path.exists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output_dir {str(folder)!r} holds something already; choose another --output_dir")
    config, policy = _load(model, wanted.device)
    steps = wanted.steps or config.evaluation.steps
    guidance = config.evaluation.guidance if wanted.guidance < 0 else wanted.guidance
    check_sampling(steps, guidance)
    policy.encode(prompts)  # a prompt that the model refuses must not leave a folder behind
    # one noise for all prompts would make a folder less diverse than the model, and its FAD worse; blocks that do not
    # overlap, since folders of seeds 0 and 1 must not share noise either
    repeated = [prompt for prompt in prompts for _ in range(wanted.samples_per_prompt)]
    asked = [(prompt, wanted.seed * SEED_BLOCK + i) for i, prompt in enumerate(repeated)]
    with (
        policy.reference() if wanted.base else nullcontext(),
        writing("the clips", folder, "make room or allow it, or choose another --output_dir"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv_writer(file)
            table.writerow(("file", "prompt", "seed", "rate", "seconds"))
            for start in range(0, len(asked), batch_size):
                texts, seeds = zip(*asked[start : start + batch_size], strict=True)
                made: Generation = policy.generate(texts, seeds, steps=steps, guidance=guidance)
                clips = policy.decode(made)
                for row in range(len(clips)):
                    written = write_clip(clips, row, folder / f"{start + row:04d}")
                    seconds = "" if written.seconds is None else round(written.seconds, 4)
                    rate = "" if written.rate is None else written.rate
                    table.writerow((written.path.name, made.prompts[row], made.seeds[row], rate, seconds))
                    yield written.path


def _load(model: str, device: str) -> tuple[TrainConfig, Policy]:
    if os.path.isfile(Path(model) / "config.yaml"):  # pathlib would raise for a name that is too long
        return load_tuned(Path(model), device)
    if model in available("policy") or ":" in model:
        config = TrainConfig(policy=Spec(model), device=device)
        return config, build_policy(config)
    known = ", ".join(available("policy"))
    raise ConfigError(f"{short(model)} is neither a run folder (with a config.yaml) nor a policy ({known})")
