"""What tuning toward a whole set gains, and what else moves: docs/set_tuning.md from nothing.

    python benchmarks/set_tuning.py      # resumable; what is finished lies in benchmarks/results/set_tuning

Claims: a reward that judges a whole set can be trained on, by credits or by swap search; per-song and dataset distance
are different targets; captions serve as exemplars of audio; random labels, the base model's own samples as exemplars
and captions of no style in particular move nothing. Prints JSON; writes the table from all finished runs. Every run is
an ordinary `dragon train`, one thread each; a finished run whose configuration has changed since is run again.
"""

from __future__ import annotations

import json
from pathlib import Path

import credit_curves
import numpy as np
import set_attributes
import set_moves
from seeded_runs import ROOT, Row, command, heading, interval, shares


def _set(reward: str, exemplars: str) -> dict[str, str]:
    return {"rewards": f"[{{name: {reward}, options: {{exemplars: {exemplars}}}}}]"}


ROWS = (
    Row("set_fad", "dataset FAD, influence", "mini_set_fad", "set_frechet"),
    Row(
        "set_fad_loo",
        "dataset FAD, leave-one-out",
        "mini_set_fad",
        "set_frechet",
        {"credit.name": "leave_one_out", "credit.options": "{}"},
    ),
    Row("set_fad_swap", "dataset FAD, swap search", "mini_set_fad", "set_frechet", {"contrast.name": "swap"}),
    Row(
        "set_fad_clap",
        "dataset FAD + CLAP",
        "mini_set_fad",
        "set_frechet",
        {
            "rewards": "[{name: set_frechet, options: {exemplars: mini_disco}}, "
            "{name: clap_score, options: {name: clap_trained}}]"  # the plain name is the watched one's
        },
    ),
    Row("song_fad", "per-song FAD", "mini_set_fad", "song_frechet", _set("song_frechet", "mini_disco")),
    Row(
        "set_shared",
        "dataset FAD, shared space",
        "mini_set_fad",
        "set_frechet",
        _set("set_frechet", "mini_disco_shared"),
    ),
    Row("set_kad", "dataset KAD, shared space", "mini_set_fad", "set_kernel", _set("set_kernel", "mini_disco_shared")),
    Row("text", "dataset FAD to captions, shared space", "mini_text_exemplars", "set_frechet"),
    Row("vendi", "Vendi + CLAP", "mini_vendi", "vendi"),
    Row("random", "random labels", "mini_set_fad", "set_frechet", {"contrast.name": "random_labels"}, control=True),
    Row(
        "self",
        "own samples as exemplars",
        "mini_set_fad",
        "set_frechet",
        _set("set_frechet", "mini_self_open"),
        control=True,
    ),
    Row(
        "shuffled",
        "captions of no style",
        "mini_text_exemplars",
        "set_frechet",
        _set("set_frechet", "mini_shuffled_text"),
        control=True,
    ),
)
ASSIGNMENTS = {
    "set_fad": "influence at a queue",
    "set_fad_loo": "leave-one-out",
    "set_fad_swap": "swap search",
    "random": "random labels",
}
"""Rows that differ only in how the set's reward becomes D+ and D-."""
PARTS = ((1, 8), (9, 16), (17, 40))
"""First and last iterations of the columns that compare them."""
WATCHED = ("set_frechet_held_out", "song_frechet_held_out", "vendi_judge")


FIT = {"clap_score": "CLAP score", "judge_score": "judge"}
"""Rewards of prompt fit, which a set of exemplars may cost, and what they are called."""


def result(folder: Path) -> dict[str, object]:
    """What the table needs of a finished run."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    gap = [value for step in log for name, value in step["figures"].items() if name.endswith("/gap_share")]
    seconds = [step["seconds"] for step in log]
    return {
        "rewards": evaluation["rewards"],
        "diversity": evaluation["diversity"],
        "shares": {name: values.tolist() for name, values in sorted(shares(folder).items())},
        "gap_share": float(np.mean(gap)) if gap else None,
        "search_share": sum(s["search"] for s in seconds) / sum(sum(s.values()) for s in seconds),
        "heard": set_attributes.heard(folder),
        "curves": {name: credit_curves.curve(log, name) for name in log[0]["rewards"]},
    }


def over_seeds(runs: list[dict], reward: str, field: str, low: str, high: str) -> tuple[float, float, float]:
    """A set reward's figure over seeds with a 95 % interval (a share's ends may lie beyond 0 and 1; tables cut them).

    Each run's own interval (over prompts) and the spread of seeds are added in squares; the first is not divided by
    the number of seeds, since all of them share the prompts and the base's samples.
    """
    values, lows, highs = (np.array([run["rewards"][reward][key] for run in runs]) for key in (field, low, high))
    between = 1.96**2 * values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
    mean = float(values.mean())
    below, above = (float(np.sqrt(np.mean(part**2) + between)) for part in (values - lows, highs - values))
    return mean, mean - below, mean + above


def summary(row: Row, runs: list[dict]) -> dict[str, object]:
    """A row's figures over its finished seeds."""
    rng = np.random.default_rng(0)
    rewards = runs[0]["rewards"]
    sets = [name for name, reward in rewards.items() if reward["kind"] == "set"]
    return {
        "key": row.key,
        **heading(row, runs),
        "base": {name: float(np.mean([run["rewards"][name]["base"] for run in runs])) for name in rewards},
        "tuned": {name: float(np.mean([run["rewards"][name]["tuned"] for run in runs])) for name in rewards},
        "win_rate": {
            name: over_seeds(runs, name, "win_rate", "low", "high")
            if name in sets
            else interval([np.array(run["shares"][name]) for run in runs], rng)
            for name in rewards
        },
        "difference": {
            name: over_seeds(runs, name, "difference", "difference_low", "difference_high") for name in sets
        },
        "gap_share": None if runs[0]["gap_share"] is None else float(np.mean([run["gap_share"] for run in runs])),
        "search_share": float(np.mean([run["search_share"] for run in runs])),
        "fit": {name: {run["settings"]["seed"]: run["shares"][name] for run in runs} for name in FIT},
        "set_size": runs[0]["settings"]["evaluation"]["set_size"],
        "heard": [run["heard"] for run in runs if "heard" in run],  # runs from before it was read have none
        "curves": {run["settings"]["seed"]: run["curves"].get(row.target, {}) for run in runs},
    }


def table(rows: list[dict], machine: str, prompts: int) -> str:
    """docs/set_tuning.md."""
    sizes = " or ".join(str(size) for size in sorted({row["set_size"] for row in rows}))
    moves = ROOT / "docs" / "set_tuning.png"
    set_moves.picture(rows, moves)
    lines = [
        "# What tuning toward a whole set gains, and what else moves",
        "",
        f"Made by `python benchmarks/set_tuning.py` on {machine}; {prompts} held-out prompts that name no style, two "
        "independent samples a prompt and side. A set reward's cell is before -> after, and in per cent how often a "
        f"tuned set of {sizes} prompts beats a base set of as many others, with a 95 % interval; that of a clip's "
        "reward is how often a tuned sample beats a base sample of the same prompt. 50 is no change. The target of a "
        "row is bold, its gain with a 95 % interval in brackets. "
        "Exemplars are disco clips; FAD columns are distances to 400 other disco clips in the codec's latents, Vendi "
        "is in the judge's space, neither is trained on. Disco: share of clips that the readers hear as disco. "
        "Minutes: training of the fastest seed, one thread.",
        "",
        f"![What moved, row by row: base in grey, tuned in colour]({moves.name})",
        "",
        "| row | seeds | minutes | target | dataset FAD | per-song FAD | Vendi | disco | CLAP | judge | diversity "
        "| gap share | search |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        target = f"{_moved(row, row['target'])}{_gain(row)}, {_win(row, row['target'])}"
        cells = [
            f"control: {row['name']}" if row["control"] else row["name"],
            str(row["seeds"]),
            f"{row['minutes']:.1f}",
            target if row["control"] else f"**{target}**",
            *(f"{_moved(row, name)}, {_win(row, name)}" for name in WATCHED),
            f"{100 * row['base']['heard_disco']:.0f} -> {100 * row['tuned']['heard_disco']:.0f} %",
            _win(row, "clap_score"),
            _win(row, "judge_score"),
            f"{100 * row['diversity_change']:+.1f} %",
            "" if row["gap_share"] is None else f"{row['gap_share']:.2f}",
            f"{100 * row['search_share']:.1f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_price(rows)]
    return "\n".join([*lines, "", *_attributes(rows), *_assignments(rows)]) + "\n"


def _price(rows: list[dict]) -> list[str]:
    """Prompt fit beside random labels', prompt by prompt, over the seeds that both were run with."""
    control = next((row["fit"] for row in rows if row["key"] == "random"), {})
    rng, told = np.random.default_rng(0), []
    for row in rows:
        found = []
        for name, called in FIT.items():
            pairs = [(mine, control[name][s]) for s, mine in row["fit"][name].items() if s in control.get(name, {})]
            if pairs and row["key"] != "random":
                found.append((called, interval([np.subtract(mine, other) for mine, other in pairs], rng)))
        if found:
            cells = [f"{called} {100 * m:+.0f} [{100 * a:+.0f}, {100 * b:+.0f}]" for called, (m, a, b) in found]
            told.append(f"{row['name']}: {', '.join(cells)}")
    if not told:
        return []
    return [
        "Per cent of wins over the base less that of random labels, prompt by prompt over the seeds that both have: "
        f"{'; '.join(told)}.",
    ]


def _attributes(rows: list[dict]) -> list[str]:
    """Which attributes moved."""
    table_lines = set_attributes.lines(rows)
    if not table_lines:
        return []
    return [
        "## What the readers hear",
        "",
        f"{set_attributes.PROMPTS} held-out prompts, {set_attributes.SAMPLES} samples each, heard by the built-in "
        "classifiers. A cell is the total variation distance in per cent between what is heard of an attribute in "
        "base and in tuned clips: the share of clips that would have to change their value. The exemplars' works are "
        "all disco; their other attributes are drawn evenly. The last line, the base with other seeds, is chance.",
        "",
        *table_lines,
        "",
    ]


def _assignments(rows: list[dict]) -> list[str]:
    """Which way from a set's reward to D+ and D- gains most, an iteration and a minute."""
    compared = [row for row in rows if row["key"] in ASSIGNMENTS]
    table_lines = credit_curves.lines(compared, ASSIGNMENTS, "random", PARTS)
    if not table_lines:
        return []
    place = ROOT / "docs" / "set_tuning_credits.png"
    credit_curves.picture(compared, ASSIGNMENTS, "random", place)
    return [
        "## From the set's reward to D+ and D-",
        "",
        "How far the dataset FAD of an iteration's own 64 samples lies below that of random labels at the same "
        "iteration and seed (the same prompts and noise): mean over iterations, and in brackets the range of seeds. "
        f"Half: of the mean of the last {credit_curves.LAST} iterations, on a curve smoothed over "
        f"{credit_curves.WINDOW}. Minutes are of the fastest seed. Influence spends its first three iterations on "
        "filling its queue.",
        "",
        f"![Dataset FAD below random labels' by iteration and by minutes]({place.name})",
        "",
        *table_lines,
    ]


def _moved(row: dict, name: str) -> str:
    """A distance is shown as such: rewards are minus distances."""
    sign = -1 if row["base"][name] < 0 else 1
    return f"{sign * row['base'][name]:.3g} -> {sign * row['tuned'][name]:.3g}"


def _gain(row: dict) -> str:
    """Of a set's reward, for which more is better."""
    found = row["difference"].get(row["target"])
    return "" if found is None else " ({:+.2f} [{:.2f}, {:.2f}])".format(*found)


def _win(row: dict, name: str) -> str:
    mean, low, high = (min(max(share, 0), 1) for share in row["win_rate"][name])
    return f"{100 * mean:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


if __name__ == "__main__":
    command(__doc__, ROWS, "set_tuning", result, summary, table)
