"""What can be done with a fitted model of transitions, judged by the simulator: docs/transition_uses.md.

    python benchmarks/transition_uses.py    # resumable, some 40 CPU minutes

Claims: the default sampler has at 63 calls of the network about the error of the published one at 255; rows that the
model makes likely obey the dynamics better than all rows do; rows drawn for a score have it truly, without guidance;
next observations predicted from (s, a) are nearer to what follows than those of a linear model. One fit of a task and
seed is used for all four: width 256, 10,000 steps, the reward as the score, a quarter of the batches to learn
predicting. Data: recipes/transitions/collect.py, as for docs/upsampling.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from published_loop import HELD_OUT, ROWS, data, keep, run_missing, shown
from seeded_runs import ROOT, notes, processor

from dragon.synther import PAPER_SAMPLING, SampleConfig, Transitions, Upsampler, fit, likelihoods, preset, select
from dragon.synther.dynamics import dynamics, simulate
from dragon.synther.quality import quality
from dragon.synther.ridge import ridge

RESULTS = ROOT / "benchmarks" / "results" / "transition_uses"
TASKS = ("HalfCheetah-v5", "Hopper-v5")
STEPS, DRAWN, SIMULATED = 10_000, 5_000, 2_000
SAMPLINGS = {
    **{f"default, {2 * steps - 1} calls": SampleConfig(steps=steps) for steps in (4, 8, 16, 32, 64)},
    "Heun without fresh noise, 63 calls": SampleConfig("heun"),
    "the same at the published levels": SampleConfig("heun", sigma_min=0.002, sigma_max=80.0),
    "DPM-Solver++ (2M), 63 calls": SampleConfig("dpmpp_2m", steps=63),
    "published, 63 calls": replace(PAPER_SAMPLING, steps=32),
    "published, 255 calls": PAPER_SAMPLING,
}
MEASURES = ("model", "dynamics", "data")
SHARES = (0.5, 0.25)
GUIDANCES = (1.0, 2.0, 4.0)
QUANTILE = 0.9
FUTURES = 16  # draws whose mean is a prediction


def one(task: str, seed: int) -> dict[str, Any]:
    """A fit and what it is used for."""
    train, held_out = data(task, seed)
    model = fit(train, config=preset("tiny", max_steps=STEPS, seed=seed, predict_share=0.25), scores=train.rewards)
    return {
        "task": task,
        "seed": seed,
        "machine": processor(),
        "samplers": samplers(model, held_out, task, seed),
        "selection": selection(model, train, held_out, task, seed),
        "scores": scores(model, train, held_out, task, seed),
        "world": world(model, train, held_out, seed),
    }


# ---- the four uses


def samplers(model: Upsampler, held_out: Transitions, task: str, seed: int) -> dict[str, dict[str, float]]:
    """Errors of rows by how they are drawn."""
    found = {}
    for name, sampling in SAMPLINGS.items():
        new = model.sample(SIMULATED, seed=1000 + seed, sampling=sampling)
        judged = dynamics(new, task, like=held_out)
        found[name] = {
            "error": judged.error,
            "reward_error": judged.reward_error,
            "recall": judged.terminal_recall,
            "precision": judged.terminal_precision,
        }
    return found


def selection(
    model: Upsampler, train: Transitions, held_out: Transitions, task: str, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of all rows drawn, and of the share of them that a measure makes likely."""

    def figures(rows: Transitions) -> dict[str, float]:
        found = quality(rows, train, held_out, model.layout, environment=task, seed=seed).figures
        return {
            "error": found["dynamics"]["error"]["new"],
            "reward_error": found["dynamics"]["reward_error"]["new"],
            "marginal": found["similarity"]["new"],
            "nearest": found["nearest"]["ratio"]["new"],
        }

    new = model.sample(DRAWN, seed=1000 + seed)
    found = {"all": figures(new)}
    for measure in MEASURES:
        likely = likelihoods(model, new, measure, data=train, seed=seed)
        found |= {f"{measure} {share}": figures(new.rows(select(likely, share))) for share in SHARES}
    return found


def scores(
    model: Upsampler, train: Transitions, held_out: Transitions, task: str, seed: int
) -> dict[str, dict[str, float]]:
    """True rewards, in the data's standard deviations above its mean, of rows drawn for a high one."""
    wanted = float(np.quantile(train.rewards, QUANTILE))
    middle, spread = float(train.rewards.mean()), float(train.rewards.std())
    found = {"asked": {"reward": (wanted - middle) / spread}}
    for guidance in (None, *GUIDANCES):
        asked = {} if guidance is None else {"score": wanted, "guidance": guidance}
        rows = model.sample(SIMULATED, seed=2000 + seed, **asked)
        _, true, _ = simulate(task, rows.observations, rows.actions)
        judged = dynamics(rows, task, like=held_out)
        found["none" if guidance is None else f"{guidance:g}"] = {
            "reward": (float(true.mean()) - middle) / spread,
            "spread": float(true.std()) / spread,
            "error": judged.error,
            "reward_error": judged.reward_error,
        }
    return found


def world(model: Upsampler, train: Transitions, held_out: Transitions, seed: int) -> dict[str, dict[str, float]]:
    """Errors of what is predicted to follow held-out (s, a), over the variance of what does."""
    inputs, outputs = [], []
    for rows in (train, held_out):
        inputs.append(np.concatenate([rows.observations, rows.actions], 1).astype(np.float64))
        outputs.append(followed(rows))
    line = ridge(inputs[0], outputs[0])
    linear = line[0] + inputs[1] @ line[1:]
    still = np.concatenate([held_out.observations, np.full((len(held_out), 1), train.rewards.mean())], 1)
    seeds = range(FUTURES * seed, FUTURES * (seed + 1))
    drawn = np.stack([followed(model.predict(held_out.observations, held_out.actions, seed=i)) for i in seeds])
    sides = {"still": still, "linear": linear, "one": drawn[0], "mean": drawn.mean(0)}
    return {name: errors(guess, outputs[1]) for name, guess in sides.items()}


def followed(rows: Transitions) -> NDArray[np.float64]:
    """(n, o + 1) next observations and rewards."""
    return np.concatenate([rows.next_observations, rows.rewards[:, None]], 1).astype(np.float64)


def errors(guess: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """Of the next observation (mean of columns) and the reward, the last column."""
    found = np.square(guess - true).mean(0) / true.var(0)
    return {"error": float(found[:-1].mean()), "reward_error": float(found[-1])}


# ---- page


def kept(task: str, seed: int) -> Path:
    return RESULTS / f"{task}_{seed}.json"


def page() -> str:
    """docs/transition_uses.md of the runs that are there."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_[0-9].json"))]
    lines = [
        "# What can be done with a fitted model of transitions",
        "",
        f"Made by `python benchmarks/transition_uses.py` on {runs[0]['machine']}, one thread. Width 256, {STEPS:,} "
        f"steps, {ROWS - HELD_OUT:,} rows in the fit. Means over {len({run['seed'] for run in runs})} seeds (of split, "
        "weights and samples) ± half of the 95 % interval. Errors are mean squared ones over the variance of held-out "
        "rows; of rows that are drawn they are against the simulator, which is put into (s, a).",
        "",
        "## How rows are drawn",
        "",
        f"{SIMULATED:,} rows. Recall and precision: of flagged terminals, against the simulator's.",
        "",
    ]
    figures = {"error": 4, "reward_error": 4, "recall": 2, "precision": 2}
    lines += table(runs, "samplers", "sampler", {name: name for name in SAMPLINGS}, figures)
    lines += [
        "## Keeping the rows that are likely",
        "",
        f"{DRAWN:,} rows are drawn, and a share of them is kept (`likelihoods`, `select`): by the model's density, by "
        "the distance of what follows to what the model predicts, by the distance to the nearest row of the data. "
        "Marginal: mean of 1 - KS against held-out rows. Nearest: median distance to the nearest row of the fit over "
        "that of held-out rows.",
        "",
    ]
    names = {"all": "all"} | {f"{m} {s}": f"{s:.0%} by {m}" for m in MEASURES for s in SHARES}
    lines += table(runs, "selection", "kept", names, {"error": 4, "reward_error": 4, "marginal": 3, "nearest": 2})
    lines += [
        "## Rows of a high score",
        "",
        f"The score is the reward; {SIMULATED:,} rows are drawn for its {QUANTILE} quantile in the data. Reward and "
        "spread: mean and deviation of what the simulator pays, in deviations of the data's rewards, above their mean.",
        "",
    ]
    names = {"asked": "what was asked", "none": "no score"} | {f"{g:g}": f"guidance {g:g}" for g in GUIDANCES}
    lines += table(runs, "scores", "drawn for", names, {"reward": 2, "spread": 2, "error": 4, "reward_error": 4})
    lines += ["## What follows from (s, a)", "", f"Predicted for {HELD_OUT:,} held-out rows.", ""]
    names = {
        "still": "s' = s, the mean reward",
        "linear": "ridge regression",
        "one": "one draw",
        "mean": f"mean of {FUTURES} draws",
    }
    lines += table(runs, "world", "prediction", names, {"error": 4, "reward_error": 4})
    return "\n".join(lines) + notes("transition_uses")


def table(
    runs: list[dict[str, Any]], part: str, first: str, names: dict[str, str], figures: dict[str, int]
) -> list[str]:
    """One table a task. figures: digits by name."""
    heads = {"error": "dynamics error", "reward_error": "reward error"}
    lines = []
    for task in TASKS:
        found = [run[part] for run in runs if run["task"] == task]
        if not found:
            continue
        lines += [f"**{task}**", ""]
        lines.append("| " + " | ".join([first, *(heads.get(name, name) for name in figures)]) + " |")
        lines.append("| " + "--- | " * (1 + len(figures)))
        for key, name in names.items():
            rows = [run[key] for run in found]
            cells = [shown(rows, figure, digits) if figure in rows[0] else "" for figure, digits in figures.items()]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("TASK", "SEED"), help="one run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.one:
        keep(options.one, one, kept)
        return
    for task in TASKS:
        data(task, 0)  # made once, before processes could make it at once
    run_missing(__file__, [(task, seed) for seed in range(options.seeds) for task in TASKS], kept, options.workers)
    (ROOT / "docs" / "transition_uses.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
