"""The folder of an upsampling run: what lies where, whether a run may use it, and its checkpoints.

    config.json  versions.json  log.jsonl  checkpoints/step-NNNNNN/  model/  quality.json  report.html  pictures/

Knows the files and the state of a fit; no transitions. Checking writes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dragon import checkpoint
from dragon.errors import ConfigError
from dragon.files import check_writable, write_whole, writing
from dragon.synther.training import Fit
from dragon.synther.upsampler import CONFIG as MODEL_CONFIG

CONTENTS = (
    "config.json",
    "versions.json",
    "log.jsonl",
    "checkpoints",
    "model",
    "quality.json",
    "report.html",
    "pictures",
)
VERSION = 1
_PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco")


@dataclass(frozen=True)
class Start:
    """Where a run begins. finished: its model is there. checkpoint: the one to go on from; None: step 0."""

    folder: Path
    finished: bool
    checkpoint: checkpoint.Checkpoint | None


def check_folder(folder: Path, config: Mapping[str, object], asked: str, say: Callable[[str], None]) -> Start:
    """Whether a run of this configuration may use the folder, and where it begins. asked: `resume_from_checkpoint`.

    Raises:
        ConfigError: the folder holds another run, or no file may be written there; the checkpoint is not there.
    """
    check_writable(folder, "output_dir")
    occupied = [name for name in CONTENTS if os.path.lexists(folder / name)]
    if asked.lower() in ("", "false", "none"):
        if occupied:
            raise ConfigError(
                f"output_dir {str(folder)!r} holds a run already ({', '.join(occupied)}); go on with it by "
                "--resume_from_checkpoint latest, or choose another --output_dir"
            )
        return Start(folder, False, None)
    if not occupied:
        say(f"no run in {folder}: starting at step 0")
        return Start(folder, False, None)
    _check_config(folder, config)
    latest = asked.lower() in ("true", "latest")
    if latest and (folder / "model" / MODEL_CONFIG).is_file():
        say(f"the fit in {folder / 'model'} is finished: only sampling")
        return Start(folder, True, None)
    path = checkpoint.latest(folder / "checkpoints") if latest else Path(asked)
    if path is None:
        say(f"no checkpoint in {folder / 'checkpoints'}: starting at step 0")
        return Start(folder, False, None)
    found = checkpoint.load(path)
    checkpoint.check_same_config(found.config, config)
    say(f"going on from {path}, step {found.step}")
    return Start(folder, False, found)


def open_folder(start: Start, config: Mapping[str, object]) -> None:
    """Makes the folder with config.json and versions.json; checkpoints later than the start are put aside.

    Raises:
        Unwritable: the folder cannot be written.
    """
    folder, made_with = start.folder, describe()
    if (folder / "versions.json").is_file():
        before = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        step = start.checkpoint.step if start.checkpoint else 0
        made_with = {**before, "resumed": [*before.get("resumed", []), {"step": step, **made_with}]}
    with writing("a run's configuration", folder, "choose another --output_dir, or make room"):
        for name, content in (("config.json", config), ("versions.json", made_with)):
            write_whole(folder / name, (json.dumps(content, indent=1) + "\n").encode())
        if not start.finished:
            checkpoint.put_aside(folder / "checkpoints", after=start.checkpoint.step if start.checkpoint else 0)
            _cut_log(folder / "log.jsonl", start.checkpoint.step if start.checkpoint else 0)


def describe() -> dict[str, object]:
    """Packages, machine, command and time of this process."""
    from dragon import __version__

    return {
        "dragon": __version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def save_checkpoint(folder: Path, training: Fit, config: Mapping[str, object], keep: int) -> Path:
    """Writes the state of the fit. What `checkpoint.save` raises."""
    state = training.state_dict()
    optimiser = state["optimiser"]
    # JSON has no whole numbers as keys
    state["optimiser"] = {**optimiser, "state": {str(i): moments for i, moments in optimiser["state"].items()}}
    return checkpoint.save(folder / "checkpoints", training.step, state, config, keep=keep)


def load_checkpoint(found: checkpoint.Checkpoint, training: Fit) -> None:
    """Puts the fit into the state that `save_checkpoint` wrote."""
    state: dict[str, Any] = dict(found.state)
    optimiser = state["optimiser"]
    moments = {int(i): value for i, value in optimiser["state"].items()}
    groups = [{**group, "betas": tuple(group["betas"])} for group in optimiser["param_groups"]]
    training.load_state_dict({**state, "optimiser": {"state": moments, "param_groups": groups}})


def _check_config(folder: Path, config: Mapping[str, object]) -> None:
    place = folder / "config.json"
    try:
        before = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"output_dir {str(folder)!r} holds a run whose config.json cannot be read ({error}), so that it cannot be "
            "resumed; choose another --output_dir"
        ) from error
    # a finished model is sampled on any device; random states of a fit go on only where they were made
    finished = (folder / "model" / MODEL_CONFIG).is_file()
    checkpoint.check_same_config(before, config, ignore=frozenset({"fit.device"} if finished else ()))


def _cut_log(path: Path, step: int) -> None:
    """Leaves out steps that the run will make again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_whole(path, "".join(f"{line}\n" for line in kept).encode())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
