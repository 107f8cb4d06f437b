"""How several processes are started: the shipped files say what accelerate understands, and traps are named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dragon import checkpoint
from dragon.cli import main
from dragon.launch import sharding_asked


@pytest.fixture
def environment(root: Path):
    """What `accelerate launch --config_file FILE` would start: its arguments, and the variables it sets."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    def read(name: str):
        file = str(root / "configs" / "accelerate" / f"{name}.yaml")
        arguments = launch_command_parser().parse_args(["--config_file", file, "-m", "dragon", "train"])
        found, _, _ = _validate_launch_command(arguments)
        return found, prepare_multi_gpu_env(found)

    return read


@pytest.mark.parametrize(
    ("name", "processes", "several", "sharded"),
    [("gpu1", 1, False, False), ("gpu8_ddp", 8, True, False), ("gpu8_fsdp2", 8, False, True), ("cpu2", 2, True, False)],
)
def test_accelerate_reads_the_shipped_files(
    environment, monkeypatch, name: str, processes: int, several: bool, sharded: bool
) -> None:
    found, variables = environment(name)
    assert (found.num_processes, bool(found.multi_gpu), bool(found.use_fsdp)) == (processes, several, sharded)
    assert not found.cpu, "accelerate starts one process then"
    if sharded:
        assert int(found.fsdp_version) == 2
    monkeypatch.setenv("ACCELERATE_USE_FSDP", variables.get("ACCELERATE_USE_FSDP", "false"))
    assert sharding_asked() is sharded


def test_every_shipped_file_is_tried(root: Path) -> None:
    names = {path.stem for path in (root / "configs" / "accelerate").glob("*.yaml")}
    assert names == {"gpu1", "gpu8_ddp", "gpu8_fsdp2", "cpu2"}


def test_a_launch_that_would_start_one_process_in_silence_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets; without a number of processes it is a run like any."""
    (tmp_path / "run.yaml").write_text(
        "policy: {name: toy}\nprompts: p.txt\neval_prompts: p.txt\nrewards: [{name: random}]"
    )
    (tmp_path / "p.txt").write_text("left\nright\n")
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(["train", "run.yaml", "--dry_run"]) == 2
    assert "--multi_gpu --num_processes N -m dragon train" in capsys.readouterr().err
    monkeypatch.delenv("MASTER_ADDR")
    assert main(["train", "run.yaml", "--dry_run"]) == 0


@pytest.mark.parametrize(
    ("count", "rank", "local", "said"),
    [
        ("8", "0", "0", True),
        ("8", "1", "1", False),
        ("8", "4", "0", True),  # another machine: the main process may not have found it
        ("", "3", "3", True),  # left behind by a scheduler: there is no launch
    ],
)
def test_a_mistake_in_a_configuration_is_said_once_a_machine(monkeypatch, capsys, count, rank, local, said) -> None:
    for name, value in {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": local}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "nowhere.yaml"]) == 2
    assert ("no configuration file" in capsys.readouterr().err) is said


def test_an_error_that_the_main_process_cannot_know_is_said_with_its_number(monkeypatch, capsys) -> None:
    from dragon.commands import plugins
    from dragon.errors import NotFinite

    def broken(arguments: list[str]) -> None:
        raise NotFinite("a score is nan")

    monkeypatch.setattr(plugins, "run", broken)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["plugins"]) == 2
    assert capsys.readouterr().err == "dragon plugins: process 3: a score is nan\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_that_another_process_has_stopped_is_no_mistake_of_the_user_and_said_once(monkeypatch, capsys, rank) -> None:
    from dragon.commands import plugins
    from dragon.errors import OtherProcess

    def left(arguments: list[str]) -> None:
        raise OtherProcess("process 3 of 4 has stopped: NotFinite: a score is nan")

    monkeypatch.setattr(plugins, "run", left)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["plugins"]) == 1
    assert bool(capsys.readouterr().err) is (rank == 0)


@pytest.fixture
def launch(tmp_path: Path, root: Path):
    """`accelerate launch` of two processes on a CPU, in a group of their own as a terminal would make it."""
    (tmp_path / "p.txt").write_text("left\nright\n")
    (tmp_path / "run.yaml").write_text(
        "output_dir: out\nprompts: p.txt\neval_prompts: p.txt\npolicy: {name: toy}\nrewards: [{name: random}]\n"
        "rollout: {guidance: 1, prompts_per_step: 3, steps: 2}\nmax_steps: 2\nreport_to: none\n"
        "evaluation: {prompts: 2, samples_per_prompt: 1, steps: 2, guidance: 1}\n"
    )

    def start(*flags: str) -> subprocess.Popen[str]:
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
        file = ["--config_file", str(root / "configs" / "accelerate" / "cpu2.yaml")]
        return subprocess.Popen(
            [*accelerate, *file, "-m", "dragon", "train", "run.yaml", *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.mark.slow
def test_accelerate_starts_two_processes_on_a_cpu(tmp_path: Path, launch) -> None:
    """The main one speaks and writes, once."""
    process = launch()
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert said.count("step 2/2") == 1 and said.count("numbers: out/evaluation.json") == 1
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 2
    assert '"processes": 2' in (tmp_path / "out" / "versions.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["all", "launcher"])
def test_a_signal_to_the_launcher_or_to_all_saves_the_last_whole_step(tmp_path: Path, launch, to: str) -> None:
    """Ctrl-C in a terminal reaches all of them, and the launcher then sends another; a cluster tells the launcher."""
    process = launch("--max_steps", "100000", "--save_steps", "0")
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    if to == "all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    path = checkpoint.latest(tmp_path / "out" / "checkpoints")
    assert path is not None and checkpoint.load(path).step >= 3, said
