"""recipes/transitions/terminals.yaml as a run: through configuration, exemplars, evaluation and run folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dragon import run
from dragon.commands.exemplars import run as exemplars_command
from dragon.config import load
from dragon.synther import TransitionSpec, Upsampler, fit, write_npz
from tests.synther.linear_system import QUICK, system

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_restores_terminals_and_leaves_an_upsampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe at small size, on a system in which a third of the terminals was left out."""
    monkeypatch.chdir(tmp_path)
    data = system()
    write_npz(data, "all.npz")
    few = data.rows(np.flatnonzero(~data.terminals | (np.arange(len(data)) % 3 == 0)))
    model = fit(few, TransitionSpec(flags="column"), QUICK)
    model.save("model")
    encoder = "{name: terminals, options: {data: all.npz}}"
    exemplars_command(["build", "terminals", "all.npz", "--encoder", encoder])
    config = load(
        str(ROOT / "recipes" / "transitions" / "terminals.yaml"),
        {
            "output_dir": "tuned",
            "policy.options": {"folder": "model", "sigma_mean": -1.2, "sigma_std": 1.2},
            "rewards": [
                {"name": "set_mean", "options": {"exemplars": "terminals.safetensors", "name": "set_terminals"}}
            ],
            "evaluation.watch": [],
            "evaluation.prompts": 512,
            "evaluation.set_size": 64,
            "evaluation.steps": 8,
            "rollout.steps": 8,
            "rollout.prompts_per_step": 32,
            "num_generations": 8,
            "credit.options": {"queue": 1024, "minimum": 256},
            "learning_rate": 1e-4,
            "max_steps": 16,
        },
    )
    run.train(config)
    found = json.loads(Path("tuned/evaluation.json").read_text())["rewards"]["set_terminals"]
    assert found["tuned"] > found["base"] and found["win_rate"] > 0.6
    tuned = Upsampler.load("tuned/final")
    wanted = data.terminals.mean()
    before, after = (m.sample(4096, seed=1).terminals.mean() for m in (model, tuned))
    assert abs(after - wanted) < abs(before - wanted)
