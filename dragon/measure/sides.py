"""What metrics compare: a set of clips as one encoder hears it, and a reference, a folder or an exemplar set.

Knows `Embedded` sets and exemplar sets; no metric. Frames stay in the store: only statistics, one vector a clip and
bounded samples of frames are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.errors import ConfigError
from dragon.exemplars.features import float64
from dragon.exemplars.gaussian import Gaussian
from dragon.exemplars.sets import ExemplarSet
from dragon.measure.embed import Embedded

GROUPS = 20
"""Groups of clips that a jack-knife leaves out, one at a time; as many as there are clips, where these are fewer."""

Clips = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Side:
    """A set of clips as one encoder hears it.

    name: how results call the set. groups: disjoint, seeded, nearly equal; they hold every clip once. captions: one a
    clip, where there are any.
    """

    name: str
    embedded: Embedded
    groups: tuple[Clips, ...]
    captions: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.embedded)

    @property
    def order(self) -> list[int]:
        """All clips, group by group."""
        return [int(clip) for group in self.groups for clip in group]

    @property
    def kept(self) -> list[Clips]:
        """Of each group, the clips outside it."""
        every = np.arange(len(self))
        return [np.setdiff1d(every, group) for group in self.groups]

    @cached_property
    def labels(self) -> Tensor:
        """(n,) the group of each clip."""
        found = torch.zeros(len(self), dtype=torch.long)
        for number, group in enumerate(self.groups):
            found[torch.as_tensor(group)] = number
        return found

    @cached_property
    def gaussian(self) -> Gaussian:
        return self.embedded.moments()

    @cached_property
    def clips(self) -> Tensor:
        """(n, f) float64, one vector a clip."""
        return float64(self.embedded.clips())

    def frames(self, limit: int, seed: int) -> tuple[Tensor, Tensor]:
        """Some frames (r, f), r <= limit, and the clip (r,) of each, clips in `order`."""
        return sample_frames(self.embedded, limit, seed, self.order)


class Reference(Protocol):
    """What clips are compared with; `clips`, `bandwidth` and `frames` are None where the reference keeps none."""

    @property
    def name(self) -> str: ...

    @property
    def gaussian(self) -> Gaussian: ...

    @property
    def clips(self) -> Tensor | None: ...

    @property
    def bandwidth(self) -> float | None: ...

    def frames(self, limit: int, seed: int) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class FolderReference:
    """A folder of audio, heard by the same encoder as the clips."""

    name: str
    embedded: Embedded

    @cached_property
    def gaussian(self) -> Gaussian:
        return self.embedded.moments()

    @cached_property
    def clips(self) -> Tensor:
        return float64(self.embedded.clips())

    @property
    def bandwidth(self) -> None:
        return None

    def frames(self, limit: int, seed: int) -> Tensor:
        return sample_frames(self.embedded, limit, seed)[0]


@dataclass(frozen=True, eq=False)
class SetReference:
    """An exemplar set: statistics, and frames where it keeps any; no vector a clip."""

    exemplars: ExemplarSet

    @property
    def name(self) -> str:
        return self.exemplars.name

    @cached_property
    def gaussian(self) -> Gaussian:
        return self.exemplars.gaussian()

    @property
    def clips(self) -> None:
        return None

    @property
    def bandwidth(self) -> float | None:
        return self.exemplars.bandwidth

    def frames(self, limit: int, seed: int) -> Tensor | None:
        kept = self.exemplars.features
        if kept is None or len(kept) <= limit:
            return kept
        return kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:limit].sort().values]


def split_groups(clips: int, count: int = GROUPS, seed: int = 0) -> tuple[Clips, ...]:
    """Clips 0 to n - 1 in `count` random groups whose sizes differ by at most one (fewer groups for fewer clips).

    Depends on n, count and seed alone: sets of equal size are split alike, so that files of one name are left out
    together.

    Raises:
        ConfigError: fewer than two groups asked for, or a negative seed.
    """
    if count < 2:
        raise ConfigError(f"groups is {count}; a jack-knife needs at least 2, better {GROUPS}")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected 0 or more")
    order = np.random.default_rng(seed).permutation(clips)
    return tuple(np.array_split(order, min(count, clips)))


def sample_frames(
    embedded: Embedded, limit: int, seed: int, order: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Frames (r, f) and the clip (r,) of each: all of them, or `limit`, from each clip in proportion to its own.

    Within a clip they are drawn without replacement, by `seed` and the clip's content alone, and keep their order.
    """
    total = sum(embedded.counts)
    rows: list[Tensor] = []
    of: list[int] = []
    seen = 0
    for clip in range(len(embedded)) if order is None else order:
        count = embedded.counts[clip]
        # shares of a running sum: they differ from the exact ones by less than one frame, and add up to the limit
        want = count if total <= limit else (seen + count) * limit // total - seen * limit // total
        seen += count
        if not want:
            continue
        table = embedded.frames(clip)
        if want < count:
            drawn = np.random.default_rng([seed, int(embedded.hashes[clip][:8], 16)]).permutation(count)[:want]
            table = table[torch.from_numpy(np.sort(drawn))]
        rows.append(table)
        of += [clip] * want
    return torch.cat(rows), torch.tensor(of)
