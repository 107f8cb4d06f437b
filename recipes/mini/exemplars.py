"""Stage 7: the shipped exemplar sets, from real renders of the training works and the model's own samples.

mini_music: all styles. mini_music_held_out: other works, to evaluate with. mini_music_clap: frames of
the audio-text encoder. mini_disco, mini_lullaby: one style. mini_self: the model's own samples, the
control against which gain is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from data import COUNTS, audio, clip_of
from features import waves

from dragon.encoders.codec import CodecEncoder
from dragon.encoders.mini import MiniEncoder
from dragon.exemplars import build_from_media
from dragon.media import Media
from dragon.mini import load_pipeline, prompts

SHIPPED = Path(__file__).parents[2] / "exemplars" / "data"
LICENCE = "CC0-1.0 (composed by recipes/mini; rendered with FluidR3 Mono GM, MIT)"
CLIPS = 800


def renders(work: Path, rows: Iterable[int]) -> Iterator[Media]:
    """Real clips of the training works."""
    rows, store = list(rows), audio(work, "train")
    for i in range(0, len(rows), 50):
        part = waves(store, rows[i : i + 50])
        yield Media(part[:, None], tuple(f"work {clip_of('train', r).work}" for r in rows[i : i + 50]), 16_000)


def of_style(style: str, count: int, start: int) -> list[int]:
    """Rows of the first training clips of a style, from `start` on."""
    return [i for i in range(start, COUNTS["train"]) if clip_of("train", i).style == style][:count]


@torch.no_grad()
def own_samples(count: int) -> Iterator[Media]:
    """The untuned model's samples for the training prompts."""
    pipeline, texts = load_pipeline(), prompts("train")
    for i in range(0, count, 50):
        generators = [torch.Generator().manual_seed(77_000_000 + j) for j in range(i, i + 50)]
        made = pipeline([texts[j % len(texts)] for j in range(i, i + 50)], 8, 2.0, generators, output_type="pt").audios
        yield Media(made[:, None], tuple(f"sample {j}" for j in range(i, i + 50)), 16_000)


def main(work: Path, out: Path) -> None:
    """Builds every set."""
    codec, encoder = CodecEncoder(), MiniEncoder()
    sets = {
        "mini_music": (codec, renders(work, range(CLIPS)), "renders of 800 training works"),
        "mini_music_held_out": (codec, renders(work, range(CLIPS, 2 * CLIPS)), "renders of 800 other training works"),
        "mini_music_clap": (encoder, renders(work, range(CLIPS)), "renders of 800 training works"),
        "mini_disco": (codec, renders(work, of_style("disco", 400, 0)), "renders of 400 disco works"),
        "mini_lullaby": (codec, renders(work, of_style("lullaby", 400, 0)), "renders of 400 lullaby works"),
        "mini_self": (codec, own_samples(500), "500 samples of the untuned built-in model, 8 steps, guidance 2"),
    }
    for name, (ears, media, source) in sets.items():
        batches = list(media)
        names = [clip for batch in batches for clip in batch.prompts]
        made = build_from_media(batches, ears, name, names=names, source=source, licence=LICENCE)
        made.save(out / f"{name}.safetensors")
        print(f"{name}: {made.count} clips, {made.frames} frames, self-distance {made.self_distance:.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    main(options.work, options.out)
