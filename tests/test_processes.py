"""Several processes equal one: the same sets, losses and weights, however the prompts are dealt; and none hangs.

Most claims take threads that meet at a barrier for processes (tests/test_learner_processes.py). The last ones start
real ones on gloo, which run this file as a script.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon.collect import collect, draw_seeds
from dragon.contrast import Influence, Pairs, Swap, all_pairs, best_worst
from dragon.errors import ConfigError, DragonError, NotFinite, OtherProcess, PluginError
from dragon.media import Media
from dragon.objectives import DPO, KTO, NFT, BestOfK
from dragon.processes import Alone, Launched, Processes, _buckets, _peers, launched, local_device, share
from dragon.sharding import whole
from dragon.trainer import StepReport, Trainer
from tests.test_learner_processes import Meeting, Thread
from tests.test_trainer import PROMPTS, SMALL, Narrow, Reward, flat, height, toy, trainer

STEPS = 4


@dataclass
class Story:
    """What a process saw of a run."""

    trainer: Trainer
    reports: list[StepReport]
    pairs: list[Pairs]


def story(it: Trainer, steps: int = STEPS) -> Story:
    """A few steps, with the sets that were made of them."""
    pairs: list[Pairs] = []
    split = it.scoring.split

    def noted(*args: Any) -> Any:
        found = split(*args)
        pairs.append(found.pairs)
        return found

    it.scoring.split = noted  # type: ignore[assignment,method-assign]
    return Story(it, list(it.run(steps)), pairs)


def by_threads(count: int, build: Callable[[Processes], Any], work: Callable[[Any], Any]) -> list[Any]:
    """What `work` gives, or raises, for what `build` makes of each of `count` processes."""
    meeting = Meeting(count)
    built = [build(Thread(rank, meeting)) for rank in range(count)]  # here: building seeds the global generator
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(built[rank])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def assert_same_run(one: Story, others: Sequence[Story]) -> None:
    """Sets exactly; losses, scores and weights but for the order of float32 sums, over some updates."""
    for other in others:
        for mine, theirs in zip(one.pairs, other.pairs, strict=True):
            assert torch.equal(mine.positive, theirs.positive) and torch.equal(mine.negative, theirs.negative)
        for left, right in zip(one.reports, other.reports, strict=True):
            torch.testing.assert_close(left.scores, right.scores, rtol=1e-5, atol=1e-5, equal_nan=True)
            for name in ("loss", "gap", "z0", "implicit_accuracy", "reward", "learning_rate"):
                expected = getattr(left, name)
                assert getattr(right, name) == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True), name
            assert right.beta is None or right.beta == pytest.approx(left.beta, rel=1e-5)
            assert (left.step, left.pairs, left.skipped) == (right.step, right.pairs, right.skipped)
            assert left.figures == pytest.approx(right.figures, rel=1e-4, abs=1e-4, nan_ok=True)
        for name, value in one.trainer.ema_weights().items():
            torch.testing.assert_close(whole(other.trainer.ema_weights()[name]), value, rtol=1e-5, atol=1e-5)
    for other in others[1:]:  # all processes hold the same, to the bit
        assert flat(other.trainer.state_dict()) == flat(others[0].trainer.state_dict())


RUNS: dict[str, Callable[..., Trainer]] = {
    "nft": lambda **more: trainer(NFT(), replace(SMALL, replay_steps=1), **more),
    "dpo-calibrated": lambda **more: trainer(DPO(), replace(SMALL, beta_calibration_updates=2), **more),
    "kto-unpaired": lambda **more: trainer(KTO(paired=False), contrast=all_pairs(), **more),
    "best-of-k": lambda **more: trainer(BestOfK(anchor=0.1), **more),
    "influence": lambda **more: trainer(rewards=[Narrow()], credit=Influence(queue=40, minimum=12), **more),
    "swap": lambda **more: trainer(rewards=[Narrow(), Reward(height)], contrast=Swap(), **more),
    "uneven": lambda **more: trainer(settings=replace(SMALL, prompts_per_step=3, batch_size=4), **more),
    "one-prompt": lambda **more: trainer(settings=replace(SMALL, prompts_per_step=1), **more),
    "overlapped": lambda **more: trainer(
        settings=replace(SMALL, prompts_per_step=3, batch_size=2, overlap_scoring=True), **more
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_equal_one(run: str) -> None:
    alone = story(RUNS[run]())
    both = by_threads(2, lambda one: RUNS[run](processes=one), story)
    assert_same_run(alone, both)


def test_more_processes_than_prompts_equal_one() -> None:
    alone = story(RUNS["uneven"]())
    assert_same_run(alone, by_threads(5, lambda one: RUNS["uneven"](processes=one), story))


def test_a_report_holds_the_clips_of_its_process_and_the_scores_of_all() -> None:
    stories = by_threads(2, lambda one: RUNS["uneven"](processes=one), story)
    for step in range(STEPS):
        first, second = (one.reports[step] for one in stories)
        assert (len(first.media), len(second.media)) == (6, 3)
        for report in (first, second):
            assert torch.equal(report.clip_scores, report.media.tensor[:, 1, 0].double())
            assert len(report.seeds) == len(report.media) and report.scores.shape == (3, 3)
        assert torch.equal(torch.cat([first.clip_scores, second.clip_scores]), first.scores.flatten())


@pytest.mark.parametrize("count", [2, 3, 9])
def test_one_side_of_an_evaluation_is_the_same_by_several_processes(count: int) -> None:
    """Batches are cut elsewhere, so but for rounding."""

    def measured(processes: Processes) -> Any:
        return collect(
            toy(), {"height": Reward(height), "narrow": Narrow()}, PROMPTS, draw_seeds(0, "base", 4, 2), steps=3,
            guidance=1.0, batch_size=3, keep=2, columns={"number": range(4)}, processes=processes,
        )  # fmt: skip

    alone = measured(Alone())
    for one in by_threads(count, lambda it: it, measured):
        np.testing.assert_allclose(one.scores["height"], alone.scores["height"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.features["narrow"], alone.features["narrow"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.kept.tensor, alone.kept.tensor, rtol=1e-5, atol=1e-6)
        assert (one.kept.prompts, one.kept.columns) == (("left", "down"), {"number": (0, 3)})
        assert (one.prompts, one.seeds, one.kept_prompts) == (alone.prompts, alone.seeds, (0, 3))


def test_an_error_of_one_is_an_error_of_all_and_leaves_the_last_whole_step() -> None:
    def refuse(points: Tensor, media: Media) -> Tensor:
        if "down" in media.prompts and len(seen) > 4:
            raise ValueError("no more of these")
        seen.append(media.prompts)
        return points[:, 1]

    def work(it: Trainer) -> Any:
        try:
            list(it.run(20))
        except DragonError as error:
            return it.step, error, flat(it.state_dict())

    seen: list[tuple[str, ...]] = []
    (step, one, state), (other_step, other, other_state) = by_threads(
        2, lambda p: trainer(rewards=[Reward(refuse)], processes=p), work
    )
    assert step == other_step > 0 and state == other_state
    spoken = sorted([one, other], key=lambda error: isinstance(error, OtherProcess))
    assert isinstance(spoken[0], PluginError) and "'height' raised ValueError: no more of these" in str(spoken[0])
    assert isinstance(spoken[1], OtherProcess) and "no more of these" in str(spoken[1])


def test_sets_that_differ_between_processes_are_an_error() -> None:
    def careless(scores: Tensor, generator: torch.Generator) -> Pairs:
        return best_worst()(scores if threading.current_thread().name.endswith("0") else -scores, generator)

    def work(it: Trainer) -> Any:
        threading.current_thread().name = f"process {it.processes.rank}"
        next(it.run())

    found = by_threads(2, lambda p: trainer(contrast=careless, processes=p), work)
    assert all(isinstance(one, PluginError) and "processes made different pairs" in str(one) for one in found), found


def test_one_process_warns() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        still = Reward(lambda points, media: points[:, 0] * 0)
        by_threads(3, lambda p: trainer(rewards=[still], processes=p), lambda it: next(it.run()))
    assert len([one for one in told if "equal scores" in str(one.message)]) == 1


@pytest.mark.parametrize("total", [0, 1, 7, 12])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_are_contiguous_and_differ_by_one_at_most(total: int, count: int) -> None:
    meeting = Meeting(count)
    shares = [share(total, Thread(rank, meeting)) for rank in range(count)]
    assert [row for rows in shares for row in rows] == list(range(total))
    sizes = [len(rows) for rows in shares]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert isinstance(launched("cpu"), Alone) and local_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (local_device("cuda"), local_device("cpu")) == ("cuda:1", "cpu")
    with pytest.raises(ConfigError, match="'cuda:0' for 2 processes; give cuda"):  # all of them on one GPU
        local_device("cuda:0")


def test_memory_that_runs_out_in_an_exchange_is_no_other_processs_fault() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"), _peers():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(OtherProcess, match="Connection closed by peer"), _peers():
        raise RuntimeError("Connection closed by peer [127.0.0.1]")


def test_rows_of_another_shape_in_another_process_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Launched.__new__(Launched)
    monkeypatch.setattr(one, "gather_values", lambda mine: [mine, (2, (12, 4), "torch.float32")], raising=False)
    with pytest.raises(PluginError, match=r"rows of different kinds, .*\(10, 4\).*\(12, 4\)"):
        one.gather(torch.zeros(2, 10, 4))


def test_many_tensors_are_summed_in_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragon.processes._BUCKET", 10)
    sizes = [3, 7, 1, 25, 4]
    buckets = [[len(t) for t in bucket] for bucket in _buckets([torch.zeros(n) for n in sizes])]
    assert buckets == [[3, 7], [1], [25], [4]]
    assert not list(_buckets([]))


def test_sharding_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="silently becomes plain data parallelism; launch without FSDP"):
        launched("cpu")


# Real processes: each runs a function below and leaves what it saw in `folder`.


def equal_to_one(processes: Processes, folder: Path) -> None:
    """What the threads above stand for: messages, a training, and an evaluation."""
    rank = processes.rank
    rows = torch.arange(3.0)[: 3 - rank, None] + 10 * rank
    assert processes.gather(rows).flatten().tolist() == [0, 1, 2, 10, 11]
    none = rows[: 2 * rank]
    assert processes.gather(none.bool()).flatten().tolist() == [True, True]
    assert processes.gather(rows[:0]).shape == (0, 1)
    assert processes.gather_values({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    tensors = [torch.full((2,), float(rank + 1)), torch.tensor(3.0)]
    processes.add(tensors)
    assert tensors[0].tolist() == [3, 3] and float(tensors[1]) == 6
    expected, text = (OtherProcess, "process 1 of 2 has stopped: NotFinite: odd") if rank == 0 else (NotFinite, "odd")
    with pytest.raises(expected, match=text), processes.together():
        if rank == 1:
            raise NotFinite("odd")
    for run in ("kto-unpaired", "uneven"):
        assert_same_run(story(RUNS[run]()), [story(RUNS[run](processes=processes))])
    (folder / f"done-{rank}").touch()


def one_raises(processes: Processes, folder: Path) -> None:
    """A reward of the second process fails at the third step."""

    def refuse(points: Tensor, media: Media) -> Tensor:
        if processes.rank == 1 and it.step == 2:
            raise ValueError("no more of these")
        return points[:, 1]

    it = trainer(rewards=[Reward(refuse)], processes=processes)
    list(it.run())


def one_is_killed(processes: Processes, folder: Path) -> None:
    """The second process is gone in the middle of the third step, with no word."""

    def end(points: Tensor, media: Media) -> Tensor:
        if processes.rank == 1 and it.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return points[:, 1]

    it = trainer(rewards=[Reward(end)], processes=processes)
    list(it.run())


def sharded(processes: Processes, folder: Path) -> None:
    """Weights spread over both, and one of them with one batch for the other's two."""
    policy = toy()
    policy.shard()
    settings = replace(SMALL, prompts_per_step=3, batch_size=4)
    spread = story(trainer(KTO(), settings, policy=policy, processes=processes))
    assert_same_run(story(trainer(KTO(), settings)), [spread])
    (folder / f"done-{processes.rank}").touch()


def launch(case: str, folder: Path, root: Path, seconds: float = 60) -> list[tuple[int, str]]:
    """(exit status, standard error) of two processes; none may take longer than that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.test_processes", case, str(folder)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=root, env=environment, stderr=pipe, stdout=pipe, text=True))
    end = time.monotonic() + seconds
    try:
        told = [process.communicate(timeout=end - time.monotonic())[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["equal_to_one", "sharded"])
def test_two_real_processes_equal_one(case: str, tmp_path: Path, root: Path) -> None:
    found = launch(case, tmp_path, root)
    assert [status for status, _ in found] == [0, 0], found
    assert {path.name for path in tmp_path.iterdir()} == {"done-0", "done-1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "statuses", "first", "second"),
    [
        ("one_raises", [2, 2], "process 1 of 2 has stopped: PluginError: reward 'height' raised ValueError: no more",
         "for 6 clips, the first for prompt"),
        ("one_is_killed", [2, -9], "another process of this run is gone", ""),
    ],
)  # fmt: skip
def test_no_process_waits_for_one_that_has_stopped(
    case: str, statuses: list[int], first: str, second: str, tmp_path: Path, root: Path
) -> None:
    found = launch(case, tmp_path, root)
    assert [status for status, _ in found] == statuses, found
    assert first in found[0][1] and second in found[1][1], found


FAILING = """
import os, signal


class Height:
    name, abstains, calls = "height", False, 0

    def score(self, media):
        Height.calls += 1  # each step has one batch
        if os.environ["FAULT"] and os.environ.get("RANK") == "1" and Height.calls == 4:
            if os.environ["FAULT"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no more of these")
        return media.tensor.double().flatten(1)[:, 1]
"""


def train(folder: Path, name: str, launcher: Sequence[str], fault: str = "", *flags: str) -> tuple[int, str]:
    """(exit status, all that was said) of `dragon train` on the toy: 6 steps of 3 prompts, probes, an evaluation."""
    (folder / "failing.py").write_text(FAILING)
    (folder / "train.txt").write_text("left\nright\nup\n")
    (folder / "test.txt").write_text("up\ndown\n" * 4)
    config = {
        "output_dir": name, "prompts": "train.txt", "eval_prompts": "test.txt", "save_steps": 1, "report_to": "none",
        "policy": {"name": "toy", "options": {"sampler": "euler"}}, "rewards": [{"name": "failing.py:Height"}],
        "evaluation": {"prompts": 7, "samples_per_prompt": 1, "steps": 2, "guidance": 1, "set_size": 2},
        "rollout": {"guidance": 1, "prompts_per_step": 3, "steps": 4},
        "update": {"replay_steps": 1, "beta_calibration_updates": 3, "pairs_per_update": 6},
        "objective": {"name": "kto"}, "learning_rate": 0.003, "max_steps": 6,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", *launcher, "dragon", "train", f"{name}.yaml", *flags]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"FAULT": fault}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        told = process.communicate(timeout=100)[0]
        return process.returncode, told
    finally:
        process.terminate()  # the launcher then ends its processes, too
        process.wait(40)


TWO = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


@pytest.mark.slow
def test_a_run_of_two_processes_equals_one_of_one(tmp_path: Path) -> None:
    status, told = train(tmp_path, "alone", ())
    assert status == 0, told
    status, told = train(tmp_path, "both", TWO)
    assert status == 0, told
    alone, both = lines_of(tmp_path / "alone"), lines_of(tmp_path / "both")
    for mine, theirs in zip(alone, both, strict=True):
        for name in ("reward", "gap", "loss", "z0", "beta", "grad_norm", "implicit_accuracy"):
            expected = pytest.approx(mine[name], rel=1e-4, abs=1e-5)
            assert theirs[name] == (mine[name] if mine[name] is None else expected), name
    judged = [json.loads((tmp_path / name / "evaluation.json").read_text())["rewards"] for name in ("alone", "both")]
    for name in ("base", "tuned", "win_rate", "low", "high"):
        assert judged[1]["height"][name] == pytest.approx(judged[0]["height"][name], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_a_run_that_loses_a_process_ends_within_a_minute_and_goes_on_to_the_bit(fault: str, tmp_path: Path) -> None:
    start = time.monotonic()
    status, told = train(tmp_path, "run", TWO, fault)
    assert status != 0 and time.monotonic() - start < 60, told
    if fault == "raise":
        assert "process 1 of 2 has stopped: PluginError: reward 'height' raised ValueError: no more of these" in told
    assert len(lines_of(tmp_path / "run")) == 3
    status, told = train(tmp_path, "run", TWO, "", "--resume_from_checkpoint", "latest")
    assert status == 0, told
    assert train(tmp_path, "whole", TWO)[0] == 0
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](launched("cpu"), Path(sys.argv[2]))
    except DragonError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
