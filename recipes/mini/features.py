"""Stage 2: log bands of every clip, then the codec's transform and every clip's latents. Resumable.

After stage 3 also the bands of decoded training clips: the readers learn to hear what users hear.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from data import BLOCK, COUNTS, audio
from torch import Tensor

from dragon.mini.analysis import BANDS, FRAMES, Bands
from dragon.mini.codec import MiniCodec, stacked_bands

SPLITS = ("test", "train", "judge")
DECODED = 8_000  # of the first training clips


def waves(store: np.ndarray, rows: np.ndarray | range | list[int]) -> Tensor:
    """(b, 81920) float32 of rows of an int16 file."""
    return torch.from_numpy(store[np.asarray(rows)].astype(np.float32) / 32767.0)


def bands(work: Path, split: str, mode: str = "r") -> np.ndarray:
    """(n, 320, 88) float16, memory-mapped."""
    path = work / f"bands_{split}.npy"
    if not path.exists():
        np.lib.format.open_memmap(path, "w+", np.float16, (COUNTS[split], FRAMES, BANDS)).flush()
    return np.load(path, mmap_mode=mode)


@torch.no_grad()
def analyse(work: Path, split: str, part: int, parts: int) -> None:
    """Bands of every `parts`-th block of a split, from `part` on."""
    analysis, store, out = Bands(), audio(work, split), bands(work, split, "r+")
    for block in range(part, (COUNTS[split] + BLOCK - 1) // BLOCK, parts):
        mark = work / "done" / f"bands_{split}_{block:04d}"
        if mark.exists():
            continue
        for i in range(block * BLOCK, min((block + 1) * BLOCK, COUNTS[split]), 50):
            rows = range(i, min(i + 50, (block + 1) * BLOCK, COUNTS[split]))
            out[rows.start : rows.stop] = analysis(waves(store, rows)).numpy()
        out.flush()
        mark.touch()
        print(f"bands {split} block {block}", flush=True)


@torch.no_grad()
def fit(work: Path, channels: int = 64, clips: int = 3000) -> MiniCodec:
    """Principal components of the stacked bands of the first training clips; saved as codec_fitted."""
    codec = MiniCodec(channels=channels)
    stacked = stacked_bands(torch.from_numpy(bands(work, "train")[:clips].astype(np.float32))).flatten(0, 1).double()
    mean = stacked.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(stacked.T))
    values, vectors = values.flip(0), vectors.flip(1)
    sd = values[:channels].clamp_min(1e-12).sqrt()
    scale = sd.sqrt()  # quiet components keep part of their quietness
    scale = scale * (sd**2 / scale**2).mean().sqrt()  # the mean square of all latents is 1
    codec.fit(mean.float(), vectors[:, :channels].float(), scale.float())
    share = float(values[:channels].sum() / values.sum())
    print(f"codec: {channels} of {len(values)} components hold {share:.4f} of the variance")
    codec.save_pretrained(work / "codec_fitted")
    return codec


@torch.no_grad()
def encode(work: Path, codec: MiniCodec, split: str) -> None:
    """Writes latents_{split}.npy, (n, 80, 64) float16."""
    path = work / f"latents_{split}.npy"
    if path.exists():
        return
    store, out = bands(work, split), np.zeros((COUNTS[split], FRAMES // 4, codec.config.channels), np.float16)
    for i in range(0, COUNTS[split], BLOCK):
        rows = torch.from_numpy(store[i : i + BLOCK].astype(np.float32))
        out[i : i + BLOCK] = codec.transform(stacked_bands(rows)).numpy()
    np.save(path.with_suffix(".tmp.npy"), out)
    os.replace(path.with_suffix(".tmp.npy"), path)


def decoded_bands(work: Path) -> np.ndarray:
    """(DECODED, 320, 88) float16, memory-mapped: the first training clips as the trained codec plays them."""
    return np.load(work / "bands_decoded.npy", mmap_mode="r")


@torch.no_grad()
def decode(work: Path) -> None:
    """Writes bands_decoded.npy."""
    path = work / "bands_decoded.npy"
    if path.exists():
        return
    codec, analysis = MiniCodec.from_pretrained(work / "codec_trained"), Bands()
    latents, out = np.load(work / "latents_train.npy", mmap_mode="r"), np.zeros((DECODED, FRAMES, BANDS), np.float16)
    for i in range(0, DECODED, 50):
        out[i : i + 50] = analysis(codec.decode(torch.from_numpy(latents[i : i + 50].astype(np.float32)))).numpy()
        if i % 1000 == 0:
            print(f"decoded {i} of {DECODED}", flush=True)
    np.save(path.with_suffix(".tmp.npy"), out)
    os.replace(path.with_suffix(".tmp.npy"), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--fit", action="store_true", help="after all bands are there: fit and encode")
    parser.add_argument("--decode", action="store_true", help="after stage 3: bands of decoded training clips")
    options = parser.parse_args()
    if options.decode:
        decode(options.work)
    elif options.fit:
        fitted = fit(options.work)
        for name in ("test", "train"):
            encode(options.work, fitted, name)
    else:
        for name in SPLITS:
            analyse(options.work, name, options.part, options.parts)
