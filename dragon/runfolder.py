"""The run folder: what lies where, whether a new or resumed run may use it, and the record of how it was made.

    config.yaml  versions.json  log.jsonl  probes.jsonl  tensorboard/  wandb/  checkpoints/  final/
    evaluation.json  evaluation_scores.csv  samples/  pictures/  listen.html

Knows the configuration and checkpoints, no model. Checking writes nothing: a refused run leaves all as it was.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dragon import checkpoint
from dragon.config import TrainConfig, from_dict, read_yaml, to_dict, to_yaml
from dragon.errors import ConfigError
from dragon.files import check_writable, writing
from dragon.registry import nearest

CONTENTS = (
    "config.yaml",
    "versions.json",
    "log.jsonl",
    "probes.jsonl",
    "tensorboard",
    "wandb",
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

ANEW = {
    "objective": ("objective", "optimizer"),  # another loss has gradients of another size, which the moments remember
    "rewards": ("rewards", "credit"),
    "contrast": ("rewards",),  # a search and a ranking measure a reward's spread in different ways
    "credit": ("credit",),
}
"""Keys that `resume.allow` may let differ -> the parts of the trainer's state that belonged to the old value."""

_PACKAGES = ("torch", "numpy", "scipy", "diffusers", "transformers", "accelerate", "peft", "safetensors", "soundfile")


@dataclass(frozen=True)
class Start:
    """Where a run begins. checkpoint: the one to go on from; None: at step 0. anew: parts of it that are not used."""

    folder: Path
    checkpoint: checkpoint.Checkpoint | None
    resumed: bool
    anew: frozenset[str] = frozenset()


def check_folder(config: TrainConfig, say: Callable[[str], None]) -> Start:
    """Whether the run may use its folder, and what it goes on from. Writes nothing.

    Raises:
        ConfigError: the folder holds another run, cannot be written, or was made with another configuration;
            or the checkpoint asked for is not there or damaged.
    """
    folder = Path(config.output_dir)
    check_writable(folder, "output_dir")
    # a link counts even if it leads nowhere: the run would write where it points
    occupied = [name for name in CONTENTS if os.path.lexists(folder / name)]
    asked = config.resume_from_checkpoint
    if asked.lower() in ("", "false", "none"):
        if occupied:
            raise ConfigError(
                f"output_dir {str(folder)!r} holds a run already ({', '.join(occupied)}); go on with it by "
                "--resume_from_checkpoint latest, or choose another --output_dir"
            )
        return Start(folder, None, resumed=False)
    if (folder / "config.yaml").is_file():
        before = read_yaml(folder / "config.yaml")
        _changed(before, config, source=str(folder / "config.yaml"))
    elif occupied:
        raise ConfigError(
            f"output_dir {str(folder)!r} holds {', '.join(occupied)} but no config.yaml, so it cannot be resumed; "
            "choose another --output_dir"
        )
    path = _asked_for(asked, folder / "checkpoints")
    if path is None:
        say(f"no checkpoint in {folder / 'checkpoints'}: starting at step 0")
        return Start(folder, None, resumed=bool(occupied))
    found = checkpoint.load(path)
    changed = _changed(found.config, config, source=f"the configuration in {path}")
    anew = frozenset(
        part for key, parts in ANEW.items() for part in parts if any(checkpoint.covers(key, c) for c in changed)
    )
    if any(checkpoint.covers(key, "prompts") for key in config.resume.allow):
        anew |= {"prompts"}  # the file may hold others under the same name
    say(f"going on from {path}, step {found.step}")
    if changed:
        say(f"these differ from the checkpoint, as resume.allow says: {', '.join(changed)}")
    if anew:
        say(f"these parts start anew: {', '.join(sorted(anew))}")
    return Start(folder, found, resumed=True, anew=anew)


def open_folder(start: Start, config: TrainConfig, made_with: Mapping[str, object]) -> None:
    """Makes the folder and writes config.yaml and versions.json (`made_with`, see `describe`) into it.

    Checkpoints later than the one to go on from are put aside: they belong to a run that is given up.

    Raises:
        Unwritable: the folder cannot be written.
    """
    versions = start.folder / "versions.json"
    record = dict(made_with)
    if start.resumed and versions.is_file():
        first = json.loads(versions.read_text(encoding="utf-8"))
        step = start.checkpoint.step if start.checkpoint else 0
        record = {**first, "resumed": [*first.get("resumed", []), {"step": step, **record}]}
    with writing("a run's configuration", start.folder, "choose another --output_dir, or make room"):
        start.folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("config.yaml", to_yaml(config)), ("versions.json", json.dumps(record, indent=1) + "\n")):
            partial = start.folder / f".{name}.partial"
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(start.folder / name)
            finally:
                partial.unlink(missing_ok=True)
        if start.checkpoint is not None:
            checkpoint.put_aside(start.folder / "checkpoints", after=start.checkpoint.step)


def describe(config: TrainConfig, processes: int = 1, *, policy: object = None) -> dict[str, object]:
    """Packages, source revision, seeds and machine of this process, how many processes share the run, and what the
    policy says of itself (`settings`: pipeline, scheduler, loudness of its clips, ...).
    """
    from dragon import __version__

    settings = getattr(policy, "settings", None)
    found: dict[str, object] = {
        "dragon": __version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "git": _git_state(),
        "seeds": {"training": config.seed, "evaluation": config.evaluation.seed},
        "device": config.device,
        "hardware": _hardware(config.device),
        "processes": processes,
        "platform": platform.platform(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if settings:
        found["policy"] = dict(settings)
    return found


def what_cannot_be_equal(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    """For a run that goes on elsewhere than where its checkpoint was made (`describe` of both): what that changes."""
    changed = [
        f"{name} {there} there, {here} here"
        for name, there, here in ((name, _of(before, name), _of(now, name)) for name in _ROUNDING)
        if there is not None and there != here
    ]
    if changed:
        yield (
            f"note: the checkpoint was made elsewhere ({'; '.join(changed)}). Weights, moments, prompts, seeds and the "
            "noise of training are the same; sums are rounded differently, so samples, scores and losses from here on "
            "are close to, and not to the bit, those of an unbroken run"
        )


_ROUNDING = ("device", "hardware", "torch", "processes", "threads")
"""What decides in which order numbers are added up."""


def _of(made_with: Mapping[str, object], name: str) -> object:
    """One of `_ROUNDING`; None if it was not recorded."""
    if name == "torch":
        packages = made_with.get("packages")
        return packages.get("torch") if isinstance(packages, Mapping) else None
    value = made_with.get(name)
    return value.partition(":")[0] if name == "device" and isinstance(value, str) else value


def _hardware(device: str) -> str:
    """The GPU's name, or the widest instructions of the CPU that torch uses."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device(device))
    return torch.backends.cpu.get_cpu_capability()


def _asked_for(asked: str, folder: Path) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` names; None if there is none in the folder."""
    if asked.lower() in ("true", "latest"):
        return checkpoint.latest(folder)
    return checkpoint.best(folder) if asked.lower() == "best" else Path(asked)


def _changed(before: Mapping[str, object], config: TrainConfig, source: str) -> list[str]:
    """Keys that differ though they decide what is trained, all of them allowed to.

    Raises:
        ConfigError: some are not allowed to, or resume.allow names a key that there is not.
    """
    saved, current = to_dict(from_dict(before, source=source)), to_dict(config)
    known = {*_with_parents(checkpoint.keys(saved)), *_with_parents(checkpoint.keys(current))}
    allowed = frozenset(re.sub(r"\.(\d+)", r"[\1]", key) for key in config.resume.allow)
    for key in sorted(allowed - known):
        near = nearest(key, known)
        hint = f"did you mean {near}?" if near else "give keys as they stand in the configuration, such as objective"
        raise ConfigError(f"resume.allow: no key is called {key!r}; {hint}")
    refused = checkpoint.differences(saved, current, ignore=MAY_DIFFER | allowed)
    ways = " ".join(dict.fromkeys(key.partition("[")[0] for key in refused))
    hint = f", or let them differ: --resume.allow {ways}"
    checkpoint.check_same_config(saved, current, ignore=MAY_DIFFER | allowed, hint=hint)
    return list(checkpoint.differences(saved, current, ignore=MAY_DIFFER))


def _with_parents(keys: Mapping[str, object]) -> Iterator[str]:
    """ "a.b[0].c" -> "a", "a.b", "a.b[0]", "a.b[0].c"."""
    for key in keys:
        for match in re.finditer(r"[.\[]|$", key):
            yield key[: match.start()]


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
