"""Stage 7: how good the built-in model is, beside real renders and the codec's floor. Writes quality.json.

Held-out works throughout; every fourth clip has a (style, lead) pair that was never trained on. The
readers that measure adherence come neither from the reward encoder nor from the judge.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import HELD_OUT_EVERY, audio, clip_of
from features import bands, waves
from listen import accuracy, retrieval
from torch import Tensor
from world import caption

from dragon.mini import WEIGHTS, load_encoder, load_judge, load_pipeline, load_readers
from dragon.mini.pipeline import MiniPipeline
from dragon.mini.readers import MiniReaders
from dragon.rewards import frechet_distance, kernel_distance

TRAINING_CLIPS = 6_000  # among which the nearest is looked for


def generate(pipeline: MiniPipeline, prompts: list[str], steps: int, guidance: float, seed: int = 5) -> Tensor:
    """(b, 81920), one clip a prompt, each from a seed of its own."""
    parts = []
    for i in range(0, len(prompts), 32):
        generators = [torch.Generator().manual_seed(1_000_000 * seed + j) for j in range(i, min(i + 32, len(prompts)))]
        parts.append(pipeline(prompts[i : i + 32], steps, guidance, generators, output_type="pt").audios)
    return torch.cat(parts)


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], waveforms: Tensor) -> Tensor:
    """function over 64 clips at a time."""
    return torch.cat([function(part) for part in waveforms.split(64)])


def adherence(
    readers: MiniReaders, waveforms: Tensor, truth: list[dict[str, str]], revealed: list[tuple[str, ...]]
) -> dict[str, float]:
    """Share of clips on which a reader hears what the caption says, by attribute; revealed attributes only."""
    heard: dict[str, list[str]] = {}
    for part in waveforms.split(64):
        for name, values in readers.read(part).items():
            heard.setdefault(name, []).extend(values)
    return {
        name: float(np.mean([values[i] == truth[i][name] for i in range(len(truth)) if name in revealed[i]]))
        for name, values in heard.items()
    }


def nearest(queries: Tensor, stored: Tensor) -> np.ndarray:
    """Cosine distance of each query to its nearest stored vector."""
    return np.concatenate([(1 - part @ stored.T).amin(1).numpy() for part in queries.split(256)])


@torch.no_grad()
def measure(work: Path, weights: Path, clips: int, steps: int, guidance: float) -> dict[str, object]:
    """All figures of the model card."""
    pipeline, encoder, judge = (
        load_pipeline(weights / "pipeline"),
        load_encoder(weights / "encoder"),
        load_judge(weights / "judge"),
    )
    readers = load_readers(weights / "readers")
    world = [clip_of("test", i) for i in range(clips)]
    texts, revealed = zip(*(caption(c, random.Random(f"quality {c.work}")) for c in world), strict=True)
    truth = [c.attributes() for c in world]
    real = waves(audio(work, "test"), range(clips))
    coded = in_batches(lambda x: pipeline.codec.decode(pipeline.codec.encode(x)), real)
    start = time.process_time()
    made = generate(pipeline, list(texts), steps, guidance)
    seconds = (time.process_time() - start) / clips * 32
    sides = {"generated": made, "real": real, "codec": coded}
    new = [i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for i in range(clips)]
    read = {name: adherence(readers, side, truth, list(revealed)) for name, side in sides.items()}
    unseen = [i for i in range(clips) if new[i]]
    read["generated, unseen pairs"] = adherence(
        readers, made[unseen], [truth[i] for i in unseen], [revealed[i] for i in unseen]
    )
    vectors = {name: in_batches(encoder.embed_audio, side) for name, side in sides.items()}
    other = in_batches(encoder.embed_audio, waves(audio(work, "test"), range(clips, 2 * clips)))
    text, judged_text = encoder.embed_text(texts), judge.embed_text(texts)
    judged = {name: in_batches(judge.embed_audio, side) for name, side in sides.items()}
    stored = in_batches(
        lambda x: encoder.pooled(encoder.frames_of_bands(x)),
        torch.from_numpy(bands(work, "train")[:TRAINING_CLIPS].astype(np.float32)),
    )
    near = {name: nearest(vectors[name], stored) for name in ("generated", "real")}
    latents = {name: in_batches(pipeline.codec.encode, side).flatten(0, 1) for name, side in sides.items()}
    return {
        "settings": {"clips": clips, "steps": steps, "guidance": guidance, "training_clips": TRAINING_CLIPS},
        "adherence": read,
        "relative_adherence": {n: read["generated"][n] / read["real"][n] for n in read["real"]},
        "reader_accuracy": accuracy(readers, work),
        "retrieval_of_64": {
            name: {
                "full_captions": retrieval(model, work, full=True),
                "half_captions": retrieval(model, work, full=False),
            }
            for name, model in (("encoder", encoder), ("judge", judge))
        },
        "clap_score": {name: float((v * text).sum(1).mean()) for name, v in vectors.items()},
        "judge_score": {name: float((v * judged_text).sum(1).mean()) for name, v in judged.items()},
        "frechet_distance": {
            "generated": float(frechet_distance(vectors["generated"], vectors["real"])),
            "codec": float(frechet_distance(vectors["codec"], vectors["real"])),
            "other real clips": float(frechet_distance(other, vectors["real"])),
        },
        "frechet_distance_latents": {
            n: float(frechet_distance(latents[n], latents["real"])) for n in ("generated", "codec")
        },
        "kernel_distance": {
            "generated": float(kernel_distance(vectors["generated"], vectors["real"])),
            "codec": float(kernel_distance(vectors["codec"], vectors["real"])),
            "other real clips": float(kernel_distance(other, vectors["real"])),
        },
        "nearest_training_clip": {
            name: {"5 %": float(np.quantile(v, 0.05)), "median": float(np.median(v))} for name, v in near.items()
        },
        "cpu_seconds_of_32_clips": seconds,
        "threads": torch.get_num_threads(),
    }


def page(work: Path, weights: Path, path: Path) -> None:
    """A page of spectrograms: four captions, real and generated."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    pipeline = load_pipeline(weights / "pipeline")
    rows = [0, 1, 2, 4, 5, 6]
    texts = [caption(clip_of("test", i), random.Random(f"quality {clip_of('test', i).work}"))[0] for i in rows]
    sides = {"real": waves(audio(work, "test"), rows), "generated": generate(pipeline, texts, 12, 2.0)}
    sides["codec"] = pipeline.codec.decode(pipeline.codec.encode(sides["real"]))
    figure, axes = plt.subplots(len(rows), 3, figsize=(18, 3 * len(rows)))
    for column, name in enumerate(("real", "codec", "generated")):
        for row, text in enumerate(texts):
            image = pipeline.codec.bands(sides[name][row : row + 1])[0].detach().T
            axes[row, column].imshow(
                image, origin="lower", aspect="auto", extent=(0, 5.12, 0, image.shape[0]), vmin=-7, vmax=-1
            )
            axes[row, column].set_title(f"{name}: {text}", fontsize=8)
            axes[row, column].set_xlabel("seconds")
            axes[row, column].set_ylabel("band")
    figure.tight_layout()
    figure.savefig(path, dpi=55)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64)  # the package carries it: a quarter of the size
    small.save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures = measure(options.work, options.weights, options.clips, options.steps, options.guidance)
    target = options.out or options.weights / "quality.json"
    target.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    page(options.work, options.weights, target.with_name("spectrograms.png"))
