"""Stage 6: half-precision weights, prompts and vocabulary -> one folder as the package ships it."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from denoise import Model
from diffusers import FlowMatchEulerDiscreteScheduler
from world import PHRASES, caption, draw_clip, vocabulary

from dragon.mini.codec import MiniCodec
from dragon.mini.pipeline import MiniPipeline

# Prompt list -> (first work, prompts). Works from 2,500,000 on were heard by no stage.
PROMPTS = {
    "train": (0, 2_000),
    "open_train": (0, 2_000),
    "dev": (2_500_000, 256),
    "test": (2_600_000, 512),
    "open_test": (2_700_000, 512),
}


def pipeline(work: Path, denoiser: Path, codec: Path) -> MiniPipeline:
    """The pipeline of a state file of stage 4 (its averaged weights) and a trained codec."""
    model = Model()
    state = torch.load(denoiser, weights_only=True)
    model.load_state_dict(state["model"])
    if "average" in state:  # a state of unfinished training
        for name, parameter in model.named_parameters():
            parameter.data.copy_(state["average"][name])
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    return MiniPipeline(
        model.words.tokenizer(),
        model.text.eval(),
        model.denoiser.eval(),
        MiniCodec.from_pretrained(codec).eval(),
        scheduler,
    )


def write_prompts(out: Path) -> None:
    """prompts_*.txt: captions that reveal a random half; in the open lists never the style."""
    for split, (first, count) in PROMPTS.items():
        rng, lines = random.Random(f"prompts {split}"), []
        for work in range(first, first + count):
            names = [name for name in PHRASES if not (split.startswith("open") and name == "style")]
            reveal = tuple(rng.sample(names, rng.choice((4, 5))))
            lines.append(caption(draw_clip(work), rng, reveal=reveal)[0] + "\n")
        (out / f"prompts_{split}.txt").write_text("".join(lines), encoding="utf-8")
    (out / "vocabulary.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "dragon" / "mini" / "weights")
    parser.add_argument("--denoiser", type=Path, help="a state file; default: the finished one")
    parser.add_argument("--codec", type=Path, help="a codec folder; default: the finished one")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    made = pipeline(
        options.work,
        options.denoiser or options.work / "denoiser_trained.pt",
        options.codec or options.work / "codec_trained",
    )
    for part in (made.text_encoder, made.denoiser, made.codec):
        part.half()
    made.save_pretrained(options.out / "pipeline")
    for config in (options.out / "pipeline").glob("*/config.json"):  # a path on the building machine is no setting
        kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for part in ("encoder", "judge", "readers"):
        if (options.work / part).exists():
            shutil.copytree(options.work / part, options.out / part, dirs_exist_ok=True)
    write_prompts(options.out)
    total = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
    print(f"{options.out}: {total / 1e6:.1f} MB")
