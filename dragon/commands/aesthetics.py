"""dragon aesthetics fit RATINGS.csv [--encoder NAME ...] | show HEAD.safetensors"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dragon.commands.arguments import parsed, plugin_spec, positional
from dragon.commands.progress import PassProgress
from dragon.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from dragon.aesthetics import Opinions
    from dragon.protocols import Encoder

USAGE = "dragon aesthetics fit RATINGS.csv [--encoder NAME ...], or dragon aesthetics show HEAD.safetensors"


@dataclass(frozen=True)
class FitAesthetics:
    """Learn what people like: a CSV with the columns file,rating (and rater, prompt), or winner,loser (and prompt),
    gives a head that predicts it of any clip, for the reward `aesthetics`."""

    encoder: str = "mini"
    """What hears the clips: a name, module:Name, or '{name: NAME, options: {...}}'."""
    audio: str = ""
    """Folder of the audio files; default: that of the CSV file."""
    out: str = ""
    """File to write; default: the CSV file's name with .safetensors, here. One that exists is refused."""
    replace: bool = False
    """Write over a file of that name."""
    skip_bad: bool = False
    """Leave out audio files that cannot be used, with their ratings or votes, instead of stopping."""
    min_seconds: float = 1.0
    """Shorter files cannot be used."""
    seed: int = 0
    """Of the folds, and of what is drawn for intervals and ceiling."""
    source: str = ""
    """Where the ratings come from; kept in the file."""
    licence: str = ""
    """Their licence; kept in the file."""
    cache: str = "default"
    """Folder that keeps embeddings for the next time; none: nowhere. Default: $DRAGON_CACHE/embeddings, or
    ~/.cache/dragon/embeddings."""
    device: str = "cpu"
    batch: int = 8
    """Clips of one length and rate that the encoder hears at once."""


def run(arguments: list[str]) -> None:
    action, *rest = arguments or [""]
    if action == "fit":
        _fit(rest)
    elif action == "show" and len(rest) == 1:
        _show(rest[0])
    elif action in ("-h", "--help"):
        print(f"usage: {USAGE}")
    else:
        raise ConfigError(f"{' '.join(arguments) or 'no action'!r}; expected: {USAGE}")


def _fit(arguments: list[str]) -> None:
    place, flags = positional(arguments, "file of ratings", USAGE)
    wanted = parsed(FitAesthetics, flags, "dragon aesthetics fit RATINGS.csv")
    target = Path(wanted.out or f"{Path(place).stem}.safetensors")
    if target.suffix != ".safetensors":
        raise ConfigError(f"--out {wanted.out}: expected a name that ends in .safetensors")
    if target.exists() and not wanted.replace:
        raise ConfigError(f"{str(target)!r} exists already; give another --out, or --replace")
    spec = plugin_spec(wanted.encoder)

    from dragon import aesthetics
    from dragon.aesthetics.fit import check_sizes
    from dragon.build import check_device
    from dragon.encoders.lookup import get_encoder

    check_device(wanted.device)
    opinions = aesthetics.load_opinions(place)
    check_sizes(opinions)  # before an hour of embedding, not after
    paths = aesthetics.find_audio(opinions, place, wanted.audio)
    encoder = get_encoder(spec, device=wanted.device)
    opinions, vectors, notes = _embedded(opinions, paths, encoder, place, wanted)
    fitted = aesthetics.fit(opinions, vectors, seed=wanted.seed)
    found = aesthetics.report(opinions, fitted, seed=wanted.seed)
    for note in notes:
        print(note)
    print(found)
    head = aesthetics.head_of(
        fitted,
        encoder,
        spec,
        figures=found.as_dict(),
        settings={"seed": wanted.seed, "min_seconds": wanted.min_seconds, "notes": notes},
        source=wanted.source or Path(place).name,
        licence=wanted.licence,
    )
    print(f"wrote {head.save(target)}; in a configuration: {{name: aesthetics, options: {{weights: {target}}}}}")


def _embedded(
    opinions: Opinions, paths: list[Path], encoder: Encoder, place: str, wanted: FitAesthetics
) -> tuple[Opinions, np.ndarray, list[str]]:
    """The opinions on usable files, one vector a file, and what is worth saying of the files."""
    from dragon.aesthetics.ratings import report_lines
    from dragon.measure.clips import find_clips
    from dragon.measure.embed import embed_folder
    from dragon.measure.store import EmbeddingStore

    with PassProgress() as progress:
        (found,) = embed_folder(
            paths,
            [encoder],
            store=EmbeddingStore.named(wanted.cache),
            skip_bad=True,  # to name them by their lines
            min_seconds=wanted.min_seconds,
            batch=wanted.batch,
            progress=partial(progress, "embedding"),
        )
    row = {clip.name: i for i, clip in enumerate(find_clips(paths))}
    bad = [row[one.name] for one in found.bad]
    reasons = [f"{opinions.files[i]}: {one.reason}" for i, one in zip(bad, found.bad, strict=True)]
    if not wanted.skip_bad:
        lines = [(opinions.lines[i], reason) for i, reason in zip(bad, reasons, strict=True)]
        report_lines(place, lines, "mend the audio, or leave it out with --skip_bad")
    left = opinions.without([opinions.files[i] for i in bad])
    vectors = dict(zip(found.paths, found.clips().numpy(), strict=True))
    path_of = dict(zip(opinions.files, paths, strict=True))
    notes = [f"left out: {reason}" for reason in reasons]
    copies = len(found.hashes) - len(set(found.hashes))
    if copies:
        notes.append(f"{copies} files are copies of others: a copy in another prompt makes the figures too good")
    import numpy as np

    return left, np.stack([vectors[path_of[name]] for name in left.files]), notes


def _show(place: str) -> None:
    from dragon.rewards.aesthetics import load_head

    head = load_head(place)
    for key in ("unit", "encoder", "encoder_hash", "encoder_options", "source", "licence", "settings"):
        print(f"{key:16} {getattr(head, key)}")
    for key, value in head.figures.items():
        print(f"{key:16} {value}")
