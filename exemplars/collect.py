"""Making exemplar sets: from audio files, from clips that a program already has, or from captions.

Knows audio and encoders by their protocol. Files are cut into windows of one length, because an encoder's frames
depend on the length of what it hears; every file that cannot be used is named with its reason. A caption gives one
frame, its text embedding; such a set serves clips only where the encoder centres both modalities
(dragon.encoders.shared). `gather_*` embed, `Gathered.as_set` makes the statistics; `build_*` do both.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dragon import audio
from dragon.encoders.lookup import EncoderSpec
from dragon.encoders.windows import Windows
from dragon.errors import AudioError, ConfigError, NotFinite
from dragon.exemplars.gathered import KEEP_FRAMES, Ears, Gathered, check_name
from dragon.exemplars.sets import ExemplarSet, Item
from dragon.media import Media
from dragon.protocols import Encoder, JointEncoder

Clip = tuple[str, audio.Audio | AudioError]
"""Name, and samples or why there are none."""
Progress = Callable[[int], None]
"""Called with the number of files heard so far."""

MIN_SECONDS = 1.0

_CAPTION_LETTERS = 60  # of a caption that are kept as its item's name
_BATCH = 16  # windows an encoder sees at once


def build_from_folder(
    folder: str | os.PathLike[str],
    encoder: EncoderSpec,
    name: str,
    *,
    seconds: float | None = None,
    min_seconds: float = MIN_SECONDS,
    skip_bad: bool = False,
    keep_frames: int = KEEP_FRAMES,
    source: str = "",
    licence: str = "",
) -> ExemplarSet:
    """Statistics of all audio files below `folder`.

    encoder: a name, {"name": ..., "options": ...} or an encoder; with the first two the set can make it again.
    keep_frames: at most so many are kept in the set (0: none). source: text kept in the set; the folder's name if
    empty. The rest, and errors, as `gather_audio`; also AudioError where the folder holds no audio.
    """
    check_name(name)
    root = Path(folder)
    clips = read_files(audio.list_audio(root), root)
    found = gather_audio(clips, encoder, where=str(root), seconds=seconds, min_seconds=min_seconds, skip_bad=skip_bad)
    return found.as_set(name, keep_frames=keep_frames, source=source or root.resolve().name, licence=licence)


def build_from_media(
    media: Media | Iterable[Media],
    encoder: EncoderSpec,
    name: str,
    *,
    names: Sequence[str] | None = None,
    keep_frames: int = KEEP_FRAMES,
    source: str = "",
    licence: str = "",
) -> ExemplarSet:
    """Statistics of clips in memory, one batch or many; names: one a clip (clip-0, clip-1, ... if not given).

    keep_frames: at most so many frames are kept in the set (0: none).

    Raises:
        ConfigError: no clips, or not one name a clip. NotFinite: a clip or its features hold NaN or infinity.
    """
    check_name(name)
    ears = Ears.of(encoder)
    items: list[Item] = []
    frames: list[Tensor] = []
    for batch in [media] if isinstance(media, Media) else media:
        audio.check_finite(batch)
        for start in range(0, len(batch), _BATCH):
            part = batch.rows(range(start, min(start + _BATCH, len(batch))))
            for row, clip_frames in zip(part.tensor.cpu().numpy(), _embed_rows(ears.encoder, part), strict=True):
                items.append(Item(f"clip-{len(items)}", content_hash(row, part.rate or 0), len(clip_frames)))
                frames.append(clip_frames)
    if names is not None:
        if len(names) != len(items):
            raise ConfigError(f"{len(names)} names for {len(items)} clips; expected one a clip")
        items = [Item(str(n), i.content_hash, i.frames) for n, i in zip(names, items, strict=True)]
    found = Gathered(ears, tuple(items), tuple(frames), {"seconds": "whole clips"})
    return found.as_set(name, keep_frames=keep_frames, source=source, licence=licence)


def build_from_captions(
    captions: Sequence[str],
    encoder: EncoderSpec,
    name: str,
    *,
    keep_frames: int = KEEP_FRAMES,
    source: str = "",
    licence: str = "",
) -> ExemplarSet:
    """Statistics of the text embeddings of captions: "sounds like what these say". Errors as `gather_captions`."""
    check_name(name)
    found = gather_captions(captions, encoder, f"exemplars {name!r}")
    return found.as_set(name, keep_frames=keep_frames, source=source, licence=licence)


def read_files(paths: Iterable[Path], root: Path) -> Iterator[Clip]:
    """One clip a file, named by its place below `root`, or by its own name where it lies elsewhere."""
    for path in paths:
        inside = path.is_relative_to(root) and ".." not in path.relative_to(root).parts
        label = path.relative_to(root).as_posix() if inside else path.name
        try:
            yield label, audio.load(path)
        except AudioError as error:
            yield label, AudioError(str(error).replace(os.fspath(path), label, 1))


def gather_audio(
    clips: Iterable[Clip],
    encoder: EncoderSpec,
    *,
    where: str,
    seconds: float | None = None,
    min_seconds: float = MIN_SECONDS,
    skip_bad: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Gathered:
    """Frames of clips; one clip in memory at a time.

    where: what an error calls their place. seconds: None: the encoder hears clips whole and cuts them by its own rule,
    as it does where clips are scored; else they are cut before it into consecutive pieces of this length; a rest of
    half a piece or more gives one that ends with the clip, a shorter rest is left out; a clip shorter than one piece
    is used as it is. min_seconds: shorter clips are bad. device: where a named encoder runs. Clips of a lower
    rate than the encoder's are warned of, since they lack the top of what it hears.

    Raises:
        AudioError: clips that are unreadable, silent, too short or hold NaN: all of them, each with its reason. With
        `skip_bad` only if nothing is left.
    """
    if not ((seconds is None or seconds > 0) and min_seconds > 0):
        raise ConfigError(f"seconds {seconds}, min_seconds {min_seconds}; expected both above 0")
    ears = Ears.of(encoder, device)
    bad: list[str] = []
    items: list[Item] = []
    frames: list[Tensor] = []
    rates: dict[int, int] = {}
    for heard, (label, clip) in enumerate(clips, 1):
        if progress is not None:
            progress(heard)
        try:
            if isinstance(clip, AudioError):
                raise clip
            audio.check(clip, label, min_seconds)
        except AudioError as error:
            bad.append(str(error) if str(error).startswith(label) else f"{label}: {error}")
            continue
        found = torch.cat([_embed_rows(ears.encoder, m).flatten(0, 1) for m in _pieces(clip, seconds, label)])
        items.append(Item(label, content_hash(clip.samples, clip.rate), len(found)))
        frames.append(found)
        rates[clip.rate] = rates.get(clip.rate, 0) + 1
    if bad and (not skip_bad or not items):
        listed = "\n".join(f"  {line}" for line in bad)
        total = len(bad) + len(items)
        step = "nothing is left" if skip_bad else "mend or remove them, or leave them out with --skip_bad"
        raise AudioError(f"{len(bad)} of {total} audio files in {where} cannot be exemplars; {step}:\n{listed}")
    _warn_of_low_rates(ears.encoder, rates)
    settings = {
        "seconds": "whole clips" if seconds is None else seconds,
        "min_seconds": min_seconds,
        "rates": sorted(rates),
        "resampler": "soxr HQ",
        "mono": "mean of the channels",
        "skipped": bad,
    }
    return Gathered(ears, tuple(items), tuple(frames), settings)


def gather_captions(
    captions: Sequence[str], encoder: EncoderSpec, what: str = "exemplars", *, device: str = "cpu"
) -> Gathered:
    """The text embeddings of captions, one frame each.

    The captions need not belong to prompts or clips. What they leave out counts as usual, what they say as wanted in
    the share of captions that say it. what: how errors call them. device: where a named encoder runs.

    Raises:
        ConfigError: the encoder embeds no text; fewer than two captions; blank ones, all of them with their number.
        NotFinite: an embedding holds NaN or infinity.
    """
    ears = Ears.of(encoder, device)
    joint = ears.encoder
    if not isinstance(joint, JointEncoder):
        raise ConfigError(
            f"{what}: encoder {joint.name!r} embeds no text, which captions need; take a joint "
            "encoder, such as 'mini-shared' (dragon.encoders.shared.SharedEncoder)"
        )
    blank = [str(number) for number, caption in enumerate(captions, 1) if not caption.strip()]
    if blank:
        raise ConfigError(f"{what}: caption {', '.join(blank)} of {len(captions)} is blank; remove it")
    if len(captions) < 2:
        raise ConfigError(f"{what}: {len(captions)} captions; give at least two, better hundreds")
    if not hasattr(joint, "gap"):
        warnings.warn(
            f"{what}: encoder {joint.name!r} does not centre its modalities, so the distance of clips to "
            "these captions can be mostly the modality gap, and a reward then pays for crossing it; its frames of "
            "clips may even lie in another space. Use encoder 'mini-shared', or wrap yours in "
            "dragon.encoders.shared.SharedEncoder",
            stacklevel=3,
        )
    with torch.no_grad():
        rows = joint.embed_text(list(captions)).detach().to("cpu")
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"encoder {joint.name!r} made NaN or infinity of caption {captions[row]!r}")
    items = tuple(Item(short(caption), _text_hash(caption), 1) for caption in captions)
    settings = {"captions": "one frame a caption: its text embedding"}
    return Gathered(ears, items, tuple(rows[:, None]), settings, "text")


def content_hash(samples: np.ndarray, rate: int) -> str:
    """32 hexadecimal digits that identify float32 samples, their shape and rate; equal audio, equal hash."""
    digest = hashlib.blake2b(f"{samples.shape} {rate}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(samples, dtype="<f4").tobytes())
    return digest.hexdigest()


def short(caption: str) -> str:
    """On one line, and cut: a caption as an item's name."""
    line = " ".join(caption.split())
    return line if len(line) <= _CAPTION_LETTERS else line[: _CAPTION_LETTERS - 3] + "..."


def _text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _pieces(clip: audio.Audio, seconds: float | None, label: str) -> Iterable[Media]:
    """Batches of windows of one length (or the whole clip, where it is shorter)."""
    total = clip.samples.shape[1]
    length = total if seconds is None else min(total, max(1, round(seconds * clip.rate)))
    cut = Windows(length).cut(torch.from_numpy(clip.samples)).transpose(0, 1)  # (pieces, channels, samples)
    for part in cut.split(_BATCH):
        yield Media(part.contiguous(), (label,) * len(part), clip.rate)


def _embed_rows(encoder: Encoder, media: Media) -> Tensor:
    """(b, s, f) on the CPU, checked."""
    with torch.no_grad():
        frames = encoder.embed_media(media).detach().to("cpu")
    finite = torch.isfinite(frames).flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"encoder {encoder.name!r} made NaN or infinity of clip {media.prompts[row]!r}")
    return frames


def _warn_of_low_rates(encoder: Encoder, rates: dict[int, int]) -> None:
    rate = getattr(encoder, "settings", {}).get("rate")
    low = {r: n for r, n in rates.items() if isinstance(rate, int) and r < rate}
    if low:
        told = ", ".join(f"{n} of {sum(rates.values())} at {r} Hz" for r, n in sorted(low.items()))
        warnings.warn(
            f"encoder {encoder.name!r} hears {rate} Hz and some clips have less ({told}): they hold nothing above half "
            "their rate, and a distance to them hears that too; use them for clips of the same rate",
            stacklevel=3,
        )
