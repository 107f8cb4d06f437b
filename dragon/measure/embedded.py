"""A set of clips as one encoder hears them: facts in memory, features read from a store when they are asked for.

Knows the store and statistics of frames, not how either came to be (dragon.measure.embed).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dragon.audio import Audio
from dragon.errors import AudioError, ConfigError
from dragon.exemplars.gaussian import Gaussian
from dragon.measure.clips import Bad, read_clip
from dragon.measure.moments import Moments
from dragon.measure.store import Shelf, Stored
from dragon.protocols import Encoder

_BLOCK_ROWS = 4096  # frames whose scatter is taken at once, and up to which all of them are held together


@dataclass(frozen=True, eq=False)
class Embedded:
    """A set of clips as one encoder hears them; entry i of every tuple belongs to clip i.

    source: how the set was named. names: paths from its folder. hashes: of the files' bytes. counts: frames a clip.
    bad: files that were left out. paths: the files themselves.
    """

    source: str
    encoder: Encoder
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    seconds: tuple[float, ...]
    rates: tuple[int, ...]
    channels: tuple[int, ...]
    counts: tuple[int, ...]
    bad: tuple[Bad, ...]
    paths: tuple[Path, ...] = field(repr=False)
    shelf: Shelf = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def total(self) -> int:
        """Frames in all."""
        return sum(self.counts)

    def frames(self, clip: int) -> Tensor:
        """(s, f) float32, read from the store.

        Raises:
            ConfigError: they are no longer there.
        """
        return self._stored(clip).frames

    def clips(self) -> Tensor:
        """(n, f) float32, one vector a clip: `embed_clips` of a joint encoder, else the mean of its frames."""
        return torch.stack([self._stored(clip).clip for clip in range(len(self))])

    def sums(self, clips: Sequence[int] | None = None) -> Moments:
        """Count, mean and scatter of the frames of some clips (None: all), streamed; sums of disjoint clips merge."""
        found = Moments.none(self.encoder.features)
        for block in self._blocks(range(len(self)) if clips is None else clips):
            found = found.merged(Moments.of_frames(block, f"features of {self.source}"))
        return found

    def moments(self) -> Gaussian:
        """Mean and covariance of all frames, float64, ddof 1, streamed.

        Raises:
            ShapeError: fewer than two frames.
        """
        if 2 <= self.total <= _BLOCK_ROWS:  # a factor of few frames is exact where that of a singular covariance is not
            return Gaussian.of_frames(self.pooled(), f"features of {self.source}")
        return self.sums().gaussian(f"features of {self.source}")

    def pooled(self, limit: int | None = None, seed: int = 0) -> Tensor:
        """(r, f) float32, all frames, or `limit` of them drawn without replacement, in their order."""
        if limit is None or limit >= self.total:
            return torch.cat([self.frames(clip) for clip in range(len(self))])
        if limit < 1:
            raise ConfigError(f"limit {limit}; expected at least one frame, or None for all")
        order = torch.randperm(self.total, generator=torch.Generator().manual_seed(seed))
        drawn = order[:limit].sort().values
        counts = torch.tensor(self.counts)
        ends = counts.cumsum(0)
        clips, each = torch.searchsorted(ends, drawn, right=True).unique_consecutive(return_counts=True)
        rows = (drawn - (ends - counts)[clips].repeat_interleave(each)).split(each.tolist())
        return torch.cat([self.frames(clip)[row] for clip, row in zip(clips.tolist(), rows, strict=True)])

    def audio(self, clip: int) -> Audio:
        """The clip decoded again, for a reward that hears audio.

        Raises:
            AudioError: the file is not what it was.
        """
        try:
            return read_clip(self.paths[clip], self.hashes[clip], 0.0)
        except AudioError as error:
            raise AudioError(f"{self.names[clip]}: {error}") from error

    def _stored(self, clip: int) -> Stored:
        found = self.shelf.read(self.hashes[clip])
        if found is None:
            raise ConfigError(
                f"{self.names[clip]}: its features are gone from the embedding store {self.shelf.folder}; "
                "run again, and leave the folder alone meanwhile"
            )
        return found

    def _blocks(self, clips: Sequence[int]) -> Iterator[Tensor]:
        """Frames of one clip after another, gathered to about `_BLOCK_ROWS`."""
        held: list[Tensor] = []
        for clip in clips:
            held.append(self.frames(clip))
            if sum(map(len, held)) >= _BLOCK_ROWS:
                yield torch.cat(held)
                held = []
        if held:
            yield torch.cat(held)
