"""Stage 1: render the clips of every split into one int16 file each. Resumable: finished blocks are kept.

Attributes are not stored: `clip_of(split, i)` draws them again from the work's number.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from render import SAMPLES, Renderer
from world import WORKS, Clip, draw_clip

COUNTS = {"train": 24_000, "test": 2_048, "judge": 6_000}
HELD_OUT_EVERY = 4  # every fourth test clip has a (style, lead) pair that is never trained on
FLUID = "/usr/share/sounds/sf3/FluidR3Mono_GM.sf3"  # Debian: fluidr3mono-gm-soundfont (MIT)
MUSESCORE = "/usr/share/sounds/sf3/MuseScore_General_Lite.sf3"  # Debian: musescore-general-soundfont-small (MIT)
BLOCK = 500


def clip_of(split: str, index: int) -> Clip:
    """The clip at a row of a split's file."""
    return draw_clip(WORKS[split][index], held_out=split == "test" and index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)


def audio(folder: Path, split: str, mode: str = "r") -> np.ndarray:
    """(n, 81920) int16, memory-mapped."""
    path = folder / f"audio_{split}.npy"
    if not path.exists():
        np.lib.format.open_memmap(path, "w+", np.int16, (COUNTS[split], SAMPLES)).flush()
    return np.load(path, mmap_mode=mode)


def render_split(folder: Path, split: str, part: int, parts: int) -> None:
    """Renders every `parts`-th block of a split, from `part` on."""
    (folder / "done").mkdir(parents=True, exist_ok=True)
    out = audio(folder, split, "r+")
    # the judge hears another sound font and other lead timbres in half of its clips, so that it cannot
    # share the reward encoder's shortcuts
    renderers = [Renderer(MUSESCORE, 1), Renderer(FLUID, 0)] if split == "judge" else [Renderer(FLUID, 0)]
    for block in range(part, (COUNTS[split] + BLOCK - 1) // BLOCK, parts):
        mark = folder / "done" / f"{split}_{block:04d}"
        if mark.exists():
            continue
        start = time.process_time()
        rows = range(block * BLOCK, min((block + 1) * BLOCK, COUNTS[split]))
        for row in rows:
            wave = renderers[row % len(renderers)].render(clip_of(split, row))
            out[row] = np.round(wave * 32767.0)
        out.flush()
        mark.write_text(json.dumps({"cpu_seconds": round(time.process_time() - start, 1)}))
        print(f"render {split} block {block}: {len(rows)} clips, {time.process_time() - start:.0f} CPU-s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    for name in ("test", "train", "judge"):
        render_split(options.work, name, options.part, options.parts)
    sys.exit(0)
