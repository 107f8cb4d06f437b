"""dragon exemplars build FOLDER|CAPTIONS | list | show NAME"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dragon.commands.arguments import parsed, positional
from dragon.errors import ConfigError


@dataclass(frozen=True)
class BuildExemplars:
    """Make an exemplar set of the audio files below a folder, or of the captions in a .txt, .csv or .jsonl file."""

    name: str = ""
    """Name of the set; default: that of the folder or file."""
    out: str = ""
    """File to write; default: NAME.safetensors here. One that exists is refused."""
    encoder: str = ""
    """Whose frames: a registered name, or module:Name; default: mini-codec for audio, mini-shared for captions."""
    seconds: float = 5.12
    """Audio files are cut into windows of this length."""
    skip_bad: bool = False
    """Leave out audio files that cannot be used instead of stopping."""
    source: str = ""
    """Where the audio or the captions come from; kept in the set."""
    licence: str = ""
    """Its licence; kept in the set."""
    device: str = "cpu"


def run(arguments: list[str]) -> None:
    action, *rest = arguments or [""]
    if action == "build":
        _build_exemplars(rest)
    elif action == "list" and not rest:
        from dragon.exemplars import sets

        for name in sets.available():
            found = sets.load(name)
            what = "captions" if found.modality == "text" else "clips"
            print(f"{name:28} {found.encoder:12} {found.count:6} {what:9} {found.licence}  {found.source}")
    elif action == "show" and len(rest) == 1:
        from dragon.exemplars import sets

        found = sets.load(rest[0])
        for key in ("name", "version", "modality", "encoder", "encoder_hash", "count", "frames", "size"):
            print(f"{key:14} {getattr(found, key)}")
        print(f"{'kept frames':14} {0 if found.features is None else len(found.features)}")
        for key in ("source", "licence", "bandwidth", "self_distance", "settings"):
            print(f"{key:14} {getattr(found, key)}")
    else:
        raise ConfigError(
            f"{' '.join(arguments) or 'no action'!r}; expected: dragon exemplars build FOLDER|CAPTIONS.txt "
            "[--encoder NAME ...], "
            "dragon exemplars list, or dragon exemplars show NAME"
        )


def _build_exemplars(arguments: list[str]) -> None:
    usage = "dragon exemplars build FOLDER|CAPTIONS.txt [--name NAME --encoder NAME ...]"
    place, flags = positional(arguments, "folder or file of captions", usage)
    wanted = parsed(BuildExemplars, flags, "dragon exemplars build FOLDER|CAPTIONS.txt")
    of_text = Path(place).suffix in (".txt", ".csv", ".jsonl") and not Path(place).is_dir()
    name = wanted.name or (Path(place).stem if of_text else Path(place).resolve().name)
    target = Path(wanted.out or f"{name}.safetensors")
    if target.exists():
        raise ConfigError(f"{str(target)!r} exists already; remove it, or give another --out")
    if not of_text and not Path(place).is_dir():
        raise ConfigError(f"no folder {place!r}; give one with audio files, or a .txt, .csv or .jsonl file of captions")
    captions = _captions(place) if of_text else []
    from dragon.build import build
    from dragon.config import Spec
    from dragon.exemplars.collect import build_from_captions, build_from_folder

    encoder_name = wanted.encoder or ("mini-shared" if of_text else "mini-codec")
    encoder = build("encoder", Spec(encoder_name), device=wanted.device)
    if of_text:
        source = wanted.source or Path(place).name
        made = build_from_captions(captions, encoder, name, source=source, licence=wanted.licence)
    else:
        made = build_from_folder(
            place,
            encoder,
            name,
            seconds=wanted.seconds,
            skip_bad=wanted.skip_bad,
            source=wanted.source,
            licence=wanted.licence,
        )
    made.save(target)
    what = "captions" if of_text else "clips"
    print(f"wrote {target}: {made.count} {what}, {made.frames} frames of {made.encoder}")


def _captions(place: str) -> list[str]:
    """The captions of a file: its column `caption`, or else what a prompt file holds."""
    import csv
    import io
    import json

    from dragon.prompts import load_prompts

    path = Path(place)
    if path.suffix != ".txt" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix == ".csv":
                rows = list(csv.DictReader(io.StringIO(text, newline="")))
            else:
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ConfigError(
                f"captions {place!r} cannot be read ({error}); expected UTF-8 text, in .jsonl one object a line"
            ) from error
        if rows and all(isinstance(row, dict) and "caption" in row for row in rows):
            return [str(row["caption"] or "") for row in rows]
    return list(load_prompts(place).prompts)
