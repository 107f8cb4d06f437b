"""Rewards as metrics: each clip, or the whole set, as a reward hears it.

Knows rewards by their protocols. All rewards share one decoding of a clip, read ahead of them. They hear each clip
whole, at its own rate, with its caption as prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dragon.audio import Audio
from dragon.errors import DragonError, NotFinite, PluginError, ShapeError
from dragon.intervals import Floats
from dragon.measure.captions import Captioned
from dragon.measure.clips import read_ahead
from dragon.measure.embed import BATCH_SAMPLES, Embedded, Progress
from dragon.measure.measured import Measured
from dragon.measure.sides import Clips
from dragon.media import Media
from dragon.protocols import InstanceReward, SetReward
from dragon.texts import raised
from dragon.verdicts import set_scores

Reward = InstanceReward | SetReward


def judge(
    clips: Embedded,
    rewards: Sequence[Reward],
    captioned: Captioned | None,
    groups: Sequence[Clips],
    batch: int = 8,
    progress: Progress | None = None,
) -> list[Measured]:
    """What each reward says of a set; higher is better.

    captioned: None: prompts are empty, and there are no columns. batch: clips of one length and rate that
    a reward sees at once.

    Raises:
        PluginError: a reward broke its contract. NotFinite: a score is NaN though the reward never abstains, or
        infinite; or it abstains from every clip. ShapeError: a set reward's clips differ in their number of frames.
    """
    found: list[list[Tensor]] = [[] for _ in rewards]
    start, done = time.monotonic(), 0
    with torch.no_grad():  # also gives gradients back if a reward switches them off for the whole process
        for media in _batches(clips, captioned, batch):
            for reward, rows in zip(rewards, found, strict=True):
                try:
                    rows.append(_features(reward, media) if isinstance(reward, SetReward) else _scores(reward, media))
                except DragonError:
                    raise
                except Exception as error:  # a reward may raise anything
                    raise PluginError(
                        f"metric {reward.name!r} raised {raised(error)} for clip {done} ({clips.names[done]}) of the "
                        "set; mend the reward"
                    ) from error
            done += len(media)
            if progress is not None:
                rate = done / max(time.monotonic() - start, 1e-9)
                progress(done, len(clips), rate, (len(clips) - done) / rate)
    return [
        _of_set(reward, rows, groups) if isinstance(reward, SetReward) else _of_clips(reward, torch.cat(rows), clips)
        for reward, rows in zip(rewards, found, strict=True)
    ]


def _batches(clips: Embedded, captioned: Captioned | None, batch: int) -> Iterator[Media]:
    """Consecutive clips of one shape and rate together, as many as `batch` and BATCH_SAMPLES let in."""
    jobs = [partial(clips.audio, clip) for clip in range(len(clips))]
    with closing(read_ahead(jobs, lambda clip: clip.samples.nbytes)) as decoded:
        held: list[tuple[int, Audio]] = []
        for index, clip in enumerate(decoded):
            if held and (
                len(held) == batch
                or (held[-1][1].rate, held[-1][1].samples.shape) != (clip.rate, clip.samples.shape)
                or (len(held) + 1) * clip.samples.size > BATCH_SAMPLES
            ):
                yield _media(held, captioned)
                held = []
            held.append((index, clip))
        if held:
            yield _media(held, captioned)


def _media(held: list[tuple[int, Audio]], captioned: Captioned | None) -> Media:
    rows = [index for index, _ in held]
    tensor = torch.from_numpy(np.stack([clip.samples for _, clip in held]))
    prompts = tuple("" if captioned is None else captioned.captions[row] for row in rows)
    columns = {} if captioned is None else {key: tuple(v[row] for row in rows) for key, v in captioned.columns.items()}
    return Media(tensor, prompts, held[0][1].rate, columns)


def _tensor(reward: Reward, found: object) -> Tensor:
    if not isinstance(found, Tensor):
        raise PluginError(f"metric {reward.name!r} gave {type(found).__name__}; expected a torch.Tensor")
    return found.detach().to("cpu")


def _scores(reward: InstanceReward, media: Media) -> Tensor:
    found = _tensor(reward, reward.score(media)).to(torch.float64)
    if found.shape != (len(media),):
        raise PluginError(f"metric {reward.name!r} gave shape {tuple(found.shape)} for {len(media)} clips")
    return found


def _features(reward: SetReward, media: Media) -> Tensor:
    found = _tensor(reward, reward.embed(media))
    if found.ndim != 3 or len(found) != len(media):
        raise PluginError(f"metric {reward.name!r} gave features {tuple(found.shape)} for {len(media)} clips")
    return found


def _of_clips(reward: InstanceReward, scores: Tensor, clips: Embedded) -> Measured:
    bad = scores.isinf() if reward.abstains else ~scores.isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise NotFinite(
            f"metric {reward.name!r} gave {float(scores[row])} for {clips.names[row]}; expected a finite score, "
            "or NaN for no opinion where `abstains` is True"
        )
    heard = scores[~scores.isnan()]
    if not len(heard):
        raise NotFinite(f"metric {reward.name!r} has no opinion on any clip; leave it out, or give what it asks for")
    facts = {"n": len(heard), "abstained": len(scores) - len(heard), "reward": type(reward).__qualname__}
    return Measured(reward.name, float(heard.mean()), "higher", scores=scores.numpy(), facts=facts)


def _of_set(reward: SetReward, rows: list[Tensor], groups: Sequence[Clips]) -> Measured:
    frames = {part.shape[1:] for part in rows}
    if len(frames) > 1:
        raise ShapeError(
            f"metric {reward.name!r} needs as many frames of every clip, and got {sorted(s[0] for s in frames)}; "
            "cut the clips to one length, or take a metric of frames (fad, kad)"
        )
    features = torch.cat(rows)
    every = np.arange(len(features))

    def score(members: Clips) -> float:
        return set_scores(reward.name, reward, features, [torch.from_numpy(members)])[0]

    value = score(every)
    left_out: Floats | None = None
    if len(groups) > 1 and len(every) - max(map(len, groups)) > 1:
        left_out = np.array([score(np.setdiff1d(every, group)) for group in groups])
    facts = {"n": len(features), "d": features.shape[2], "reward": type(reward).__qualname__}
    return Measured(reward.name, value, "higher", left_out, grows=True, facts=facts)
