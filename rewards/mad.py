"""MAUVE audio divergence (MAD) of two sets of clips, by the package mad-metric.

Huang et al. (2025, arXiv 2503.16669): minus the logarithm of MAUVE (Pillutla et al. 2021, arXiv 2102.01454) between
clip embeddings. An adapter: knows embeddings, and the package's `compute_mad` as of version 0.0.6. The package's own
embedding pass drops files in silence (the rest of a batch where the folder's last entry is no audio; whatever is not
.wav or .mp3), so only its divergence is used, on embeddings of ours. The paper's are frames of MERT-v1-330M, layer 24,
their maximum over time: one row a clip.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from dragon.errors import ConfigError, MissingExtra, NotFinite
from dragon.exemplars.features import Features, as_features

_LEAST = 20  # rows a side: MAUVE makes one cluster of ten rows, and one cluster tells nothing


@dataclass(frozen=True)
class MadResult:
    """The divergence (value, about 0 or above, lower is better), of n and m embeddings of d features.

    clusters: how many bins both sets were sorted into; few make a coarse number.
    """

    value: float
    n: int
    m: int
    d: int
    clusters: int

    def __float__(self) -> float:
        return self.value


def mauve_audio_divergence(generated: Features, reference: Features) -> MadResult:
    """MAD of (n, d) and (m, d) clip embeddings, at least 20 rows each. Takes seconds; some thousand rows give a number
    that is worth comparing.

    Raises:
        MissingExtra: the package is not installed. ShapeError: not (n, d), or sizes differ. NotFinite: NaN or infinity
        in the input, or a divergence that is. ConfigError: fewer than 20 rows.
    """
    first = as_features(generated, "generated embeddings")
    second = as_features(reference, "reference embeddings", size=first.shape[1], like=generated)
    if min(len(first), len(second)) < _LEAST:
        raise ConfigError(f"mad: {len(first)} and {len(second)} embeddings; expected at least {_LEAST} each")
    try:
        from mad_metric import compute_mad
    except ImportError as error:
        raise MissingExtra(
            f"metric 'mad' needs the package mad-metric ({error}); install it with: pip install 'dragon-media[mad]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        places = []
        for side, table in (("generated", first), ("reference", second)):
            place = Path(folder, side)
            place.mkdir()
            torch.save(table.to("cpu", torch.float32), place / "embeddings.pt")  # rows of one file keep their order
            places.append(str(place))
        value = float(compute_mad(eval_embs_dir=places[0], ref_embs_dir=places[1]))
    if not math.isfinite(value):
        raise NotFinite(f"mad: the divergence is {value}; compare these sets by another metric")
    clusters = max(2, round(min(len(first), len(second)) / 10))
    return MadResult(value, len(first), len(second), first.shape[1], clusters)
