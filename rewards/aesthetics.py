"""What people like, as learnt from their ratings or votes: a linear head on an encoder's clip vectors.

A head is one .safetensors file, made by `dragon aesthetics fit` (dragon.aesthetics): weights, the mean and scale of
each feature, and in its header the encoder's name, options and fingerprint, what the head was fitted to, and how well
it predicted held-out clips. It serves only the encoder that it was fitted with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec, get_encoder
from dragon.encoders.vectors import clip_vectors
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.files import write_whole
from dragon.media import Media
from dragon.protocols import Encoder

VERSION = 1
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class AestheticsHead:
    """score = bias + sum of weight * (x - mean) / scale over the f features of a clip vector x.

    weight, mean, scale: (f,) float64. unit: "rating", the units of the ratings, or "logit": a difference of two scores
    is the log odds that the one clip is voted for. encoder, encoder_hash: name and fingerprint of the vectors' maker.
    encoder_plugin, encoder_options: what makes it again; "" where its own name does. figures: of held-out clips, with
    intervals. settings: how it was fitted.
    """

    weight: Tensor
    mean: Tensor
    scale: Tensor
    bias: float
    unit: str
    encoder: str
    encoder_hash: str
    encoder_plugin: str = ""
    encoder_options: Mapping[str, object] = field(default_factory=dict)
    figures: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    version: int = VERSION

    @property
    def encoder_spec(self) -> dict[str, object]:
        """What `get_encoder` makes the head's encoder of."""
        return {"name": self.encoder_plugin or self.encoder, "options": dict(self.encoder_options)}

    def scores(self, vectors: Tensor) -> Tensor:
        """(n, f) clip vectors -> (n,) float64.

        Raises:
            ShapeError: another number of features.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.weight):
            raise ShapeError(f"clip vectors of shape {tuple(vectors.shape)}; expected (clips, {len(self.weight)})")
        rows = (vectors.detach().to("cpu", torch.float64) - self.mean) / self.scale
        # a sum of each row by itself: a matrix product may round a row otherwise in another batch
        return (rows * self.weight).sum(dim=1) + self.bias

    def check_encoder(self, encoder: Encoder, path: str | os.PathLike[str] = "") -> None:
        """Raises ConfigError, with the next step, unless `encoder` is the one that the head was fitted with."""
        if encoder.fingerprint == self.encoder_hash and encoder.features == len(self.weight):
            return
        raise ConfigError(
            f"aesthetics head {os.fspath(path)!r} was fitted with encoder {self.encoder!r} (fingerprint "
            f"{self.encoder_hash}), the reward uses {encoder.name!r} (fingerprint {encoder.fingerprint}); leave "
            f"`encoder` out, or fit a head with: dragon aesthetics fit RATINGS.csv --encoder {encoder.name}"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file, complete or absent. Returns its path."""
        from safetensors.torch import save

        target = Path(path)
        if target.suffix != SUFFIX:
            raise ConfigError(f"aesthetics head {target}: expected a name that ends in {SUFFIX}")
        tensors = {key: getattr(self, key).to(torch.float64).contiguous() for key in _TENSORS}
        header = {key: json.dumps(getattr(self, key)) for key in _HEADER} | {"kind": "aesthetics"}
        try:
            write_whole(target, save(tensors, metadata=header))
        except OSError as error:
            raise ConfigError(f"aesthetics head {target} cannot be written ({error}); choose another place") from error
        return target


_TENSORS = ("weight", "mean", "scale")
_HEADER = (
    "bias",
    "unit",
    "encoder",
    "encoder_hash",
    "encoder_plugin",
    "encoder_options",
    "figures",
    "settings",
    "source",
    "licence",
    "version",
)


def load_head(path: str | os.PathLike[str]) -> AestheticsHead:
    """Reads what `AestheticsHead.save` wrote.

    Raises:
        ConfigError: no such file, or it is no head that this version reads.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(path)
    if not os.path.isfile(place):
        raise ConfigError(f"no aesthetics head {str(place)!r}; make it with: dragon aesthetics fit RATINGS.csv")
    try:
        with safe_open(place, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("kind") != "aesthetics":
                raise ValueError("its header does not say that it is one")
            values = {key: json.loads(header[key]) for key in _HEADER}
            head = AestheticsHead(**{key: file.get_tensor(key) for key in _TENSORS}, **values)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no aesthetics head ({type(error).__name__}: {error}); fit it anew") from error
    if head.version != VERSION:
        raise ConfigError(f"aesthetics head {place} has version {head.version}; this program reads version {VERSION}")
    shapes = {tuple(getattr(head, key).shape) for key in _TENSORS}
    finite = all(bool(torch.isfinite(getattr(head, key)).all()) for key in _TENSORS)
    if len(shapes) != 1 or head.weight.ndim != 1 or not finite:
        raise ConfigError(f"aesthetics head {place}: shapes {shapes}, finite: {finite}; fit it anew")
    return head


class Aesthetics:
    """Reward: what a fitted head predicts of a clip, in the units of its ratings, or as logits. Higher is better.

    weights: file of the head. encoder: name, {name, options} or object; None: the one that the head names, with its
    options. Any other is refused. device: where a named encoder runs. name: what reports call it. A score may lie
    outside the range of the ratings; it is not clipped, since a clipped reward ranks nothing there.
    """

    abstains = False

    def __init__(
        self,
        weights: str | os.PathLike[str] | AestheticsHead,
        encoder: EncoderSpec | None = None,
        *,
        device: str = "cpu",
        name: str = "aesthetics",
    ) -> None:
        self._name = name
        self.head = weights if isinstance(weights, AestheticsHead) else load_head(weights)
        self.encoder = get_encoder(self.head.encoder_spec if encoder is None else encoder, device=device)
        self.head.check_encoder(self.encoder, "" if isinstance(weights, AestheticsHead) else weights)

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64. Raises NotFinite, AudioError as the encoder does."""
        scores = self.head.scores(clip_vectors(self.encoder, media))
        if not bool(torch.isfinite(scores).all()):
            row = int((~torch.isfinite(scores)).nonzero()[0, 0])
            raise NotFinite(f"{self.name}: clip {row} (prompt {media.prompts[row]!r}) scores {float(scores[row])}")
        return scores
