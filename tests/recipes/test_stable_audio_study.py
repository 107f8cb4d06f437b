"""The study runs from music to report on a tiny random pipeline, goes on where it stopped, and judges by its rules."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from dragon.build import plugin_problems
from dragon.config import from_dict
from dragon.errors import ConfigError
from tiny_pipelines import family

ROOT = Path(__file__).parents[2]
HERE = ROOT / "recipes" / "stable_audio_study"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stable_audio_study_{name}", HERE / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up there
    spec.loader.exec_module(found)
    return found


study = module("study")


def test_the_prompts_are_those_that_were_drawn_and_no_pair_is_in_both() -> None:
    drawn = module("prompts").prompts()
    for name, lines in zip(("train", "test"), drawn, strict=True):
        assert (HERE / f"prompts_{name}.txt").read_text().splitlines() == lines
    pairs = [{tuple(line.split(", ")[:2]) for line in lines} for lines in drawn]
    assert len(drawn[0]) == 256 and len(drawn[1]) == 128 and not pairs[0] & pairs[1]


def test_every_arm_is_a_configuration_that_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = study.Study.read(HERE / "study.yaml")
    assert len(found.seeds) == 3 and found.control.key == "random"
    base = yaml.safe_load(found.config.read_text())
    for arm in found.arms:
        config = from_dict(study._named(base | dict(arm.changes), "mine"))
        assert not [p for p in plugin_problems(config) if p.path != "device"]
        trained = {reward.options.get("name", reward.name) for reward in config.rewards}
        measured = trained | {reward.options.get("name", reward.name) for reward in config.evaluation.watch}
        assert found.rules.judge in measured - trained and (arm.control or arm.claim in measured)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A study of two arms and one seed, of a random pipeline and of noise as music."""
    import soundfile

    pipe = family("stable_audio").tiny()
    pipe.vae.register_to_config(sampling_rate=8000)  # clips that a page can play
    pipe.save_pretrained(str(tmp_path / "pipeline"))
    (tmp_path / "music").mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).normal(size=16000).astype(np.float32)
        soundfile.write(tmp_path / "music" / f"{i}.wav", 0.1 * noise, 16000)
    (tmp_path / "train.txt").write_text("slow piano\nfast drums\n")
    test = ["loud strings", "quiet choir", "slow drums", "fast piano", "loud choir", "slow music", "a piano", "strings"]
    (tmp_path / "test.txt").write_text("\n".join(test) + "\n")
    (tmp_path / "own.py").write_text(
        "def loud(audio, prompts):\n    return [float(abs(a.samples).mean()) for a in audio]\n"
    )
    values: dict[str, Any] = {
        "prompts": str(tmp_path / "train.txt"),
        "eval_prompts": str(tmp_path / "test.txt"),
        "policy": {"name": "pipeline", "options": {"folder": str(tmp_path / "pipeline")}},
        "tuning": {"rank": 2},
        "rewards": [{"name": f"{tmp_path}/own.py:loud"}],
        "rollout": {"prompts_per_step": 2, "steps": 2, "guidance": 1.0},
        "update": {"updates_per_step": 1, "pairs_per_update": 4},
        "max_steps": 2,
        "report_to": "none",
        "evaluation": {
            "prompts": 8,
            "steps": 2,
            "guidance": 1.0,
            "set_size": 2,
            "watch": [
                {"name": "random", "options": {"name": "judge"}},
                {"name": "set_frechet", "options": {"exemplars": "EXEMPLARS_held_out"}},
            ],
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    arms = [
        {"key": "loud", "title": "loudness", "claim": {"reward": "loud"}, "changes": {}},
        {
            "key": "random",
            "title": "random labels",
            "control": True,
            "changes": {"contrast": {"name": "random_labels"}},
        },
    ]
    rules = {"draws": 200, "coverage": 0.95, "judge": "judge", "judge_floor": 0.5, "diversity_floor": -0.1}
    given = {"config": "config.yaml", "prompts": ["train.txt"], "exemplars": {"encoder": "mini", "seed": 0}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**given, "seeds": [0], "arms": arms, "rules": rules}))
    return tmp_path


@pytest.mark.slow
def test_from_music_to_report_in_one_command_that_goes_on_where_it_stopped(tiny: Path) -> None:
    said: list[str] = []
    words = ["--study", str(tiny / "study.yaml"), "--root", str(tiny), "--music", str(tiny / "music")]
    words += ["--work", str(tiny / "work"), "--results", str(tiny / "results")]
    study.main(words, said.append)
    report = (tiny / "results" / "report.md").read_text()
    assert "| loudness | 1 of 1 |" in report and "| random labels | 1 of 1 |" in report
    assert (tiny / "results" / "report.png").stat().st_size > 1000
    found = json.loads((tiny / "results" / "report.json").read_text())
    assert found["random"]["verdict"] == "control" and not found["loud"]["verdict"].startswith("open")
    assert set(found["loud"]["win_rate"]) == {"loud", "judge", "set_frechet"}
    logs = {path: path.stat().st_mtime_ns for path in (tiny / "work").glob("*.log")}
    (tiny / "results" / "random_0.json").unlink()  # a finished run whose result is lost: no training again
    study.main(words, said.append)
    assert {path: path.stat().st_mtime_ns for path in logs} == logs
    assert (tiny / "results" / "report.md").read_text() == report
    (tiny / "train.txt").write_text("another prompt\n")
    with pytest.raises(ConfigError, match=r"train\.txt changed since the study was registered"):
        study.main([*words, "--only-judge"], said.append)


def figures(rate: float, low: float, judge_high: float = 0.55, diversity: float = 0.0) -> dict[str, Any]:
    rates = {"clap_score": (rate, low, 2 * rate - low), "judge": (0.5, 0.45, judge_high)}
    return {"win_rate": rates, "diversity": diversity}


def test_a_claim_stands_only_if_every_rule_holds() -> None:
    rules = study.Rules(draws=100, coverage=0.95, judge="judge", judge_floor=0.5, diversity_floor=-0.1)
    arm, control = study.Arm("clap", "CLAP", claim="clap_score"), figures(0.52, 0.47)

    def said(found: dict[str, Any], complete: bool = True) -> str:
        text: str = study.verdict(arm, found, control, rules, complete)
        return text

    assert said(figures(0.7, 0.6)) == "supported"
    assert said(figures(0.7, 0.6), complete=False).startswith("open")
    assert "holds 50 %" in said(figures(0.55, 0.49))
    assert "random labels do as well" in said(figures(0.55, 0.51))
    assert "judge" in said(figures(0.7, 0.6, judge_high=0.49))
    assert "diversity" in said(figures(0.7, 0.6, diversity=-0.2))


def test_the_interval_widens_with_seeds_that_disagree_and_covers_their_mean() -> None:
    rules = study.Rules(draws=2000, coverage=0.95, judge="judge", judge_floor=0.5, diversity_floor=-0.1)
    rng = np.random.default_rng(0)
    agree = [(0.6 + 0.01 * rng.normal(size=128)).tolist() for _ in range(3)]
    differ = [(rate + 0.01 * rng.normal(size=128)).tolist() for rate in (0.4, 0.6, 0.8)]
    (mean, low, high), (_, wide_low, wide_high) = study.interval(agree, rules), study.interval(differ, rules)
    assert low < mean < high < 0.61 and low > 0.59
    assert wide_low < 0.45 and wide_high > 0.75
