"""Making exemplar sets: from a folder of audio, from clips that a program already has, or from captions.

Knows audio and encoders by their protocol. Files are cut into windows of one length, because an encoder's frames
depend on the length of what it hears; every file that cannot be used is named with its reason. A caption gives one
frame, its text embedding; such a set serves clips only where the encoder centres both modalities
(dragon.encoders.shared).
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dragon import audio
from dragon.errors import AudioError, ConfigError, NotFinite
from dragon.exemplars.gaussian import Gaussian, squared_parts
from dragon.exemplars.sets import ExemplarSet, Item
from dragon.media import Media
from dragon.protocols import Encoder, JointEncoder

KEEP_FRAMES = 2048
"""Frames that a set keeps besides their statistics."""

_BANDWIDTH_FRAMES = 2048
_CAPTION_LETTERS = 60  # of a caption that are kept as its item's name
_BATCH = 16  # windows an encoder sees at once


def build_from_folder(
    folder: str | os.PathLike[str],
    encoder: Encoder,
    name: str,
    *,
    seconds: float = 5.12,
    min_seconds: float = 1.0,
    skip_bad: bool = False,
    keep_frames: int = KEEP_FRAMES,
    source: str = "",
    licence: str = "",
) -> ExemplarSet:
    """Statistics of all audio files below `folder`.

    seconds: files are cut into consecutive windows of this length (5.12 s is a clip of the built-in model); a rest
    of half a window or more gives one window that ends with the file, a shorter rest is left out; a file shorter
    than one window is used as it is. min_seconds: shorter files are bad. keep_frames: at most so many are kept in the
    set (0: none). source: text kept in the set; the folder's name if empty.

    Raises:
        AudioError: no audio, or files that are unreadable, silent, too short or hold NaN: all of them, each with its
        reason. With `skip_bad` only if nothing is left.
    """
    if not (seconds > 0 and min_seconds > 0):
        raise ConfigError(f"seconds {seconds}, min_seconds {min_seconds}; expected both above 0")
    root = Path(folder)
    bad: list[str] = []
    items: list[Item] = []
    frames: list[Tensor] = []
    for path in audio.list_audio(root):
        label = path.relative_to(root).as_posix()
        try:
            clip = audio.load(path)
            audio.check(clip, label, min_seconds)
        except AudioError as error:
            bad.append(str(error) if str(error).startswith(label) else f"{label}: {error}")
            continue
        found = torch.cat([_embed(encoder, m) for m in _windows(clip, seconds, label)])
        items.append(Item(label, content_hash(clip.samples, clip.rate), len(found)))
        frames.append(found)
    if bad and (not skip_bad or not items):
        listed = "\n".join(f"  {line}" for line in bad)
        total = len(bad) + len(items)
        step = "nothing is left" if skip_bad else "mend or remove them, or leave them out with --skip_bad"
        raise AudioError(f"{len(bad)} of {total} audio files in {root} cannot be exemplars; {step}:\n{listed}")
    settings = {
        "seconds": seconds,
        "hop_seconds": seconds,
        "tail": "a rest of at least half a window: one window that ends with the file",
        "min_seconds": min_seconds,
        "skipped": bad,
    }
    return _finish(name, encoder, items, frames, settings, source or root.resolve().name, licence, keep_frames)


def build_from_media(
    media: Media | Iterable[Media],
    encoder: Encoder,
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
    items: list[Item] = []
    frames: list[Tensor] = []
    for batch in [media] if isinstance(media, Media) else media:
        audio.check_finite(batch)
        for start in range(0, len(batch), _BATCH):
            part = batch.rows(range(start, min(start + _BATCH, len(batch))))
            for row, clip_frames in zip(part.tensor.cpu().numpy(), _embed_rows(encoder, part), strict=True):
                items.append(Item(f"clip-{len(items)}", content_hash(row, part.rate or 0), len(clip_frames)))
                frames.append(clip_frames)
    if names is not None:
        if len(names) != len(items):
            raise ConfigError(f"{len(names)} names for {len(items)} clips; expected one a clip")
        items = [Item(str(n), i.content_hash, i.frames) for n, i in zip(names, items, strict=True)]
    return _finish(name, encoder, items, frames, {"seconds": "whole clips"}, source, licence, keep_frames)


def build_from_captions(
    captions: Sequence[str],
    encoder: Encoder,
    name: str,
    *,
    keep_frames: int = KEEP_FRAMES,
    source: str = "",
    licence: str = "",
) -> ExemplarSet:
    """Statistics of the text embeddings of captions, one frame each: "sounds like what these say".

    The captions need not belong to prompts or clips. What they leave out counts as usual, what they say as wanted in
    the share of captions that say it. keep_frames: as above.

    Raises:
        ConfigError: the encoder embeds no text; fewer than two captions; blank ones, all of them with their number.
        NotFinite: an embedding holds NaN or infinity.
    """
    if not isinstance(encoder, JointEncoder):
        raise ConfigError(
            f"exemplars {name!r}: encoder {encoder.name!r} embeds no text, which captions need; take a joint "
            "encoder, such as 'mini-shared' (dragon.encoders.shared.SharedEncoder)"
        )
    blank = [str(number) for number, caption in enumerate(captions, 1) if not caption.strip()]
    if blank:
        raise ConfigError(f"exemplars {name!r}: caption {', '.join(blank)} of {len(captions)} is blank; remove it")
    if len(captions) < 2:
        raise ConfigError(f"exemplars {name!r}: {len(captions)} captions; give at least two, better hundreds")
    if not hasattr(encoder, "gap"):
        warnings.warn(
            f"exemplars {name!r}: encoder {encoder.name!r} does not centre its modalities, so the distance of clips to "
            "these captions can be mostly the modality gap, and a reward then pays for crossing it; its frames of "
            "clips may even lie in another space. Use encoder 'mini-shared', or wrap yours in "
            "dragon.encoders.shared.SharedEncoder",
            stacklevel=2,
        )
    with torch.no_grad():
        rows = encoder.embed_text(list(captions)).detach().to("cpu")
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"encoder {encoder.name!r} made NaN or infinity of caption {captions[row]!r}")
    items = [Item(_short(caption), _text_hash(caption), 1) for caption in captions]
    settings: dict[str, object] = {"captions": "one frame a caption: its text embedding"}
    return _finish(name, encoder, items, list(rows[:, None]), settings, source, licence, keep_frames, "text")


def content_hash(samples: np.ndarray, rate: int) -> str:
    """32 hexadecimal digits that identify float32 samples, their shape and rate; equal audio, equal hash."""
    digest = hashlib.blake2b(f"{samples.shape} {rate}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(samples, dtype="<f4").tobytes())
    return digest.hexdigest()


def _text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _short(caption: str) -> str:
    """On one line, and cut."""
    line = " ".join(caption.split())
    return line if len(line) <= _CAPTION_LETTERS else line[: _CAPTION_LETTERS - 3] + "..."


def _windows(clip: audio.Audio, seconds: float, label: str) -> Iterable[Media]:
    """Batches of windows of one length (or the whole clip, where it is shorter)."""
    length = max(1, round(seconds * clip.rate))
    total = clip.samples.shape[1]
    starts = list(range(0, total - length + 1, length)) or [0]
    rest = total - starts[-1] - length
    if 2 * rest >= length:
        starts.append(total - length)
    for first in range(0, len(starts), _BATCH):
        cut = np.stack([clip.samples[:, s : s + length] for s in starts[first : first + _BATCH]])
        yield Media(torch.from_numpy(cut), (label,) * len(cut), clip.rate)


def _embed_rows(encoder: Encoder, media: Media) -> Tensor:
    """(b, s, f) on the CPU, checked."""
    with torch.no_grad():
        frames = encoder.embed_media(media).detach().to("cpu")
    finite = torch.isfinite(frames).flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"encoder {encoder.name!r} made NaN or infinity of clip {media.prompts[row]!r}")
    return frames


def _embed(encoder: Encoder, media: Media) -> Tensor:
    return _embed_rows(encoder, media).flatten(0, 1)


def _finish(
    name: str,
    encoder: Encoder,
    items: list[Item],
    frames: list[Tensor],
    settings: dict[str, object],
    source: str,
    licence: str,
    keep_frames: int,
    modality: str = "audio",
) -> ExemplarSet:
    if keep_frames < 0:
        raise ConfigError(f"exemplars {name!r}: keep_frames {keep_frames}; expected a number of frames, or 0 for none")
    if not name or any(c in name for c in "/\\ \n"):
        raise ConfigError(f"exemplar set name {name!r}; expected a word without spaces or slashes, such as 'jazz'")
    if sum(len(f) for f in frames) < 2:
        raise ConfigError(f"exemplars {name!r}: fewer than two frames in {len(items)} clips; give more or longer clips")
    table = torch.cat(frames)
    gaussian = Gaussian.of_frames(table, f"exemplars {name!r}")
    return ExemplarSet(
        name=name,
        encoder=encoder.name,
        encoder_hash=encoder.fingerprint,
        mean=gaussian.mean,
        cov=gaussian.covariance,
        frames=len(table),
        items=tuple(items),
        settings=settings | {"ddof": 1, "torch": torch.__version__},
        source=source,
        licence=licence,
        bandwidth=_bandwidth(table),
        self_distance=_self_distance(frames),
        features=_sample(table, keep_frames) if keep_frames else None,
        modality=modality,
    )


def _sample(table: Tensor, count: int) -> Tensor:
    """At most `count` rows in their order, drawn with a fixed seed: even steps could fall in with a clip's length."""
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return table[drawn].to(torch.float32)


def _bandwidth(table: Tensor) -> float:
    step = math.ceil(len(table) / _BANDWIDTH_FRAMES)
    some = table[::step].to(torch.float64)
    return float(torch.pdist(some - some.mean(dim=0)).quantile(0.5))


def _self_distance(frames: list[Tensor]) -> float | None:
    """Between two halves of the clips, drawn with a fixed seed."""
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0)).tolist()
    halves = [[frames[i] for i in order[part::2]] for part in (0, 1)]
    if any(sum(len(f) for f in half) < 2 for half in halves):
        return None
    first, second = (Gaussian.of_frames(torch.cat(half)) for half in halves)
    return sum(squared_parts(first, second))
