"""Sampling one model on prompts and measuring each clip: one side of an evaluation.

Knows protocols, not which policy, reward or encoder it is given, and nothing of the other side. Clips are
measured batch by batch and dropped, all but a few kept to listen to, so memory does not grow with their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dragon.errors import NotFinite, ShapeError
from dragon.intervals import Floats
from dragon.media import Generation, Media
from dragon.protocols import Encoder, InstanceReward, JointEncoder, Policy, SetReward

Seeds = tuple[tuple[int, ...], ...]
"""(m, k)."""
Progress = Callable[[str, int, int], None]
"""Called with (side, samples done, samples of that side)."""


@dataclass(frozen=True)
class Collected:
    """One side's samples, measured. Row of a sample: prompt * samples + sample index.

    scores: of each instance reward (m, k) float64, NaN where it abstained.
    features: of each set reward (m * k, s, f). embeddings: (m * k, f) for diversity, or None.
    seeds: (m, k). kept: the first sample of `kept_prompts`, as clips to listen to.
    seconds: {"rollout", "decode", "score"}.
    """

    prompts: tuple[str, ...]
    seeds: Seeds
    steps: int
    guidance: float
    scores: Mapping[str, Floats]
    features: Mapping[str, Tensor]
    embeddings: Tensor | None
    kept: Media | None
    kept_prompts: tuple[int, ...]
    seconds: Mapping[str, float]

    @property
    def samples(self) -> int:
        """k, samples of each prompt."""
        return len(self.seeds[0])


def collect(
    policy: Policy,
    rewards: Mapping[str, InstanceReward | SetReward],
    prompts: Sequence[str],
    seeds: Sequence[Sequence[int]],
    *,
    steps: int,
    guidance: float,
    diversity: Encoder | None = None,
    columns: Mapping[str, Sequence[object]] | None = None,
    batch_size: int = 32,
    keep: int = 16,
    side: str = "policy",
    progress: Progress | None = None,
) -> Collected:
    """Samples the policy as it is now, one clip for each of `seeds` (m, k), and measures them batch by batch."""
    k = len(seeds[0])
    flat_seeds = [int(s) for row in seeds for s in row]
    kept_prompts = tuple(sorted({int(i) for i in np.linspace(0, len(prompts) - 1, min(keep, len(prompts)))}))
    kept_rows = {i * k for i in kept_prompts}
    instance = {name: r for name, r in rewards.items() if not isinstance(r, SetReward)}
    scores: dict[str, list[Floats]] = {name: [] for name in instance}
    features: dict[str, list[Tensor]] = {name: [] for name in rewards if name not in instance}
    embeddings: list[Tensor] = []
    kept: list[Media] = []
    seconds = dict.fromkeys(("rollout", "decode", "score"), 0.0)
    for start in range(0, len(flat_seeds), batch_size):
        rows = range(start, min(start + batch_size, len(flat_seeds)))
        asked = [prompts[row // k] for row in rows]
        with _timed(seconds, "rollout"):
            made = policy.generate(asked, [flat_seeds[row] for row in rows], steps=steps, guidance=guidance)
        with _timed(seconds, "decode"):
            media = policy.decode(made)
            media = replace(media, columns={n: tuple(v[row // k] for row in rows) for n, v in (columns or {}).items()})
        _check_media(media, made)
        with _timed(seconds, "score"), torch.no_grad():
            for name, reward in instance.items():
                scores[name].append(_checked(reward.score(media), name, reward.abstains, made))
            for name in features:
                features[name].append(rewards[name].embed(media).cpu())  # type: ignore[union-attr]
            if diversity is not None:
                embeddings.append(_clip_vectors(diversity, media))
        wanted = [i for i, row in enumerate(rows) if row in kept_rows]
        if wanted:
            clips = media.rows(wanted)
            kept.append(replace(clips, tensor=clips.tensor.float().cpu()))
        if progress is not None:
            progress(side, rows.stop, len(flat_seeds))
    return Collected(
        prompts=tuple(prompts),
        seeds=tuple(tuple(int(s) for s in row) for row in seeds),
        steps=steps,
        guidance=guidance,
        scores={name: np.concatenate(parts).reshape(len(prompts), k) for name, parts in scores.items()},
        features={name: torch.cat(parts) for name, parts in features.items()},
        embeddings=torch.cat(embeddings) if embeddings else None,
        kept=_cat(kept) if kept else None,
        kept_prompts=kept_prompts,
        seconds=seconds,
    )


def draw_seeds(seed: int, side: str, prompts: int, samples: int) -> Seeds:
    """(m, k) sample seeds of a side; a prompt's do not depend on how many prompts or samples there are.

    Below 2^48: exact in any spreadsheet or JSON reader that holds numbers as float64.
    """
    stream = {"base": 0, "tuned": 1}[side]
    drawn = [
        [
            int(np.random.SeedSequence((seed, stream, i, j)).generate_state(1, np.uint64)[0] >> np.uint64(16))
            for j in range(samples)
        ]
        for i in range(prompts)
    ]
    return tuple(tuple(row) for row in drawn)


def _check_media(media: Media, made: Generation) -> None:
    if media.prompts != made.prompts:
        raise ShapeError(
            f"policy.decode gave prompts {media.prompts[:2]}...; expected those of its generation, in order"
        )
    finite = torch.isfinite(media.tensor).flatten(1).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise NotFinite(f"a decoded clip is not finite (prompt {made.prompts[row]!r}, seed {made.seeds[row]})")


def _checked(scores: Tensor, name: str, abstains: bool, made: Generation) -> Floats:
    """One batch's scores as (b,) float64; NaN only where the reward may abstain."""
    if tuple(scores.shape) != (len(made),):
        raise ShapeError(
            f"reward {name!r} gave shape {tuple(scores.shape)} for {len(made)} clips; expected ({len(made)},)"
        )
    values = scores.detach().double().cpu().numpy()
    bad = np.flatnonzero(~(np.isfinite(values) | (np.isnan(values) & abstains)))
    if len(bad):
        row = int(bad[0])
        raise NotFinite(
            f"reward {name!r} gave {values[row]} (prompt {made.prompts[row]!r}, seed {made.seeds[row]}); expected a "
            "finite score" + ("" if abstains else ", or set abstains for a reward that may have no opinion")
        )
    return values


def _clip_vectors(encoder: Encoder, media: Media) -> Tensor:
    """(b, f) one vector a clip: the joint encoder's own, or the mean over frames."""
    vectors = encoder.embed_clips(media) if isinstance(encoder, JointEncoder) else encoder.embed_media(media).mean(1)
    return vectors.double().cpu()


def _cat(parts: Sequence[Media]) -> Media:
    return Media(
        torch.cat([p.tensor for p in parts]),
        tuple(prompt for p in parts for prompt in p.prompts),
        parts[0].rate,
        {name: tuple(v for p in parts for v in p.columns[name]) for name in parts[0].columns},
    )


class _timed:
    """Adds the seconds spent inside to `seconds[stage]`."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self.seconds, self.stage = seconds, stage

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.stage] += time.perf_counter() - self.began
