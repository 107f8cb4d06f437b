"""What set rewards cost in training: swap searches and credits of dataset FAD, docs/set_search.md.

    python benchmarks/set_search.py                  # about 4 CPU-minutes, one thread

Claim: a set reward in float64 need not slow training down. Shares are of an iteration of the built-in model, the
smallest that is tuned here: sampling, decoding, scoring and updates of as many clips. One sweep of a swap search asks
two neighbours a prompt, of D+ and of D-; without projected frames and low-rank updates each is a matrix square root of
the frames' whole covariance. Times are CPU seconds of one thread. What takes minutes is timed once and multiplied; the
table says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import sqrtm
from seeded_runs import ROOT, processor
from torch import Generator, Tensor

from dragon.build import build_run
from dragon.config import load
from dragon.contrast import Judge, LeaveOneOut, Swap
from dragon.exemplars import ExemplarSet
from dragon.media import Media
from dragon.rewards.frechet_sets import covariances, root_traces
from dragon.rewards.set_frechet import SetFrechet

PAIRS, QUEUE, FEATURES = 64, 2048, 512
FRAMES = (1, 32)


@dataclass(frozen=True)
class Table:
    """An encoder of frames that come ready-made."""

    features: int
    name: str = "table"
    fingerprint: str = "table"

    def embed_media(self, media: Media) -> Tensor:
        return media.tensor


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def frames(clips: int, each: int, size: int, seed: int) -> Tensor:
    """(clips, each, size) float32 with a spectrum that falls by 100, frames of a clip alike."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1, size)
    own = torch.randn(clips, 1, size, generator=generator)
    return (0.7 * own + torch.randn(clips, each, size, generator=generator) + 0.2) * spread


def sweep(reward: SetFrechet, features: Tensor) -> float:
    """Every prompt visited once: both neighbours asked for, the swap kept where r(D+) - r(D-) rises."""
    positive, negative = reward.swap_scorer(features), reward.swap_scorer(features)
    ahead = torch.arange(0, len(features), 2)
    positive.start(ahead)
    negative.start(ahead + 1)
    for up in range(0, len(features), 2):
        there, here = torch.tensor([up]), torch.tensor([up + 1])
        gain = float(positive.neighbours(there, here)) - positive.value
        gain -= float(negative.neighbours(here, there)) - negative.value
        if gain > 0:
            positive.swap(up, up + 1)
            negative.swap(up + 1, up)
    return positive.value - negative.value


def by_square_root(reward: SetFrechet, features: Tensor) -> float:
    """One set, as FAD tools do it: covariance, then scipy's square root of the product of covariances."""
    table = features.flatten(0, 1).double().numpy()
    cov, mean = np.cov(table.T), table.mean(axis=0)
    other = reward.exemplars.cov.numpy()
    root = np.trace(sqrtm(cov @ other)).real
    gap = mean - reward.exemplars.mean.numpy()
    return -float(gap @ gap + np.trace(cov) + np.trace(other) - 2 * root)


def by_eigenvalues(factor: Tensor, features: Tensor) -> Tensor:
    """Trace terms of 4 sets (4, n, f), each projected and multiplied out anew, by one batched eigvalsh."""
    z = features.double() @ factor.mT
    return root_traces(covariances(z.mT @ z, z.sum(1), z.shape[1]))


def measure(size: int, pairs: int, each: int, queue: int) -> dict[str, float]:
    table = frames(4 * size, 1, size, 99)[:, 0].double()
    reward = SetFrechet(ExemplarSet("given", "table", "table", table.mean(0), table.mT.cov(), len(table)), Table(size))
    features = frames(2 * pairs, each, size, each)
    found = {"sweep": seconds(lambda: sweep(reward, features))}
    judge = Judge(reward.swap_scorer(features), reward.swap_scorer(features))
    here = torch.arange(0, 2 * pairs, 2)
    there, other = (
        t.flatten()[: pairs**2 if each == 1 else pairs] for t in torch.meshgrid(here, here + 1, indexing="ij")
    )
    judge.positive.start(here)
    found["swap"] = seconds(lambda: judge.positive.neighbours(there, other)) / len(there)
    usable = torch.ones(pairs, 2, dtype=torch.bool)
    for objective in ("difference", "positive"):
        asked: list[int] = []

        def whole(objective: str = objective, asked: list[int] = asked) -> None:
            trace = Swap(objective).search([judge], usable, Generator().manual_seed(0))[1]
            asked.extend((trace.passes, trace.asked, trace.screened))

        found[f"search, {objective}"] = seconds(whole)
        found |= _named(objective, asked)
    half = features[::2]
    found["square root, one set"] = seconds(lambda: by_square_root(reward, half))
    factor = reward.exemplars.gaussian().factor
    four = torch.stack([half.flatten(0, 1)] * 4)
    found["eigenvalues, one set"] = seconds(lambda: by_eigenvalues(factor, four)) / 4
    found["leave-one-out"] = seconds(lambda: LeaveOneOut().score(reward, features))
    held = frames(queue, each, size, 7)
    found["influence"] = seconds(lambda: reward.influence(held, features))
    return found


def iteration(pairs: int) -> float:
    """An iteration of the built-in model that gives so many pairs, the second of a run; all else as configured."""
    changes = {"rollout.prompts_per_step": pairs, "num_generations": 2, "max_steps": 2}
    steps = build_run(load(ROOT / "configs" / "mini_set_fad.yaml", changes)).trainer().run()
    next(steps)
    return seconds(lambda: next(steps))


def main(size: int, pairs: int, queue: int, out: Path) -> None:
    """Measures clips of one frame and of many."""
    torch.set_num_threads(1)
    measure(16, 4, 2, 8)  # what is loaded on first use
    found = {each: measure(size, pairs, each, queue) for each in FRAMES}
    whole = iteration(pairs)
    figures = {"features": size, "pairs": pairs, "queue": queue, "frames": found, "iteration": whole}
    print(json.dumps({**figures, "cpu": processor()}))
    sets = 2 * pairs + 2  # two neighbours a prompt and the two sets themselves
    clips = 2 * pairs
    rows: list[tuple[str, Callable[[dict[str, float]], str]]] = [
        ("one sweep", lambda f: _shared(f["sweep"], whole)),
        (
            f"the same by square roots, {sets} times one",
            lambda f: _times(sets * f["square root, one set"], f["sweep"]),
        ),
        (
            f"the same by eigenvalues of sets made anew, {sets} times one",
            lambda f: _times(sets * f["eigenvalues, one set"], f["sweep"]),
        ),
        ("a swap, many of one set at once, in milliseconds", lambda f: f"{1000 * f['swap']:.3f}"),
        ("whole search, r(D+) - r(D-)", lambda f: _search(f, "difference", whole)),
        ("whole search, r(D+), with bounds", lambda f: _search(f, "positive", whole)),
        (f"leave-one-out credits of {clips} clips", lambda f: _shared(f["leave-one-out"], whole)),
        (
            f"the same by square roots, {clips + 1} times one",
            lambda f: _times((clips + 1) * f["square root, one set"], f["leave-one-out"]),
        ),
        (f"influence credits of {clips} clips, queue of {queue:,}", lambda f: _shared(f["influence"], whole)),
    ]
    lines = [
        "# What set rewards cost",
        "",
        f"Made by `python benchmarks/set_search.py` on {processor()}: CPU seconds of one thread, {pairs} prompts of",
        f"two clips, {size} features, dataset FAD in float64. In brackets: how many times ours. A sweep visits every",
        "prompt once and asks",
        "for the two neighbours that exchange its clips, in D+ and in D-; kept swaps are made. A whole search ends",
        f"where no exchange helps. With 1 frame a clip matrices are {pairs} x {pairs}, and many swaps of one set at",
        f"once go by quadrature; with 32 they are {size} x {size}, and their eigenvalues are nearly all of the time.",
        f"Per cent are of an iteration of the built-in model that gives {pairs} pairs, {whole:.0f} seconds. It has 6",
        "million weights in its denoiser: the share of a published model is smaller by far.",
        "",
        "| work | " + " | ".join(f"{each} frame{'s' if each > 1 else ''} a clip" for each in FRAMES) + " |",
        "| --- |" + " --- |" * len(FRAMES),
    ]
    lines += [f"| {name} | " + " | ".join(text(found[each]) for each in FRAMES) + " |" for name, text in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _named(objective: str, asked: list[int]) -> dict[str, float]:
    """What a search reports, by name."""
    return {f"{key}, {objective}": float(n) for key, n in zip(("passes", "asked", "screened"), asked, strict=True)}


def _times(theirs: float, ours: float) -> str:
    return f"{theirs:.1f} ({theirs / ours:,.0f}x)"


def _shared(spent: float, whole: float) -> str:
    return f"{spent:.2f} ({100 * spent / whole:.1f} %)"


def _search(found: dict[str, float], objective: str, whole: float) -> str:
    passes, asked, screened = (int(found[f"{key}, {objective}"]) for key in ("passes", "asked", "screened"))
    return f"{_shared(found[f'search, {objective}'], whole)}: {passes} passes, {asked} asked, {screened} screened"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--queue", type=int, default=QUEUE)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "set_search.md")
    options = parser.parse_args()
    main(options.features, options.pairs, options.queue, options.out)
