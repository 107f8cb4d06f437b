"""dragon exemplars build NAME SOURCE | split NAME SOURCE | list | show NAME | compare A B"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dragon.commands.arguments import parsed, plugin_spec
from dragon.commands.sources import Captions, Which, find
from dragon.errors import ConfigError
from dragon.files import check_writable
from dragon.texts import shown

if TYPE_CHECKING:
    from dragon.exemplars import ExemplarSet, Gathered, Item

USAGE = (
    "dragon exemplars build NAME SOURCE [--encoder NAME ...], dragon exemplars split NAME SOURCE, "
    "dragon exemplars list, dragon exemplars show NAME, or dragon exemplars compare A B"
)
_SAID_APART = ("encoder", "replace", "device")  # flags that the command kept in a set leaves out
_OF_AUDIO = ("seconds", "min_seconds", "skip_bad")  # flags that tell how clips are heard
_OF_CHOICE = ("of", "best", "reward")  # flags that tell which part of a table or a run is meant
_SHOWN = 3  # items named as nearest and as farthest


@dataclass(frozen=True)
class SourceOptions:
    """What both `build` and `split` take."""

    encoder: str = ""
    """Whose frames: a name, module:Name, or '{name: NAME, options: {...}}'; default: mini-codec for audio, mini-shared
    for captions."""
    seconds: float | None = None
    """Clips are cut into pieces of this length first; default: the encoder hears them whole and cuts by itself."""
    min_seconds: float = 1.0
    """Shorter clips are bad."""
    skip_bad: bool = False
    """Leave out clips that cannot be used instead of stopping."""
    of: Which = "auto"
    """For a table with columns `file` and `caption`: which of them is meant."""
    best: int | None = None
    """Of a finished run: its best tuned samples, so many; default 32."""
    reward: str = ""
    """Best by this reward of the run's evaluation; default: the one it was trained on."""
    keep_frames: int = 2048
    """Frames kept in the set, which kernel distances need; 0: none."""
    source: str = ""
    """Where the audio or the captions come from; kept in the set."""
    licence: str = ""
    """Its licence; kept in the set."""
    replace: bool = False
    """Write over a file of that name."""
    device: str = "cpu"


@dataclass(frozen=True)
class BuildExemplars(SourceOptions):
    """Make an exemplar set NAME of SOURCE: a folder of audio; captions in a .txt, .csv or .jsonl file; the files that
    the column `file` of a .csv names; the best samples of a finished run; or transitions in a .npz or .hdf5 file."""

    out: str = ""
    """File to write; default: NAME.safetensors here. One that exists is refused."""


@dataclass(frozen=True)
class SplitExemplars(SourceOptions):
    """Make two sets of SOURCE, by whole files: NAME_train to train toward and NAME_held_out to evaluate with."""

    held_out: float = 0.5
    """Share of the files (or captions) that is held out."""
    seed: int = 0
    """Of the draw."""
    out: str = "."
    """Folder to write both files to."""


Options = TypeVar("Options", bound=SourceOptions)


def run(arguments: list[str]) -> None:
    action, *rest = arguments or [""]
    if action == "build":
        _build(rest)
    elif action == "split":
        _split(rest)
    elif action == "list" and not rest:
        _list()
    elif action == "show" and len(rest) == 1:
        _show(rest[0])
    elif action == "compare" and len(rest) == 2:
        _compare(*rest)
    elif action in ("-h", "--help"):
        print(f"usage: {USAGE}")
    else:
        raise ConfigError(f"{repr(' '.join(arguments)) if arguments else 'nothing given'}; expected: {USAGE}")


def _build(arguments: list[str]) -> None:
    name, place, wanted = _asked("build", BuildExemplars, arguments)
    target = Path(wanted.out or f"{name}.safetensors")
    _check_free([target], wanted)
    found, source = _gather(place, wanted)
    _write(found, name, source, wanted, target, _words("build", name, place, wanted))


def _split(arguments: list[str]) -> None:
    from dragon.exemplars.gathered import check_share

    name, place, wanted = _asked("split", SplitExemplars, arguments)
    names = f"{name}_train", f"{name}_held_out"
    check_share(wanted.held_out)
    if wanted.seed < 0:
        raise ConfigError(f"seed is {wanted.seed}; expected 0 or above")
    targets = [Path(wanted.out) / f"{n}.safetensors" for n in names]
    _check_free(targets, wanted)
    found, source = _gather(place, wanted)
    words = _words("split", name, place, wanted)
    halves = found.split(wanted.held_out, wanted.seed)
    train, held = (
        _write(half, n, source, wanted, target, words) for half, n, target in zip(halves, names, targets, strict=True)
    )
    print(f"distance between them: {_in_units(train.distance(held), train, held)}")


def _asked(action: str, schema: type[Options], arguments: list[str]) -> tuple[str, str, Options]:
    """Name, source and flags."""
    usage = f"dragon exemplars {action} NAME SOURCE"
    if any(word == "--name" or word.startswith("--name=") for word in arguments):
        raise ConfigError(f"the name of a set stands before its source: {usage} [--encoder NAME ...]")
    places = 0
    while places < len(arguments) and not arguments[places].startswith("-"):
        places += 1
    helping = any(flag in ("-h", "--help") for flag in arguments)
    if places != 2 and not helping:
        given = repr(" ".join(arguments[:places])) if places else "nothing"
        raise ConfigError(f"{given} given; expected: {usage}, the name of the new set and what it is made of")
    wanted: Options = parsed(schema, arguments[places:], usage)
    from dragon.exemplars.gathered import check_name
    from dragon.exemplars.sets import available

    name, place = arguments[:2]
    check_name(name)
    if name in available():
        raise ConfigError(f"{name!r} is the name of a shipped set, which would be taken for yours; choose another name")
    return name, place, wanted


def _check_free(targets: Sequence[Path], wanted: SourceOptions) -> None:
    """Raises ConfigError where what is asked for cannot be made or written."""
    from dragon.build import check_device
    from dragon.exemplars.sets import SUFFIX

    # before all clips are heard, not after
    check_device(wanted.device)
    for target in targets:
        if target.suffix != SUFFIX:
            raise ConfigError(f"exemplar file {target}: expected a name that ends in {SUFFIX}")
    if wanted.keep_frames < 0:
        raise ConfigError(f"--keep_frames {wanted.keep_frames}; expected a number of frames, or 0 for none")
    for target in targets:
        check_writable(target.parent, "--out: folder")
    taken = [str(target) for target in targets if target.exists()]
    if taken and not wanted.replace:
        raise ConfigError(f"{taken[0]!r} exists already; give another --out, or --replace to write over it")


def _gather(place: str, wanted: SourceOptions) -> tuple[Gathered, str]:
    """Frames of what lies at `place`, and what it is called."""
    from dragon.exemplars.collect import gather_audio, gather_captions
    from dragon.exemplars.rows import gather_transitions
    from dragon.synther.readers import looks_like_transitions

    if looks_like_transitions(place):
        _refuse((*_OF_AUDIO, *_OF_CHOICE), wanted, "transitions")
        encoder = plugin_spec(wanted.encoder) if wanted.encoder else None
        return gather_transitions(place, encoder, device=wanted.device), Path(place).name
    found = find(place, of=wanted.of, best=wanted.best, reward=wanted.reward, device=wanted.device)
    spec = plugin_spec(wanted.encoder or ("mini-shared" if isinstance(found, Captions) else "mini-codec"))
    if isinstance(found, Captions):
        _refuse(_OF_AUDIO, wanted, "captions")
        return gather_captions(found.texts, spec, repr(place), device=wanted.device), found.source

    def progress(heard: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if heard == found.total else ""
            print(f"\r  {heard} of {found.total} clips", end=end, file=sys.stderr, flush=True)

    gathered = gather_audio(
        found.read(),
        spec,
        where=place,
        seconds=wanted.seconds,
        min_seconds=wanted.min_seconds,
        skip_bad=wanted.skip_bad,
        device=wanted.device,
        progress=progress,
    )
    return gathered, found.source


def _refuse(options: Sequence[str], wanted: SourceOptions, what: str) -> None:
    """Raises ConfigError where one of them is given that does not apply to what the set is made of."""
    defaults = SourceOptions()
    given = [f"--{name}" for name in options if getattr(wanted, name) != getattr(defaults, name)]
    if given:
        raise ConfigError(f"{', '.join(given)} given for a set of {what}, to which it does not apply; leave it out")


def _words(action: str, name: str, place: str, wanted: SourceOptions) -> list[str]:
    """The command that makes the set again in its place, but for the encoder."""
    words = [action, name, place]
    for field in fields(wanted):
        value = getattr(wanted, field.name)
        assert field.default is not MISSING
        if field.name in _SAID_APART or value == field.default:
            continue
        words += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
    return words


def _write(
    found: Gathered, name: str, source: str, wanted: SourceOptions, target: Path, words: Sequence[str]
) -> ExemplarSet:
    made = found.as_set(
        name,
        keep_frames=wanted.keep_frames,
        source=wanted.source or source,
        licence=wanted.licence,
        command=words,
    )
    made.save(target)
    what = _UNITS.get(made.modality, "clips")
    left_out = made.settings.get("skipped")
    without = (
        f"; {len(left_out)} left out (dragon exemplars show tells why)"
        if isinstance(left_out, list) and left_out
        else ""
    )
    print(f"wrote {target}: {made.count} {what}, {made.frames} frames of {made.encoder}{without}")
    if made.frames <= made.size:
        print(
            f"note: {made.frames} frames cannot fill {made.size} features, so that distances to the set are too large; "
            f"give more {what}"
        )
    return made


_UNITS = {"text": "captions", "transitions": "blocks of rows"}
"""What an item of a modality is called."""


def _list() -> None:
    from dragon.exemplars import sets

    rows = [(path.stem, header) for path, header in sets.headers().items()]
    rows += [(f"./{path.name}", header) for path, header in sets.headers(".").items()]
    width = max(len(name) for name, _ in rows)
    for name, header in rows:
        what = _UNITS.get(header["modality"], "clips")
        line = f"{name:{width}} {header['encoder']:12} {int(header['count']):6} {what:9} "
        print(shown(f"{line}{header['licence']}  {header['source']}"))  # a file from elsewhere may hold any text


def _show(name: str) -> None:
    from dragon.exemplars import sets

    found = sets.load(name)
    for key in ("name", "version", "modality", "encoder", "encoder_hash", "count", "frames", "size"):
        _line(key, getattr(found, key))
    if found.encoder_plugin or found.encoder_options:
        _line("made by", found.encoder_spec)
    _line("kept frames", 0 if found.features is None else len(found.features))
    for key in ("source", "licence", "bandwidth", "self_distance", "spread"):
        _line(key, getattr(found, key))
    ranked = sorted((i for i in found.items if i.distance is not None), key=_distance_of)
    _line("nearest", _items(ranked[:_SHOWN]))
    _line("farthest", _items(ranked[::-1][:_SHOWN]))
    for key, value in found.settings.items():
        _line("heard as" if key == "encoder" else key, value)
    if found.command:
        _line("command", f"dragon exemplars {found.command}")


def _line(key: str, value: object) -> None:
    print(f"{key:14} {shown(f'{value:.6g}' if isinstance(value, float) else value)}")


def _distance_of(item: Item) -> float:
    assert item.distance is not None
    return item.distance


def _items(items: Sequence[Item]) -> str:
    return ", ".join(f"{i.name} ({_distance_of(i):.4g})" for i in items) or "not kept (a set of an older version)"


def _compare(first: str, second: str) -> None:
    """Frechet and kernel distance of two sets; an error where they are of different encoders."""
    from dragon.exemplars import sets
    from dragon.rewards import kernel_distance

    a, b = sets.load(first), sets.load(second)
    print(f"frechet distance  {_in_units(a.distance(b), a, b)}")
    if a.features is None or b.features is None:
        print(
            f"kernel distance   not known: {(b if a.features is not None else a).name} holds statistics and no frames"
        )
        return
    found = kernel_distance(a.features, b.features, bandwidth=b.bandwidth)
    print(
        f"kernel distance   {found.value:.4g}, of {len(a.features)} and {len(b.features)} frames, bandwidth "
        f"{found.bandwidth:.4g} as in {b.name}; about 0 for two sets of one source"
    )


def _in_units(distance: float, a: ExemplarSet, b: ExemplarSet) -> str:
    """With the halves' distances as the unit. Chance alone falls as 1 / n, and a half has half of a set's clips: of two
    sets of one source the distance is half of the unit."""
    if a.self_distance is None or b.self_distance is None:
        return f"{distance:.4g}; no unit to tell it from chance (a set of one clip has no halves)"
    unit = (a.self_distance + b.self_distance) / 2
    told = f"{distance:.4g}, {distance / unit:.2f} times" if unit > 0 else f"{distance:.4g}, beside"
    return (
        f"{told} the distance between two halves of each ({a.self_distance:.4g} and {b.self_distance:.4g}); "
        "two sets of one source come out near 0.5 times"
    )
