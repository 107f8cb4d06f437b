"""Checkpoints: a folder that is complete as soon as it has its name.

Knows nothing of training, audio or rewards: a state is any tree of dicts and lists whose leaves are
tensors or JSON values. Tensors go to `state.safetensors`, the rest to `state.json`; there is no pickle.
A checkpoint is written beside its place and renamed, and `manifest.json` names every file with its hash,
so that a torn or damaged one is found and skipped.

    FOLDER/step-000010/   manifest.json  state.safetensors  state.json  (and what `extra` wrote)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragon.errors import ConfigError

VERSION = 1
_NAME = re.compile(r"step-(\d{6,})")
_TENSOR = "$tensor"


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given. `folder` is where `extra` wrote its files."""

    folder: Path
    step: int
    state: dict[str, object]
    config: dict[str, object]


def save(
    folder: str | Path,
    step: int,
    state: Mapping[str, object],
    config: Mapping[str, object],
    *,
    keep: int = 3,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Writes `folder/step-NNNNNN` and returns it; older ones beyond the newest `keep` are deleted (0: none is).

    state: dicts (text keys) and lists with tensors, numbers, text, bools and None as leaves.
    extra: writes further files into the folder it is given (the adapter in its own format).
    Checkpoints of later steps belong to a run that was abandoned by resuming an earlier one: they get
    the ending `.abandoned`, so that `latest` does not return to them.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".partial-*"):  # of a process that was killed while it wrote
        shutil.rmtree(left)
    partial = root / f".partial-step-{step:06d}"
    partial.mkdir()
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors)
    save_file(tensors, partial / "state.safetensors")
    _write_json(partial / "state.json", {"state": tree, "config": _plain(config)})
    if extra is not None:
        extra(partial)
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    hashes = {p.relative_to(partial).as_posix(): _sha256(p) for p in files}
    _write_json(partial / "manifest.json", {"version": VERSION, "step": step, "files": hashes})
    for path in [*files, partial / "manifest.json", partial]:
        _to_disk(path)
    place = root / f"step-{step:06d}"
    if place.exists():  # the same step again, after a resume
        replaced = root / f".replaced-step-{step:06d}"
        shutil.rmtree(replaced, ignore_errors=True)
        place.rename(replaced)  # not .partial-*: a crash between the two renames leaves it to be renamed back by hand
        partial.rename(place)
        shutil.rmtree(replaced)
    else:
        partial.rename(place)
    _to_disk(root)
    _prune(root, step, keep)
    return place


def latest(folder: str | Path) -> Path | None:
    """The newest undamaged checkpoint below `folder`, or None; damaged ones are skipped with a warning."""
    for _, path in sorted(_found(Path(folder)), reverse=True):
        reason = damage(path)
        if not reason:
            return path
        warnings.warn(f"checkpoint {path} is damaged ({reason}) and was skipped", stacklevel=2)
    return None


def load(path: str | Path) -> Checkpoint:
    """Reads one checkpoint.

    Raises:
        ConfigError: it is missing or damaged.
    """
    path = Path(path)
    reason = damage(path)
    if reason:
        raise ConfigError(
            f"checkpoint {path} cannot be used: {reason}; name another step-NNNNNN folder, or resume from latest"
        )
    try:
        tensors = load_file(path / "state.safetensors")
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step = int(json.loads((path / "manifest.json").read_text(encoding="utf-8"))["step"])
        state = _join(content["state"], tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"checkpoint {path} cannot be read: {error}; it was written by another version") from error
    assert isinstance(state, dict)
    return Checkpoint(path, step, state, content["config"])


def damage(path: str | Path) -> str:
    """Why the checkpoint cannot be used; empty if it is whole."""
    path = Path(path)
    if not path.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            return f"format version {manifest['version']}, this program reads {VERSION}"
        files = dict(manifest["files"])
    except FileNotFoundError:
        return "manifest.json is missing"
    except (ValueError, KeyError, TypeError):
        return "manifest.json cannot be read"
    for name in {"state.safetensors", "state.json", *files}:
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != files.get(name):
            return f"{name} was changed or cut off"
    return ""


def check_same_config(
    saved: Mapping[str, object], current: Mapping[str, object], *, ignore: frozenset[str] = frozenset()
) -> None:
    """Refuses to go on with another configuration than the checkpoint's.

    ignore: dotted keys that may differ (`max_steps`, `output_dir`, ...); a key covers all below it.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    before, now = _flat(_plain(saved), ""), _flat(_plain(current), "")
    missing = "(not set)"
    differing = [
        f"  {key}: checkpoint {before.get(key, missing)!r}, now {now.get(key, missing)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing)
        and not any(key == skip or key.startswith((skip + ".", skip + "[")) for skip in ignore)
    ]
    if differing:
        raise ConfigError(
            "the checkpoint was made with another configuration:\n"
            + "\n".join(differing)
            + "\nset these keys back, or start a new run in another output_dir"
        )


def _prune(root: Path, step: int, keep: int) -> None:
    found = sorted(_found(root), reverse=True)
    for _, path in [f for f in found if f[0] > step]:
        aside = path.with_name(path.name + ".abandoned")
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
        warnings.warn(
            f"checkpoint {path} is later than step {step}, which was just saved: kept as {aside}", stacklevel=3
        )
    if keep > 0:
        for _, path in [f for f in found if f[0] <= step][keep:]:
            shutil.rmtree(path)


def _found(root: Path) -> list[tuple[int, Path]]:
    if not root.is_dir():
        return []
    matches = ((_NAME.fullmatch(p.name), p) for p in root.iterdir() if p.is_dir())
    return [(int(match[1]), path) for match, path in matches if match]


def _split(value: object, key: str, tensors: dict[str, Tensor]) -> object:
    """The tree with each tensor moved to `tensors` under its path, and a mark in its place."""
    if isinstance(value, Tensor):
        # a copy: safetensors refuses tensors that share memory
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: key}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"checkpoint state {key!r} has keys that are not text: {list(value)[:3]}")
        return {name: _split(item, f"{key}/{name}" if key else name, tensors) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"checkpoint state {key!r} is a {type(value).__name__}; expected tensors and JSON values")


def _join(tree: object, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(tree, dict):
        if set(tree) == {_TENSOR}:
            return tensors[tree[_TENSOR]]
        return {name: _join(item, tensors) for name, item in tree.items()}
    if isinstance(tree, list):
        return [_join(item, tensors) for item in tree]
    return tree


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    """As JSON would give it back, so that a tuple equals the list it was saved as."""
    plain: dict[str, object] = json.loads(json.dumps(config))
    return plain


def _flat(value: object, key: str) -> dict[str, object]:
    """{"a": {"b": [1]}} -> {"a.b[0]": 1}; empty containers stay, so that {} and a missing key differ."""
    if isinstance(value, dict) and value:
        parts = ((f"{key}.{name}" if key else str(name), item) for name, item in value.items())
    elif isinstance(value, list) and value:
        parts = ((f"{key}[{i}]", item) for i, item in enumerate(value))
    else:
        return {key: value} if key else {}
    return {name: leaf for part, item in parts for name, leaf in _flat(item, part).items()}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """The rename must not reach the disk before the content does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
