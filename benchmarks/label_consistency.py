"""How well a step's labels agree with what a clip is worth to the whole distribution: docs/label_consistency.md.

    python benchmarks/label_consistency.py        # about 15 minutes of one core, most of it sampling, which is kept

Claim: the few clips of a step are a noisy sample of the policy, so which of a prompt's two clips a set reward prefers
depends on the other clips of that step; credits at a large queue depend on them least. The untuned model's clips for
prompts that name no style stand for its distribution: the truth is the sign of the difference of two clips' influence
at half of them, and all labels are made of the other half. Prints JSON and writes the table, with how near a swap
search comes to the best of all splits of 8 pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from dragon.build import build
from dragon.config import Spec
from dragon.contrast import Judge, Swap, swap_scorer
from dragon.contrast.credit import influence, leave_one_out
from dragon.mini import prompts
from dragon.policy.mini import MiniPolicy
from dragon.protocols import SetReward

ROOT = Path(__file__).parents[1]
REWARDS: Mapping[str, Spec] = {
    "dataset FAD to disco, codec frames": Spec("set_frechet", {"exemplars": "mini_disco"}),
    "dataset FAD to disco, shared space": Spec("set_frechet", {"exemplars": "mini_disco_shared"}),
    "dataset KAD to disco, shared space": Spec("set_kernel", {"exemplars": "mini_disco_shared"}),
    "Vendi": Spec("vendi", {"encoder": "mini"}),
}
PAIRS = (16, 32, 64, 128, 256)
QUEUE = 1024


def sampled(rewards: Mapping[str, SetReward], work: Path, clips: int) -> dict[str, Tensor]:
    """Features for every reward, each clip sampled and decoded once for all of them."""
    files = {name: work / f"features_{i}.npy" for i, name in enumerate(rewards)}
    if not all(path.exists() and len(np.load(path, mmap_mode="r")) == clips for path in files.values()):
        policy, texts = MiniPolicy(), prompts("open_train")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in rewards}
        for start in range(0, clips, 32):
            rows = range(start, min(start + 32, clips))
            asked, seeds = [texts[row // 2] for row in rows], [9_000_000 + row for row in rows]
            media = policy.decode(policy.generate(asked, seeds, steps=8, guidance=2.0))
            for name, reward in rewards.items():
                parts[name].append(reward.embed(media).numpy().astype(np.float32))
        work.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            np.save(path, np.concatenate(parts[name]))
    return {name: torch.from_numpy(np.load(path)) for name, path in files.items()}


def by_search(kind: str) -> Callable[[SetReward, Tensor, Tensor, Generator], Tensor]:
    """Labels by swap search: whether the first of each pair became positive."""

    def labels(reward: SetReward, own: Tensor, queue: Tensor, generator: Generator) -> Tensor:
        judge = Judge(swap_scorer(reward, own), swap_scorer(reward, own))
        pairs, _ = Swap(kind).search([judge], torch.ones(len(own) // 2, 2, dtype=torch.bool), generator)
        return pairs.positive % 2 == 0

    return labels


def first_higher(credit: Tensor) -> Tensor:
    """(pairs,) bool."""
    return credit[0::2] > credit[1::2]


METHODS: Mapping[str, Callable[[SetReward, Tensor, Tensor, Generator], Tensor]] = {
    "swap, difference": by_search("difference"),
    "swap, positive": by_search("positive"),
    "leave-one-out": lambda reward, own, queue, generator: first_higher(leave_one_out(reward, own)),
    "influence, own clips": lambda reward, own, queue, generator: first_higher(influence(reward, own, own)),
    f"influence, queue of {QUEUE:,}": lambda reward, own, queue, generator: first_higher(
        influence(reward, torch.cat([queue, own])[-QUEUE:], own)
    ),
}


def agreement(reward: SetReward, table: Tensor, draws: int) -> dict[str, dict[str, list[float]]]:
    """Method -> pairs -> [mean, low, high] share of pairs labelled as the distribution would; 95 % over draws."""
    half = len(table) // 4 * 2
    truth, table = first_higher(influence(reward, table[:half], table[half:])), table[half:]
    found: dict[str, dict[str, list[float]]] = {}
    for method, label in METHODS.items():
        found[method] = {}
        for count in (count for count in PAIRS if 4 * count <= len(table)):  # else the queue would be the truth
            shares = []
            for draw in range(draws):
                generator = Generator().manual_seed(draw)
                order = torch.randperm(len(table) // 2, generator=generator)
                chosen, others = order[:count], order[count:]
                own = table[(2 * chosen[:, None] + torch.arange(2)).flatten()]
                queue = table[(2 * others[:, None] + torch.arange(2)).flatten()]
                shares.append(float((label(reward, own, queue, generator) == truth[chosen]).double().mean()))
            mean, error = float(np.mean(shares)), 1.96 * float(np.std(shares, ddof=1)) / len(shares) ** 0.5
            found[method][str(count)] = [mean, mean - error, mean + error]
    return found


def gap_to_brute_force(reward: SetReward, table: Tensor, draws: int, pairs: int = 8) -> dict[str, float]:
    """What a search gains over a random split, as a share of what the best of all 2^pairs splits gains."""
    shares = []
    for draw in range(draws):
        generator = Generator().manual_seed(draw)
        chosen = torch.randperm(len(table) // 2, generator=generator)[:pairs]
        own = table[(2 * chosen[:, None] + torch.arange(2)).flatten()]
        rows = 2 * torch.arange(pairs)
        sides = torch.stack([rows + torch.tensor(bits) for bits in itertools.product((0, 1), repeat=pairs)])
        scores = reward.score_sets(own, sides).double()
        objective = scores - scores.flip(0)  # the reversed order holds the other member of every pair
        judge = Judge(swap_scorer(reward, own), swap_scorer(reward, own))
        _, trace = Swap().search([judge], torch.ones(pairs, 2, dtype=torch.bool), generator)
        shares.append(trace.end / float(objective.max()))  # a random split has objective 0 on average
    return {
        "mean": float(np.mean(shares)),
        "worst": float(np.min(shares)),
        "exact": float(np.mean(np.isclose(shares, 1))),
    }


def page(figures: Mapping[str, dict], settings: str) -> str:
    """docs/label_consistency.md."""
    lines = [
        "# Do a step's labels agree with the whole distribution's?",
        "",
        f"Made by `python benchmarks/label_consistency.py {settings}. A cell is the share of pairs (two samples of a "
        "prompt) whose better clip, by a set of so many pairs, is also the better one by its influence on a set of "
        "half of these clips, none of which the label knows, with a 95 % interval over draws; chance is 50 %. Draws "
        "share one pool of clips and one model. The truth is an influence, as two of the labels are: a label that "
        "means something else by a clip's worth can only come near it.",
    ]
    for name, found in figures.items():
        brute = found["brute_force"]
        counts = list(next(iter(found["agreement"].values())))
        lines += ["", f"## {name}", "", "| labels by | " + " | ".join(f"{count} pairs" for count in counts) + " |"]
        lines.append("| --- |" + " --- |" * len(counts))
        for method, cells in found["agreement"].items():
            shown = [f"{100 * m:.0f} [{100 * lo:.0f}, {100 * min(hi, 1):.0f}]" for m, lo, hi in cells.values()]
            lines.append(f"| {method} | " + " | ".join(shown) + " |")
        lines += [
            "",
            f"One swap search on 8 pairs reaches {100 * brute['mean']:.1f} % of the best of all 256 splits "
            f"(worst draw {100 * brute['worst']:.1f} %); it is the best in {100 * brute['exact']:.0f} % of draws.",
        ]
    return "\n".join(lines) + "\n"


def main(work: Path, clips: int, draws: int, out: Path) -> None:
    """Samples, labels, writes."""
    rewards = {name: build("reward", spec) for name, spec in REWARDS.items()}
    tables = sampled(rewards, work, clips)
    figures = {
        name: {
            "agreement": agreement(reward, tables[name], draws),
            "brute_force": gap_to_brute_force(reward, tables[name], 2 * draws),
        }
        for name, reward in rewards.items()
    }
    print(json.dumps(figures, indent=1))
    settings = (
        f"--clips {clips} --draws {draws}`: {clips:,} clips of the untuned model (8 steps, guidance 2, two a prompt "
        f"of mini:open_train), {draws} draws, "
        f"{platform.machine()}, torch {torch.__version__}"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(figures, settings), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "label_consistency")
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "label_consistency.md")
    options = parser.parse_args()
    main(options.work, options.clips, options.draws, options.out)
