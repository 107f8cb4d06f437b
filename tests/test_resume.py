"""Nothing is lost: a run that is killed at any moment, and resumed, ends as one that nothing happened to.

Each run is a process of its own that gets a real SIGKILL; the runs are forked from a server that has the program
loaded, so that starting one takes no seconds. Compared to the bit: final weights, all state of the last checkpoint,
the log, the probes and the evaluation, each without its seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dragon.cli import main

REWARDS = """
import time


class Height:
    name, abstains = "height", False

    def score(self, media):
        return media.tensor.double().flatten(1)[:, 1]


class Narrow:
    name = "narrow"

    def embed(self, media):
        return media.tensor.double().flatten(1)[:, None, :2]

    def score_sets(self, features, members):
        return -features[members][..., 1].flatten(1).var(1)


class Slow(Narrow):
    def embed(self, media):
        time.sleep(0.06)  # a step's least time: a fast machine must not end the run before it was killed often enough
        return super().embed(media)


def loud(audio, prompts):
    return [float((a.samples**2).mean()) for a in audio]
"""

TOY: dict[str, Any] = {
    "policy": {"name": "toy"},
    "rewards": [{"name": "rewards_here.py:Height"}],
    "evaluation": {"prompts": 8, "samples_per_prompt": 1, "steps": 2, "guidance": 1, "set_size": 2},
    "rollout": {"guidance": 1, "prompts_per_step": 4, "steps": 4},
    "update": {"replay_steps": 1, "beta_calibration_updates": 3, "pairs_per_update": 6},
    "learning_rate": 0.003,
}
SETS = {"rewards": [{"name": "rewards_here.py:Narrow"}, {"name": "rewards_here.py:Height"}]}
INFLUENCE = {**SETS, "credit": {"name": "influence", "options": {"queue": 40, "minimum": 24}}}

Wait = Callable[[Path, BaseProcess], None]


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "dragon.run",
            "dragon.commands.train",
            "dragon.policy.mini",
            "dragon.policy.toy",
            "dragon.report.pictures",
            "matplotlib.backends.backend_agg",
            "matplotlib.pyplot",
            "torch._dynamo",  # torch.optim loads it
            "tyro",
        ]
    )
    return context


@pytest.fixture
def train(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BaseProcess]:
    """Starts `dragon train` on a configuration, in tmp_path; the process."""
    (tmp_path / "rewards_here.py").write_text(REWARDS)
    (tmp_path / "train.txt").write_text("left\nright\nup\n")
    (tmp_path / "test.txt").write_text("up\ndown\n" * 4)
    monkeypatch.chdir(tmp_path)

    def start(name: str, config: dict, *flags: str) -> BaseProcess:
        values = {
            "output_dir": name,
            "prompts": "train.txt",
            "eval_prompts": "test.txt",
            "save_steps": 1,
            "report_to": "none",
            **config,
        }
        Path(f"{name}.yaml").write_text(yaml.safe_dump(values))
        process = server.Process(target=main, args=(["train", f"{name}.yaml", *flags],))
        process.start()
        return process

    return start


def finished(process: BaseProcess, folder: Path, seconds: float = 120) -> None:
    process.join(seconds)
    assert not process.is_alive() and process.exitcode == 0 and (folder / "evaluation.json").is_file()


def killed_again_and_again(train: Callable[..., BaseProcess], name: str, config: dict, moments: Sequence[Wait]) -> int:
    """Runs to the end in spite of a SIGKILL at each of the moments; how many kills met a living run."""
    hits = 0
    for wait in moments:
        process = train(name, config, "--resume_from_checkpoint", "latest")
        wait(Path(name), process)
        hits += process.is_alive()
        process.kill()
        process.join(60)
    finished(train(name, config, "--resume_from_checkpoint", "latest"), Path(name))
    return hits


def after_steps(steps: int, seconds: float = 0.0) -> Wait:
    """So many new lines of the log, and then so many seconds."""

    def wait(folder: Path, process: BaseProcess) -> None:
        until(lambda: len(lines(folder / "log.jsonl")) > steps, process)  # 0 steps: the first line that is new
        time.sleep(seconds)

    return wait


def after_seconds(seconds: float) -> Wait:
    return lambda folder, process: time.sleep(seconds)


def while_writing(steps: int) -> Wait:
    """When a checkpoint is half written, after so many lines of the log."""

    def wait(folder: Path, process: BaseProcess) -> None:
        after_steps(steps)(folder, process)
        until(lambda: any((folder / "checkpoints").glob(".partial-*")), process)

    return wait


def until(holds: Callable[[], bool], process: BaseProcess, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while process.is_alive() and not holds():
        assert time.monotonic() < end, "the run does not get there"


def lines(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    found = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in found if line.endswith("\n")]


def without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if "seconds" not in key}
    return value


def outcome(folder: Path, steps: int) -> dict[str, object]:
    """All that must be equal."""
    state = json.loads((folder / "checkpoints" / f"step-{steps:06d}" / "state.json").read_text())["state"]
    files = [*(folder / "final").iterdir(), folder / "checkpoints" / f"step-{steps:06d}" / "state.safetensors"]
    return {
        "state": state,
        "files": {path.name: path.read_bytes() for path in files},
        "log": [without_seconds(line) for line in lines(folder / "log.jsonl")],
        "probes": [without_seconds(line) for line in lines(folder / "probes.jsonl")],
        "evaluation": without_seconds(json.loads((folder / "evaluation.json").read_text())),
    }


def same(whole: Path, broken: Path, steps: int) -> None:
    expected, found = outcome(whole, steps), outcome(broken, steps)
    for part, value in expected.items():
        assert found[part] == value, part
    assert [line["step"] for line in found["log"]] == list(range(1, steps + 1))  # type: ignore[attr-defined]


def test_two_kills_change_nothing(train) -> None:
    """One between two steps, one while a checkpoint is written; with a swap search, probes and callbacks."""
    config = TOY | SETS | {"max_steps": 6, "eval_steps": 3, "contrast": {"name": "swap"}}
    config |= {"callbacks": [{"name": "stop_when", "options": {"figure": "loss", "above": 1e9}}]}
    finished(train("whole", config), Path("whole"))
    assert killed_again_and_again(train, "broken", config, [after_steps(1), while_writing(3)]) == 2
    same(Path("whole"), Path("broken"), 6)


CASES = {
    "dpo": TOY | {"objective": {"name": "dpo"}},
    "kto": TOY | {"objective": {"name": "kto"}},
    "nft": TOY | {"objective": {"name": "nft"}, "contrast": {"name": "all_pairs"}},
    "best_of_k": TOY | {"objective": {"name": "best_of_k"}},
    "influence": TOY | INFLUENCE,
    "leave_one_out": TOY | SETS | {"credit": {"name": "leave_one_out"}},
    "swap": TOY | SETS | {"contrast": {"name": "swap"}, "objective": {"name": "dpo"}},
    "overlapped": TOY | {"rollout": TOY["rollout"] | {"overlap_scoring": True, "batch_size": 5}},
    "lora": {"tuning": {"kind": "lora", "rank": 2}},
    "full": {"tuning": {"kind": "full"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_n_steps_a_kill_and_n_steps_are_2n_steps(train, tmp_path: Path, case: str) -> None:
    """Every objective, clips and sets, LoRA and full tuning of a small text-to-music model."""
    config = CASES[case] | {"max_steps": 6}
    if case in ("lora", "full"):
        from dragon.mini import random_pipeline

        random_pipeline(seed=0, width=32, layers=1).save_pretrained(tmp_path / "pipeline")
        config |= {
            "policy": {"name": "mini", "options": {"folder": "pipeline"}},
            "rewards": [{"name": "rewards_here.py:loud"}],
            "evaluation": {"prompts": 2, "samples_per_prompt": 1, "steps": 2},
            "rollout": {"prompts_per_step": 2, "steps": 2},
            "num_generations": 2,
        }
    finished(train("whole", config), Path("whole"))
    assert killed_again_and_again(train, "broken", config, [after_steps(3)]) == 1
    same(Path("whole"), Path("broken"), 6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments_change_nothing(train) -> None:
    """Half of them while a checkpoint is written; the others anywhere, the start of the process included."""
    slow = {"rewards": [{"name": "rewards_here.py:Slow"}, {"name": "rewards_here.py:Height"}]}
    config = TOY | INFLUENCE | slow | {"max_steps": 120, "eval_steps": 40, "save_total_limit": 2}
    finished(train("whole", config), Path("whole"), 600)
    chance = random.Random(0)
    moments: list[Wait] = []
    for kill in range(20):
        if kill % 2:
            moments.append(_further(while_writing, chance.randrange(4)))
        elif kill % 4:
            moments.append(_further(after_steps, chance.randrange(4), chance.uniform(0, 0.2)))
        else:
            moments.append(after_seconds(chance.uniform(0, 1.5)))
    assert killed_again_and_again(train, "broken", config, moments) == 20
    same(Path("whole"), Path("broken"), 120)


def _further(moment: Callable[..., Wait], steps: int, *more: float) -> Wait:
    """So many steps beyond those that the log holds when the run is started."""

    def wait(folder: Path, process: BaseProcess) -> None:
        moment(len(lines(folder / "log.jsonl")) + steps, *more)(folder, process)

    return wait


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_three_kills_of_the_built_in_model_change_nothing(train, kind: str) -> None:
    config = {
        "prompts": "mini:train",
        "eval_prompts": "mini:test",
        "policy": {"name": "mini"},
        "tuning": {"kind": kind},
        "rewards": [{"name": "clap_score", "options": {"encoder": "mini"}}],
        "evaluation": {"prompts": 2, "samples_per_prompt": 1, "steps": 2},
        "rollout": {"prompts_per_step": 2, "steps": 2},
        "num_generations": 2,
        "max_steps": 6,
    }
    finished(train("whole", config), Path("whole"), 600)
    moments = [after_steps(0, 0.3), while_writing(2), after_steps(3, 0.1)]
    assert killed_again_and_again(train, "broken", config, moments) == 3
    same(Path("whole"), Path("broken"), 6)


def test_an_abandoned_future_is_not_returned_to(train) -> None:
    """The best checkpoint is an earlier one: what came after it is put aside, and the log and probes end there."""
    config = TOY | {"max_steps": 3, "save_total_limit": 5}
    finished(train("out", config), Path("out"))
    manifests = {path: path / "manifest.json" for path in Path("out/checkpoints").iterdir()}
    for path, manifest in manifests.items():
        content = json.loads(manifest.read_text())
        assert content["score"] is not None
        manifest.write_text(json.dumps({**content, "score": 1.0 if path.name == "step-000001" else 0.0}))
    finished(train("out", config | {"max_steps": 2}, "--resume_from_checkpoint", "best"), Path("out"))
    assert json.loads(Path("out/versions.json").read_text())["resumed"][0]["step"] == 1
    kept = sorted(path.name for path in Path("out/checkpoints").iterdir())
    assert kept == ["step-000001", "step-000002", "step-000002.abandoned", "step-000003.abandoned"]
    assert [line["step"] for line in lines(Path("out/log.jsonl"))] == [1, 2]
