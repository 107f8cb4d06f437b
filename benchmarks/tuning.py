"""How much reward tuning gains on the built-in model, with its controls: docs/tuning.md from nothing.

    python benchmarks/tuning.py          # resumable; what is finished lies in benchmarks/results/tuning

Claim: tuning raises the target reward on held-out prompts with independent samples, while random labels
and the base model's own samples as exemplars, at the same settings, leave everything where it was.
Prints JSON; writes the table from all finished runs. Every run is an ordinary `dragon train`, one thread each;
a finished run whose configuration has changed since is run again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from seeded_runs import Row, command, heading, interval, shares

ROWS = (
    Row("clap", "CLAP score", "mini_clap", "clap_score"),
    Row("music", "song distance to music + CLAP", "mini_song_fad", "song_frechet"),
    Row("disco", "song distance to disco + CLAP, style left open", "mini_song_fad_style", "song_frechet"),
    Row("random", "random labels", "mini_song_fad", "song_frechet", {"contrast.name": "random_labels"}, control=True),
    Row("self", "own samples as exemplars", "mini_control_self", "song_frechet", control=True),
)


def result(folder: Path) -> dict[str, object]:
    """What the table needs of a finished run."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    return {
        "diversity": evaluation["diversity"],
        "gain_sd": {name: reward["gain_sd"] for name, reward in evaluation["rewards"].items()},
        "shares": {name: values.tolist() for name, values in sorted(shares(folder).items())},
    }


def summary(row: Row, runs: list[dict]) -> dict[str, object]:
    """A row's figures over its finished seeds."""
    rng = np.random.default_rng(0)
    rewards = sorted(runs[0]["shares"])
    return {
        **heading(row, runs),
        "win_rate": {reward: interval([np.array(r["shares"][reward]) for r in runs], rng) for reward in rewards},
        "gain_sd": {reward: float(np.mean([r["gain_sd"][reward] for r in runs])) for reward in rewards},
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
        "The first row has no exemplars; its song distance is to other clips. Minutes are by the clock, on a machine "
        "that other work shared at times.",
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
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command(__doc__, ROWS, "tuning", result, summary, table)
