"""The configurations for real weights: their names and options exist, and the memory they state is what is told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dragon.build import plugin_problems
from dragon.config import TrainConfig, load
from dragon.estimate import OF_EVERY_PIPELINE, estimate
from dragon.policy.pipeline import family_of
from dragon.policy.weightless import sizes

ROOT = Path(__file__).parents[2]
FAMILIES = (
    "stable_audio",
    "stable_audio_3",
    "audioldm2",
    "musicldm",
    "ace_step",
    "longcat",
    "stable_diffusion",
    "stable_diffusion_3",
)
CARDS = {"24gb": 24e9, "8x80gb": 80e9}
NAMES = [f"{family}_{card}" for family in FAMILIES for card in CARDS]


def read(name: str) -> tuple[TrainConfig, str]:
    """The configuration and its head comment."""
    path = ROOT / "configs" / f"{name}.yaml"
    return load(path), "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))


def stated(head: str) -> dict[str, float]:
    """Stage -> bytes, as the head comment has them."""
    return {stage: float(size) * 1e9 for stage, size in re.findall(r"([a-z][a-z -]+) (\d+\.\d)[,\s]", head)}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_and_option_exists(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("prompts_train.txt", "prompts_test.txt"):  # the user's own, for images
        Path(file).write_text("a red chair\na blue door\n")
    config, head = read(name)
    assert not [problem for problem in plugin_problems(config) if problem.path != "device"]
    assert config.output_dir == f"runs/{name}" and config.device == "cuda"
    folder = str(config.policy.options["folder"])
    own = {key: value for key, value in config.policy.options.items() if key not in OF_EVERY_PIPELINE}
    family_of(sizes(folder).kind, own)  # an option that the family does not have is refused
    assert "Not run by us" in head


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stated_fits_with_a_margin_and_names_its_command(name: str) -> None:
    config, head = read(name)
    found = stated(head)
    assert set(found) >= {"prompts", "roll-out", "decoding", "all clips", "training"}
    assert max(found.values()) < 0.7 * CARDS[name.rsplit("_", 1)[1]]  # the rest is for the rewards' networks
    assert f"dragon plan configs/{name}.yaml --estimate" in head
    launch = re.search(r"configs/accelerate/(\w+\.yaml)", head)
    assert ("8x80gb" in name) == bool(launch)
    if launch:
        assert (ROOT / "configs" / "accelerate" / launch[1]).is_file()
        assert ("--sharded" in head) == ("fsdp" in launch[1])
    assert config.policy.options["precision"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_stated_is_what_the_command_tells(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, head = read(name)
    command = re.search(r"`dragon plan (.+)`", head)
    assert command
    words = shlex.split(command[1])
    processes = int(words[words.index("--processes") + 1]) if "--processes" in words else 1
    told = estimate(config, processes=processes, sharded="--sharded" in words)
    found = stated(head)
    for stage, size in told.stages.items():
        assert found[stage] == pytest.approx(size, rel=0.05, abs=0.06e9), stage
