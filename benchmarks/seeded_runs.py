"""Ordinary `dragon train` runs of several seeds, kept: what the tables of tuned models are made of.

A run is a row (a configuration and what is changed in it) and a seed. Finished runs lie as JSON in a folder of
benchmarks/results; one whose configuration has changed since is run again. Every run uses one thread, so that minutes
can be compared.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from dragon.config import TrainConfig, from_dict, load, to_dict
from dragon.errors import ConfigError
from dragon.intervals import win_shares
from dragon.report.files import read_scores

ROOT = Path(__file__).parents[1]
DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration, what is changed in it (as flags), and the reward it aims at."""

    key: str
    name: str
    config: str
    target: str
    changes: Mapping[str, str] = field(default_factory=dict)
    control: bool = False


Result = Callable[[Path], dict[str, object]]
"""What a table needs of a finished run's folder."""
Job = Callable[[Row, int], None]
"""Makes one row's run of one seed, unless it is kept already."""


def command(
    description: str | None,
    rows: Sequence[Row],
    name: str,
    result: Result,
    summary: Callable[[Row, list[dict]], dict[str, object]],
    table: Callable[[list[dict], str, int], str],
) -> None:
    """The command line of a table: runs what is missing, prints the summaries as JSON, writes docs/NAME.md."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("--seeds", type=int, default=3, help="0: only the table, from finished runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], choices=[row.key for row in rows], help="rows to run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / f"{name}.md")
    options = parser.parse_args()
    kept = ROOT / "benchmarks" / "results" / name
    options.work.mkdir(parents=True, exist_ok=True)
    finished = run_all(
        rows,
        options.seeds,
        kept,
        lambda row, seed: run(row, seed, options.work, kept, result),
        workers=options.workers,
        only=options.only,
    )
    done = [summary(row, runs) for row, runs in zip(rows, finished, strict=True) if runs]
    if not done:
        raise SystemExit(f"no finished runs in {kept}; give --seeds 1 or more")
    print(json.dumps(done, indent=1))
    some = next(runs[0] for runs in finished if runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = table(done, some["machine"], len(some["shares"]["clap_score"]))
    options.out.write_text(text + missing(rows, done) + notes(name), encoding="utf-8")


def missing(rows: Sequence[Row], done: Sequence[dict], wanted: int = 3) -> str:
    """A line about the seeds that were not run; empty if all were."""
    counts = {str(row["name"]): int(row["seeds"]) for row in done}
    lacking = [
        f"{r.name} ({wanted - counts.get(r.name, 0)} of {wanted})" for r in rows if counts.get(r.name, 0) < wanted
    ]
    return f"\nSeeds not run yet: {'; '.join(lacking)}.\n" if lacking else ""


def notes(name: str) -> str:
    """What is said below a table: docs/NAME_notes.md."""
    path = ROOT / "docs" / f"{name}_notes.md"
    return "\n" + path.read_text(encoding="utf-8") if path.exists() else ""


def run_all(
    rows: Sequence[Row], seeds: int, kept: Path, job: Job, *, workers: int, only: Sequence[str]
) -> list[list[dict]]:
    """Runs what is missing, seed by seed, and gives every finished run of each row at its present settings."""
    kept.mkdir(parents=True, exist_ok=True)
    jobs = [(row, seed) for seed in range(seeds) for row in rows if not only or row.key in only]
    with ThreadPoolExecutor(workers) as pool:  # seed by seed: a full table early
        list(pool.map(lambda wanted: job(*wanted), jobs))
    stored = [[json.loads(p.read_text()) for p in sorted(kept.glob(f"{row.key}_[0-9]*.json"))] for row in rows]
    return [
        [run for run in runs if same_settings(run["settings"], settings_of(row, run["settings"]["seed"]))]
        for row, runs in zip(rows, stored, strict=True)
    ]


def heading(row: Row, runs: Sequence[dict]) -> dict[str, object]:
    """What every summary of a row's finished seeds begins with."""
    return {
        "name": row.name,
        "control": row.control,
        "target": row.target,
        "seeds": len(runs),
        "steps": runs[0]["steps"],
        "minutes": min(run["minutes"] for run in runs),  # other work may have shared the machine with the rest
        "diversity_change": float(np.mean([run["diversity"]["tuned"] / run["diversity"]["base"] - 1 for run in runs])),
    }


def configuration(row: Row, seed: int) -> TrainConfig:
    """The run's filled configuration."""
    changes = {key: yaml.safe_load(value) for key, value in row.changes.items()}
    return load(ROOT / "configs" / f"{row.config}.yaml", {**changes, "seed": seed})


def settings_of(row: Row, seed: int) -> dict[str, object]:
    """The run's filled configuration, without what does not change its result."""
    filled = to_dict(configuration(row, seed))
    return {k: v for k, v in filled.items() if k not in ("output_dir", "report_to", "resume_from_checkpoint")}


def run(row: Row, seed: int, work: Path, kept_in: Path, result: Result) -> None:
    """One run of a row; nothing if it is finished, the rest of it if it was interrupted."""
    kept, settings = kept_in / f"{row.key}_{seed}.json", settings_of(row, seed)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = work / f"{row.key}_{seed}_{digest}"  # other settings, another folder
    if kept.exists() and same_settings(json.loads(kept.read_text())["settings"], settings):
        return
    if not (folder / "evaluation.json").exists():
        command = [sys.executable, "-m", "dragon", "train", str(ROOT / "configs" / f"{row.config}.yaml")]
        command += ["--output_dir", str(folder), "--seed", str(seed), "--resume_from_checkpoint", "true"]
        command += ["--report_to", "none", *(word for k, v in row.changes.items() for word in (f"--{k}", v))]
        started = time.time()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (work / f"{folder.name}.log").open("a") as log:
            running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(running.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"{' '.join(command)} ended with {code}; see {work / (folder.name + '.log')}")
        running.returncode = 0
        cpu = used.ru_utime + used.ru_stime
        print(f"{row.name}, seed {seed}: {time.time() - started:.0f} s, {cpu:.0f} CPU s", flush=True)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {
        "settings": settings,
        "machine": f"{processor()}, one thread a run",
        "minutes": round(sum(sum(step["seconds"].values()) for step in log) / 60, 2),
        "steps": len(log),
        **result(folder),
    }
    kept.write_text(json.dumps(found) + "\n", encoding="utf-8")


def same_settings(stored: Mapping[str, object], now: Mapping[str, object]) -> bool:
    """Whether a run was made with these settings; an option that did not exist then stood at its default.

    The policy's precision counts as rounding: which format is fast depends on the machine, so seeds may differ in it.
    """
    try:
        filled = to_dict(from_dict(stored))
    except ConfigError:  # an option that is no more
        return False
    return all(_without_precision(filled[key]) == _without_precision(value) for key, value in now.items())


def _without_precision(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_precision(inner) for key, inner in value.items() if key != "precision"}


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
