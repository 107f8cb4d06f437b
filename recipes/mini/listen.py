"""Stage 5: train the audio-text encoder, the judge and the readers. Resumable: a finished part is kept.

All three hear clips both as they are and as the codec leaves them, so that they judge what is played and
not whether it went through the codec: encoder and judge after its transform, the readers after its decoder.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from budget import Average, Budget
from data import COUNTS, clip_of
from features import DECODED, bands, decoded_bands
from torch import Tensor, nn
from world import (
    BPM,
    BRIGHTNESS,
    DENSITIES,
    DYNAMICS,
    LEADS,
    MODES,
    PHRASES,
    REGISTERS,
    STYLES,
    Clip,
    caption,
    full_caption,
    vocabulary,
)

from dragon.mini import load_encoder, load_judge, load_readers, save_module
from dragon.mini.codec import MiniCodec, stacked_bands
from dragon.mini.encoder import MiniAudioTextEncoder
from dragon.mini.judge import MiniJudge
from dragon.mini.readers import MiniReaders

ATTRIBUTES = {
    "style": STYLES,
    "lead": LEADS,
    "tempo": tuple(BPM),
    "mode": MODES,
    "drums": ("none", "drums"),
    "density": DENSITIES,
    "register": REGISTERS,
    "dynamics": DYNAMICS,
    "brightness": BRIGHTNESS,
}


class Ears:
    """Batches of log bands of a split."""

    def __init__(self, work: Path, split: str, batch: int, seed: int) -> None:
        self._bands, self._codec = bands(work, split), MiniCodec.from_pretrained(work / "codec_fitted")
        self._work, self._batch, self._seed = work, batch, seed
        self.clips = [clip_of(split, i) for i in range(COUNTS[split])]

    @torch.no_grad()
    def draw(self, step: int) -> tuple[Tensor, list[Clip]]:
        """(b, 320, 88) and the clips' truth; half of them through the codec's transform."""
        rng = np.random.default_rng((self._seed, step))
        rows = np.sort(rng.choice(len(self.clips), self._batch, replace=False))
        x = torch.from_numpy(self._bands[rows].astype(np.float32))
        coded = torch.from_numpy(rng.random(self._batch) < 0.5)
        return self._with_noise(torch.where(coded[:, None, None], self.through_codec(x), x), step), self._truth(rows)

    @torch.no_grad()
    def draw_decoded(self, step: int) -> tuple[Tensor, list[Clip]]:
        """As `draw`, on the training split; half of them as the trained decoder plays them."""
        rng = np.random.default_rng((self._seed, step))
        plain = np.sort(rng.choice(len(self.clips), self._batch // 2, replace=False))
        played = np.sort(rng.choice(DECODED, self._batch - self._batch // 2, replace=False))
        x = np.concatenate([self._bands[plain], decoded_bands(self._work)[played]]).astype(np.float32)
        return self._with_noise(torch.from_numpy(x), step), self._truth(np.concatenate([plain, played]))

    def _truth(self, rows: np.ndarray) -> list[Clip]:
        return [self.clips[i] for i in rows]

    def _with_noise(self, x: Tensor, step: int) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step))

    def through_codec(self, x: Tensor) -> Tensor:
        """Bands as the codec's transform (not its decoder) gives them back."""
        codec = self._codec
        return ((codec.transform(stacked_bands(x)) * codec.scale) @ codec.components.T + codec.mean).reshape(x.shape)


def contrastive_loss(audio: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch (Radford et al. 2021, figure 3)."""
    logits = audio @ text.T * log_scale.clamp(max=4.0).exp()
    target = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


@torch.no_grad()
def retrieval(model: MiniAudioTextEncoder | MiniJudge, work: Path, *, full: bool) -> float:
    """R@1 over 64 held-out pairs, audio to text, mean over 16 groups."""
    store, hits = bands(work, "test"), []
    for group in range(16):
        rows = range(64 * group, 64 * group + 64)
        clips = [clip_of("test", i) for i in rows]
        words = random.Random(group)
        texts = [full_caption(c, words) if full else caption(c, words)[0] for c in clips]
        x = torch.from_numpy(store[rows.start : rows.stop].astype(np.float32))
        similarity = model.pooled(model.frames_of_bands(x)) @ model.embed_text(texts).T
        hits.append((similarity.argmax(1) == torch.arange(64)).float().mean().item())
    return float(np.mean(hits))


def train_pair(work: Path, name: str, minutes: float, start: Path | None = None, batch: int = 96) -> None:
    """The audio-text encoder ("encoder", on the training works) or the judge ("judge", on its own).

    start: folder of weights to go on from; None: from nothing.
    """
    torch.manual_seed({"encoder": 10, "judge": 20}[name])
    model: MiniAudioTextEncoder | MiniJudge
    if start:
        model = (load_encoder(start) if name == "encoder" else load_judge(start)).train().requires_grad_(True)
    else:
        model = MiniAudioTextEncoder(vocabulary()) if name == "encoder" else MiniJudge(vocabulary())
    ears = Ears(work, "train" if name == "encoder" else "judge", batch, seed=30)
    spent = _optimise(
        name,
        model,
        minutes,
        lambda step: _pair_loss(model, *ears.draw(step), random.Random(step)),
    )
    model.eval()
    report = {"full_captions": retrieval(model, work, full=True), "half_captions": retrieval(model, work, full=False)}
    print(name, report, flush=True)
    save_module(model, work / name)
    (work / f"{name}.json").write_text(json.dumps(report | {"cpu_seconds": round(spent)}))


def _pair_loss(model: MiniAudioTextEncoder | MiniJudge, x: Tensor, clips: list[Clip], words: random.Random) -> Tensor:
    texts = []
    for clip in clips:
        share = words.choice((0.5, 0.8, 1.0))
        reveal = tuple(name for name in PHRASES if words.random() < share)
        texts.append(caption(clip, words, reveal=reveal or ("style",))[0])
    with torch.autocast("cpu", torch.bfloat16):
        frames = model.frames_of_bands(x)
    return contrastive_loss(model.pooled(frames.float()), model.embed_text(texts), model.log_scale)


def train_readers(work: Path, minutes: float, start: Path | None = None, batch: int = 128) -> None:
    """The readers, on the training works; start: as for `train_pair`."""
    torch.manual_seed(40)
    model = load_readers(start).train().requires_grad_(True) if start else MiniReaders(ATTRIBUTES)
    ears = Ears(work, "train", batch, seed=50)

    def loss(step: int) -> Tensor:
        x, clips = ears.draw_decoded(step)
        truth = [c.attributes() for c in clips]
        logits = model(x)
        parts = []
        for name, values in ATTRIBUTES.items():
            target = torch.tensor([values.index(t[name]) for t in truth])
            parts.append(F.cross_entropy(logits[name], target))
        return torch.stack(parts).mean()

    spent = _optimise("readers", model, minutes, loss)
    model.eval()
    report = accuracy(model, work)
    print("readers", report, flush=True)
    save_module(model, work / "readers")
    (work / "readers.json").write_text(json.dumps(report | {"cpu_seconds": round(spent)}))


@torch.no_grad()
def accuracy(model: MiniReaders, work: Path) -> dict[str, float]:
    """Share of held-out real clips whose attribute is read rightly."""
    logits = model(torch.from_numpy(bands(work, "test")[:].astype(np.float32)))
    truth = [clip_of("test", i).attributes() for i in range(COUNTS["test"])]
    return {
        name: float(
            np.mean([values[i] == t[name] for i, t in zip(logits[name].argmax(1).tolist(), truth, strict=True)])
        )
        for name, values in ATTRIBUTES.items()
    }


def _optimise(name: str, model: nn.Module, minutes: float, loss_of: Callable[[int], Tensor]) -> None:
    """AdamW within a budget of CPU time; leaves the averaged weights in the model. Returns CPU seconds."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    average, budget, step, shown = Average(model, 0.998), Budget(minutes), 0, 0.0
    while budget.fraction < 1.0:
        for group in optimiser.param_groups:
            group["lr"] = budget.rate(2e-3, step)
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        average.update(model, step)
        shown = loss.item() if step == 1 else 0.98 * shown + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{name} step {step} loss {shown:.4f} {budget.spent:.0f}/{budget.total:.0f} CPU-s", flush=True)
    average.copy_to(model)
    return budget.spent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--part", choices=("encoder", "judge", "readers"), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--start", type=Path, help="folder of earlier weights to go on from")
    options = parser.parse_args()
    if not (options.work / f"{options.part}.json").exists():
        if options.part == "readers":
            train_readers(options.work, options.minutes, options.start)
        else:
            train_pair(options.work, options.part, options.minutes, options.start)
