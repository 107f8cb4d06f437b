"""Features on disk, found by what was heard and by whom: the hash of a file's bytes, and an encoder's identity.

Knows encoders by name, fingerprint and size. One small safetensors file a clip and encoder, written whole, so that an
interrupted pass keeps what it has, two processes may share a folder, and a file that was cut short is noticed.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dragon.encoders.identity import fingerprint
from dragon.errors import ConfigError
from dragon.files import write_whole
from dragon.protocols import Encoder

VERSION = 1
"""Part of every key: a change of what is stored, or of how audio reaches an encoder, makes all clips new."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What an encoder made of one clip: frames (s, f), clip (f,), float32; and the decoded clip's own facts."""

    frames: Tensor
    clip: Tensor
    samples: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def default_folder() -> Path:
    """$DRAGON_CACHE/embeddings, or ~/.cache/dragon/embeddings."""
    return Path(os.environ.get("DRAGON_CACHE") or "~/.cache/dragon").expanduser() / "embeddings"


class EmbeddingStore:
    """Features of clips in `folder`; None: in a temporary folder that is removed with the last user of this object."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._temporary = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="dragon-embeddings-")
            folder = self._temporary.name
        self.folder = Path(folder).expanduser()

    @property
    def kept(self) -> bool:
        """Whether the features outlive this object."""
        return self._temporary is None

    @staticmethod
    def named(cache: str | os.PathLike[str] | None) -> EmbeddingStore:
        """A folder; None or "none": a temporary one; "default": `default_folder()`."""
        if cache is None or os.fspath(cache) == "none":
            return EmbeddingStore(None)
        return EmbeddingStore(default_folder() if os.fspath(cache) == "default" else cache)

    def shelf(self, encoder: Encoder) -> Shelf:
        """The place of one encoder's features."""
        # the name is in the key too: two kinds of encoder may have equal settings
        key = fingerprint(name=encoder.name, fingerprint=encoder.fingerprint, features=encoder.features, store=VERSION)
        label = re.sub(r"[^A-Za-z0-9.]+", "-", encoder.name).strip("-.")[:40]
        return Shelf(self, self.folder / f"{label}-{key}", encoder.features)


@dataclass(frozen=True, eq=False)
class Shelf:
    """One encoder's features in a store, by the hash of the file that was heard."""

    store: EmbeddingStore
    folder: Path
    features: int

    def place(self, content: str) -> Path:
        """The file of a clip."""
        return self.folder / content[:2] / f"{content}.safetensors"

    def read(self, content: str) -> Stored | None:
        """What is stored for the clip; None: nothing, or a broken file, of which a warning tells."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        place = self.place(content)
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(
                f"embedding store: {place} cannot be read ({error.strerror}); choose another folder with --cache"
            ) from error
        try:
            return _checked(load(data), self.features)
        except (SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"embedding store: {place} is broken ({error}); its clip is embedded again", stacklevel=2)
            return None

    def write(self, content: str, found: Stored) -> None:
        """Stores the features of a clip; a reader sees all of them or none.

        Raises:
            ConfigError: the folder cannot be written, or its disk is full. What was stored before is kept.
        """
        from safetensors.torch import save

        facts = torch.tensor([found.samples, found.rate, found.channels], dtype=torch.int64)
        tensors = {"frames": found.frames.contiguous(), "clip": found.clip.contiguous(), "facts": facts}
        tensors["digest"] = _digest(tensors)
        try:
            write_whole(self.place(content), save(tensors))
        except OSError as error:
            raise ConfigError(
                f"embedding store {self.store.folder} cannot be written ({error.strerror or error}); what was stored "
                "is kept: free space, or choose another folder with --cache, and run the same command again"
            ) from error


def _checked(tensors: dict[str, Tensor], size: int) -> Stored:
    """Raises KeyError or ValueError unless the tensors are what `write` wrote, bit by bit."""
    frames, clip, facts = tensors["frames"], tensors["clip"], tensors["facts"]
    # a length alone would not tell of blocks that a power cut left zero
    if not torch.equal(tensors.pop("digest"), _digest(tensors)):
        raise ValueError("its digest does not fit")
    if frames.ndim != 2 or frames.shape[1] != size or clip.shape != (size,):
        raise ValueError(f"frames {tuple(frames.shape)}, clip {tuple(clip.shape)} for {size} features")
    samples, rate, channels = facts.tolist()
    return Stored(frames, clip, samples, rate, channels)


def _digest(tensors: dict[str, Tensor]) -> Tensor:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
