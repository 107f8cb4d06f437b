"""Kernel distance of a whole set of clips to an exemplar set, as a reward that can be trained toward.

Knows features, exemplar sets and encoders by their protocol. The distance is that of dragon.rewards.kernel, 100 times
the unbiased squared maximum mean discrepancy (Gretton et al., 2012, JMLR 13), of all frames of a set's clips together.
Only sums of kernel values enter it, so that tables of those sums,

    G[i, j] = sum of k(a, c) over frames a of clip i, c of clip j       R[i] = sum of k(a, r) over exemplar frames r,

turn the score of any set of these clips into a quadratic form: sets, swaps and leave-one-out are then nearly free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec
from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.features import as_features
from dragon.exemplars.sets import ExemplarSet, load_with_encoder
from dragon.media import Media
from dragon.rewards.kernel import gaussian_kernel, median_distance

_BLOCK_FRAMES = 2048  # a side of one block of kernel values (32 MiB)
_BLOCK_NUMBERS = 1 << 22


class SetKernel:
    """Set reward: minus the kernel distance of all frames of a set's clips to an exemplar set. Higher is better.

    Equal laws score 0 on average, so values slightly above 0 occur and are right.

    exemplars: a set, the name of a shipped one, or the path of a set file; it must hold frames, not only statistics.
    encoder: a name, {name, options} or an object; None: the one that made the set. An encoder other than the set's is
    refused. bandwidth: h of the kernel exp(-|x - y|^2 / (2 h^2)); None: the exemplar set's own, or the median distance
    of its frames where it has none. device: where a named encoder runs. name: what reports call it.
    max_frames: `influence` reads about so many frames of a queue, the same number of every clip (at least one), evenly
    spaced and staggered from clip to clip; None: all of them, at a cost that grows with the square of their number.

    Raises:
        ConfigError: the set holds no frames or is of another encoder, the bandwidth is not above 0, or max_frames < 1.
    """

    def __init__(
        self,
        exemplars: str | ExemplarSet,
        encoder: EncoderSpec | None = None,
        bandwidth: float | None = None,
        *,
        max_frames: int | None = 4096,
        device: str = "cpu",
        name: str = "set_kernel",
    ) -> None:
        self._name = name
        self.exemplars, self.encoder = load_with_encoder(exemplars, encoder, device)
        if max_frames is not None and max_frames < 1:
            raise ConfigError(f"{name}: max_frames is {max_frames}; expected at least 1, or None for all frames")
        self.max_frames = max_frames
        reference = _reference_frames(self.exemplars, name)
        if bandwidth is None:
            bandwidth = self.exemplars.bandwidth
        self.bandwidth = median_distance(reference) if bandwidth is None else float(bandwidth)
        if not (self.bandwidth > 0 and math.isfinite(self.bandwidth)):
            raise ConfigError(f"{name}: bandwidth {self.bandwidth:g}; expected above 0")
        self._centre = reference.mean(dim=0)  # distances are taken from here, so that few rows need exact differences
        self._reference = ((reference - self._centre) / self.bandwidth)[None]
        m = len(reference)
        self._within_reference = (float(_pair_sums(self._reference)) - m) / (m * (m - 1))
        self._tables: _Tables | None = None

    @property
    def name(self) -> str:
        return self._name

    def embed(self, media: Media) -> Tensor:
        """(b, s, f) the encoder's frames."""
        return self.encoder.embed_media(media)

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        """(k,) float64, exact. Cost O((u s)^2 f) for the u different clips among all members, once for all sets.

        Raises:
            ShapeError: not (b, s, f) with the exemplars' f, or sets of fewer than two frames. NotFinite: with the clip.
        """
        tables = self._tables_of(features, members.unique())
        return torch.cat([self._scores(tables, part) for part in members.split(_chunk(len(tables.singles)))])

    def swap_scorer(self, features: Tensor) -> PairScorer:
        """Exact; every neighbour costs O(1) and every swap O(b) once the tables of the b clips are there."""
        tables = self._tables_of(features, torch.arange(len(features)))

        def score(pairs: Tensor, singles: Tensor, n: int) -> Tensor:
            return self._score(pairs, singles, n * tables.frames)

        return PairScorer(tables.pairs, tables.singles, score)

    def influence(self, queue: Tensor, features: Tensor) -> Tensor:
        """(b,) float64: the derivative of the score as the share of each clip in the queue grows from 0.

        That is -200 times the witness function, mean over queue frames q of k(x, q) less mean over exemplar frames r
        of k(x, r), averaged over the clip's frames x, and less its own mean over the queue (Gretton et al., 2012,
        section 2.3). The queue's weighted frames have no unbiased estimate: this differentiates the plain one, whose
        means run over all pairs, each frame with itself as well. With all frames of the queue (`max_frames` None, or
        large enough) the mean over the queue's clips is 0; otherwise only about.

        Raises:
            ShapeError, NotFinite: as `score_sets`.
        """
        held = self._scaled(queue, "queue", self.max_frames)
        fresh = self._scaled(features, "features")
        reference = self._reference
        witness = _mean_kernel(fresh, held) - _mean_kernel(fresh, reference)
        within = float(_pair_sums(held).sum()) / (held.shape[0] * held.shape[1]) ** 2
        level = within - float(_mean_kernel(held, reference).mean())
        return -200 * (witness - level)

    def figures(self, features: Tensor, credits: Tensor) -> dict[str, float]:
        """How much of the credits the encoder's modality gap explains (`gap_share`); empty for encoders without one."""
        gap = getattr(self.encoder, "gap", None)
        return {} if gap is None else {"gap_share": gap_share(features, credits, gap)}

    def _scores(self, tables: _Tables, members: Tensor) -> Tensor:
        counts = torch.zeros(len(members), len(tables.singles), dtype=torch.float64)
        where = torch.searchsorted(tables.rows, members.contiguous())
        counts.scatter_add_(1, where, torch.ones_like(where, dtype=torch.float64))
        pairs = (counts @ tables.pairs * counts).sum(dim=1)
        return self._score(pairs, counts @ tables.singles, members.shape[1] * tables.frames)

    def _score(self, pairs: Tensor, singles: Tensor, frames: int) -> Tensor:
        """Scores of sets of so many frames, from the sums of k over all pairs within, and over all across."""
        if frames < 2:
            raise ShapeError(f"{self.name}: a set of one frame has no distance; expected at least two frames")
        within = (pairs - frames) / (frames * (frames - 1))  # each frame with itself is a one
        across = singles / (frames * self._reference.shape[1])
        return -100 * (within + self._within_reference - 2 * across)

    def _tables_of(self, features: Tensor, rows: Tensor) -> _Tables:
        """The tables of these rows, ascending; those of the last features are kept, because a step asks repeatedly."""
        kept = self._tables
        if kept is not None and kept.serve(features, rows):
            return kept
        frames = self._scaled(features[rows.to(features.device)], "features")
        self._tables = _Tables(
            features, _version(features), rows, _pair_sums(frames), _cross_sums(frames, self._reference)
        )
        return self._tables

    def _scaled(self, features: Tensor, what: str, most: int | None = None) -> Tensor:
        """(b, s, f) float64, centred, in units of the bandwidth; `most`: as `_spread`."""
        if features.ndim != 3 or features.shape[2] != self.exemplars.size:
            raise ShapeError(
                f"{self.name}: {what} of shape {tuple(features.shape)}; expected (clips, frames, {self.exemplars.size})"
            )
        features = _spread(features.detach().cpu(), most)
        table = as_features(features.flatten(1), f"{self.name}: {what}").view(features.shape)  # a row is a clip
        return (table - self._centre) / self.bandwidth


class PairScorer:
    """SwapScorer of any score that is a function of two sums: of `pairs` (b, b) over all ordered pairs of members, each
    with itself as well, and of `singles` (b,) over the members.

    pairs: symmetric. score: (sums of pairs, sums of singles, members of a set) -> scores, tensors of one shape.
    """

    def __init__(self, pairs: Tensor, singles: Tensor, score: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        self._pairs, self._singles, self._score = pairs, singles, score
        self._members = torch.empty(0, dtype=torch.long)
        self._sums = torch.zeros(len(singles), dtype=torch.float64)  # of each row's pairs with all members

    @property
    def value(self) -> float:
        total, single = self._sums[self._members].sum(), self._singles[self._members].sum()
        return float(self._score(total, single, len(self._members)))

    def start(self, members: Tensor) -> None:
        self._members = members.clone()
        self._sums = self._pairs[members].sum(dim=0)

    def neighbours(self, leaving: Tensor, entering: Tensor) -> Tensor:
        own = self._pairs.diagonal()
        total = self._sums[self._members].sum() - 2 * self._sums[leaving] + own[leaving]
        total = total + 2 * (self._sums[entering] - self._pairs[leaving, entering]) + own[entering]
        single = self._singles[self._members].sum() - self._singles[leaving] + self._singles[entering]
        return self._score(total, single, len(self._members))

    def bounds(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        exact = self.neighbours(leaving, entering)
        return exact, exact

    def swap(self, leaving: int, entering: int) -> None:
        self._members = torch.where(self._members == leaving, entering, self._members)
        self._sums = self._sums + self._pairs[entering] - self._pairs[leaving]


def gap_share(features: Tensor, credits: Tensor, gap: Tensor) -> float:
    """Share of the credits' variance (R^2) that the clips' mean coordinate along the modality gap explains, in [0, 1].

    features (b, s, f), credits (b,), gap (f,) a unit vector. Near 1, the reward pays for nothing but moving from one
    modality's part of the space to the other's. 0 where credits or coordinates do not vary.
    """
    along = features.detach().to("cpu", torch.float64).mean(dim=1) @ gap.detach().to("cpu", torch.float64)
    paid = credits.detach().to("cpu", torch.float64)
    along, paid = along - along.mean(), paid - paid.mean()
    spread = float(along.square().sum() * paid.square().sum())
    return float((along * paid).sum()) ** 2 / spread if spread > 0 else 0.0


@dataclass(frozen=True, eq=False)
class _Tables:
    """G (u, u) and R (u,) of rows (u,), ascending, of `features` as they were at `version`."""

    features: Tensor
    version: int
    rows: Tensor
    pairs: Tensor
    singles: Tensor

    @property
    def frames(self) -> int:
        """Of each clip."""
        return self.features.shape[1]

    def serve(self, features: Tensor, rows: Tensor) -> bool:
        """Whether these are tables of those features, unchanged since, and hold all those rows."""
        same = features is self.features and self.version >= 0 and _version(features) == self.version
        return same and bool(torch.isin(rows, self.rows).all())


def _version(features: Tensor) -> int:
    """Rises with every change in place; -1 for tensors of inference mode, which do not tell."""
    return -1 if features.is_inference() else features._version


def _reference_frames(exemplars: ExemplarSet, name: str) -> Tensor:
    if exemplars.features is None:
        raise ConfigError(
            f"exemplars {exemplars.name!r} hold statistics and no frames, which reward {name!r} compares with; rebuild "
            f"with: {exemplars.rebuild_command(exemplars.encoder_spec)}"
        )
    return as_features(exemplars.features, f"frames of exemplars {exemplars.name!r}", size=exemplars.size, at_least=2)


def _pair_sums(items: Tensor) -> Tensor:
    """(b, b) sums of exp(-|x - y|^2 / 2) over the frames of every two items of (b, s, f)."""
    step = max(1, _BLOCK_FRAMES // items.shape[1])
    sums = torch.zeros(len(items), len(items), dtype=torch.float64)
    for i in range(0, len(items), step):
        for j in range(i, len(items), step):
            block = _block(items[i : i + step], items[j : j + step])
            sums[i : i + step, j : j + step] = block
            sums[j : j + step, i : i + step] = block.mT
    return (sums + sums.mT) / 2  # exactly symmetric inside the diagonal's blocks too


def _cross_sums(items: Tensor, others: Tensor) -> Tensor:
    """(b,) the same with all frames of `others` (c, r, f) together."""
    step = max(1, _BLOCK_FRAMES // items.shape[1])
    sums = torch.zeros(len(items), dtype=torch.float64)
    for block in others.flatten(0, 1).split(_BLOCK_FRAMES):
        for i in range(0, len(items), step):
            sums[i : i + step] += _block(items[i : i + step], block[None])[:, 0]
    return sums


def _mean_kernel(items: Tensor, others: Tensor) -> Tensor:
    """(b,) mean of the kernel of an item's frames with all frames of `others`."""
    return _cross_sums(items, others) / (items.shape[1] * others.shape[0] * others.shape[1])


def _block(x: Tensor, y: Tensor) -> Tensor:
    """(b, c) sums over the frames of x (b, s, f) and y (c, r, f)."""
    kernel = gaussian_kernel(x.flatten(0, 1), y.flatten(0, 1))
    return kernel.view(*x.shape[:2], *y.shape[:2]).sum(dim=(1, 3))


def _spread(items: Tensor, most: int | None) -> Tensor:
    """(b, t, f): t evenly spaced frames of each item, staggered from item to item, b * t at most about `most`."""
    b, s, _ = items.shape
    t = s if most is None else min(s, max(1, most // b))
    if t == s:
        return items
    start = torch.arange(b)[:, None] * 0.6180339887 % 1  # golden ratio: all offsets come alike
    index = ((torch.arange(t) + start) * s / t).long().clamp(max=s - 1)
    return items.gather(1, index[..., None].expand(-1, -1, items.shape[2]))


def _chunk(rows: int) -> int:
    return max(1, _BLOCK_NUMBERS // rows)
