"""An ordinary run on a pipeline's folder, by the command line: trained, stopped, resumed, evaluated, sampled."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dragon.cli import main
from dragon.learner import Learner
from dragon.runfolder import CONTENTS
from tiny_pipelines import PROMPTS, WORDS, tiny_pipeline

REWARDS = '''
class Level:
    """Loudness of a clip."""

    name, abstains = "level", False

    def score(self, media):
        return media.tensor.double().flatten(1).square().mean(1)


class Variety:
    """Variance of the clips of a set."""

    name = "variety"

    def embed(self, media):
        return media.tensor.double().flatten(1)[:, None]

    def score_sets(self, features, members):
        return features[members][:, :, 0].var(1).sum(1)
'''
STEPS = 3


@pytest.fixture
def train(tmp_path, monkeypatch) -> Callable[..., int]:
    """Runs `dragon train` in a folder of its own and gives its exit status."""
    monkeypatch.chdir(tmp_path)
    options = {"folder": "tiny", **tiny_pipeline("musicldm", "tiny").OPTIONS}
    Path("rewards_here.py").write_text(REWARDS)
    Path("train.txt").write_text("\n".join(PROMPTS) + "\n")
    Path("test.txt").write_text("\n".join(f"{word} music" for word in WORDS[:8]) + "\n")

    def run(name: str, *flags: str) -> int:
        values = {
            "output_dir": name,
            "prompts": "train.txt",
            "eval_prompts": "test.txt",
            "policy": {"name": "pipeline", "options": options},
            "rewards": [{"name": "rewards_here.py:Level"}, {"name": "rewards_here.py:Variety"}],
            "tuning": {"rank": 2},
            "contrast": {"name": "swap"},
            "evaluation": {"prompts": 8, "samples_per_prompt": 1, "steps": 2, "guidance": 2, "set_size": 2},
            "rollout": {"guidance": 2, "prompts_per_step": 3, "steps": 2},
            "update": {"beta_calibration_updates": 2},
            "learning_rate": 0.01,
            "max_steps": STEPS,
            "save_steps": 1,
            "report_to": "none",
        }
        Path(f"{name}.yaml").write_text(yaml.safe_dump(values))
        return main(["train", f"{name}.yaml", *flags])

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(value: object) -> object:
    if isinstance(value, list):
        return [without_seconds(item) for item in value]
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if "seconds" not in key}
    return value


def outcome(folder: Path) -> dict[str, object]:
    """All that must be equal; nothing that takes seconds is."""
    return {
        "weights": (folder / "final" / "adapter_model.safetensors").read_bytes(),
        "log": without_seconds(lines(folder / "log.jsonl")),
        "evaluation": without_seconds(json.loads((folder / "evaluation.json").read_text())),
        "scores": (folder / "evaluation_scores.csv").read_text(),
    }


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C at the end of that step, before it counts as done."""
    follow, calls = Learner.follow, [0]

    def pressed(self: Learner) -> None:
        calls[0] += 1
        if calls[0] == step:
            signal.raise_signal(signal.SIGINT)
        follow(self)

    monkeypatch.setattr(Learner, "follow", pressed)


def test_a_run_on_a_pipeline_is_whole_resumes_to_the_bit_and_can_be_heard(train, monkeypatch, capsys) -> None:
    assert train("whole") == 0, capsys.readouterr().err
    whole, broken = Path("whole"), Path("broken")
    assert {path.name for path in whole.iterdir()} == set(CONTENTS) - {"probes.jsonl", "tensorboard", "wandb"}
    assert [line["step"] for line in lines(whole / "log.jsonl")] == list(range(1, STEPS + 1))
    made_with = json.loads((whole / "versions.json").read_text())["policy"]
    assert made_with["family"] == "musicldm" and made_with["rate"] == 16_000 and made_with["loudness"]
    rewards = json.loads((whole / "evaluation.json").read_text())["rewards"]
    assert all(rewards[name]["base"] != rewards[name]["tuned"] for name in ("level", "variety"))
    assert {path.name for path in (whole / "samples").iterdir()} == {"base", "tuned", "samples.csv"}

    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert train("broken") == 130
    assert not (broken / "final").exists()
    assert len(lines(broken / "log.jsonl")) < STEPS
    assert train("broken", "--resume_from_checkpoint", "latest") == 0, capsys.readouterr().err
    expected, found = outcome(whole), outcome(broken)
    for part, value in expected.items():
        assert found[part] == value, part

    clips = [sampled(model, *flags) for model, flags in (("whole", ()), ("broken", ()), ("whole", ("--base",)))]
    assert clips[0] == clips[1] != clips[2]
    assert len(clips[0]) == 2


def sampled(model: str, *flags: str) -> list[bytes]:
    """Two clips of one prompt by `dragon sample`, as they lie on disk."""
    folder = Path(f"{model}{''.join(flags)}-samples")
    request = ["--prompt", PROMPTS[0], "--samples_per_prompt", "2", "--output_dir", str(folder)]
    assert main(["sample", model, *request, *flags]) == 0
    with (folder / "samples.csv").open(newline="") as file:
        return [(folder / row["file"]).read_bytes() for row in csv.DictReader(file)]
