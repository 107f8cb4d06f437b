"""Stage 6: half-precision weights, prompts and vocabulary -> one folder as the package ships it."""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import torch
from data import clip_of
from denoise import Model
from diffusers import FlowMatchEulerDiscreteScheduler
from world import caption, draw_clip, vocabulary

from dragon.mini.codec import MiniCodec
from dragon.mini.pipeline import MiniPipeline

PROMPTS = {"train": 2_000, "dev": 256, "test": 512}
# Works of the prompt lists: dev and test prompts come from works that no stage has heard.
PROMPT_WORKS = {"train": 0, "dev": 2_500_000, "test": 2_600_000}


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
    """prompts_{train,dev,test}.txt: captions that reveal a random half."""
    for split, count in PROMPTS.items():
        rng = random.Random(f"prompts {split}")
        clips = [clip_of("train", i) if split == "train" else draw_clip(PROMPT_WORKS[split] + i) for i in range(count)]
        (out / f"prompts_{split}.txt").write_text("".join(caption(c, rng)[0] + "\n" for c in clips), encoding="utf-8")
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
    made.to(torch.float16).save_pretrained(options.out / "pipeline")
    for part in ("encoder", "judge", "readers"):
        if (options.work / part).exists():
            shutil.copytree(options.work / part, options.out / part, dirs_exist_ok=True)
    write_prompts(options.out)
    total = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
    print(f"{options.out}: {total / 1e6:.1f} MB")
