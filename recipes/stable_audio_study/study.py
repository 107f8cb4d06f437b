"""A study fixed in advance, in one command: runs what is missing of every arm and seed, and judges what is there.

    python recipes/stable_audio_study/study.py --music FOLDER        # resumable; writes results/, report.md, report.png
    python recipes/stable_audio_study/study.py --only-judge          # no run: the report of the finished ones

The first call writes results/registered.json with hashes of what was fixed (study.yaml, config.yaml, the prompts); any
later call refuses if one of them differs. Each run is an ordinary `dragon train` with a configuration of its own beside
its folder. A finished run is kept as results/ARM_SEED.json with the shares of won comparisons of every prompt, which
is all that the report needs; one that was interrupted goes on from its last checkpoint.

Rules of judgement (`verdict`) are in README.md; they read numbers of study.yaml alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dragon.errors import ConfigError
from dragon.files import write_whole
from dragon.intervals import win_shares
from dragon.report.files import read_scores

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """One way of tuning. claim: the reward whose win rate it is to raise; a control claims nothing."""

    key: str
    title: str
    changes: Mapping[str, object] = field(default_factory=dict)
    claim: str = ""
    control: bool = False


@dataclass(frozen=True)
class Rules:
    """draws, coverage: of the bootstrap. judge: a reward that no arm trains on. floors: see README.md."""

    draws: int
    coverage: float
    judge: str
    judge_floor: float
    diversity_floor: float


@dataclass(frozen=True)
class Study:
    """What was fixed. root: the folder that paths in it are relative to."""

    config: Path
    fixed: tuple[Path, ...]
    exemplars: Mapping[str, Any]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    rules: Rules

    @staticmethod
    def read(path: Path, root: Path = ROOT) -> Study:
        """The study that a YAML file describes."""
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        arms = tuple(
            Arm(
                a["key"],
                a["title"],
                a.get("changes", {}),
                a.get("claim", {}).get("reward", ""),
                a.get("control", False),
            )
            for a in found["arms"]
        )
        return Study(
            config=root / found["config"],
            fixed=(path, root / found["config"], *(root / name for name in found["prompts"])),
            exemplars=found["exemplars"],
            seeds=tuple(found["seeds"]),
            arms=arms,
            rules=Rules(**found["rules"]),
        )

    @property
    def control(self) -> Arm:
        return next(arm for arm in self.arms if arm.control)


# ---- what was fixed stays fixed


def register(study: Study, results: Path) -> None:
    """Writes the hashes of what was fixed; later, compares them.

    Raises:
        ConfigError: a file has changed since the first call.
    """
    now = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in study.fixed}
    place = results / "registered.json"
    if not place.exists():
        write_whole(place, (json.dumps(now, indent=1) + "\n").encode())
        return
    before = json.loads(place.read_text(encoding="utf-8"))
    changed = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if changed:
        raise ConfigError(
            f"{', '.join(sorted(changed))} changed since the study was registered ({place}); put the files back, or "
            "start another study in another --results folder and say so"
        )


# ---- running


def run(study: Study, arm: Arm, seed: int, work: Path, results: Path, launcher: Sequence[str], exemplars: str) -> None:
    """One run, if it is not kept already; the rest of it where it was interrupted.

    Raises:
        ConfigError: `dragon train` failed; names its log.
    """
    kept = results / f"{arm.key}_{seed}.json"
    if kept.exists():
        return
    folder = work / f"{arm.key}_{seed}"
    values = _named(yaml.safe_load(study.config.read_text(encoding="utf-8")), exemplars)
    values |= _named(dict(arm.changes), exemplars) | {"seed": seed, "output_dir": str(folder)}
    config = work / f"{arm.key}_{seed}.yaml"
    write_whole(config, yaml.safe_dump(values, sort_keys=False).encode())
    if not (folder / "evaluation.json").exists():
        words = [*launcher, "-m", "dragon", "train", str(config), "--resume_from_checkpoint", "true"]
        log = work / f"{arm.key}_{seed}.log"
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            raise ConfigError(f"{shlex.join(words)} ended with {code}; see {log}, mend it, and start the study again")
    write_whole(kept, (json.dumps(_result(folder), indent=1) + "\n").encode())


def build_exemplars(study: Study, music: str, name: str, work: Path) -> str:
    """Both halves of the music as exemplar sets in `work`, made once; gives what they are called."""
    place = work / name
    if not (work / f"{name}_held_out.safetensors").exists():
        if not music:
            raise ConfigError("no exemplars yet; give your music: --music FOLDER")
        words = [sys.executable, "-m", "dragon", "exemplars", "split", name, music, "--out", str(work)]
        encoder = study.exemplars["encoder"]
        words += ["--encoder", encoder if isinstance(encoder, str) else json.dumps(encoder)]
        words += ["--seed", str(study.exemplars["seed"])]
        found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if found.returncode:
            raise ConfigError(f"{shlex.join(words)} ended with {found.returncode}: {found.stderr.strip()[-800:]}")
    return str(place)


def _named(values: object, exemplars: str) -> Any:  # noqa: ANN401  plain YAML values
    """Every NAME in EXEMPLARS_train and EXEMPLARS_held_out by the file of that half."""
    if isinstance(values, dict):
        return {key: _named(value, exemplars) for key, value in values.items()}
    if isinstance(values, list):
        return [_named(value, exemplars) for value in values]
    if isinstance(values, str) and values.startswith("EXEMPLARS_"):
        return f"{exemplars}{values.removeprefix('EXEMPLARS')}.safetensors"
    return values


def _result(folder: Path) -> dict[str, object]:
    """What the report needs of a finished run's folder."""
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    tables: dict[str, dict[str, dict[tuple[int, int], float]]] = defaultdict(lambda: defaultdict(dict))
    for score in read_scores(folder):
        tables[score.reward][score.side][score.prompt_index, score.sample] = score.score
    shares = {name: win_shares(_square(sides["base"]), _square(sides["tuned"])) for name, sides in tables.items()}
    return {
        "steps": len(log),
        "hours": sum(sum(step["seconds"].values()) for step in log) / 3600,
        "diversity": evaluation["diversity"],
        "sets": {name: reward for name, reward in evaluation["rewards"].items() if reward["kind"] == "set"},
        "shares": {name: values.tolist() for name, values in sorted(shares.items())},
    }


def _square(cells: Mapping[tuple[int, int], float]) -> Floats:
    m, k = (1 + max(index[axis] for index in cells) for axis in (0, 1))
    return np.array([[cells[i, j] for j in range(k)] for i in range(m)])


# ---- judging


def interval(by_seed: Sequence[Sequence[float]], rules: Rules) -> tuple[float, float, float]:
    """Mean win rate and its interval over prompts and training seeds, both resampled."""
    stacked = np.array(by_seed, dtype=np.float64)
    rng = np.random.default_rng(0)
    seeds, prompts = stacked.shape
    means = [
        np.nanmean(stacked[rng.integers(seeds, size=seeds)][:, rng.integers(prompts, size=prompts)])
        for _ in range(rules.draws)
    ]
    low, high = np.quantile(means, [(1 - rules.coverage) / 2, (1 + rules.coverage) / 2])
    return float(np.nanmean(stacked)), float(low), float(high)


def verdict(arm: Arm, figures: Mapping[str, Any], control: Mapping[str, Any], rules: Rules, complete: bool) -> str:
    """supported, not supported, or open (not all seeds of the arm and of the control are finished)."""
    if not complete:
        return "open: seeds are missing"
    _, low, _ = figures["win_rate"][arm.claim]
    reasons = []
    if not low > 0.5:
        reasons.append("its interval holds 50 %")
    if not low > control["win_rate"][arm.claim][0]:
        reasons.append("random labels do as well")
    if figures["win_rate"][rules.judge][2] < rules.judge_floor:
        reasons.append("the judge prefers the base model")
    if figures["diversity"] < rules.diversity_floor:
        reasons.append("diversity fell")
    return f"not supported: {', '.join(reasons)}" if reasons else "supported"


def judge(study: Study, results: Path) -> dict[str, Any]:
    """Every arm's figures and verdict, from the kept runs."""
    found: dict[str, Any] = {}
    for arm in study.arms:
        places = [results / f"{arm.key}_{seed}.json" for seed in study.seeds]
        runs = [json.loads(place.read_text(encoding="utf-8")) for place in places if place.exists()]
        if runs:
            found[arm.key] = _figures(runs, study.rules) | {"complete": len(runs) == len(study.seeds)}
    control = found.get(study.control.key)
    for arm in study.arms:
        if arm.key in found:
            ready = found[arm.key]["complete"] and control is not None and control["complete"]
            found[arm.key]["verdict"] = (
                "control" if arm.control else verdict(arm, found[arm.key], control or {}, study.rules, ready)
            )
    return found


def _figures(runs: Sequence[Mapping[str, Any]], rules: Rules) -> dict[str, Any]:
    rates = {name: interval([run["shares"][name] for run in runs], rules) for name in runs[0]["shares"]}
    for name, first in runs[0]["sets"].items():
        # disjoint subsets of prompts, one win rate a run: the mean, and the widest of the runs' own intervals
        whole = [run["sets"][name] for run in runs]
        rates[name] = (
            float(np.mean([w["win_rate"] for w in whole])),
            min(w["low"] for w in whole),
            max(w["high"] for w in whole),
        )
        assert first["kind"] == "set"
    changes = [run["diversity"]["tuned"] / run["diversity"]["base"] - 1 for run in runs if run["diversity"]]
    return {
        "seeds": len(runs),
        "hours": float(np.mean([run["hours"] for run in runs])),
        "steps": [run["steps"] for run in runs],
        "win_rate": rates,
        "diversity": float(np.mean(changes)) if changes else 0.0,
    }


def table(study: Study, found: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    columns = [name for name in next(iter(found.values()))["win_rate"]]
    lines = [
        "# Result of the study",
        "",
        f"Made by `python {HERE.relative_to(ROOT)}/study.py`. A cell is the probability that a tuned sample beats a "
        f"base sample of the same prompt, in per cent, with a {100 * study.rules.coverage:g} % interval over prompts "
        "and training seeds (set rewards: over disjoint subsets of prompts). The claim of an arm is bold.",
        "",
        "| arm | seeds | hours a run | " + " | ".join(columns) + " | diversity | verdict |",
        "| --- | --- | --- |" + " --- |" * (len(columns) + 2),
    ]
    for arm in study.arms:
        if arm.key not in found:
            continue
        row, cells = found[arm.key], []
        for name in columns:
            mean, low, high = (100 * value for value in row["win_rate"].get(name, (np.nan,) * 3))
            cell = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
            cells.append(f"**{cell}**" if name == arm.claim else cell)
        begin = [arm.title, f"{row['seeds']} of {len(study.seeds)}", f"{row['hours']:.2f}"]
        lines.append("| " + " | ".join([*begin, *cells, f"{100 * row['diversity']:+.1f} %", row["verdict"]]) + " |")
    return "\n".join(lines) + "\n"


def picture(study: Study, found: Mapping[str, Any], place: Path) -> None:
    """Win rates with their intervals: one panel a reward, one line an arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = list(next(iter(found.values()))["win_rate"])
    arms = [arm for arm in study.arms if arm.key in found]
    figure, panels = plt.subplots(1, len(columns), figsize=(3 * len(columns), 1 + 0.5 * len(arms)), sharey=True)
    for panel, name in zip(np.atleast_1d(panels), columns, strict=True):
        for height, arm in enumerate(reversed(arms)):
            mean, low, high = (100 * value for value in found[arm.key]["win_rate"].get(name, (np.nan,) * 3))
            colour = "0.5" if arm.control else "C0" if name == arm.claim else "C1"
            panel.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt="o", color=colour)
        panel.axvline(50, color="0.7", linewidth=1)
        panel.set(title=name, xlabel="win rate, %", yticks=range(len(arms)))
        panel.set_yticklabels([arm.title for arm in reversed(arms)])
    figure.savefig(place, bbox_inches="tight", dpi=120)
    plt.close(figure)


def report(study: Study, results: Path) -> str:
    """Writes report.md and report.png beside `results`; gives the text.

    Raises:
        ConfigError: no run is finished.
    """
    found = judge(study, results)
    if not found:
        raise ConfigError(f"no finished run in {results}; start the study without --only-judge")
    text = table(study, found)
    write_whole(results / "report.md", text.encode())
    write_whole(results / "report.json", (json.dumps(found, indent=1) + "\n").encode())
    picture(study, found, results / "report.png")
    return text


def main(words: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=HERE / "study.yaml")
    parser.add_argument("--root", type=Path, default=ROOT, help="what paths in the study are relative to")
    parser.add_argument("--music", default="", help="folder of audio to train toward, half of it held out")
    parser.add_argument("--exemplars", default="study", help="name of the exemplar sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "stable_audio_study")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--launcher", default="", help="for several GPUs: 'accelerate launch --config_file ...'")
    parser.add_argument("--only-judge", action="store_true")
    options = parser.parse_args(words)
    study = Study.read(options.study, options.root)
    register(study, options.results)
    if not options.only_judge:
        options.work.mkdir(parents=True, exist_ok=True)
        work = options.work.resolve()
        exemplars = build_exemplars(study, options.music, options.exemplars, work)
        launcher = shlex.split(options.launcher) or [sys.executable]
        for seed in study.seeds:  # seed by seed: a full table early
            for arm in study.arms:
                say(f"{arm.title}, seed {seed}")
                run(study, arm, seed, work, options.results, launcher, exemplars)
                report(study, options.results)
    say(report(study, options.results))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(f"study: {error}") from error
