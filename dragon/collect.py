"""Sampling one model on prompts and measuring each clip: one side of an evaluation.

Knows protocols, not which policy, reward or encoder it is given, and nothing of the other side. Clips are
measured batch by batch and dropped, all but a few kept to listen to, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dragon.intervals import Floats
from dragon.media import Media
from dragon.processes import Alone, Processes, share
from dragon.protocols import Encoder, InstanceReward, JointEncoder, Policy, SetReward
from dragon.rollout import Rollout, Stopwatch
from dragon.verdicts import Verdicts, verdicts

Seeds = tuple[tuple[int, ...], ...]
"""(m, k)."""
_VECTORS = ""
"""Where the diversity encoder's vectors lie among the features of set rewards; no reward has this name."""
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
    reward_timeout: float = 0.0,
    processes: Processes = Alone(),
) -> Collected:
    """Samples the policy as it is now, one clip for each of `seeds` (m, k), and measures them batch by batch.

    Several processes share the samples, and all of them get all that was measured; batches are then cut elsewhere,
    which changes the rounding and nothing more. progress: called by the main process.

    Raises:
        NotFinite, PluginError, ShapeError: a sample, clip or score that breaks its contract, with prompt and seed.
    """
    k = len(seeds[0])
    kept_prompts = tuple(sorted({int(i) for i in np.linspace(0, len(prompts) - 1, min(keep, len(prompts)))}))
    kept_rows = {i * k for i in kept_prompts}
    total = len(prompts) * k
    mine, most = share(total, processes), -(-total // processes.count)

    def judge(media: Media, seeds: Sequence[int]) -> Verdicts:
        found = verdicts(rewards, media, seeds, timeout=reward_timeout)
        if diversity is None:
            return found
        with torch.no_grad():
            return replace(found, features={**found.features, _VECTORS: _clip_vectors(diversity, media)})

    rollout = Rollout(policy, steps=steps, guidance=guidance, batch_size=batch_size)
    watch = Stopwatch(dict.fromkeys(("rollout", "decode", "score"), 0.0))
    said: list[Verdicts] = []
    kept: list[Media] = []
    done = 0
    with rollout.together(processes):
        for part in rollout.each(
            [prompt for prompt in prompts for _ in range(k)],
            [int(seed) for row in seeds for seed in row],
            judge,
            watch,
            columns={name: [value for value in values for _ in range(k)] for name, values in (columns or {}).items()},
            rows=mine,
            most=most,
        ):
            said.append(part.verdicts)
            clips = part.media.rows([i for i in range(len(part)) if mine[done + i] in kept_rows])
            kept.append(replace(clips, tensor=clips.tensor.float().cpu()))
            done += len(part)
            if progress is not None and processes.main:
                progress(side, min(done * processes.count, total), total)
        mine_said, clips = Verdicts.cat(said), Media.cat(kept)
    found = mine_said.gathered(processes)
    kept_tensor = processes.gather(clips.tensor)
    return Collected(
        prompts=tuple(prompts),
        seeds=tuple(tuple(int(s) for s in row) for row in seeds),
        steps=steps,
        guidance=guidance,
        scores={name: scores.numpy().reshape(len(prompts), k) for name, scores in found.scores.items()},
        features={name: features for name, features in found.features.items() if name != _VECTORS},
        embeddings=found.features.get(_VECTORS),
        kept=Media(
            kept_tensor,
            tuple(prompts[i] for i in kept_prompts),
            clips.rate,
            {name: tuple(values[i] for i in kept_prompts) for name, values in (columns or {}).items()},
        )
        if kept_prompts
        else None,
        kept_prompts=kept_prompts,
        seconds=watch.stages,
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


def _clip_vectors(encoder: Encoder, media: Media) -> Tensor:
    """(b, f) one vector a clip: the joint encoder's own, or the mean over frames."""
    vectors = encoder.embed_clips(media) if isinstance(encoder, JointEncoder) else encoder.embed_media(media).mean(1)
    return vectors.double().cpu()
