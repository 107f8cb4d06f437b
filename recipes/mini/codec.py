"""Stage 3: train the codec's decoder, within a budget of CPU time. Resumable."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from budget import Average, Budget, save
from data import COUNTS, audio
from torch import Tensor

from dragon.mini.analysis import HOP, Bands
from dragon.mini.codec import MiniCodec


class SpectralLoss(torch.nn.Module):
    """Log-magnitude L1 and spectral convergence at four resolutions, plus L1 of the codec's own bands."""

    def __init__(self) -> None:
        super().__init__()
        self.bands = Bands()
        self.sizes = (512, 1024, 2048, 4096)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        loss = (self.bands(made) - self.bands(real)).abs().mean()
        for size in self.sizes:
            window = torch.hann_window(size)
            a, b = (torch.stft(x, size, size // 4, size, window, return_complex=True).abs() for x in (made, real))
            floor = 2.5e-4 * size  # as the bands' floor: a thousandth of a full-scale sine
            loss = loss + 0.25 * (torch.log(a + floor) - torch.log(b + floor)).abs().mean()
            loss = loss + 0.25 * torch.linalg.norm(a - b) / torch.linalg.norm(b).clamp_min(1e-3)
        return loss


def train(work: Path, minutes: float, batch: int = 8, tokens: int = 24, peak: float = 1e-3) -> None:
    """Trains on random segments until the CPU time is spent."""
    codec = MiniCodec.from_pretrained(work / "codec_fitted")
    state_path = work / "decoder.pt"
    store, latents = audio(work, "train"), np.load(work / "latents_train.npy", mmap_mode="r")
    optimiser = torch.optim.AdamW(codec.parameters(), lr=peak, betas=(0.8, 0.99), weight_decay=0.01)
    average, step, shown, spent = Average(codec, 0.998), 0, 0.0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        codec.load_state_dict(state["codec"])
        optimiser.load_state_dict(state["optimiser"])
        average.values, spent, step, shown = state["average"], state["spent"], state["step"], state["loss"]
    rng, loss_of, budget, saved = (
        np.random.default_rng(1000 + step),
        SpectralLoss(),
        Budget(minutes, spent),
        time.time(),
    )
    while budget.fraction < 1.0:
        for group in optimiser.param_groups:
            group["lr"] = budget.rate(peak, step)
        rows = np.sort(rng.integers(0, COUNTS["train"], batch))
        first = int(rng.integers(0, 80 - tokens + 1))
        span = slice(first * 4 * HOP, (first + tokens) * 4 * HOP)
        real = torch.from_numpy(store[rows, span].astype(np.float32) / 32767.0)
        with torch.autocast("cpu", torch.bfloat16):
            spectrum = codec.spectrum(torch.from_numpy(latents[rows, first : first + tokens].astype(np.float32)))
        # the ends of a segment see padding where a whole clip has music: they are not judged
        loss = loss_of(codec.invert(spectrum)[:, 1024:-1024], real[:, 1024:-1024])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimiser.step()
        step += 1
        average.update(codec, step)
        shown = loss.item() if step == 1 else 0.98 * shown + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"decoder step {step} loss {shown:.4f} {budget.spent:.0f}/{budget.total:.0f} CPU-s", flush=True)
        if time.time() - saved > 60:
            state = {"codec": codec.state_dict(), "optimiser": optimiser.state_dict(), "average": average.values}
            save(state_path, state | {"spent": budget.spent, "step": step, "loss": shown})
            saved = time.time()
    average.copy_to(codec)
    codec.save_pretrained(work / "codec_trained")
    (work / "decoder.json").write_text(json.dumps({"steps": step, "cpu_seconds": round(budget.spent), "loss": shown}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=18.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    train(options.work, options.minutes)
