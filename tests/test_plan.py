"""dragon plan: what it says a run takes is what the run takes, and nothing of it stays."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dragon.build import build_run
from dragon.cli import main
from dragon.config import TrainConfig, from_dict
from dragon.errors import PluginError, Unwritable
from dragon.files import size_on_disk
from dragon.plan import Plan, _bytes, plan
from dragon.pool import PairPool
from dragon.run import train

OWN = """
class Far:
    name = "far"

    def embed(self, media):
        return media.tensor.double().transpose(1, 2)

    def score_sets(self, features, members):
        return features[members].mean(2).var(1).sum(1)

class Flat:
    name, abstains = "flat", False

    def score(self, media):
        return 0 * media.tensor[:, 0, 0].double()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "train.txt").write_text("left\nright\n")
    (tmp_path / "test.txt").write_text("up\ndown\nleft\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "output_dir": "run",
        "prompts": "train.txt",
        "eval_prompts": "test.txt",
        "policy": {"name": "toy"},
        "rewards": [{"name": "random"}],
        "max_steps": 6,
        "save_steps": 2,
        "eval_steps": 3,
        "rollout": {"prompts_per_step": 4, "steps": 2},
        "evaluation": {"prompts": 3, "samples_per_prompt": 2, "watch": [{"name": "own.py:Flat"}], "set_size": 2},
    }
    return from_dict(values | changes)


def planned(wanted: TrainConfig, **more: Any) -> Plan:
    return plan(wanted, say=lambda text: None, **more)


def trained(wanted: TrainConfig) -> list[dict[str, Any]]:
    """The log of the run."""
    train(wanted, say=lambda text: None)
    return [json.loads(line) for line in Path(wanted.output_dir, "log.jsonl").read_text().splitlines()]


def test_the_counts_and_the_disk_are_those_of_the_run(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    wanted = config()
    found = planned(wanted)
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before  # nothing is written
    assert (found.steps, found.prompts, found.epochs, found.updates) == (6, 24, 12, 18)
    # training 6 steps of 4 prompts of 4; probes at 0, 3 and 6 and their base, 3 prompts each; 3 prompts of 2 + 2 + 1
    assert found.generations == {"training": 96, "probes": 12, "evaluation": 15, "total": 123}
    assert found.seconds["total"] == sum(s for name, s in found.seconds.items() if name != "total") > 0
    assert found.memory.keys() == {"process", "replay"} and found.memory["process"] > 10**8
    assert found.memory["replay"] == 0
    log = trained(wanted)
    assert len(log) == found.steps and not any(line["skipped"] for line in log)
    probes = [json.loads(line) for line in Path("run/probes.jsonl").read_text().splitlines()]
    assert [(probe["step"], probe["prompts"]) for probe in probes] == [(0, 3), (3, 3), (6, 3)]
    sizes = {
        "checkpoints": size_on_disk(folder / "run/checkpoints"),
        "weights": size_on_disk(folder / "run/final"),
        "logs": size_on_disk(folder / "run/tensorboard") + (folder / "run/log.jsonl").stat().st_size,
    }
    for name, size in sizes.items():
        assert size == pytest.approx(found.disk[name], rel=0.25), name
    assert size_on_disk(folder / "run") == pytest.approx(found.disk["total"], rel=0.5)  # pictures differ in content


def test_a_queue_that_fills_up_hides_neither_updates_nor_their_time_nor_its_size(folder: Path) -> None:
    """The first two steps of such a run learn nothing; most of its steps do. Nor do pairs that are replayed later."""
    Path("many.txt").write_text("up\ndown\nleft\nright\n" * 2)
    wanted = config(
        rewards=[{"name": "own.py:Far"}],
        credit={"name": "influence", "options": {"queue": 64, "minimum": 48}},
        update={"replay_steps": 2},
        max_steps=4,
        eval_steps=0,
        report_to="none",
        eval_prompts="many.txt",
        evaluation={"prompts": 8, "set_size": 2},
    )
    found = planned(wanted)
    assert not found.warnings and found.step_seconds["train"] > 0
    assert found.updates == 6
    assert [bool(line["skipped"]) for line in trained(wanted)] == [True, True, False, False]
    assert size_on_disk(Path("run/checkpoints")) == pytest.approx(found.disk["checkpoints"], rel=0.25)


def test_what_there_is_not_enough_of_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragon.plan.room", lambda place: 1000)
    flat = config(rewards=[{"name": "own.py:Flat"}], evaluation={"prompts": 3}, eval_steps=0)
    with pytest.warns(UserWarning, match="equal scores"):
        disk, hours, updates = planned(flat, hours=1e-6).warnings
    assert disk.startswith("the disk of 'run' has 1 kB free, and the run writes ")
    assert hours.startswith("the run takes 0.0 hours, and there are 1e-06")
    assert updates.startswith("the second step made no update (the samples of each prompt have equal scores")


def test_rewards_are_tried_in_the_batches_of_the_run_and_within_its_time(folder: Path) -> None:
    Path("picky.py").write_text(
        "import time\n\nclass Picky:\n    name, abstains = 'picky', False\n\n    def score(self, media):\n"
        "        assert len(media) <= 3\n        return media.tensor[:, 0, 0].double()\n\n"
        "class Hanging(Picky):\n    def score(self, media):\n        time.sleep(60)\n"
    )
    rollout = {"prompts_per_step": 4, "steps": 2, "batch_size": 3, "reward_timeout": 0.3}
    for name in ("Picky", "Hanging"):
        wanted = config(
            max_steps=2,
            eval_steps=0,
            rollout=rollout,
            evaluation={"prompts": 2, "watch": [{"name": f"picky.py:{name}"}]},
        )
        if name == "Picky":
            assert not planned(wanted).warnings
        else:
            with pytest.raises(PluginError, match="reward 'picky' took more than 0.3 seconds for 2 clips"):
                planned(wanted)


@pytest.mark.parametrize(("kept", "steps"), [(0, 4), (1, 4), (3, 6), (9, 4)])
def test_pairs_that_are_replayed_add_their_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kept: int, steps: int
) -> None:
    """What the last step holds more than the second: its own and the replayed pairs, apart and joined."""
    held: list[int] = []
    cat = PairPool.cat

    def joined(parts: Sequence[PairPool]) -> PairPool:
        held.append(2 * sum(_bytes(part.state_dict()) for part in parts))
        return cat(parts)

    monkeypatch.setattr("dragon.trainer.PairPool.cat", staticmethod(joined))
    wanted = config(max_steps=steps, eval_steps=0, save_steps=0, update={"replay_steps": kept})
    found = planned(wanted)
    in_two_steps, held[:] = max(held), []
    assert len(list(build_run(wanted).trainer().run())) == steps
    assert found.memory["replay"] == max(held) - in_two_steps
    assert (found.memory["replay"] > 0) == (kept > 1)


def test_a_full_disk_is_met_where_the_run_would_meet_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def full(tensors: object, path: Path) -> None:
        tried.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dragon.checkpoint.save_file", full)
    (folder / "runs").mkdir()
    with pytest.raises(Unwritable) as caught:
        planned(config(output_dir="runs/deep/run"))
    assert "what is tried cannot be written to 'runs': No space left on device" in str(caught.value)
    assert "`dragon train` would fail here, too" in str(caught.value) and "resume" not in str(caught.value)
    assert tried[0].parents[3].resolve() == folder / "runs" and not list((folder / "runs").iterdir())


def test_a_watch_for_reward_hacking_costs_its_reward_at_every_step(folder: Path) -> None:
    Path("slow.py").write_text(
        "import time\n\nclass Slow:\n    name, abstains = 'slow', False\n\n    def score(self, media):\n"
        "        time.sleep(0.01 * len(media))\n        return media.tensor[:, 0, 0].double()\n"
    )
    evaluation = {"prompts": 2, "samples_per_prompt": 1, "watch": [{"name": "slow.py:Slow"}]}
    found = planned(
        config(
            eval_steps=0,
            max_steps=100,
            evaluation=evaluation,
            callbacks=[{"name": "reward_hacking", "options": {"watched": "slow"}}],
        )
    )
    assert found.seconds["training"] > 100 * 16 * 0.01  # 100 steps of 16 clips
    assert found.seconds["evaluation"] > 6 * 0.01


def test_the_command_prints_a_page_or_json_and_flags_win(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(
        "prompts: train.txt\neval_prompts: test.txt\npolicy: {name: toy}\nrewards: [{name: random}]\n"
        "rollout: {prompts_per_step: 4, steps: 2}\nevaluation: {prompts: 3}\n"
    )
    assert main(["plan", "run.yaml", "--json", "--max_steps", "3", "--hours", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 3 and found["generations"]["training"] == 48
    assert main(["plan", "run.yaml", "--max_steps", "3", "--hours", "1e-9", "--update.replay_steps", "3"]) == 0
    page = capsys.readouterr()
    assert "steps        3: 12 prompts, each 6 times; 9 updates" in page.out and "warning: the run takes" in page.out
    assert "the peak of two steps; replayed pairs will add " in page.out
    assert "of one process on this machine" in page.out and "making two steps" in page.err


@pytest.mark.parametrize("hours", ["soon", "-1", "nan"])
def test_hours_that_are_none_are_refused(folder: Path, capsys: pytest.CaptureFixture[str], hours: str) -> None:
    assert main(["plan", "run.yaml", "--hours", hours]) == 2
    assert f"--hours is '{hours}'; expected a number of hours above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_time_of_a_real_run_is_within_a_factor_of_one_and_a_half(tmp_path: Path) -> None:
    """On the built-in model; a plan before and one after it, because a machine is not always equally busy."""
    wanted = from_dict(
        {
            "output_dir": str(tmp_path / "run"),
            "rewards": [{"name": "clap_score", "options": {"encoder": "mini"}}],
            "max_steps": 6,
            "save_steps": 3,
            "num_generations": 2,
            "rollout": {"prompts_per_step": 4, "steps": 4, "batch_size": 8},
            "evaluation": {"prompts": 12, "samples_per_prompt": 1, "steps": 4, "watch": [{"name": "judge_score"}]},
        }
    )
    before = planned(wanted).seconds["total"]
    start = time.perf_counter()
    train(wanted, say=lambda text: None)
    took = time.perf_counter() - start
    after = planned(wanted).seconds["total"]
    assert took / 1.5 < (before + after) / 2 < took * 1.5
