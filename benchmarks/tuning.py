"""How much reward tuning gains on the built-in model, with its controls: docs/tuning.md from nothing.

    python benchmarks/tuning.py          # resumable; what is finished lies in benchmarks/results/tuning

Claim: tuning raises the target reward on held-out prompts with independent samples, while random labels
and the base model's own samples as exemplars, at the same settings, leave everything where it was.
Prints JSON; writes the table from all finished runs. Every run is an ordinary `dragon train`, one thread each;
a finished run whose configuration has changed since is run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dragon.config import load, to_dict
from dragon.intervals import win_shares
from dragon.report.files import read_scores

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tuning"
DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration, what is changed in it, and the reward it aims at."""

    key: str
    name: str
    config: str
    target: str
    changes: Mapping[str, str] = field(default_factory=dict)
    control: bool = False


ROWS = (
    Row("clap", "CLAP score", "mini_clap", "clap_score"),
    Row("music", "song distance to music + CLAP", "mini_song_fad", "song_frechet"),
    Row("disco", "song distance to disco + CLAP, style left open", "mini_song_fad_style", "song_frechet"),
    Row("random", "random labels", "mini_song_fad", "song_frechet", {"contrast.name": "random_labels"}, control=True),
    Row("self", "own samples as exemplars", "mini_control_self", "song_frechet", control=True),
)


def settings_of(row: Row, seed: int) -> dict[str, object]:
    """The run's filled configuration, without what does not change its result."""
    filled = to_dict(load(ROOT / "configs" / f"{row.config}.yaml", {**row.changes, "seed": seed}))
    return {k: v for k, v in filled.items() if k not in ("output_dir", "report_to", "resume_from_checkpoint")}


def run(row: Row, seed: int, work: Path) -> None:
    """One run of a row; nothing if it is finished, the rest of it if it was interrupted."""
    kept, settings = RESULTS / f"{row.key}_{seed}.json", settings_of(row, seed)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = work / f"{row.key}_{seed}_{digest}"  # other settings, another folder
    if kept.exists() and json.loads(kept.read_text())["settings"] == settings:
        return
    if not (folder / "evaluation.json").exists():
        command = [sys.executable, "-m", "dragon", "train", str(ROOT / "configs" / f"{row.config}.yaml")]
        command += ["--output_dir", str(folder), "--seed", str(seed), "--resume_from_checkpoint", "true"]
        command += ["--report_to", "none", *(word for k, v in row.changes.items() for word in (f"--{k}", v))]
        started = time.time()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (work / f"{folder.name}.log").open("a") as log:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}; see {work / (folder.name + '.log')}")
        print(f"{row.name}, seed {seed}: {time.time() - started:.0f} s", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(result(folder, settings)) + "\n", encoding="utf-8")


def result(folder: Path, settings: dict[str, object]) -> dict[str, object]:
    """What the table needs of a finished run."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    return {
        "settings": settings,
        "machine": f"{processor()}, one thread a run",
        "minutes": round(sum(sum(step["seconds"].values()) for step in log) / 60, 2),
        "steps": len(log),
        "diversity": evaluation["diversity"],
        "gain_sd": {name: reward["gain_sd"] for name, reward in evaluation["rewards"].items()},
        "shares": {name: values.tolist() for name, values in sorted(shares(folder).items())},
    }


def processor() -> str:
    """The processor's model where the system tells, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


def shares(folder: Path) -> dict[str, np.ndarray]:
    """Reward -> (m,) share of won comparisons of each prompt, independent samples."""
    table: dict[tuple[str, str], dict[tuple[int, int], float]] = defaultdict(dict)
    for score in read_scores(folder):
        table[score.reward, score.side][score.prompt_index, score.sample] = score.score
    found = {}
    for reward in {reward for reward, _ in table}:
        sides = []
        for side in ("base", "tuned"):
            cells = table[reward, side]
            m, k = (1 + max(index[axis] for index in cells) for axis in (0, 1))
            sides.append(np.array([[cells[i, j] for j in range(k)] for i in range(m)]))
        found[reward] = win_shares(*sides)
    return found


def interval(by_seed: list[np.ndarray], rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean win rate with a 95 % interval over prompts AND training seeds (both resampled)."""
    stacked = np.stack(by_seed)
    seeds, prompts = stacked.shape
    means = [
        stacked[rng.integers(seeds, size=seeds)][:, rng.integers(prompts, size=prompts)].mean() for _ in range(DRAWS)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(stacked.mean()), float(low), float(high)


def summary(row: Row, runs: list[dict]) -> dict[str, object]:
    """A row's figures over its finished seeds."""
    rng = np.random.default_rng(0)
    rewards = sorted(runs[0]["shares"])
    return {
        "name": row.name,
        "control": row.control,
        "target": row.target,
        "seeds": len(runs),
        "steps": runs[0]["steps"],
        "minutes": float(np.mean([r["minutes"] for r in runs])),
        "win_rate": {reward: interval([np.array(r["shares"][reward]) for r in runs], rng) for reward in rewards},
        "gain_sd": {reward: float(np.mean([r["gain_sd"][reward] for r in runs])) for reward in rewards},
        "diversity_change": float(np.mean([r["diversity"]["tuned"] / r["diversity"]["base"] - 1 for r in runs])),
    }


def table(rows: list[dict], machine: str, prompts: int) -> str:
    """docs/tuning.md."""
    columns = ("song_frechet", "song_frechet_held_out", "clap_score", "judge_score")
    lines = [
        "# What tuning gains, and what drifts",
        "",
        f"Made by `python benchmarks/tuning.py` on {machine}; {prompts} held-out prompts, two "
        "independent samples a prompt and side. A cell is the probability that a tuned sample beats a base sample of "
        "the same prompt, in per cent, with a 95 % interval over prompts and training seeds; 50 is no change. The "
        "target of a row is bold. The judge is never trained on. Controls run at the settings of the second row. "
        "The first row has no exemplars; its song distance is to other clips.",
        "",
        "| row | seeds | steps | minutes | song distance | song distance, other clips | CLAP score | judge "
        "| diversity |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = []
        for name in columns:
            if name not in row["win_rate"]:
                cells.append("")
                continue
            mean, low, high = row["win_rate"][name]
            cell = f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            cells.append(f"**{cell}**" if name == row["target"] and not row["control"] else cell)
        title = f"control: {row['name']}" if row["control"] else row["name"]
        cells = [title, str(row["seeds"]), str(row["steps"]), f"{row['minutes']:.1f}", *cells]
        lines.append("| " + " | ".join([*cells, f"{100 * row['diversity_change']:+.1f} %"]) + " |")
    counts = {str(row["name"]): int(row["seeds"]) for row in rows}
    missing = [f"{row.name} ({3 - counts.get(row.name, 0)} of 3)" for row in ROWS if counts.get(row.name, 0) < 3]
    if missing:
        lines += ["", "Seeds not run yet: " + "; ".join(missing) + "."]
    notes = ROOT / "docs" / "tuning_notes.md"
    return "\n".join(lines) + "\n" + ("\n" + notes.read_text(encoding="utf-8") if notes.exists() else "")


def main(work: Path, seeds: int, workers: int, only: list[str], out: Path) -> None:
    """Runs what is missing, then writes the table."""
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(row, seed) for seed in range(seeds) for row in ROWS if not only or row.key in only]
    with ThreadPoolExecutor(workers) as pool:  # seed by seed: a full table early
        list(pool.map(lambda job: run(*job, work), jobs))
    finished = [[json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{row.key}_*.json"))] for row in ROWS]
    done = [summary(row, runs) for row, runs in zip(ROWS, finished, strict=True) if runs]
    print(json.dumps(done, indent=1))
    some = next(runs[0] for runs in finished if runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(table(done, some["machine"], len(some["shares"]["clap_score"])), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], choices=[row.key for row in ROWS], help="rows to run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tuning.md")
    options = parser.parse_args()
    main(options.work, options.seeds, options.workers, options.only, options.out)
