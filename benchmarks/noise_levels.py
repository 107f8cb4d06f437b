"""At which noise levels a reward's contrast teaches anything: docs/noise_levels.md.

    python benchmarks/noise_levels.py                 # about 10 CPU-minutes

Claim: on the built-in model the gradient of "best of k minus worst of k" is common to different prompts at high
noise, and mostly particular to its pairs below. Training is therefore restricted to high noise (`t_min` of the
policy): everywhere else it adds steps in random directions.

Pairs of different prompts are dealt into groups. The cosine between two groups' gradients is the share of a group's
squared gradient that is common to all prompts (0: only noise); its interval is over pairs of groups, taken as
independent. All adapters
are at their start, so this is what the first update sees.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dragon.contrast import best_worst
from dragon.mini import prompts
from dragon.objectives import squared_error
from dragon.policy.mini import MiniPolicy
from dragon.protocols import InstanceReward, Noising
from dragon.rewards.clap import ClapScore
from dragon.rewards.frechet import SongFrechet

ROOT = Path(__file__).parents[1]
TIMES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99)


def roll_out(policy: MiniPolicy, rewards: list[InstanceReward], texts: list[str], k: int) -> tuple[Tensor, Tensor]:
    """(m, k, *d) latents and (rewards, m, k) scores of the untuned model."""
    latents, scores = [], []
    for i in range(0, len(texts), 8):
        rows = [text for text in texts[i : i + 8] for _ in range(k)]
        made = policy.generate(rows, range(i * k, i * k + len(rows)), steps=8, guidance=2.0)
        media = policy.decode(made)
        latents.append(made.latents.unflatten(0, (-1, k)))
        scores.append(torch.stack([reward.score(media).unflatten(0, (-1, k)) for reward in rewards]))
    return torch.cat(latents), torch.cat(scores, 1)


def gradient(policy: MiniPolicy, texts: list[str], winners: Tensor, losers: Tensor, time: float, seed: int) -> Tensor:
    """Gradient of the winners' denoising error minus the losers', at one flow time and shared noise, as one vector."""
    noise = torch.randn(winners.shape, generator=torch.Generator().manual_seed(seed))
    noising, cond = Noising(torch.full((len(texts),), time / (1 - time)), noise), policy.encode(texts)
    for parameter in policy.trainable().values():
        parameter.grad = None
    errors = [squared_error(policy.target(x, noising), policy.predict(x, noising, cond)) for x in (winners, losers)]
    (errors[0] - errors[1]).mean().backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None])


def common_share(gradients: list[Tensor]) -> tuple[float, float]:
    """Mean cosine between different groups' gradients, and half its 95 % interval."""
    unit = torch.nn.functional.normalize(torch.stack(gradients), dim=1)
    cosines = (unit @ unit.T)[tuple(torch.triu_indices(len(unit), len(unit), 1))].numpy()
    return float(cosines.mean()), float(1.96 * cosines.std(ddof=1) / np.sqrt(len(cosines)))


def main(count: int, groups: int, out: Path) -> None:
    """Measures both rewards of the demo at all times."""
    policy = MiniPolicy(precision="bfloat16")
    rewards: list[InstanceReward] = [SongFrechet("mini_music"), ClapScore()]
    texts = prompts("train")[:count]
    latents, scores = roll_out(policy, rewards, texts, k=4)
    found: dict[str, list[tuple[float, float]]] = {}
    for reward, table in zip(rewards, scores, strict=True):
        pairs = best_worst()(table, torch.Generator().manual_seed(0))
        winners, losers = (latents.flatten(0, 1)[index] for index in (pairs.positive, pairs.negative))
        asked = [texts[i // 4] for i in pairs.positive.tolist()]
        found[reward.name] = []
        for time in TIMES:
            parts = [slice(g, None, groups) for g in range(groups)]
            found[reward.name].append(
                common_share([gradient(policy, asked[p], winners[p], losers[p], time, g) for g, p in enumerate(parts)])
            )
            print(
                f"{reward.name} t {time}: {found[reward.name][-1][0]:.3f} +- {found[reward.name][-1][1]:.3f}",
                flush=True,
            )
    print(json.dumps({"pairs_per_group": count // groups, "groups": groups, "times": TIMES, "cosine": found}))
    lines = [
        "# Where the signal is",
        "",
        f"Made by `python benchmarks/noise_levels.py`: {groups} groups of {count // groups} best-against-worst pairs",
        "(4 samples a prompt, 8 steps, guidance 2, network in bfloat16) of the untuned built-in model. Cosine between",
        "the gradients of two groups, by flow time (1 is pure noise): the share that pairs of different prompts have",
        "in common. 95 % intervals treat pairs of groups as independent.",
        "",
        "| reward | " + " | ".join(f"t {time}" for time in TIMES) + " |",
        "| --- |" + " --- |" * len(TIMES),
    ]
    for name, values in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f} ± {half:.2f}" for mean, half in values) + " |")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=288)
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "noise_levels.md")
    options = parser.parse_args()
    main(options.prompts, options.groups, options.out)
