"""What each objective gains a CPU-second on the built-in model, beside best-of-n sampling: docs/objectives.md.

    python benchmarks/objectives.py           # resumable, some 100 CPU minutes; kept in benchmarks/results/objectives
    python benchmarks/objectives.py --rates   # first, for whoever sets RATES: other learning rates on other prompts

No claim beforehand: DPO, KTO, DiffusionNFT and best-of-k fine-tuning, each of an adapter and of all weights, have the
same prompts, roll-outs, numbers of updates and held-out prompts, and the table says what came of it.

A run is the training of `dragon train` at configs/mini_objectives.yaml with one objective, tuning and learning rate, in
a process and on a thread of its own; its CPU seconds are those of the training loop (sampling, decoding, scoring,
updates), without loading and evaluation. Best-of-n draws n samples of the untuned model for each clip it delivers and
keeps the one with the highest reward. The untuned model's samples on the held-out prompts are drawn once a seed, with
seeds of their own, and serve all runs of that seed and best-of-n. A run that was cut starts again; it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seeded_runs import (
    ROOT,
    Row,
    configuration,
    interval,
    missing,
    notes,
    processor,
    run_all,
    same_settings,
    settings_of,
)

from dragon.config import TrainConfig
from dragon.intervals import mean_cosine_distance, win_shares

Floats = NDArray[np.float64]
Estimate = tuple[float, float, float]
"""Value and the ends of its 95 % interval."""

WAYS = {"nft": "DiffusionNFT", "dpo": "DPO", "kto": "KTO", "best_of_k": "best-of-k fine-tuning"}
KINDS = {"lora": "LoRA", "full": "all weights"}
OPTIONS = {"nft": "{anchor: 0.1}"}
# Steps of about one size in what the model predicts (docs/objectives_notes.md); --rates tries a third and three times.
RATES = {
    ("nft", "lora"): 1.2e-3,
    ("nft", "full"): 3.0e-5,
    ("dpo", "lora"): 4.0e-4,
    ("dpo", "full"): 1.5e-5,
    ("kto", "lora"): 4.0e-4,
    ("kto", "full"): 1.5e-5,
    ("best_of_k", "lora"): 4.0e-4,
    ("best_of_k", "full"): 1.5e-5,
}
FACTORS = (1 / 3, 1.0, 3.0)
TARGET = "song_frechet"
WATCHED = {"heard_disco": "heard as disco", "clap_score": "CLAP score"}
POOL = 8  # samples of each held-out prompt from the untuned model: best-of-n up to that n
TIMED = 64  # clips on which the cost of one clip is measured
RESULTS = ROOT / "benchmarks" / "results" / "objectives"
QUICK = {
    "max_steps": "2",
    "rollout.prompts_per_step": "2",
    "update.pairs_per_update": "2",
    "evaluation.prompts": "3",
    "rollout.steps": "2",
    "evaluation.steps": "2",
}


def trained(way: str, kind: str, factor: float = 1.0, prefix: str = "") -> Row:
    """The row of an objective on an adapter or on all weights."""
    return Row(
        f"{prefix}{way}_{kind}",
        f"{WAYS[way]}, {KINDS[kind]}",
        "mini_objectives",
        TARGET,
        {
            "objective": f"{{name: {way}, options: {OPTIONS.get(way, '{}')}}}",
            "tuning.kind": kind,
            "learning_rate": f"{factor * RATES[way, kind]:.3e}",
        },
    )


def untuned(prefix: str = "") -> Row:
    """The row of the model before training, which is never trained."""
    wanted = {"evaluation.samples_per_prompt": str(POOL)}
    return Row(f"{prefix}untuned", "untuned model", "mini_objectives", TARGET, wanted, control=True)


def changed(row: Row, changes: Mapping[str, str]) -> Row:
    """The row with more changes."""
    return Row(row.key, row.name, row.config, row.target, {**row.changes, **changes}, row.control)


ROWS = (untuned(), *(trained(way, kind) for kind in KINDS for way in WAYS))
SEARCH = tuple(
    changed(row, {"eval_prompts": "mini:dev", "evaluation.prompts": "64"})
    for row in (
        untuned("rate_"),
        *(trained(way, kind, f, f"rate{i}_") for i, f in enumerate(FACTORS) for kind in KINDS for way in WAYS),
    )
)


# ---- one run, in a process of its own


def one(row: Row, seed: int) -> dict[str, Any]:
    """What is kept of a run: each held-out sample's scores, their diversity, and CPU seconds."""
    import torch

    from dragon.build import build_run

    torch.set_num_threads(1)
    config = configuration(row, seed)
    run = build_run(config)
    found = {"settings": settings_of(row, seed), "machine": f"{processor()}, one thread a run"}
    if row.control:
        return found | {"clip_seconds": clip_seconds(run)} | measured(run, "base")
    trainer = run.trainer()
    began = time.process_time()
    trace = [[report.reward, time.process_time() - began] for report in trainer.run()]
    with run.policy.weights(trainer.ema_weights()):
        return (
            found
            | {
                "steps": trainer.step,
                "generations": trainer.step * config.rollout.prompts_per_step * config.num_generations,
                "cpu_seconds": trace[-1][1],
                "trace": trace,  # mean reward of the roll-out and CPU seconds so far, after each step
            }
            | measured(run, "tuned")
        )


def measured(run: Any, side: str) -> dict[str, Any]:
    """Scores (m, k) of each reward on the held-out prompts, from the policy as it is now."""
    wanted, samples = run.config.evaluation, run.config.evaluation.samples_per_prompt
    clips = sampled(run, run.evaluated(), len(run.eval_prompts), samples, side, diversity=run.diversity)
    few = np.arange(samples * len(run.eval_prompts)) % samples < 2  # as many of each prompt on both sides
    return {
        "scores": {name: values.tolist() for name, values in clips.scores.items()},
        "diversity": mean_cosine_distance(clips.embeddings.numpy()[few]),
        "evaluation_seed": evaluation_seed(run.config),
        "guided_steps": wanted.steps,
    }


def sampled(run: Any, rewards: Mapping[str, Any], prompts: int, samples: int, side: str, diversity: Any = None) -> Any:
    """`collect` of the first held-out prompts."""
    from dragon.collect import collect, draw_seeds

    wanted = run.config.evaluation
    return collect(
        run.policy,
        rewards,
        run.eval_prompts.prompts[:prompts],
        draw_seeds(evaluation_seed(run.config), side, prompts, samples),
        steps=wanted.steps,
        guidance=wanted.guidance,
        diversity=diversity,
        batch_size=run.config.rollout.batch_size,
        keep=0,
        side=side,
    )


def evaluation_seed(config: TrainConfig) -> int:
    """Of its own for each training seed, so that an interval over seeds holds the untuned samples' chance too."""
    return config.evaluation.seed + config.seed


def clip_seconds(run: Any) -> float:
    """CPU seconds of one more clip for best-of-n: sampled, decoded, scored by the target alone."""
    rewards = {TARGET: run.evaluated()[TARGET]}
    prompts = min(len(run.eval_prompts), TIMED // 4)
    sampled(run, rewards, prompts, 1, "base")  # what only the first batch costs
    began = time.process_time()
    sampled(run, rewards, prompts, 4, "base")
    return (time.process_time() - began) / (4 * prompts)


def make(row: Row, seed: int, kept: Path, work: Path, quick: bool) -> None:
    """The run in a child process; nothing if it is kept already."""
    place = kept / f"{row.key}_{seed}.json"
    if place.exists() and same_settings(json.loads(place.read_text())["settings"], settings_of(row, seed)):
        return
    partial, log = work / f"{place.name}.partial", work / f"{place.stem}.log"
    call = [sys.executable, __file__, "--one", row.key, str(seed), str(partial), *(["--quick"] if quick else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.time()
    with log.open("a") as output:
        code = subprocess.run(call, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        raise RuntimeError(f"{' '.join(call)} ended with {code}; see {log}")
    partial.replace(place)
    print(f"{row.key}, seed {seed}: {time.time() - began:.0f} s", flush=True)


# ---- best-of-n and what a run gains


def best_of(chosen_by: Floats, judged: Floats, n: int) -> Floats:
    """(m,) expected `judged` of the sample with the highest `chosen_by` among n drawn without replacement of N.

    Both (m, N). Unbiased for n <= N: all subsets are averaged, in closed form over ranks.

    >>> best_of(np.array([[1.0, 3.0, 2.0]]), np.array([[1.0, 3.0, 2.0]]), 2).tolist()  # (3 + 3 + 2) / 3
    [2.6666666666666665]
    """
    total = chosen_by.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"n is {n}; expected 1 to {total}, the samples of a prompt")
    weights = np.array([math.comb(rank, n - 1) for rank in range(total)]) / math.comb(total, n)
    found: Floats = np.take_along_axis(judged, np.argsort(chosen_by, axis=1), axis=1) @ weights
    return found


def break_even(
    gain: float, curve: Sequence[float], seconds: float, clip: float
) -> tuple[float, float] | tuple[None, None]:
    """(n, clips): best-of-n gains as much as training at n, and costs as much once that many clips are delivered.

    curve: best-of-n's gain at n = 1 (which is 0), 2, ...; n between two of them mixes both. seconds: of training; clip:
    of one clip. Nones: the training gained nothing, or more than the whole curve.
    """
    for n, (low, high) in enumerate(pairwise(curve), 1):
        if max(low, 0.0) < gain <= high:
            more = n - 1 + (gain - low) / (high - low)  # samples beyond one a clip
            return 1 + more, seconds / (more * clip)
    return None, None


def same_budget(generations: int, delivered: int) -> float:
    """The n at which best-of-n for `delivered` clips draws as many samples as training and then delivering them."""
    return 1 + generations / delivered


class Seeds:
    """The finished runs of the table by row and seed, and gains in one unit: the untuned samples' deviation."""

    def __init__(self, rows: Sequence[Row], finished: Sequence[Sequence[dict]]) -> None:
        self.runs = {
            row.key: {int(run["settings"]["seed"]): run for run in runs}
            for row, runs in zip(rows, finished, strict=True)
        }
        self.pools = self.runs[rows[0].key]
        self.unit = {
            reward: float(np.mean([np.std(pool["scores"][reward], ddof=1) for pool in self.pools.values()]))
            for reward in (TARGET, *WATCHED)
        }

    def of(self, key: str) -> list[int]:
        """Seeds at which both the row and the untuned model were run."""
        return sorted(self.runs[key].keys() & self.pools.keys())

    def gain(self, key: str, seed: int, reward: str) -> Floats:
        """(m,) of each prompt: mean tuned score minus mean untuned score."""
        tuned, base = self.runs[key][seed]["scores"][reward], self.pools[seed]["scores"][reward]
        found: Floats = (np.mean(tuned, axis=1) - np.mean(base, axis=1)) / self.unit[reward]
        return found

    def best_of(self, n: int, seed: int, reward: str) -> Floats:
        """(m,) of each prompt: what best-of-n by the target gains in `reward`."""
        chosen_by, judged = (np.array(self.pools[seed]["scores"][name]) for name in (TARGET, reward))
        found: Floats = (best_of(chosen_by, judged, n) - judged.mean(1)) / self.unit[reward]
        return found


def summaries(rows: Sequence[Row], finished: Sequence[Sequence[dict]]) -> dict[str, Any]:
    """Everything the page shows, from finished runs. rows[0] is the untuned model."""
    seeds = Seeds(rows, finished)
    clip = float(np.mean([pool["clip_seconds"] for pool in seeds.pools.values()]))
    done = [row for row in rows[1:] if seeds.of(row.key)]
    prompts, samples = np.shape(next(iter(seeds.runs[done[0].key].values()))["scores"][TARGET]) if done else (0, 0)
    curve = [
        {
            "n": n,
            "seconds": (n - 1) * prompts * samples * clip,
            "gain": {r: over([seeds.best_of(n, s, r) for s in seeds.pools]) for r in (TARGET, *WATCHED)},
            "win_rate": n / (n + 1),  # exact: the best of n + 1 exchangeable samples is any of them alike
        }
        for n in range(1, POOL + 1)
    ]
    means = [point["gain"][TARGET][0] for point in curve]
    return {
        "prompts": prompts,
        "samples": samples,
        "clip_seconds": clip,
        "pool_seeds": len(seeds.pools),
        "machine": next(iter(seeds.pools.values()))["machine"],
        "curve": curve,
        "rows": [summary(row, seeds, done[0], means, clip) for row in done],
    }


def summary(row: Row, seeds: Seeds, first: Row, curve: Sequence[float], clip: float) -> dict[str, Any]:
    """One trained row over its seeds; `minus` is its gain minus that of the first row, the same prompts and samples."""
    shared = seeds.of(row.key)
    runs = [seeds.runs[row.key][seed] for seed in shared]
    gain = over([seeds.gain(row.key, seed, TARGET) for seed in shared])
    seconds = float(np.mean([run["cpu_seconds"] for run in runs]))
    both = [seed for seed in shared if seed in seeds.of(first.key)]
    minus = [seeds.gain(row.key, seed, TARGET) - seeds.gain(first.key, seed, TARGET) for seed in both]
    untuned_shares = [
        win_shares(seeds.pools[seed]["scores"][TARGET], seeds.runs[row.key][seed]["scores"][TARGET]) for seed in shared
    ]
    return {
        "key": row.key,
        "name": row.name,
        "seeds": len(shared),
        "steps": runs[0]["steps"],
        "generations": runs[0]["generations"],
        "rate": runs[0]["settings"]["learning_rate"],
        "seconds": seconds,
        "gain": {TARGET: gain} | {name: over([seeds.gain(row.key, seed, name) for seed in shared]) for name in WATCHED},
        "win_rate": over(untuned_shares),
        "per_minute": over(
            [
                60 * seeds.gain(row.key, seed, TARGET) / run["cpu_seconds"]
                for seed, run in zip(shared, runs, strict=True)
            ]
        ),
        "minus": over(minus) if both and row.key != first.key else None,
        "break_even": [break_even(value, curve, seconds, clip) for value in gain],
        "diversity_change": float(
            np.mean([run["diversity"] / seeds.pools[s]["diversity"] - 1 for s, run in zip(shared, runs, strict=True)])
        ),
    }


def over(by_seed: list[Floats]) -> Estimate:
    """Mean with a 95 % interval over prompts and seeds."""
    return interval(by_seed, np.random.default_rng(0))


# ---- the page


def page(found: Mapping[str, Any]) -> str:
    """docs/objectives.md without its notes."""
    delivered = found["prompts"] * found["samples"]
    budget = same_budget(found["rows"][0]["generations"], delivered)
    lines = [
        "# What an objective gains a CPU-second",
        "",
        f"Made by `python benchmarks/objectives.py` on {found['machine']}. The reward is minus the distance of a clip "
        "to disco clips, in the codec's latents (per-song FAD); the prompts name no style. Two things are only "
        "watched: whether a clip is heard as disco, by the built-in readers, and CLAP score, what the prompt asks for. "
        f"A gain is the mean over {found['prompts']} held-out prompts, {found['samples']} samples each, minus that of "
        f"{POOL} independent samples of the untuned model, in standard deviations of the untuned model's scores, with "
        "a 95 % interval over prompts and training seeds. CPU seconds are those of the training loop alone. All rows "
        "of one seed share prompts and the untuned model's samples, so two rows differ more surely than their "
        "intervals say: "
        f"the column `minus` is the gain minus that of {found['rows'][0]['name']}, prompt by prompt. Best-of-n costs "
        f"what its further samples cost ({found['clip_seconds']:.3f} CPU seconds each, sampled, decoded and scored) "
        f"for {delivered} delivered clips; at n = {budget:.3g} it draws as many samples as training and then "
        "delivering once does. Its win rate is n / (n + 1), whatever the reward.",
        "",
        "![Gain against CPU time](objectives.png)",
        "",
        "| way | seeds | learning rate | CPU seconds | gain, sd | wins | minus | "
        + " | ".join(f"{name}, sd" for name in WATCHED.values())
        + " | gain a CPU minute | diversity |",
        "| --- " * (9 + len(WATCHED)) + "|",
        *(trained_line(row) for row in found["rows"]),
        *(best_of_line(point, found["pool_seeds"], budget) for point in found["curve"] if point["n"] > 1),
        "",
        "## When training is cheaper",
        "",
        "Training is paid once, best-of-n for every clip. The n at which best-of-n gains as much reward, and the "
        "number of delivered clips from which on training has cost less CPU time than that best-of-n; in brackets, the "
        "same for the ends of the gain's interval.",
        "",
        "| way | equal n | delivered clips |",
        "| --- | --- | --- |",
        *(f"| {row['name']} | {' | '.join(break_even_cells(row, found['clip_seconds']))} |" for row in found["rows"]),
    ]
    return "\n".join(lines) + "\n"


def trained_line(row: Mapping[str, Any]) -> str:
    cells = [
        row["name"],
        row["seeds"],
        f"{row['rate']:.2g}",
        f"{row['seconds']:.0f}",
        f"**{estimate(row['gain'][TARGET])}**",
        f"{100 * row['win_rate'][0]:.0f} %",
        estimate(row["minus"]) if row["minus"] else "",
        *(estimate(row["gain"][name]) for name in WATCHED),
        estimate(row["per_minute"], 3),
        f"{100 * row['diversity_change']:+.1f} %",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def best_of_line(point: Mapping[str, Any], seeds: int, budget: float) -> str:
    name = f"best of {point['n']}" + (", the same samples" if point["n"] == round(budget) else "")
    per_minute: Estimate = tuple(60 * value / point["seconds"] for value in point["gain"][TARGET])
    cells = [
        name,
        seeds,
        "",
        f"{point['seconds']:.0f}",
        f"**{estimate(point['gain'][TARGET])}**",
        f"{100 * point['win_rate']:.0f} %",
        "",
        *(estimate(point["gain"][name]) for name in WATCHED),
        estimate(per_minute, 3),
        "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def break_even_cells(row: Mapping[str, Any], clip: float) -> tuple[str, str]:
    """Equal n and delivered clips as text, each with what the ends of the gain's interval give."""
    texts = []
    for gain, (n, clips) in zip(row["gain"][TARGET], row["break_even"], strict=True):
        if gain <= 0:
            texts.append(("none", "never"))
        elif n is None:
            texts.append((f"above {POOL}", f"below {row['seconds'] / ((POOL - 1) * clip):.0f}"))
        else:
            texts.append((f"{n:.2f}", f"{clips:.0f}"))
    (n, n_low, n_high), (clips, most, fewest) = zip(*texts, strict=True)  # the smaller gain takes more clips
    return f"{n} [{n_low}, {n_high}]", f"{clips} [{fewest}, {most}]"


def estimate(value: Estimate, digits: int = 2) -> str:
    """0.12 [0.03, 0.21]"""
    mean, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{mean} [{low}, {high}]"


def search_section(rows: Sequence[Row], finished: Sequence[Sequence[dict]]) -> str:
    """The runs at other learning rates; empty if none were made."""
    if not finished[0] or not any(finished[1:]):
        return ""
    found = summaries(rows, finished)["rows"]
    lines = [
        "",
        "## Learning rates",
        "",
        "Runs of one seed, gain on 64 other prompts; bold: the rate of the table.",
        "",
        "| way | " + " | ".join(f"{factor:.2g} times" for factor in FACTORS) + " |",
        "| --- |" + " --- |" * len(FACTORS),
    ]
    by_key = {row["key"]: row for row in found}
    for kind in KINDS:
        for way in WAYS:
            cells = [by_key.get(f"rate{i}_{way}_{kind}") for i in range(len(FACTORS))]
            texts = ["" if c is None else f"{c['rate']:.2g}: {estimate(c['gain'][TARGET])}" for c in cells]
            # floats that went through text: compared as shown
            bold = [c is not None and f"{c['rate']:.2g}" == f"{RATES[way, kind]:.2g}" for c in cells]
            shown = [f"**{text}**" if b else text for text, b in zip(texts, bold, strict=True)]
            lines.append(f"| {WAYS[way]}, {KINDS[kind]} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def picture(found: Mapping[str, Any], place: Path) -> None:
    """Gain against CPU seconds: each way a point with its interval, best-of-n lines for two numbers of clips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    delivered = found["prompts"] * found["samples"]
    means = [point["gain"][TARGET][0] for point in found["curve"]]
    for times, style in ((1, "-"), (10, "--")):
        seconds = [times * point["seconds"] for point in found["curve"]]
        label = f"best of n, {times * delivered} clips"
        axes.plot(seconds[1:], means[1:], style, color="#7a869a", marker=".", label=label)
    colours = dict(zip(WAYS, ("#1f9e77", "#d1495b", "#3a6ea5", "#e08e1b"), strict=True))
    for row in found["rows"]:
        way, kind = row["key"].rsplit("_", 1)
        mean, low, high = row["gain"][TARGET]
        axes.errorbar(
            [row["seconds"]],
            [mean],
            [[max(0.0, mean - low)], [max(0.0, high - mean)]],
            fmt="o" if kind == "lora" else "s",
            color=colours[way],
            markerfacecolor=colours[way] if kind == "lora" else "white",
            capsize=3,
            label=row["name"],
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(
        xscale="log",
        xlabel="CPU seconds: of training, or of best-of-n's further samples",
        ylabel="gain of reward (sd of the untuned model)",
        title="What training gains, beside sampling more",
    )
    axes.legend(fontsize=7)
    figure.savefig(place, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "objectives", help="logs")
    parser.add_argument("--kept", type=Path, help=f"finished runs; default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--seeds", type=int, default=3, help="0: only the page, from finished runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], choices=[row.key for row in (*ROWS, *SEARCH)])
    parser.add_argument("--rates", action="store_true", help="one seed of other learning rates, on mini:dev")
    parser.add_argument("--quick", action="store_true", help="tiny runs below --work, to see that it works: no figures")
    parser.add_argument("--out", type=Path, help="the page; default docs/objectives.md")
    parser.add_argument("--one", nargs=3, metavar=("ROW", "SEED", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    table, search = (tuple(changed(row, QUICK if options.quick else {}) for row in rows) for rows in (ROWS, SEARCH))
    if options.one:
        key, seed, file = options.one
        row = next(row for row in (*table, *search) if row.key == key)
        Path(file).write_text(json.dumps(one(row, int(seed))) + "\n", encoding="utf-8")
        return
    kept = options.kept or (options.work / "kept" if options.quick else RESULTS)
    out = options.out or (options.work / "objectives.md" if options.quick else ROOT / "docs" / "objectives.md")
    options.work.mkdir(parents=True, exist_ok=True)

    def runs(rows: Sequence[Row], seeds: int) -> list[list[dict]]:
        return run_all(
            rows,
            seeds,
            kept,
            lambda row, seed: make(row, seed, kept, options.work, options.quick),
            workers=options.workers,
            only=options.only,
        )

    searched = runs(search, 1 if options.rates else 0)
    finished = runs(table, 0 if options.rates else options.seeds)
    if not finished[0] or not any(finished[1:]):
        print(search_section(search, searched) or f"no finished runs of the table in {kept}")
        return
    found = summaries(table, finished)
    print(json.dumps(found, indent=1))
    picture(found, out.with_suffix(".png"))
    lacking = missing(table[1:], found["rows"])
    out.write_text(page(found) + search_section(search, searched) + lacking + notes("objectives"), encoding="utf-8")


if __name__ == "__main__":
    main()
