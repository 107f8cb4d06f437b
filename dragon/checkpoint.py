"""Checkpoints: a folder that is complete as soon as it has its name.

Knows nothing of training, audio or rewards: a state is any tree of dicts and lists whose leaves are
tensors or JSON values. Tensors go to `state.safetensors`, the rest to `state.json`; there is no pickle.
A checkpoint is written beside its place and renamed, and `manifest.json` names every file with its hash,
so that a torn or damaged one is found and skipped.

    FOLDER/step-000010/   manifest.json  state.safetensors  state.json  (and what `extra` wrote)

There is no moment at which a kill loses the last complete one: a step that is saved again first moves its older
self to `.replaced-step-000010`, which is read like any other until the new one has its name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragon.errors import ConfigError
from dragon.files import size_on_disk, writing

VERSION = 1
_NAME = re.compile(r"(?:\.replaced-)?step-(\d{6,})")
_TENSOR = "$tensor"


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given. `folder` is where `extra` wrote its files."""

    folder: Path
    step: int
    state: dict[str, object]
    config: dict[str, object]
    versions: dict[str, object]
    score: float | None


def save(
    folder: str | Path,
    step: int,
    state: Mapping[str, object],
    config: Mapping[str, object],
    *,
    versions: Mapping[str, object] | None = None,
    score: float | None = None,
    score_of: str = "",
    keep: int = 3,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Writes `folder/step-NNNNNN` and returns it; of the older ones the newest `keep` and the best stay (0: all).

    state: dicts (text keys) and lists with tensors, numbers, text, bools and None as leaves.
    versions: what the state was made with (JSON values). score: how good it is, higher is better; None or NaN: unknown.
    score_of: what it measures; only scores of one measure are compared, that of the newest checkpoint.
    extra: writes further files into the folder it is given (the adapter in its own format).
    Checkpoints of later steps belong to a run that was abandoned by resuming an earlier one: see `put_aside`.

    Raises:
        Unwritable: a full disk, a quota, no permission; nothing is left of this one, and the ones before are whole.
    """
    root = Path(folder)
    partial = root / f".partial-step-{step:06d}"
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors)
    before = [path for _, path in _newest_first(root)]
    needed = max([sum(t.nbytes for t in tensors.values()), *(size_on_disk(path) for path in before[:1])])
    there = f"the last complete one is {before[0]}" if before else "there is no complete one yet"
    hint = f"{there}; make room, then go on with --resume_from_checkpoint latest"
    with writing(f"checkpoint of step {step}", root, hint, needed):
        try:
            root.mkdir(parents=True, exist_ok=True)
            _clear_away(root)
            partial.mkdir()
            save_file(tensors, partial / "state.safetensors")
            _write_json(
                partial / "state.json", {"state": tree, "config": _plain(config), "versions": _plain(versions or {})}
            )
            if extra is not None:
                extra(partial)
            _seal(partial, step, score, score_of)
            place = _put_in_place(partial, root / f"step-{step:06d}")
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        put_aside(root, after=step)
        _prune(root, keep)
    return place


def latest(folder: str | Path) -> Path | None:
    """The newest undamaged checkpoint below `folder`, or None; damaged ones are skipped with a warning."""
    return _first_whole(path for _, path in _newest_first(Path(folder)))


def best(folder: str | Path) -> Path | None:
    """The undamaged checkpoint with the highest score, the newest of several; those without a score come last."""
    found = [path for _, path in _newest_first(Path(folder))]
    return _first_whole(_best_first(found))


def put_aside(folder: str | Path, *, after: int) -> None:
    """Checkpoints beyond step `after` get the ending `.abandoned`, so that `latest` does not return to them."""
    for step, path in _newest_first(Path(folder)):
        if step > after:
            aside = path.with_name(f"step-{step:06d}.abandoned")
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)
            warnings.warn(
                f"checkpoint {path} is later than step {after}, where this run goes on: kept as {aside}", stacklevel=3
            )


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
        score, _ = _score(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"checkpoint {path} cannot be read: {error}; it was written by another version") from error
    assert isinstance(state, dict)
    versions = content.get("versions", {})  # absent in those of version 0.1
    return Checkpoint(path, step, state, content["config"], versions, score if math.isfinite(score) else None)


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


def differences(
    saved: Mapping[str, object], current: Mapping[str, object], *, ignore: frozenset[str] = frozenset()
) -> dict[str, tuple[object, object]]:
    """Dotted key -> (saved, current) of each value that differs; "(not set)" where a key is not there.

    ignore: dotted keys that may differ (`max_steps`, `rewards[0].weight`); a key covers all below it.
    """
    before, now = keys(saved), keys(current)
    missing = "(not set)"
    return {
        key: (before.get(key, missing), now.get(key, missing))
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing) and not any(covers(skip, key) for skip in ignore)
    }


def keys(config: Mapping[str, object]) -> dict[str, object]:
    """{"a": {"b": [1]}} -> {"a.b[0]": 1}; empty containers stay, so that {} and a missing key differ."""
    return _flat(_plain(config), "")


def covers(key: str, other: str) -> bool:
    """Whether a dotted key is the other or holds it."""
    return other == key or other.startswith((key + ".", key + "["))


def check_same_config(
    saved: Mapping[str, object], current: Mapping[str, object], *, ignore: frozenset[str] = frozenset(), hint: str = ""
) -> None:
    """Refuses to go on with another configuration than the checkpoint's.

    hint: one more way out, said at the end.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    differing = differences(saved, current, ignore=ignore)
    if differing:
        lines = "\n".join(f"  {key}: checkpoint {before!r}, now {now!r}" for key, (before, now) in differing.items())
        raise ConfigError(
            f"the checkpoint was made with another configuration:\n{lines}\n"
            f"set these keys back, or start a new run in another output_dir{hint}"
        )


def _clear_away(root: Path) -> None:
    """What a process left that was killed while it wrote or deleted."""
    for left in root.glob(".partial-*"):
        shutil.rmtree(left)
    for left in root.glob(".replaced-*"):
        if left.with_name(left.name.removeprefix(".replaced-")).exists():
            shutil.rmtree(left)


def _seal(partial: Path, step: int, score: float | None, score_of: str) -> None:
    """The manifest, and everything on the disk: a rename must not reach it before the content does."""
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    hashes = {p.relative_to(partial).as_posix(): _sha256(p) for p in files}
    known = score if score is not None and math.isfinite(score) else None
    manifest = {"version": VERSION, "step": step, "score": known, "score_of": score_of, "files": hashes}
    _write_json(partial / "manifest.json", manifest)
    for path in [*partial.rglob("*"), partial]:
        _to_disk(path)


def _put_in_place(partial: Path, place: Path) -> Path:
    """Gives the finished folder its name; an older one of that name lives on until then."""
    replaced = place.with_name(f".replaced-{place.name}")
    if place.exists():  # the same step again, after a resume
        shutil.rmtree(replaced, ignore_errors=True)
        place.rename(replaced)
    partial.rename(place)
    _to_disk(place.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return place


def _prune(root: Path, keep: int) -> None:
    """Deletes all but the newest `keep` and the best one."""
    found = [path for _, path in _newest_first(root)]
    if keep <= 0 or len(found) <= keep:
        return
    top = _best_first(found)[0]
    for path in found[keep:]:
        if path != top:
            doomed = path.with_name(f".partial-{path.name}")  # half deleted it must not look like a damaged one
            path.rename(doomed)
            shutil.rmtree(doomed)


def _first_whole(paths: Iterable[Path]) -> Path | None:
    for path in paths:
        reason = damage(path)
        if not reason:
            return path
        warnings.warn(f"checkpoint {path} is damaged ({reason}) and was skipped", stacklevel=3)
    return None


def _newest_first(root: Path) -> list[tuple[int, Path]]:
    """(step, folder); one that was about to be replaced comes after the one in its place."""
    if not root.is_dir():
        return []
    matches = ((_NAME.fullmatch(p.name), p) for p in root.iterdir() if p.is_dir())
    found = [(int(match[1]), path) for match, path in matches if match]
    return sorted(found, key=lambda f: (f[0], not f[1].name.startswith(".")), reverse=True)


def _best_first(newest_first: Sequence[Path]) -> list[Path]:
    """By score, the newest of equals first; a score that measures something else than the newest's comes last."""
    scores = {path: _score(path) for path in newest_first}
    measure = next((of for _, of in scores.values()), "")
    return sorted(newest_first, key=lambda p: scores[p][0] if scores[p][1] == measure else -math.inf, reverse=True)


def _score(path: Path) -> tuple[float, str]:
    """Score and what it measures, as the manifest says; minus infinity where it says nothing."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        score, measure = manifest["score"], str(manifest.get("score_of", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return -math.inf, ""
    return float(score) if isinstance(score, (int, float)) else -math.inf, measure


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
