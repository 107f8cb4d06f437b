"""Exemplar sets: "sounds like these", as statistics of their frames in one file.

A set is one .safetensors file: mean and covariance (ddof 1, float64) of all frames, a sample of the frames, and in its
header what they are: name, modality, encoder with its options and fingerprint, settings, items with content hashes and
their distance to the whole, source, licence. It carries no audio. A set serves only the encoder that made it:
`check_encoder` refuses any other. Knows encoders by name and fingerprint only; dragon.exemplars.collect makes sets.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec, get_encoder
from dragon.errors import ConfigError, DragonError
from dragon.exemplars.features import as_features
from dragon.exemplars.gaussian import Gaussian, squared_parts
from dragon.files import write_whole
from dragon.protocols import Encoder

VERSION = 1
SUFFIX = ".safetensors"
DATA = Path(__file__).parent / "data"
"""Where the shipped sets lie."""


@dataclass(frozen=True)
class Item:
    """One clip or caption of a set: its name (never an absolute path), the hash of what it holds, and its frames.

    distance: squared Frechet distance of its frames to the whole set; None in files from before it was kept.
    """

    name: str
    content_hash: str
    frames: int
    distance: float | None = None


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
    encoder_plugin, encoder_options: what makes the encoder again; "" where its own name does.
    command: words after `dragon exemplars` that made the set, without the encoder; "" for a set made in Python.
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
    encoder_plugin: str = ""
    encoder_options: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
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

    @property
    def spread(self) -> float:
        """Root mean square distance of a frame to the mean."""
        return float(self.cov.trace()) ** 0.5

    @property
    def encoder_spec(self) -> dict[str, object]:
        """What `get_encoder` makes the set's encoder of."""
        return {"name": self.encoder_plugin or self.encoder, "options": dict(self.encoder_options)}

    def distance(self, other: ExemplarSet) -> float:
        """Squared Frechet distance to another set, >= 0.

        Raises:
            ConfigError: the sets are of different encoders, with the command that rebuilds one of them.
        """
        if (self.encoder_hash, self.size) != (other.encoder_hash, other.size):
            # the one of which it is known how it was made
            again, kept = (self, other) if self.command and not other.command else (other, self)
            if again.modality == "text":  # an encoder of clips alone embeds no captions
                again, kept = kept, again
            raise ConfigError(
                f"exemplars {self.name!r} were embedded with {self.encoder!r} (fingerprint {self.encoder_hash}), "
                f"{other.name!r} with {other.encoder!r} (fingerprint {other.encoder_hash}); rebuild one with the "
                f"encoder of the other: {again.rebuild_command(kept.encoder_spec)}"
            )
        return sum(squared_parts(self.gaussian(), other.gaussian()))

    def check_encoder(self, encoder: Encoder, spec: EncoderSpec | None = None) -> None:
        """Raises ConfigError, with the command that rebuilds the set, unless `encoder` is the one that made it.

        spec: how the encoder was named, for that command.
        """
        if encoder.fingerprint == self.encoder_hash and encoder.features == self.size:
            return
        known = isinstance(spec, str | Mapping)
        adding = ""
        if not known and encoder.name == self.encoder:  # an object, of which the options are not known
            adding = f"with your options, as --encoder '{{name: {encoder.name}, options: {{...}}}}', "
        raise ConfigError(
            f"exemplars {self.name!r} were embedded with {self.encoder!r} (fingerprint {self.encoder_hash}), "
            f"and here it is {encoder.name!r} (fingerprint {encoder.fingerprint}){self._differences(encoder)}; "
            f"{adding}rebuild with: {self.rebuild_command(encoder if spec is None else spec)}"
        )

    def rebuild_command(self, encoder: EncoderSpec) -> str:
        """The command that makes this set again with another encoder, over the old file; to be pasted into a shell.

        A shipped set's names one of another name, since the shipped one stays.
        """
        name = f"my_{self.name}" if self.name in available() else self.name
        made_of = "CAPTIONS.txt" if self.modality == "text" else "FOLDER_OF_AUDIO"
        # a set without frames is built anew by who needs them
        words = self.command.replace(" --keep_frames 0", "") or shlex.join(["build", name, made_of])
        return f"dragon exemplars {words} --encoder {_on_a_line(encoder)} --replace"

    def _differences(self, encoder: Encoder) -> str:
        """Settings that differ, a few of them: ": rate 16000 in the set, 48000 now"."""
        now, then = getattr(encoder, "settings", None), self.settings.get("encoder")
        if encoder.name != self.encoder or not now or not isinstance(then, Mapping):
            return ""
        now = json.loads(json.dumps(dict(now)))
        keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        told = [f"{key} {then.get(key)!r} in the set, {now.get(key)!r} now" for key in keys[:_TOLD]]
        return f": {'; '.join(told)}" if told else ""

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
            "encoder_options": dict(self.encoder_options),
            # beside `items`, whose keys older programs take as they are
            "item_distances": [i.distance for i in self.items],
        }
        text = {key: str(getattr(self, key)) for key in _TEXT}
        return text | {key: json.dumps(value) for key, value in values.items()}


_TEXT = ("name", "encoder", "encoder_hash", "source", "licence", "modality", "encoder_plugin", "command")
_DEFAULTS = {"modality": "audio", "encoder_plugin": "", "command": "", "encoder_options": "{}", "item_distances": "[]"}
"""What the header of a file without these means: it was written before there were others."""
_TOLD = 3  # differing settings of an encoder that a message names


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
    own = f"./{text}{SUFFIX}"
    how = "; that file is here" if Path(own).is_file() else f" (dragon exemplars build {text} FOLDER_OF_AUDIO makes it)"
    raise ConfigError(
        f"no exemplar set {text!r}; shipped: {', '.join(near) or 'none'}; "
        f"a set of your own is named by its path: {own}{how}"
    )


def load_with_encoder(
    exemplars: str | ExemplarSet, encoder: EncoderSpec | None, device: str
) -> tuple[ExemplarSet, Encoder]:
    """A set (or what `load` takes) and the encoder that made it.

    encoder: None, or the name alone of the set's: made again with the options that the set keeps.

    Raises:
        ConfigError: as `load`; or the encoder is another one; or the set's own cannot be made again.
    """
    found = load(exemplars) if isinstance(exemplars, str) else exemplars
    own = encoder is None or (isinstance(encoder, str) and encoder in (found.encoder, found.encoder_plugin))
    spec = found.encoder_spec if encoder is None or own else encoder
    try:
        ears = get_encoder(spec, device=device)
    except DragonError as error:
        if not own or not (found.encoder_plugin or found.encoder_options):
            raise
        raise ConfigError(
            f"exemplars {found.name!r}: their encoder {_on_a_line(spec)} cannot be made again ({error}); "
            "give the reward an encoder: {name: ..., options: {...}}"
        ) from error
    found.check_encoder(ears, spec)
    return found, ears


def available() -> list[str]:
    """Names of the shipped sets, sorted."""
    return sorted(path.stem for path in DATA.glob(f"*{SUFFIX}"))


def headers(folder: str | os.PathLike[str] | None = None) -> dict[Path, dict[str, str]]:
    """File -> header of every exemplar set in a folder (None: the shipped ones), by name; reads no statistics.

    Other .safetensors files, and broken ones, are left out.
    """
    found = {}
    for path in sorted(Path(DATA if folder is None else folder).glob(f"*{SUFFIX}")):
        header = _header_of(path)
        if header.keys() >= {*_TEXT, "items", "count"} and header["count"].isdecimal():
            found[path] = header
    return found


def _header_of(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return _DEFAULTS | (file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _on_a_line(encoder: EncoderSpec) -> str:
    """As an argument of the command line."""
    import yaml

    if isinstance(encoder, str):
        return shlex.quote(encoder)
    if not isinstance(encoder, Mapping):
        return shlex.quote(encoder.name)
    if not encoder.get("options"):
        return shlex.quote(str(encoder["name"]))
    flow = yaml.safe_dump({"name": encoder["name"], "options": encoder["options"]}, default_flow_style=True, width=9999)
    return shlex.quote(flow.strip())


def _read(path: Path) -> ExemplarSet:
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):  # pathlib would raise for a name that is too long
        raise ConfigError(
            f"no exemplar file {path}; make it with: dragon exemplars build {path.stem} FOLDER_OF_AUDIO --out {path}"
        )
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
            frames=_value(header, "frames", int),
            items=_items(json.loads(header["items"]), json.loads(header["item_distances"])),
            settings=_value(header, "settings", dict),
            bandwidth=_value(header, "bandwidth", int | float | None),
            self_distance=_value(header, "self_distance", int | float | None),
            features=tensors.get("features"),
            encoder_options=_value(header, "encoder_options", dict),
            version=version,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not an exemplar set ({type(error).__name__}: {error}); build it anew") from error
    found.gaussian()  # wrong shapes and NaN are found here, with the set's name
    if found.features is not None:
        as_features(found.features, f"exemplars {found.name!r}: features", size=found.size)
    return found


def _value(header: Mapping[str, str], key: str, kind: Any) -> Any:
    found = json.loads(header[key])
    if not isinstance(found, kind):
        raise TypeError(f"its {key} is a {type(found).__name__}")
    return found


def _items(rows: list[dict[str, Any]], distances: list[float | None]) -> tuple[Item, ...]:
    return tuple(
        Item(str(row["name"]), str(row["content_hash"]), int(row["frames"]), distance)
        for row, distance in zip(rows, distances or [None] * len(rows), strict=True)
    )
