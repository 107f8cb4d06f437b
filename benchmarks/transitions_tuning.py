"""DRAGON on transitions: what set rewards mend in a published model of Hopper, judged by its simulator.

    python benchmarks/transitions_tuning.py    # resumable; docs/transitions_tuning.md and benchmarks/results

Claims: a reward that sees rates of whole sets, of flags, of ends and of both at once, brings terminals within a tenth
of the data's rate and to a recall of at least .8, without worse dynamics; a kernel distance to rows that the fit has
not seen improves the marginals; random labels mend neither. The simulator judges; only the row `simulator` is trained
toward it.

The base is `published_loop.py` at width 256, sampled as published, after 7,000 steps, where its terminals come as much
too seldom as the release's do; every row of the table trains it by the same `Trainer` as audio models, on roll-outs of
32 stochastic steps. Rows are split in three: the fit's, exemplars (2,500 that the fit has not seen), and those that
figures compare with.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from published_loop import RELEASED, PlainLoop, data, interval, keep, run_missing, shown
from seeded_runs import ROOT, notes, processor

from dragon.contrast import Influence
from dragon.encoders.transitions import TerminalEncoder, TransitionEncoder
from dragon.exemplars import gather_transitions
from dragon.policy.transitions import TransitionPolicy
from dragon.protocols import InstanceReward, SetReward
from dragon.registry import resolve
from dragon.rewards import SetFrechet, SetKernel, SetMean, SimulatorReward
from dragon.scoring import WeightedReward
from dragon.synther import PAPER_SAMPLING, FitConfig, Transitions, Upsampler
from dragon.synther.columns import fit_layout
from dragon.synther.dynamics import dynamics
from dragon.synther.quality import quality
from dragon.trainer import Trainer, TrainSettings

TASK = "Hopper-v5"
RESULTS = ROOT / "benchmarks" / "results" / "transitions_tuning"
MODELS = ROOT / "runs" / "transitions_tuning"
STEPS, TUNED_STEPS, DRAWN = 7_000, 64, 5_000
FIGURES = {
    "error": 4,
    "reward_error": 3,
    "marginal": 3,
    "rate": 4,
    "true_rate": 4,
    "recall": 2,
    "precision": 2,
}
"""Columns of the table, and their digits."""


@dataclass(frozen=True)
class Tuning:
    """A row of the table. levels: mean and deviation of log sigma where it trains."""

    name: str
    reward: str
    objective: str = "nft"
    options: dict[str, float] = field(default_factory=lambda: {"anchor": 0.5})
    contrast: str = "best_worst"
    learning_rate: float = 2e-5
    levels: tuple[float, float] = (-1.5, 0.7)


TUNINGS = {
    "ends": Tuning("rates of flags, ends and both", "ends"),
    "ends_dpo": Tuning("the same by DPO", "ends", "dpo", {"winner": 1.0}, learning_rate=5e-6),
    "ends_kto": Tuning("the same by KTO", "ends", "kto", {}),
    "ends_best": Tuning("the same by best-of-k", "ends", "best_of_k", {}),
    "rate": Tuning("rate of flags alone", "rate"),
    "kernel": Tuning("kernel distance, all columns", "kernel"),
    "frechet": Tuning("Frechet distance, whitened", "frechet"),
    "simulator": Tuning("the simulator itself", "simulator"),
    "random": Tuning("control: random labels", "ends", contrast="random_labels"),
}


def base(seed: int) -> Upsampler:
    """The published model of that seed; fitted once."""
    place = MODELS / f"base_{seed}"
    if not (place / "config.json").exists():
        train, _ = data(TASK, seed)
        layout = fit_layout(train, RELEASED)
        rows, _ = layout.encode(train)
        loop = PlainLoop(rows, 256, 128, seed, STEPS)
        loop.train(STEPS)
        config = FitConfig(width=256, inner=128, max_steps=STEPS, seed=seed)
        Upsampler(loop.average, layout, config, torch.zeros(1, 0)).save(place)
    return Upsampler.load(place)


def reward_of(name: str, exemplars: Transitions, train: Transitions) -> InstanceReward | SetReward:
    if name == "simulator":
        return SimulatorReward(TASK, train)
    encoders = {
        "ends": TerminalEncoder(train),
        "rate": TransitionEncoder(train, columns=("terminals",)),
        "kernel": TransitionEncoder(train),
        "frechet": TransitionEncoder(train, whiten=True, floor=0.001),
    }
    made = gather_transitions(exemplars, encoders[name]).as_set("exemplars", keep_frames=len(exemplars))
    kinds = {"ends": SetMean, "rate": SetMean, "kernel": SetKernel, "frechet": SetFrechet}
    return kinds[name](made, encoders[name])


def figures(model: Upsampler, train: Transitions, judges: Transitions, seed: int) -> dict[str, float]:
    """Of rows as the paper draws them, beside rows that neither fit nor reward have seen."""
    new = model.sample(DRAWN, seed=1000 + seed, sampling=PAPER_SAMPLING)
    judged = dynamics(new, TASK, like=judges)
    return {
        "error": judged.error,
        "reward_error": judged.reward_error,
        "marginal": quality(new, train, judges, model.layout, seed=seed).figures["similarity"]["new"],
        "rate": judged.terminal_rate,
        "true_rate": judged.true_terminal_rate,
        "recall": judged.terminal_recall,
        "precision": judged.terminal_precision,
    }


def one(key: str, seed: int) -> dict[str, Any]:
    """A tuning and its figures; key "base": those of the base."""
    train, held_out = data(TASK, seed)
    exemplars, judges = held_out.rows(slice(0, None, 2)), held_out.rows(slice(1, None, 2))
    model = base(seed)
    spent = 0.0
    if key != "base":
        wanted = TUNINGS[key]
        policy = TransitionPolicy(
            model, sampler="paper", clamp=False, sigma_mean=wanted.levels[0], sigma_std=wanted.levels[1]
        )
        settings = TrainSettings(
            seed=seed,
            max_steps=TUNED_STEPS,
            prompts_per_step=16,
            num_generations=64,
            rollout_steps=32,
            guidance=1.0,
            batch_size=1024,
            updates_per_step=8,
            pairs_per_update=16,
            micro_batch_size=16,
            learning_rate=wanted.learning_rate,
            ema_decay=0.99,
        )
        trainer = Trainer(
            policy,
            [WeightedReward(reward_of(wanted.reward, exemplars, train), 1.0)],
            [f"row {i}" for i in range(settings.prompts_per_step * settings.max_steps)],
            contrast=resolve("contrast", wanted.contrast)(),
            objective=resolve("objective", wanted.objective)(**wanted.options),
            settings=settings,
            credit=Influence(queue=2048, minimum=1024),
        )
        before = time.process_time()
        for report in trainer.run():
            print(f"{key}, seed {seed}: step {report.step}, reward {report.reward:.4f}", flush=True)
        spent = time.process_time() - before
        model.net.load_state_dict(model.net.state_dict() | trainer.ema_weights())
    found = figures(model, train, judges, seed)
    rate = float(train.terminals.mean())
    return {"key": key, "seed": seed, "machine": processor(), "seconds": spent, "data_rate": rate, **found}


def kept(key: str, seed: int) -> Path:
    return RESULTS / f"{key}_{seed}.json"


def page() -> str:
    """docs/transitions_tuning.md of the runs that are there."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_[0-9].json"))]
    rate = np.mean([run["data_rate"] for run in runs])
    lines = [
        "# DRAGON on transitions",
        "",
        f"Made by `python benchmarks/transitions_tuning.py` on {runs[0]['machine']}, one thread. {TASK}; the base is "
        f"the published loop (width 256, {STEPS:,} steps) with the published sampler; {DRAWN:,} rows of it and of each "
        "tuned model. Means over seeds (of split, weights, samples) ± half of the 95 % interval; of a tuned model, "
        "mean and difference to the base of the same seed. Dynamics and reward: mean squared error against the "
        "simulator over the variance of real rows. Marginal: mean of 1 - KS against "
        f"real rows. Terminals: share of rows that are flagged ({rate:.4f} in the data), and of those that the "
        "simulator ends; recall and precision of the flags against it. CPU s: of the tuning.",
        "",
        "| tuned toward | seeds | dynamics | reward | marginal | flagged | truly terminal | recall | precision "
        "| CPU s |",
        "| " + "--- | " * 10,
    ]
    names = {"base": "nothing (the base)"} | {key: wanted.name for key, wanted in TUNINGS.items()}
    bases = {run["seed"]: run for run in runs if run["key"] == "base"}
    for key, name in names.items():
        part = [run for run in runs if run["key"] == key]
        if part:
            cells = [shown(part, figure, digits) for figure, digits in FIGURES.items()]
            if key != "base":
                cells = [beside(part, bases, figure, digits) for figure, digits in FIGURES.items()]
            lines.append("| " + " | ".join([name, str(len(part)), *cells, shown(part, "seconds", 0)]) + " |")
    return "\n".join([*lines, ""]) + notes("transitions_tuning")


def beside(part: list[dict[str, Any]], bases: dict[int, dict[str, Any]], figure: str, digits: int) -> str:
    """A figure's mean, and its mean difference to the base of the same seed."""
    middle, half = interval([run[figure] - bases[run["seed"]][figure] for run in part])
    return f"{np.mean([run[figure] for run in part]):.{digits}f}, {middle:+.{digits}f} ± {half:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], choices=["base", *TUNINGS])
    parser.add_argument("--one", nargs=2, metavar=("KEY", "SEED"), help="one run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.one:
        keep(options.one, one, kept)
        return
    seeds = range(options.seeds)
    data(TASK, 0)  # made once, before processes could make it at once
    run_missing(__file__, [("base", seed) for seed in seeds], kept, options.workers)  # the others load their models
    keys = options.only or list(TUNINGS)
    run_missing(__file__, [(key, seed) for seed in seeds for key in keys], kept, options.workers)
    (ROOT / "docs" / "transitions_tuning.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
