"""What a score was made of and by, for its JSON: files, encoders, settings, seeds, versions.

Knows embedded sets and references, no metric.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dragon.errors import DragonError
from dragon.intervals import LEVEL
from dragon.measure.clips import file_hash
from dragon.measure.embed import Embedded
from dragon.measure.request import Request
from dragon.measure.sides import FolderReference, Reference, SetReference
from dragon.measure.store import EmbeddingStore

PACKAGES = ("torch", "numpy", "scipy", "soxr", "soundfile", "safetensors", "transformers")

_OF_SET = ("version", "encoder", "encoder_hash", "count", "frames", "modality", "source", "licence", "bandwidth")


def provenance(
    request: Request,
    sets: Mapping[str, Sequence[Embedded]],
    references: Sequence[Sequence[Reference]],
    groups: int,
    seed: int,
    captions: str | os.PathLike[str] | None,
    store: EmbeddingStore,
) -> dict[str, Any]:
    """JSON values; files by the hash of their bytes, never by their absolute path."""
    from dragon import __version__

    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dragon": __version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "metrics": [{"name": m.name, "options": asdict(m) if is_dataclass(m) else {}} for m in request.metrics],
        "rewards": [{"name": reward.name, "reward": type(reward).__qualname__} for reward in request.rewards],
        "asked": list(request.asked),
        "level": LEVEL,
        "groups": groups,
        "seed": seed,
        "resampler": "soxr HQ",
        "mono": "mean of the channels",
        "encoders": [
            {
                "label": label,
                "name": encoder.name,
                "fingerprint": encoder.fingerprint,
                "features": encoder.features,
                "settings": getattr(encoder, "settings", None),
            }
            for label, encoder in zip(request.labels, request.encoders, strict=True)
        ],
        "sets": [{"name": name} | _clips(found, request.labels) for name, found in sets.items()],
        "references": _references(request, references),
        "captions": None if captions is None else {"file": Path(captions).name, "hash": _hash(captions)},
        "embeddings_kept": store.kept,
    }


def _clips(found: Sequence[Embedded], labels: Sequence[str]) -> dict[str, Any]:
    first = found[0]
    return {
        "source": first.source,
        "clips": len(first),
        "seconds": round(sum(first.seconds), 3),
        "rates": _counted(first.rates),
        "channels": _counted(first.channels),
        "frames": {label: one.total for label, one in zip(labels, found, strict=True)},
        "files": [{"file": f, "hash": h} for f, h in zip(first.names, first.hashes, strict=True)],
        "skipped": [{"file": one.name, "reason": one.reason} for one in first.bad],
    }


def _references(request: Request, references: Sequence[Sequence[Reference]]) -> list[dict[str, Any]]:
    made = []
    for name in request.references:
        same = [(n, r) for n, row in enumerate(references) for r in row if r.name == name]
        if not same:
            continue
        first = same[0][1]
        if isinstance(first, SetReference):
            found = first.exemplars
            made.append({"name": name, "kind": "exemplar set"} | {key: getattr(found, key) for key in _OF_SET})
        else:
            embedded = [r.embedded for _, r in same if isinstance(r, FolderReference)]
            made.append({"name": name, "kind": "folder"} | _clips(embedded, [request.labels[n] for n, _ in same]))
    return made


def _counted(values: Sequence[int]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _hash(path: str | os.PathLike[str]) -> str | None:
    try:
        return file_hash(path)
    except DragonError:  # gone since it was read
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
