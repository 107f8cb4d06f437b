"""The run folder: what lies where, whether a new or resumed run may use it, and the record of how it was made.

    config.yaml  versions.json  log.jsonl  probes.jsonl  tensorboard/  checkpoints/  final/
    evaluation.json  evaluation_scores.csv  samples/  pictures/  listen.html

Knows the configuration and checkpoints, no model. Checking writes nothing: a refused run leaves all as it was.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dragon import checkpoint
from dragon.config import TrainConfig, from_dict, read_yaml, to_dict, to_yaml
from dragon.errors import ConfigError

CONTENTS = (
    "config.yaml",
    "versions.json",
    "log.jsonl",
    "probes.jsonl",
    "tensorboard",
    "checkpoints",
    "final",
    "evaluation.json",
    "evaluation_scores.csv",
    "samples",
    "pictures",
    "listen.html",
)
"""Everything a run writes; one of these in a folder makes it occupied."""

MAY_DIFFER = frozenset(
    (
        "output_dir",
        "max_steps",
        "save_steps",
        "eval_steps",
        "save_total_limit",
        "device",
        "report_to",
        "resume_from_checkpoint",
        "dry_run",
        "evaluation",
        "eval_prompts",
        "rollout.batch_size",
        "rollout.overlap_scoring",
        "rollout.reward_timeout",
        "update.micro_batch_size",
        "update.max_skipped_updates",
        "callbacks",
        "resume",
    )
)
"""Keys that a resumed run may change: they decide how long, where and how often, not what is trained."""

_PACKAGES = ("torch", "numpy", "scipy", "diffusers", "transformers", "accelerate", "peft", "safetensors", "soundfile")


@dataclass(frozen=True)
class Start:
    """Where a run begins. checkpoint: the one to go on from; None: at step 0."""

    folder: Path
    checkpoint: checkpoint.Checkpoint | None
    resumed: bool


def check_folder(config: TrainConfig, say: Callable[[str], None]) -> Start:
    """Whether the run may use its folder, and what it goes on from. Writes nothing.

    Raises:
        ConfigError: the folder holds another run, cannot be written, or was made with another configuration;
            or the checkpoint asked for is not there or damaged.
    """
    folder = Path(config.output_dir)
    _check_writable(folder)
    occupied = [name for name in CONTENTS if (folder / name).exists()]
    asked = config.resume_from_checkpoint
    if asked.lower() in ("", "false", "none"):
        if occupied:
            raise ConfigError(
                f"output_dir {str(folder)!r} holds a run already ({', '.join(occupied)}); go on with it by "
                "--resume_from_checkpoint latest, or choose another --output_dir"
            )
        return Start(folder, None, resumed=False)
    if (folder / "config.yaml").is_file():
        before = from_dict(read_yaml(folder / "config.yaml"), source=str(folder / "config.yaml"))
        checkpoint.check_same_config(to_dict(before), to_dict(config), ignore=MAY_DIFFER)
    elif occupied:
        raise ConfigError(
            f"output_dir {str(folder)!r} holds {', '.join(occupied)} but no config.yaml, so it cannot be resumed; "
            "choose another --output_dir"
        )
    path = checkpoint.latest(folder / "checkpoints") if asked.lower() in ("true", "latest") else Path(asked)
    if path is None:
        say(f"no checkpoint in {folder / 'checkpoints'}: starting at step 0")
        return Start(folder, None, resumed=bool(occupied))
    found = checkpoint.load(path)
    checkpoint.check_same_config(found.config, to_dict(config), ignore=MAY_DIFFER)
    say(f"going on from {path}, step {found.step}")
    return Start(folder, found, resumed=True)


def open_folder(start: Start, config: TrainConfig) -> None:
    """Makes the folder and writes config.yaml and versions.json into it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    versions = start.folder / "versions.json"
    record = describe(config)
    if start.resumed and versions.is_file():
        first = json.loads(versions.read_text(encoding="utf-8"))
        step = start.checkpoint.step if start.checkpoint else 0
        record = {**first, "resumed": [*first.get("resumed", []), {"step": step, **record}]}
    try:
        start.folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("config.yaml", to_yaml(config)), ("versions.json", json.dumps(record, indent=1) + "\n")):
            partial = start.folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(start.folder / name)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); choose another folder"
        raise ConfigError(f"output_dir {str(start.folder)!r} {reason}") from error


def describe(config: TrainConfig) -> dict[str, object]:
    """Packages, source revision, seeds and machine of this process."""
    from dragon import __version__

    return {
        "dragon": __version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "git": _git_state(),
        "seeds": {"training": config.seed, "evaluation": config.evaluation.seed},
        "device": config.device,
        "platform": platform.platform(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _check_writable(folder: Path) -> None:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"output_dir {str(folder)!r}: {str(place)!r} is a file; choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir {str(folder)!r}: {str(place)!r} may not be written to; choose another folder")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, object] | None:
    """Commit of the checkout that this code runs from and whether it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):  # no git program: the run need not stop for that
        return None
