"""Stage 7: the shipped exemplar sets, from real renders of the training works and the model's own samples.

mini_music: all styles. mini_music_held_out: other works, to evaluate with. mini_music_clap: frames of
the audio-text encoder. mini_disco, mini_lullaby: one style; mini_disco_held_out: other disco works.
mini_self: the model's own samples, the control against which gain is read; mini_self_open: those for prompts that name
no style, the control of runs on such prompts.

In the space that clips and captions share (fitted here first): mini_disco_shared, mini_music_shared and
mini_self_shared are clips as above. mini_disco_text: two captions of each of mini_disco's works, each
naming a random half of the attributes, so that only half of them say disco. mini_shuffled_text, the
control: captions of the same length that name the same attributes, with values of works of all styles.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from data import COUNTS, audio, clip_of
from features import waves
from world import caption

from dragon.encoders.codec import CodecEncoder
from dragon.encoders.mini import MiniEncoder
from dragon.encoders.shared import SharedEncoder, SharedSpace, fit_shared_space
from dragon.exemplars import ExemplarSet, build_from_captions, build_from_media
from dragon.media import Media
from dragon.mini import load_pipeline, prompts
from dragon.protocols import Encoder

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "exemplars" / "data"
SPACE = ROOT / "dragon" / "encoders" / "data" / "mini.safetensors"
LICENCE = "CC0-1.0 (composed by recipes/mini; rendered with FluidR3 Mono GM, MIT)"
TEXT_LICENCE = "CC0-1.0 (written by recipes/mini)"
CLIPS = 800
KEPT = 1_024  # frames in a file of the shared space


def renders(work: Path, rows: Iterable[int], split: str = "train") -> Iterator[Media]:
    """Real clips of a split's works."""
    rows, store = list(rows), audio(work, split)
    for i in range(0, len(rows), 50):
        part = waves(store, rows[i : i + 50])
        yield Media(part[:, None], tuple(f"work {clip_of(split, r).work}" for r in rows[i : i + 50]), 16_000)


def of_style(style: str, count: int, start: int) -> list[int]:
    """Rows of the first training clips of a style, from `start` on."""
    return [i for i in range(start, COUNTS["train"]) if clip_of("train", i).style == style][:count]


@torch.no_grad()
def own_samples(count: int, split: str = "train") -> Iterator[Media]:
    """The untuned model's samples for the prompts of a split."""
    pipeline, texts = load_pipeline(), prompts(split)
    for i in range(0, count, 50):
        generators = [torch.Generator().manual_seed(77_000_000 + j) for j in range(i, i + 50)]
        made = pipeline([texts[j % len(texts)] for j in range(i, i + 50)], 8, 2.0, generators, output_type="pt").audios
        yield Media(made[:, None], tuple(f"sample {j}" for j in range(i, i + 50)), 16_000)


@torch.no_grad()
def fit_space(work: Path) -> SharedSpace:
    """From works that the audio-text encoder never heard: the judge's, those with the shared sound font and timbres."""
    encoder, rng = MiniEncoder(), random.Random("shared space")
    rows = range(1, COUNTS["judge"], 2)
    clips = torch.cat([encoder.embed_clips(media) for media in renders(work, rows, "judge")])
    texts = encoder.embed_text([caption(clip_of("judge", i), rng)[0] for i in rows])
    return fit_shared_space(clips, texts, encoder=encoder.name, encoder_hash=encoder.fingerprint)


def half_captions(rows: Iterable[int], each: int) -> tuple[list[str], list[str]]:
    """Captions of training works, and the control: the same attributes named, with values of works of all styles."""
    rng, rows = random.Random("text exemplars"), list(rows)
    said, shuffled = [], []
    for j, row in enumerate(row for row in rows for _ in range(each)):
        text, revealed = caption(clip_of("train", row), rng)
        said.append(text)
        shuffled.append(caption(clip_of("train", COUNTS["train"] - 1 - j), rng, reveal=revealed)[0])
    return said, shuffled


def main(work: Path, out: Path, only: list[str]) -> None:
    """Builds every set, or those of `only`; the shared space first, if there is none."""
    if not SPACE.exists():
        space = fit_space(work)
        space.save(SPACE)
        shown = ", ".join(f"{c:.2f}" for c in space.correlations.tolist())
        print(f"shared space: {space.pairs} pairs, rank {space.rank}, correlations {shown}; gap {space.gap_size:.3f}, ")
        print(f"{space.gap_share:.2f} of its square in the space", flush=True)
    codec, encoder, shared = CodecEncoder(), MiniEncoder(), SharedEncoder()
    disco = of_style("disco", 400, 0)

    def clips(ears: Encoder, media: Iterable[Media], source: str) -> Callable[[str], ExemplarSet]:
        def make(name: str) -> ExemplarSet:
            batches = list(media)
            names = [clip for batch in batches for clip in batch.prompts]
            kept = KEPT if ears is shared else 0
            return build_from_media(batches, ears, name, names=names, keep_frames=kept, source=source, licence=LICENCE)

        return make

    def captions(which: int, source: str) -> Callable[[str], ExemplarSet]:
        return lambda name: build_from_captions(
            half_captions(disco, 2)[which], shared, name, keep_frames=KEPT, source=source, licence=TEXT_LICENCE
        )

    own = "500 samples of the untuned built-in model, 8 steps, guidance 2"
    sets = {
        "mini_music": clips(codec, renders(work, range(CLIPS)), "renders of 800 training works"),
        "mini_music_held_out": clips(
            codec, renders(work, range(CLIPS, 2 * CLIPS)), "renders of 800 other training works"
        ),
        "mini_music_clap": clips(encoder, renders(work, range(CLIPS)), "renders of 800 training works"),
        "mini_disco": clips(codec, renders(work, disco), "renders of 400 disco works"),
        "mini_disco_held_out": clips(
            codec, renders(work, of_style("disco", 400, disco[-1] + 1)), "renders of 400 other disco works"
        ),
        "mini_lullaby": clips(codec, renders(work, of_style("lullaby", 400, 0)), "renders of 400 lullaby works"),
        "mini_self": clips(codec, own_samples(500), own),
        "mini_self_open": clips(codec, own_samples(1_000, "open_train"), "1000" + own[3:]),
        "mini_music_shared": clips(shared, renders(work, range(CLIPS)), "renders of 800 training works"),
        "mini_disco_shared": clips(shared, renders(work, disco), "renders of 400 disco works"),
        "mini_self_shared": clips(shared, own_samples(500), own),
        "mini_disco_text": captions(0, "two captions each of 400 disco works, half of the attributes named"),
        "mini_shuffled_text": captions(1, "mini_disco_text with every value redrawn from works of all styles"),
    }
    for name in only or sets:
        made = sets[name](name)
        made.save(out / f"{name}.safetensors")
        print(f"{name}: {made.count} items, {made.frames} frames, self-distance {made.self_distance:.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--only", nargs="*", default=[], help="names of sets; default: all")
    options = parser.parse_args()
    main(options.work, options.out, options.only)
