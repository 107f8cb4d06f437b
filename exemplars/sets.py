"""Exemplar sets: "sounds like these", as statistics of their frames in one file.

A set is one .safetensors file: mean and covariance (ddof 1, float64) of all frames, a sample of the frames, and in its
header what they are: name, modality, encoder and its fingerprint, settings, items with content hashes, source, licence.
It carries no audio. A set serves only the encoder that made it: `check_encoder` refuses any other. Knows encoders by
name and fingerprint only; sets are made by dragon.exemplars.collect.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dragon.encoders.lookup import get_encoder
from dragon.errors import ConfigError
from dragon.exemplars.features import as_features
from dragon.exemplars.gaussian import Gaussian
from dragon.files import write_whole
from dragon.protocols import Encoder

VERSION = 1
SUFFIX = ".safetensors"
DATA = Path(__file__).parent / "data"
"""Where the shipped sets lie."""


@dataclass(frozen=True)
class Item:
    """One clip or caption of a set: its name (never an absolute path), the hash of what it holds, and its frames."""

    name: str
    content_hash: str
    frames: int


@dataclass(frozen=True, eq=False)
class ExemplarSet:
    """Statistics of an encoder's frames over exemplar clips, or of a joint encoder's embeddings of captions.

    mean (f,) and cov (f, f), float64, ddof 1; frames: how many frames they are of; count: clips.
    encoder, encoder_hash: name and fingerprint of the encoder. settings: how clips were cut and embedded.
    bandwidth: median distance of two frames (of at most 2,048, evenly spaced), None if it was not computed.
    self_distance: Frechet distance between two random halves of the clips: below it, a distance to this set tells
    nothing. None for fewer than two clips.
    features: (r, f) float32, frames drawn at random with a fixed seed, for distances that need frames and not moments;
    None: none were kept. modality: "audio", or "text" for a set of captions.
    """

    name: str
    encoder: str
    encoder_hash: str
    mean: Tensor
    cov: Tensor
    frames: int
    items: tuple[Item, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    bandwidth: float | None = None
    self_distance: float | None = None
    features: Tensor | None = None
    modality: str = "audio"
    version: int = VERSION

    @property
    def count(self) -> int:
        return len(self.items)

    @property
    def size(self) -> int:
        """f."""
        return len(self.mean)

    def gaussian(self) -> Gaussian:
        """The statistics in the form distances need; factors the covariance, so keep the result."""
        return Gaussian.of_moments(self.mean, self.cov, f"exemplars {self.name!r}", self.frames)

    def check_encoder(self, encoder: Encoder) -> None:
        """Raises ConfigError, with the command that rebuilds the set, unless `encoder` is the one that made it."""
        if encoder.fingerprint == self.encoder_hash and encoder.features == self.size:
            return
        made_of = "CAPTIONS.txt" if self.modality == "text" else "FOLDER_OF_AUDIO"
        raise ConfigError(
            f"exemplars {self.name!r} were embedded with {self.encoder!r} (fingerprint {self.encoder_hash}), "
            f"the reward uses {encoder.name!r} (fingerprint {encoder.fingerprint}); rebuild with: "
            f"dragon exemplars build {made_of} --name {self.name} --encoder {encoder.name}"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file beside its place and renames it, so that it is complete or absent. Returns its path."""
        from safetensors.torch import save

        target = Path(path)
        if target.suffix != SUFFIX:
            raise ConfigError(f"exemplar file {target}: expected a name that ends in {SUFFIX}")
        tensors = {"mean": self.mean.to(torch.float64).contiguous(), "cov": self.cov.to(torch.float64).contiguous()}
        if self.features is not None:
            tensors["features"] = self.features.to(torch.float32).contiguous()
        content = save(tensors, metadata=self._header())
        try:
            write_whole(target, content)
        except OSError as error:
            raise ConfigError(f"exemplar file {target} cannot be written ({error}); choose another place") from error
        return target

    def _header(self) -> dict[str, str]:
        """Text as it is, everything else as JSON: what a safetensors header can hold."""
        values: dict[str, object] = {
            "settings": dict(self.settings),
            "items": [{"name": i.name, "content_hash": i.content_hash, "frames": i.frames} for i in self.items],
            "version": self.version,
            "count": self.count,
            "frames": self.frames,
            "bandwidth": self.bandwidth,
            "self_distance": self.self_distance,
        }
        text = {key: str(getattr(self, key)) for key in _TEXT}
        return text | {key: json.dumps(value) for key, value in values.items()}


_TEXT = ("name", "encoder", "encoder_hash", "source", "licence", "modality")
_DEFAULTS = {"modality": "audio"}
"""What the header of a file without these texts means: it was written before there were others."""


def load(name: str | os.PathLike[str]) -> ExemplarSet:
    """A shipped set by its name, or a set file by its path.

    Raises:
        ConfigError: neither exists (with the nearest shipped names), or the file is not an exemplar set.
    """
    text = os.fspath(name)
    if text.endswith(SUFFIX) or os.sep in text or "/" in text:
        return _read(Path(text))
    if text in available():
        return _read(DATA / f"{text}{SUFFIX}")
    near = difflib.get_close_matches(text, available(), n=3) or available()
    raise ConfigError(
        f"no exemplar set {text!r}; shipped: {', '.join(near) or 'none'}; a set of your own is named by its path, "
        f"for example ./{text}{SUFFIX}, and made with: dragon exemplars build FOLDER_OF_AUDIO --name {text}"
    )


def load_with_encoder(
    exemplars: str | ExemplarSet, encoder: str | Encoder | None, device: str
) -> tuple[ExemplarSet, Encoder]:
    """A set (or what `load` takes) and the encoder that made it; None: the one it names.

    Raises:
        ConfigError: as `load`; or the encoder is another one.
    """
    found = load(exemplars) if isinstance(exemplars, str) else exemplars
    ears = get_encoder(found.encoder if encoder is None else encoder, device=device)
    found.check_encoder(ears)
    return found, ears


def available() -> list[str]:
    """Names of the shipped sets, sorted."""
    return sorted(path.stem for path in DATA.glob(f"*{SUFFIX}"))


def _read(path: Path) -> ExemplarSet:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConfigError(f"no exemplar file {path}; make it with: dragon exemplars build FOLDER_OF_AUDIO --out {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = _DEFAULTS | (file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        version = json.loads(header["version"])
        if version != VERSION:
            raise ConfigError(f"exemplar file {path} has version {version}; this program reads version {VERSION}")
        found = ExemplarSet(
            **{key: header[key] for key in _TEXT},
            mean=tensors["mean"],
            cov=tensors["cov"],
            frames=json.loads(header["frames"]),
            items=tuple(Item(**item) for item in json.loads(header["items"])),
            settings=json.loads(header["settings"]),
            bandwidth=json.loads(header["bandwidth"]),
            self_distance=json.loads(header["self_distance"]),
            features=tensors.get("features"),
            version=version,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not an exemplar set ({type(error).__name__}: {error}); build it anew") from error
    found.gaussian()  # wrong shapes and NaN are found here, with the set's name
    if found.features is not None:
        as_features(found.features, f"exemplars {found.name!r}: features", size=found.size)
    return found
