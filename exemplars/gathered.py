"""Frames of exemplar clips or captions, item by item, on their way to a set: statistics at the end, halves on request.

Knows tables of frames and what encoder made them, not where they come from (dragon.exemplars.collect).
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec, get_encoder, kept_spec
from dragon.errors import ConfigError
from dragon.exemplars.gaussian import Gaussian, squared_parts
from dragon.exemplars.sets import ExemplarSet, Item
from dragon.protocols import Encoder
from dragon.texts import short

KEEP_FRAMES = 2048
"""Frames that a set keeps besides their statistics."""

_BANDWIDTH_FRAMES = 2048
_NAME_BYTES = 200  # file systems take 255, with what else stands in a file's name


@dataclass(frozen=True, eq=False)
class Ears:
    """An encoder with how it was named: `plugin` and `options` make it again; an object has neither."""

    encoder: Encoder
    plugin: str = ""
    options: Mapping[str, object] = field(default_factory=dict)

    @staticmethod
    def of(spec: EncoderSpec, device: str = "cpu") -> Ears:
        """From a name, a name with options, or an encoder.

        Raises:
            PluginError: as `get_encoder`. ConfigError: options that no file can keep.
        """
        return Ears(get_encoder(spec, device=device), *kept_spec(spec))


@dataclass(frozen=True, eq=False)
class Gathered:
    """items, and of each its frames (m, f) on the CPU; settings: how they were cut; modality: "audio" or "text"."""

    ears: Ears
    items: tuple[Item, ...]
    frames: tuple[Tensor, ...]
    settings: Mapping[str, object]
    modality: str = "audio"

    def as_set(
        self,
        name: str,
        *,
        keep_frames: int = KEEP_FRAMES,
        source: str = "",
        licence: str = "",
        command: Sequence[str] = (),
    ) -> ExemplarSet:
        """The set of all items. command: words after `dragon exemplars` that make it again, without the encoder.

        Raises:
            ConfigError: a name that is no word, fewer than two frames, keep_frames below 0.
        """
        check_name(name)
        if keep_frames < 0:
            raise ConfigError(
                f"exemplars {name!r}: keep_frames {keep_frames}; expected a number of frames, or 0 for none"
            )
        if sum(len(f) for f in self.frames) < 2:
            raise ConfigError(
                f"exemplars {name!r}: fewer than two frames in {len(self.items)} clips; give more or longer clips"
            )
        table = torch.cat(self.frames)
        gaussian = Gaussian.of_frames(table, f"exemplars {name!r}")
        encoder = self.ears.encoder
        far = _distances(self.frames, gaussian)
        return ExemplarSet(
            name=name,
            encoder=encoder.name,
            encoder_hash=encoder.fingerprint,
            mean=gaussian.mean,
            cov=gaussian.covariance,
            frames=len(table),
            items=tuple(replace(item, distance=d) for item, d in zip(self.items, far, strict=True)),
            settings={**self.settings, **_heard_as(encoder), "ddof": 1, "torch": torch.__version__},
            source=source,
            licence=licence,
            bandwidth=_bandwidth(table),
            self_distance=_self_distance(self.frames),
            features=_sample(table, keep_frames) if keep_frames else None,
            modality=self.modality,
            encoder_plugin="" if self.ears.plugin == encoder.name else self.ears.plugin,
            encoder_options=self.ears.options,
            command=shlex.join(command),
        )

    def split(self, held_out: float = 0.5, seed: int = 0) -> tuple[Gathered, Gathered]:
        """(train, held out): whole items, drawn with `seed`; items of equal content stay together.

        held_out: share of the items that go to the second, at most; each side gets at least one.

        Raises:
            ConfigError: a share that is not between 0 and 1; fewer than two items of different content.
        """
        check_share(held_out)
        groups: dict[str, list[int]] = {}
        for row, item in enumerate(self.items):
            groups.setdefault(item.content_hash, []).append(row)
        if len(groups) < 2:
            raise ConfigError(f"{len(self.items)} items of {len(groups)} different content; a split needs at least two")
        alike = list(groups.values())
        order = torch.randperm(len(alike), generator=torch.Generator().manual_seed(seed)).tolist()
        wanted = max(1, round(held_out * len(self.items)))
        second: set[int] = set(alike[order[0]])
        for i in order[1:-1]:  # the last one drawn stays in the first half, so that none is empty
            if len(second) + len(alike[i]) <= wanted:
                second.update(alike[i])
        sides = [[i for i in range(len(self.items)) if (i in second) == late] for late in (False, True)]
        train, held = (
            replace(
                self,
                items=tuple(self.items[i] for i in rows),
                frames=tuple(self.frames[i] for i in rows),
                settings={**self.settings, "part": part, "of_items": len(self.items), "split_seed": seed},
            )
            for part, rows in zip(("train", "held_out"), sides, strict=True)
        )
        return train, held


def check_share(held_out: float) -> None:
    """Raises ConfigError unless it is a share that leaves something on both sides."""
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out is {held_out}; expected a share between 0 and 1, such as 0.5")


def check_name(name: str) -> None:
    """Raises ConfigError unless it is one word: it names a file and stands in configurations and on command lines."""
    plain = name.isprintable() and not name.startswith((".", "-")) and len(name.encode()) <= _NAME_BYTES
    if not name or not plain or any(c in name for c in "/\\ "):
        raise ConfigError(
            f"exemplar set name {short(name)}; expected a word without spaces or slashes, such as 'jazz', of at most "
            f"{_NAME_BYTES} bytes"
        )


def _heard_as(encoder: Encoder) -> dict[str, object]:
    """The encoder's own settings, where it tells them: a refusal can then say what differs."""
    settings = getattr(encoder, "settings", None)
    return {"encoder": json.loads(json.dumps(dict(settings)))} if settings else {}


def _distances(frames: Sequence[Tensor], whole: Gaussian) -> list[float]:
    """Squared Frechet distance of each item's frames to the set; a single frame counts as a point."""
    found = []
    for table in frames:
        if len(table) == 1:
            found.append(float((table[0].to(whole.mean) - whole.mean).square().sum()) + whole.trace)
        else:
            found.append(sum(squared_parts(Gaussian.of_frames(table), whole)))
    return found


def _sample(table: Tensor, count: int) -> Tensor:
    """At most `count` rows in their order, drawn with a fixed seed: even steps could fall in with a clip's length."""
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return table[drawn].to(torch.float32)


def _bandwidth(table: Tensor) -> float:
    step = math.ceil(len(table) / _BANDWIDTH_FRAMES)
    some = table[::step].to(torch.float64)
    return float(torch.pdist(some - some.mean(dim=0)).quantile(0.5))


def _self_distance(frames: Sequence[Tensor]) -> float | None:
    """Between two halves of the clips, drawn with a fixed seed."""
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0)).tolist()
    halves = [[frames[i] for i in order[part::2]] for part in (0, 1)]
    if any(sum(len(f) for f in half) < 2 for half in halves):
        return None
    first, second = (Gaussian.of_frames(torch.cat(half)) for half in halves)
    return sum(squared_parts(first, second))
