"""How much reward tuning gains on the built-in model, with its controls: docs/tuning.md from nothing.

    python benchmarks/tuning.py --work runs/tuning          # resumable: finished runs are kept

Claim: tuning raises the target reward on held-out prompts with independent samples, while random labels
and the base model's own samples as exemplars, at the same settings, leave everything where it was.
Prints JSON; writes the table. Every run is an ordinary `dragon train`, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dragon.intervals import win_shares
from dragon.report.files import read_scores

ROOT = Path(__file__).parents[1]
DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration, what is changed in it, and the reward it aims at."""

    name: str
    config: str
    target: str
    changes: tuple[str, ...] = ()
    control: bool = False


ROWS = (
    Row("CLAP score", "mini_clap", "clap_score"),
    Row("song distance to music + CLAP", "mini_song_fad", "song_frechet"),
    Row("song distance to disco + CLAP, style left open", "mini_song_fad_style", "song_frechet"),
    Row("random labels", "mini_song_fad", "song_frechet", ("--contrast.name", "random_labels"), control=True),
    Row("own samples as exemplars", "mini_control_self", "song_frechet", control=True),
)


def run(row: Row, seed: int, work: Path, extra: list[str]) -> Path:
    """One run of a row; nothing if it is finished, the rest of it if it was interrupted."""
    folder = work / f"{row.name.replace(' ', '_').replace('+', 'and').replace(',', '')}_{seed}"
    if not (folder / "evaluation.json").exists():
        command = [sys.executable, "-m", "dragon", "train", str(ROOT / "configs" / f"{row.config}.yaml")]
        command += ["--output_dir", str(folder), "--seed", str(seed), "--resume_from_checkpoint", "true"]
        command += ["--report_to", "none", *row.changes, *extra]
        started = time.time()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (work / f"{folder.name}.log").open("a") as log:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}; see {work / (folder.name + '.log')}")
        print(f"{row.name}, seed {seed}: {time.time() - started:.0f} s", flush=True)
    return folder


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


def summary(row: Row, folders: list[Path]) -> dict[str, object]:
    """A row's figures over its seeds."""
    rng = np.random.default_rng(0)
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    found = [shares(folder) for folder in folders]
    diversity = [e["diversity"]["tuned"] / e["diversity"]["base"] - 1 for e in evaluations]
    steps = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in folders]
    return {
        "name": row.name,
        "control": row.control,
        "target": row.target,
        "seeds": len(folders),
        "steps": len(steps[0]),
        "minutes": float(np.mean([sum(sum(s["seconds"].values()) for s in log) for log in steps])) / 60,
        "win_rate": {reward: interval([f[reward] for f in found], rng) for reward in sorted(found[0])},
        "gain_sd": {r: float(np.mean([e["rewards"][r]["gain_sd"] for e in evaluations])) for r in sorted(found[0])},
        "diversity_change": float(np.mean(diversity)),
    }


def table(rows: list[dict], settings: dict[str, object]) -> str:
    """docs/tuning.md."""
    columns = ("song_frechet", "song_frechet_held_out", "clap_score", "judge_score")
    lines = [
        "# What tuning gains, and what drifts",
        "",
        f"Made by `python benchmarks/tuning.py` on {settings['machine']}; {settings['prompts']} held-out prompts, two "
        "independent samples a prompt and side. A cell is the probability that a tuned sample beats a base sample of "
        "the same prompt, in per cent, with a 95 % interval over prompts and training seeds; 50 is no change. The "
        "target of a row is bold. The judge is never trained on. Controls run at the settings of the second row.",
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
    notes = ROOT / "docs" / "tuning_notes.md"
    return "\n".join(lines) + "\n" + ("\n" + notes.read_text(encoding="utf-8") if notes.exists() else "")


def main(work: Path, seeds: int, workers: int, only: str, extra: list[str], out: Path) -> None:
    """Runs what is missing, then writes the table."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if only in row.name]
    jobs = [(row, seed) for seed in range(seeds) for row in rows]  # seed by seed: a full table early
    with ThreadPoolExecutor(workers) as pool:
        folders = list(pool.map(lambda job: run(*job, work, extra), jobs))
    done = [summary(row, [f for f, (r, _) in zip(folders, jobs, strict=True) if r is row]) for row in rows]
    settings = {"machine": f"{platform.processor() or platform.machine()}, one thread a run", "extra": extra}
    settings["prompts"] = json.loads((folders[0] / "evaluation.json").read_text())["prompts"]
    print(json.dumps({"settings": settings, "rows": done}, indent=1))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(table(done, settings), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tuning.md")
    options, rest = parser.parse_known_args()
    main(options.work, options.seeds, options.workers, options.only, rest, options.out)
