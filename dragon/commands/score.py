"""dragon score GENERATED... --exemplars REF --metrics NAME ... --encoder NAME ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dragon.commands.arguments import parsed, plugin_spec
from dragon.commands.progress import PassProgress
from dragon.errors import ConfigError
from dragon.files import check_writable

USAGE = "dragon score FOLDER... [--exemplars FOLDER|SET ...] [--metrics NAME ...] [--encoder NAME ...]"


@dataclass(frozen=True)
class ScoreCommand:
    """Measure folders of audio (or files, which make one set) against exemplars; several folders are compared."""

    exemplars: tuple[str, ...] = ()
    """What to compare with: a folder, the name of an exemplar set, or its .safetensors file."""
    metrics: tuple[str, ...] = ()
    """fad fad_inf song_fad kad vendi diversity prdc clap, or any reward by name or module:Name; with options as YAML:
    '{name: prdc, options: {k: 3}}'. Default: fad kad vendi, or vendi alone without exemplars."""
    encoder: tuple[str, ...] = ()
    """What hears the clips: names, or YAML '{name: clap, options: {model: FOLDER}}'. Default: the exemplar set's own,
    or else mini."""
    captions: str = ""
    """CSV with the columns file,caption (or a run's samples.csv), for clap and rewards of prompt fit."""
    skip_bad: bool = False
    """Leave out files that cannot be used, and say which, instead of stopping."""
    min_seconds: float = 1.0
    """Shorter files cannot be used."""
    out: str = ""
    """JSON file to write: values, intervals, differences, and what they were made of."""
    songs: str = ""
    """CSV file to write: one row a clip."""
    picture: str = ""
    """PNG file to write: the sets in a plane, and the clips' values."""
    cache: str = "default"
    """Folder that keeps embeddings for the next time; none: nowhere. Default: $DRAGON_CACHE/embeddings, or
    ~/.cache/dragon/embeddings."""
    device: str = "cpu"
    batch: int = 8
    """Clips of one length and rate that an encoder hears at once."""
    groups: int = 20
    """Groups of clips that the jack-knife leaves out."""
    seed: int = 0


def run(arguments: list[str]) -> None:
    first = next((i for i, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    generated, flags = arguments[:first], arguments[first:]
    if not generated and not {"-h", "--help"} & set(flags):
        hint = f"; a name that starts with a dash is written ./{flags[0]}" if flags and Path(flags[0]).exists() else ""
        raise ConfigError(f"no folder given before the flags{hint}; expected: {USAGE}")
    wanted = parsed(ScoreCommand, flags, "dragon score FOLDER...")
    for flag in ("exemplars", "metrics", "encoder"):
        if f"--{flag}" in flags and not getattr(wanted, flag):
            raise ConfigError(f"--{flag} is given without a value; name one or more, or leave it out")
    _check_outputs({"out": (wanted.out, ".json"), "songs": (wanted.songs, ".csv"), "picture": (wanted.picture, ".png")})

    from dragon.measure import score

    try:
        with PassProgress() as progress:
            result = score(
                generated,
                list(wanted.exemplars),
                [plugin_spec(text) for text in wanted.metrics] or None,
                encoder=[plugin_spec(text) for text in wanted.encoder] or None,
                captions=wanted.captions or None,
                skip_bad=wanted.skip_bad,
                min_seconds=wanted.min_seconds,
                cache=wanted.cache,
                device=wanted.device,
                batch=wanted.batch,
                groups=wanted.groups,
                seed=wanted.seed,
                progress=progress,
            )
    except KeyboardInterrupt:
        kept = (
            "nothing was kept" if wanted.cache == "none" else "what is embedded is kept, and the same command goes on"
        )
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    print(result)
    for write, place in (
        (result.save, wanted.out),
        (result.save_songs, wanted.songs),
        (result.save_picture, wanted.picture),
    ):
        if place:
            print(f"wrote {write(place)}")


def _check_outputs(places: Mapping[str, tuple[str, str]]) -> None:
    """Before an hour of embedding, not after."""
    for flag, (place, suffix) in places.items():
        if place and Path(place).suffix.lower() != suffix:
            raise ConfigError(f"--{flag} {place}: expected a name that ends in {suffix}")
        if place and Path(place).is_dir():
            raise ConfigError(f"--{flag} {place} is a folder; expected a file to write")
        if place:
            check_writable(Path(place).parent, f"--{flag}: folder")
