"""Stage 4: train the denoiser and its text encoder together, within a budget of CPU time. Resumable.

Rectified flow matching, time drawn logit-normally (Esser et al. 2024, section 3.1). Captions are
made anew for every sample: a random part of the attributes, in random words and order; one in ten
is empty, for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from budget import Average, Budget, save
from data import COUNTS, clip_of
from torch import Tensor, nn
from world import PHRASES, Clip, caption, vocabulary

from dragon.mini import text_config
from dragon.mini.denoiser import MiniDenoiser
from dragon.mini.words import Words


class Model(nn.Module):
    """Denoiser and text encoder as one module."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import T5EncoderModel

        self.words = Words(vocabulary())
        config = text_config(len(self.words))
        config._attn_implementation = "eager"  # the fused kernel's backward is slow over short texts
        self.text = T5EncoderModel(config)
        self.denoiser = MiniDenoiser()

    def forward(self, x: Tensor, time_: Tensor, captions: list[str]) -> Tensor:
        ids = self.words(captions)
        ids = ids[:, : int((ids > 0).sum(1).max())]
        mask = ids > 0
        text = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self.denoiser(x, time_, text, mask)


def training_caption(clip: Clip, rng: random.Random) -> str:
    """Any number of attributes, those that define a clip more often; sometimes nothing at all."""
    if rng.random() < 0.1:
        return ""
    share = rng.choice((0.35, 0.6, 0.9))
    reveal = tuple(name for name in PHRASES if rng.random() < share + 0.1 * (name in ("style", "lead", "tempo")))
    text, _ = caption(clip, rng, reveal=reveal or ("style",))
    return " ".join(word for word in text.replace(",", "").split() if rng.random() > 0.03)


def optimisers(model: Model) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for all else."""
    matrices = [p for p in model.denoiser.blocks.parameters() if p.ndim == 2 and min(p.shape) >= 64]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.01, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


@torch.no_grad()
def held_out_error(model: Model, latents: np.ndarray) -> float:
    """Velocity error on held-out clips at fixed noise, times and captions."""
    generator = torch.Generator().manual_seed(1)
    rows = [i for i in range(512) if i % 4 != 3][:256]
    x0 = torch.from_numpy(latents[rows].astype(np.float32))
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.sigmoid(torch.randn(len(rows), generator=generator))
    captions = [training_caption(clip_of("test", i), random.Random(i)) for i in rows]
    z = torch.lerp(x0, noise, t[:, None, None])
    with torch.autocast("cpu", torch.bfloat16):
        made = torch.cat(
            [model(z[i : i + 64], t[i : i + 64], captions[i : i + 64]).float() for i in range(0, len(rows), 64)]
        )
    return float((made - (noise - x0)).square().mean())


def train(work: Path, minutes: float, batch: int = 64) -> None:
    """Trains until the CPU time is spent, then saves the averaged weights."""
    torch.manual_seed(0)
    model, state_path = Model(), work / "denoiser.pt"
    latents, test = np.load(work / "latents_train.npy"), np.load(work / "latents_test.npy")
    clips = [clip_of("train", i) for i in range(COUNTS["train"])]
    tuned = optimisers(model)
    peaks = [group["lr"] for optimiser in tuned for group in optimiser.param_groups]
    average, step, shown, spent, history = Average(model, 0.998), 0, 0.0, 0.0, []
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, values in zip(tuned, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        average.values, step, shown, spent, history = (
            state[k] for k in ("average", "step", "loss", "spent", "history")
        )
    budget, saved = Budget(minutes, spent), time.time()
    while budget.fraction < 1.0:
        rng = np.random.default_rng((7, step))
        words = random.Random(step)
        torch.manual_seed(step)
        for optimiser, peak in zip(tuned, peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = budget.rate(peak, step, warmup=50)
        rows = rng.integers(0, COUNTS["train"], batch)
        x0 = torch.from_numpy(latents[rows].astype(np.float32))
        noise, t = torch.randn(x0.shape), torch.sigmoid(torch.randn(batch))
        with torch.autocast("cpu", torch.bfloat16):
            made = model(torch.lerp(x0, noise, t[:, None, None]), t, [training_caption(clips[i], words) for i in rows])
        loss = (made.float() - (noise - x0)).square().mean()
        for optimiser in tuned:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in tuned:
            optimiser.step()
        step += 1
        average.update(model, step)
        shown = loss.item() if step == 1 else 0.98 * shown + 0.02 * loss.item()
        if step % 20 == 0:
            print(f"denoiser step {step} loss {shown:.4f} {budget.spent:.0f}/{budget.total:.0f} CPU-s", flush=True)
        if time.time() - saved > 120:
            state = {
                "model": model.state_dict(),
                "optimisers": [o.state_dict() for o in tuned],
                "average": average.values,
            }
            save(state_path, state | {"spent": budget.spent, "step": step, "loss": shown, "history": history})
            saved = time.time()
        if step % 300 == 0:
            raw = {name: p.detach().clone() for name, p in model.named_parameters()}
            average.copy_to(model)
            history.append([step, round(budget.spent), held_out_error(model, test)])
            for name, p in model.named_parameters():
                p.data.copy_(raw[name])
            print(f"denoiser step {step} held-out error {history[-1][2]:.4f}", flush=True)
    average.copy_to(model)
    history.append([step, round(budget.spent), held_out_error(model, test)])
    save(work / "denoiser_trained.pt", {"model": model.state_dict()})
    (work / "denoiser.json").write_text(
        json.dumps({"steps": step, "cpu_seconds": round(budget.spent), "history": history})
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=55.0)
    options = parser.parse_args()
    train(options.work, options.minutes)
