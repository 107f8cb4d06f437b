"""Stage 9: quality.json -> the model card, dragon/mini/weights/README.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dragon.mini import WEIGHTS

HEAD = """# The built-in text-to-music model

Caption -> 5.12 s of music, 16 kHz mono, on a laptop's CPU. Small on purpose: it is there so that reward tuning can
be run, heard and checked anywhere. Everything in this folder was made by the scripts of `recipes/mini` (see
Costs) from packages of PyPI and Debian; nothing was downloaded from a model hub.

| part | what it is | million parameters |
| --- | --- | --- |
{parts}

All weights: {megabytes:.1f} MB in half precision. Captions are made of {words} words (`vocabulary.txt`); other words
are ignored, and `dragon sample` says which.

## Data and licences

All music was composed by `recipes/mini/compose.py` (own work, CC0): {train:,} works to train on, {judge:,} others for
the judge, {test:,} held out. Sound fonts: FluidR3 Mono GM (MIT; Debian `fluidr3mono-gm-soundfont`); for half of the
judge's clips MuseScore General Lite (MIT, parts public domain or CC0; Debian `musescore-general-soundfont-small`).
Weights: Apache-2.0, as the project.

A clip has a style (12), a lead instrument (10), a tempo (80, 110 or 150 beats a minute, within 2 %), a mode, drums or
none, a dense or sparse melody, a register, a level, a brightness, and three tonics; a caption reveals a random half.
One (style, lead) pair in ten was never trained on; every fourth held-out clip has such a pair.

## Costs

{costs}
"""


def figures(quality: dict[str, Any], weights: Path) -> str:
    """The measured part of the card."""
    read, settings = quality["adherence"], quality["settings"]
    lines = [
        "## Quality",
        "",
        f"`python recipes/mini/quality.py --work WORK` on {settings['clips']} held-out works, "
        f"{settings['steps']} steps, guidance {settings['guidance']}, "
        f"{quality['threads']} thread(s). Figures: `quality.json`.",
        "",
        "Share of clips on which a reader hears what the caption says (only attributes that the caption reveals):",
        "",
        "| attribute | generated | real renders | through the codec | generated / real | generated, unseen pairs "
        "| reader's accuracy, all real clips |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in read["real"]:
        lines.append(
            f"| {name} | {read['generated'][name]:.2f} | {read['real'][name]:.2f} | {read['codec'][name]:.2f} | "
            f"{quality['relative_adherence'][name]:.2f} | {read['generated, unseen pairs'][name]:.2f} | "
            f"{quality['reader_accuracy'][name]:.2f} |"
        )
    weak = [name for name, value in read["codec"].items() if value < 0.9]
    if weak:
        lines += ["", f"Readers below .9 through the codec, so no claim rests on them: {', '.join(weak)}."]
    near = quality["nearest_training_clip"]
    distances, kernels, latents = (
        quality["frechet_distance"],
        quality["kernel_distance"],
        quality["frechet_distance_latents"],
    )
    lines += ["", "| figure | generated | codec floor | other real clips |", "| --- | --- | --- | --- |"]
    lines.append(_row("Frechet distance, audio-text encoder, clip vectors", distances, 4))
    lines.append(_row("Frechet distance, codec latents, frames", latents, 3))
    lines.append(_row("KAD, audio-text encoder", kernels, 3))
    lines += ["", "| | generated | real | codec |", "| --- | --- | --- | --- |"]
    for key, title in (("clap_score", "CLAP score"), ("judge_score", "judge score")):
        lines.append(
            f"| {title} | {quality[key]['generated']:.3f} | {quality[key]['real']:.3f} | {quality[key]['codec']:.3f} |"
        )
    for name, values in quality["retrieval_of_64"].items():
        lines += [
            "",
            f"R@1 of 64, {name}: {values['full_captions']:.3f} with full captions, "
            f"{values['half_captions']:.3f} with half.",
        ]
    lines += [
        "",
        f"Memorisation: cosine distance to the nearest of {settings['training_clips']:,} training clips "
        f"(audio-text encoder), median "
        f"{near['generated']['median']:.3f} (5 %: {near['generated']['5 %']:.3f}) for samples, "
        f"{near['real']['median']:.3f} ({near['real']['5 %']:.3f}) for held-out real clips.",
        "",
        f"Speed: 32 clips with decoding in {quality['cpu_seconds_of_32_clips']:.1f} CPU-s.",
        "",
        "![Spectrograms: real, through the codec, generated](spectrograms.png)",
        "",
        "## Limits",
        "",
        "Three keys, twelve styles, five seconds. The decoder predicts phase without an adversarial loss, so sustained "
        "tones sound rough. Use it to study reward tuning, not to make records.",
    ]
    return "\n".join(lines) + "\n"


def _row(title: str, values: dict[str, float], digits: int) -> str:
    return (
        f"| {title} | "
        + " | ".join(
            f"{values[k]:.{digits}f}" if k in values else "" for k in ("generated", "codec", "other real clips")
        )
        + " |"
    )


def head(weights: Path, costs: str) -> str:
    """The described part of the card."""
    from data import COUNTS
    from safetensors import safe_open

    parts = {
        "pipeline/denoiser": "diffusion transformer, rectified flow, 40 tokens of two latent frames",
        "pipeline/text_encoder": "T5 encoder, trained with the denoiser",
        "pipeline/codec": "fixed band analysis and principal components; convolutional decoder",
        "encoder": "audio-text encoder (rewards)",
        "judge": "second audio-text encoder, never a reward",
        "readers": "classifiers of the attributes, for measurement",
    }
    rows = []
    for folder, text in parts.items():
        total = 0
        for file in (weights / folder).glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                total += sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118
        rows.append(f"| `{folder}` | {text} | {total / 1e6:.2f} |")
    size = sum(p.stat().st_size for p in weights.rglob("*") if p.is_file()) / 1e6
    words = len((weights / "vocabulary.txt").read_text(encoding="utf-8").split())
    return HEAD.format(parts="\n".join(rows), megabytes=size, words=words, costs=costs, **COUNTS)


def costs(work: Path) -> str:
    """CPU time of the stages, from what they left in the work folder."""
    rendered = sum(json.loads(p.read_text())["cpu_seconds"] for p in (work / "done").glob("*") if p.stat().st_size)
    stages = {name: json.loads((work / f"{name}.json").read_text()) for name in ("decoder", "denoiser", *_LISTENERS)}
    steps, error = stages["denoiser"]["steps"], stages["denoiser"]["history"][-1][2]
    spent = {name: f"{stage['cpu_seconds']:,}" for name, stage in stages.items() if "cpu_seconds" in stage}
    return (
        f"CPU-seconds on one thread of a two-core cloud machine (AMD EPYC, no GPU): rendering {rendered:,.0f}; "
        + "; ".join(f"{name} {seconds}" for name, seconds in spent.items())
        + f". Denoiser: {steps:,} steps of 64, held-out velocity error {error:.3f}."
    )


_LISTENERS = ("encoder", "judge", "readers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--note", default="", help="a sentence on how these weights came about, put under Costs")
    options = parser.parse_args()
    measured = json.loads((options.weights / "quality.json").read_text(encoding="utf-8"))
    card = (
        head(options.weights, f"{costs(options.work)} {options.note}".strip())
        + "\n"
        + figures(measured, options.weights)
    )
    (options.weights / "README.md").write_text(card, encoding="utf-8")
