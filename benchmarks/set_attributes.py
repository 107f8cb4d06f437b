"""Which attributes the built-in readers hear in a tuned model's clips and in its base's. Part of set_tuning.py.

The exemplars' works are all of one style; every other attribute is drawn evenly, whatever the style
(recipes/mini/world.py). So the style should move, and how far the rest moves is what tuning spoils.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from dragon.mini import load_readers
from dragon.prompts import load_prompts
from dragon.protocols import Policy
from dragon.run import load_tuned

PROMPTS, SAMPLES, BATCH = 128, 2, 32
SIDES = {"base": 0, "again": 1, "tuned": 2}
"""Side -> its seeds; "again" is the base once more, which tells how far chance moves a distribution."""

Shares = dict[str, dict[str, float]]
"""Attribute -> value -> share of clips."""


def heard(folder: Path) -> dict[str, Shares]:
    """What is heard in samples of a run's held-out prompts, by side."""
    config, policy = load_tuned(folder)
    texts = list(load_prompts(config.eval_prompts).prompts[:PROMPTS]) * SAMPLES
    found = {}
    for side, which in SIDES.items():
        with nullcontext() if side == "tuned" else policy.reference():
            seeds = range(which * len(texts), (which + 1) * len(texts))
            found[side] = _shares(policy, texts, seeds, config.evaluation.steps, config.evaluation.guidance)
    return found


@torch.no_grad()
def _shares(policy: Policy, texts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Shares:
    readers = load_readers()
    counts: dict[str, Counter[str]] = {name: Counter() for name in readers.attributes}
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        media = policy.decode(policy.generate(texts[part], seeds[part], steps=steps, guidance=guidance))
        for name, values in readers.read(media.tensor.mean(dim=1)).items():
            counts[name].update(values)
    return {name: {value: n / len(texts) for value, n in sorted(counts[name].items())} for name in counts}


def variation(one: dict[str, float], other: dict[str, float]) -> float:
    """Total variation distance: the share of clips that would have to change their value."""
    return sum(abs(one.get(value, 0.0) - other.get(value, 0.0)) for value in one.keys() | other.keys()) / 2


def lines(rows: Sequence[dict]) -> list[str]:
    """A table: how far each attribute's distribution moved, by row; nothing if no run was read."""
    read = [row for row in rows if row["heard"]]
    if not read:
        return []
    names = list(read[0]["heard"][0]["base"])
    table = [f"| row | seeds | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for row in read:
        name = f"control: {row['name']}" if row["control"] else row["name"]
        table.append(_line(name, row["heard"], "tuned", names))
    return [*table, _line("the base beside itself", read[0]["heard"][:1], "again", names)]  # the same for all runs


def _line(name: str, runs: Sequence[dict[str, Shares]], side: str, names: Sequence[str]) -> str:
    cells = [sum(variation(run["base"][n], run[side][n]) for run in runs) / len(runs) for n in names]
    return f"| {name} | {len(runs)} | " + " | ".join(f"{100 * cell:.0f}" for cell in cells) + " |"
