"""The published upsampling loop (SynthER), and the rows that benchmarks of transitions are made of.

Written down from the paper (Lu et al., 2023), Karras et al. (2022) and what the release does: a DataLoader of shuffled
rows with a worker a core, which start anew each epoch; accelerate around model, optimiser and loader; standardised
columns with the terminal among them; the loss weighted by lambda(sigma); AdamW, a cosine schedule; every ten steps an
average of the weights, copied for the first hundred, whose decay then rises to .995; stochastic Heun of 128 steps. Left
out are its progress bar and the logging of every step. The network is dragon's; the rest is shared with nothing.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from scipy.stats import t as student
from seeded_runs import ROOT
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dragon.synther import Transitions, TransitionSpec, read_npz
from dragon.synther.columns import Layout
from dragon.synther.network import ResidualMLP

RELEASED = TransitionSpec(flags="column", coding="plain")
ROWS, HELD_OUT = 20_000, 5_000


def scale(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise of EDM with sigma_data 1."""
    square = sigma**2 + 1
    return 1 / square, sigma / square.sqrt(), 1 / square.sqrt(), sigma.log() / 4


def denoised(net: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    skip, out, inside, noise = scale(sigma)
    result: Tensor = skip[:, None] * x + out[:, None] * net(inside[:, None] * x, noise)
    return result


class PlainLoop:
    """Network, average and optimiser; `train(steps)` takes so many steps more."""

    def __init__(self, rows: Tensor, width: int, inner: int, seed: int, total: int) -> None:
        torch.manual_seed(seed)
        self.net = ResidualMLP(rows.shape[1], width=width, inner=inner, depth=6)
        self.average = copy.deepcopy(self.net)
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
        loader = DataLoader(TensorDataset(rows), batch_size=256, shuffle=True, num_workers=os.cpu_count() or 1)
        self._accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
        self.net, self.optimiser, loader = self._accelerator.prepare(self.net, optimiser, loader)
        self._batches = self._endless(loader)
        self.step = 0

    @staticmethod
    def _endless(loader: DataLoader) -> Iterator[Tensor]:
        while True:
            for (batch,) in loader:
                yield batch

    def train(self, steps: int) -> None:
        for _ in range(steps):
            x = next(self._batches)
            sigma = (torch.randn(len(x)) * 1.2 - 1.2).exp()
            estimate = denoised(self.net, x + sigma[:, None] * torch.randn_like(x), sigma)
            weight = (sigma**2 + 1) / sigma**2
            loss = (weight * (estimate - x).square().mean(1)).mean()
            if not math.isfinite(loss.item()):
                raise RuntimeError("the loss is not finite")
            self._accelerator.backward(loss)
            self._accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            self._accelerator.wait_for_everyone()
            self.optimiser.step()
            self.optimiser.zero_grad()
            self._accelerator.wait_for_everyone()
            self.schedule.step()
            self.step += 1
            if self.step % 10 == 0:
                self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        # of ema_pytorch: a copy up to step 100, then a decay of 1 - (1 + steps since)^(-2/3), at most .995
        since = self.step - 101
        decay = 0.0 if since <= 0 else min(0.995, 1 - (1 + since) ** (-2 / 3))
        for kept, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
            kept.mul_(decay).add_(now, alpha=1 - decay)

    @torch.no_grad()
    def sample(self, n: int, d: int, steps: int = 128) -> Tensor:
        """(n, d) by stochastic Heun: Karras et al. (2022), algorithm 2."""
        ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
        levels = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        sigmas = [*levels.tolist(), 0.0]
        gamma = min(80 / steps, math.sqrt(2) - 1)
        x = sigmas[0] * torch.randn(n, d)
        for now, then in pairwise(sigmas):
            up = now * (1 + gamma) if 0.05 <= now <= 50 else now
            x = x + math.sqrt(up**2 - now**2) * 1.003 * torch.randn_like(x)
            slope = (x - denoised(self.average, x, torch.full((n,), up))) / up
            after = x + (then - up) * slope
            if then > 0:
                second = (after - denoised(self.average, after, torch.full((n,), then))) / then
                after = x + (then - up) * (slope + second) / 2
            x = after
        return x


def released(x: Tensor, layout: Layout, like: Transitions) -> Transitions:
    """Rows in data units as the release gives them: terminals read at one half, nothing clipped."""
    groups = {g.name: g for g in layout.groups}
    table = np.tile(np.concatenate([np.array(g.mean) for g in layout.groups]), (len(x), 1))
    for j, (name, i) in enumerate(layout.columns):
        place = layout.names.index(name if groups[name].flat else f"{name}.{i}")
        table[:, place] = x[:, j].double().numpy() * groups[name].scale[i] + groups[name].mean[i]
    o, a = like.observations.shape[1], like.actions.shape[1]
    seen, actions, rewards, after, over = np.split(table.astype(np.float32), np.cumsum([o, a, 1, o]), 1)
    return Transitions(seen, actions, rewards[:, 0], after, over[:, 0] > 0.5)


def data(task: str, seed: int) -> tuple[Transitions, Transitions]:
    """Rows of the fit and held-out ones; another split for each seed."""
    file = ROOT / "runs" / "upsampling" / f"{task}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        script = ROOT / "recipes" / "transitions" / "collect.py"
        subprocess.run([sys.executable, script, task, "--rows", str(ROWS), "--out", file], check=True)
    every = read_npz(file)
    order = np.random.default_rng(seed).permutation(len(every))
    return every.rows(np.sort(order[HELD_OUT:])), every.rows(np.sort(order[:HELD_OUT]))


def run_missing(script: str, wanted: Sequence[Sequence[object]], kept: Callable[..., Path], workers: int) -> None:
    """`python SCRIPT --one ...` of every job whose result is not kept yet, so many at once, in their order."""

    def job(what: Sequence[object]) -> None:
        if not kept(*what).exists():
            subprocess.run([sys.executable, script, "--one", *map(str, what)], check=True, cwd=ROOT)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(job, wanted))


def keep(what: Sequence[str], one: Callable[..., dict[str, Any]], kept: Callable[..., Path]) -> None:
    """The job of one `--one ...`, whose last word is a seed: makes its result, stores and prints it."""
    job = (*what[:-1], int(what[-1]))
    found = json.dumps(one(*job))
    kept(*job).write_text(found + "\n", encoding="utf-8")
    print(found, flush=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval, Student's; NaN for a single value."""
    x = np.asarray(values)
    half = float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
    return float(x.mean()), half


def shown(runs: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    """Mean ± half of the interval over the runs whose value is a finite number; "-" if there are none."""
    finite = [run[key] for run in runs if run[key] is not None and math.isfinite(run[key])]
    if not finite:
        return "-"
    middle, half = interval(finite)
    return f"{middle:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")
