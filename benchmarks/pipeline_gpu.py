"""A network of Stable Audio Open's size on one GPU: seconds, memory, and the share of the card's own matrix rate.

    python benchmarks/pipeline_gpu.py              # under 8 minutes on an H200
    python benchmarks/pipeline_gpu.py --minutes 4  # what fits; the most telling cells come first

Target: a roll-out and an update reach at least 40 % of the rate of bfloat16 matrix products that the same card reaches
on large square matrices, measured first.

The weights are random: cost does not depend on them. Cells: a roll-out of 8 clips in 16 steps of the pipeline's own
scheduler with guidance, an update of the learner on 8 pairs (reference, policy, backward, AdamW), decoding 8 clips; as
they are, compiled, with gradient checkpointing. FLOP are counted on one clip or pair, eager and without checkpointing,
and multiplied: what is computed twice counts once. Each variant has a process of its own, and each cell is kept as soon
as it is measured: no memory, a crash or the end of the time loses no other. Results lie as JSON in
benchmarks/results/pipeline_gpu, one file a card, and docs/pipeline_cost.md is written anew.

Without a GPU everything runs at toy size on the CPU. That shows that the script works and nothing about cost: results
lie in runs/pipeline_gpu then, and the table of the page stays open.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from pipeline_cost import GPU_RESULTS, PAGE, RANK, keep, settings, write_page  # noqa: E402
from random_pipelines import OPEN, PROMPTS, TOY, parameters, stable_audio  # noqa: E402
from seeded_runs import ROOT  # noqa: E402

GUIDANCE = 7.0
TOY_CARD = "no GPU: toy size on the CPU"


@dataclass(frozen=True)
class Size:
    """What is measured: the network, and how much of it."""

    network: Mapping[str, int]
    decoder_channels: int
    text_tokens: int
    clips: int
    steps: int
    pairs: int
    matrices: tuple[int, ...]
    """Sides of the square matrices whose products give the card's rate."""
    repeats: int


FULL = Size(OPEN, 128, 128, clips=8, steps=16, pairs=8, matrices=(8192, 16384), repeats=4)
SMALLEST = Size(TOY, 4, 16, clips=2, steps=2, pairs=2, matrices=(256,), repeats=2)


@dataclass(frozen=True)
class Variant:
    """How the network runs, and which cells that matters to."""

    compiled: bool
    checkpointed: bool
    cells: tuple[str, ...]


VARIANTS = (
    Variant(False, False, ("rollout", "train", "decode")),
    Variant(True, False, ("rollout", "train")),
    Variant(False, True, ("train",)),
    Variant(True, True, ("train",)),
)


def key(cell: str, variant: Variant) -> str:
    """Name of a cell among the results."""
    return cell + "_compiled" * variant.compiled + "_checkpointed" * variant.checkpointed


def described(cell: str, variant: Variant, size: Size) -> dict[str, Any]:
    what = {
        "rollout": f"roll-out, {size.clips} clips x {size.steps} steps",
        "train": f"update, {size.pairs} pairs",
        "decode": f"decode, {size.clips} clips",
    }[cell]
    return {"what": what, "compiled": variant.compiled, "checkpointed": variant.checkpointed}


# ---- one process: a variant's cells


class Clock:
    """Seconds and peak memory of calls on a device: wall clock between synchronisations, or CPU time on a CPU."""

    def __init__(self, device: str) -> None:
        self._gpu = device == "cuda"

    def now(self) -> float:
        import torch

        if not self._gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, run: Callable[[], object], repeats: int, warm: int = 2) -> dict[str, Any]:
        """The first call by itself (it compiles and chooses kernels), more to get warm, then those that count."""
        import torch

        began = self.now()
        run()
        first = self.now() - began
        for _ in range(warm - 1):
            run()
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            began = self.now()
            run()
            seconds.append(self.now() - began)
        return {"seconds": median(seconds), "all": seconds, "first": first, "peak_gb": self.peak_gb()}

    def peak_gb(self) -> float:
        import resource

        import torch

        if self._gpu:
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def flop(run: Callable[[], object]) -> float:
    """Floating-point operations of matrix products, convolutions and attention in `run`, forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # compiled code is one operation to the counter
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def matrix_rate(size: Size, device: str) -> dict[str, Any]:
    """TFLOP/s of square matrix products in the format that the network runs in; the best size counts."""
    import torch

    clock, dtype, found = Clock(device), number_format(device), {}
    for n in size.matrices:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        product = torch.empty(n, n, device=device, dtype=dtype)

        def several(a: Any = a, b: Any = b, product: Any = product) -> None:
            for _ in range(20):
                torch.mm(a, b, out=product)

        timed = clock.timed(several, 5)
        found[str(n)] = 20 * 2 * n**3 / timed["seconds"] / 1e12
    return {"tflops": max(found.values()), "by_size": found, "format": str(dtype).removeprefix("torch.")}


def number_format(device: str) -> Any:
    import torch

    return torch.bfloat16 if device == "cuda" else torch.float32


class Subject:
    """The policy of one variant with what its cells need, made once."""

    def __init__(self, variant: Variant, size: Size, device: str) -> None:
        import torch

        from dragon.learner import Learner
        from dragon.objectives import DPO
        from dragon.policy.pipeline import PipelinePolicy
        from dragon.pool import PairPool

        torch.manual_seed(0)
        self.size, self.device, self.variant = size, device, variant
        pipe = stable_audio(
            size.network, decoder_channels=size.decoder_channels, text_tokens=size.text_tokens, device=device
        )
        low: Any = "bfloat16" if device == "cuda" else "float32"
        self.policy = PipelinePolicy(
            pipe,
            rank=RANK,
            precision=low,
            weights=low,
            compile=variant.compiled,
            gradient_checkpointing=variant.checkpointed,
            device=device,
        )
        self.network = pipe.transformer
        self.policy.encode([*PROMPTS, ""])  # remembered from here on

        def sample(seed: int, count: int) -> Any:
            from dragon.media import Generation

            generator = torch.Generator().manual_seed(seed)
            latents = torch.randn(count, *self.policy.event_shape, generator=generator).to(device)
            prompts = tuple(PROMPTS[i % len(PROMPTS)] for i in range(count))
            return Generation(latents, self.policy.encode(prompts), prompts, tuple(range(count)))

        def learner(pairs: int) -> Learner:
            return Learner(
                self.policy, DPO(), weight_decay=0.0, betas=(0.9, 0.999), max_grad_norm=1.0, ema_decay=0.99,
                old_decay=0.0, pairs_per_update=pairs, micro_batch_size=pairs, calibration_updates=0, beta_target=1.0,
            )  # fmt: skip

        self.generation = sample(3, size.clips)
        self._pool = PairPool(sample(1, size.pairs), sample(2, size.pairs))
        self._one, self._all = learner(1), learner(size.pairs)

    def rollout(self, clips: int, steps: int) -> None:
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(clips)]
        self.policy.generate(prompts, list(range(clips)), steps=steps, guidance=GUIDANCE)

    def train(self, pairs: int) -> None:
        import torch

        learner = self._one if pairs == 1 else self._all
        update = learner.update(self._pool, torch.Generator().manual_seed(0), learning_rate=1e-6)
        if update.skipped:
            raise RuntimeError(f"the update was left out: {update.skipped}")
        if learner._batching.size < pairs:
            raise MemoryError(f"the update was cut into micro-batches of {learner._batching.size}")

    def cell(self, name: str) -> dict[str, Any]:
        """Measures one cell."""
        clock, size = Clock(self.device), self.size
        if name == "decode":
            return clock.timed(lambda: self.policy.decode(self.generation), size.repeats)
        if name == "rollout":
            count = flop(lambda: self.rollout(1, 1)) * size.clips * size.steps
            run: Callable[[], object] = lambda: self.rollout(size.clips, size.steps)  # noqa: E731
        else:
            count = self._plain(lambda: self.train(1)) * size.pairs
            run = lambda: self.train(size.pairs)  # noqa: E731
        return {"tflop": count / 1e12} | clock.timed(run, size.repeats)

    def _plain(self, run: Callable[[], object]) -> float:
        if not self.variant.checkpointed:
            return flop(run)
        self.network.disable_gradient_checkpointing()
        try:
            return flop(run)
        finally:
            self.network.enable_gradient_checkpointing()


def measure(variant: Variant, size: Size, device: str, found: Callable[[str, dict[str, Any]], None]) -> None:
    """Hands each cell to `found` as soon as it is there; one that fails says why, and the next is tried."""
    import torch

    try:
        subject = Subject(variant, size, device)
    except Exception as error:
        for name in variant.cells:
            found(key(name, variant), described(name, variant, size) | {"failed": reason(error)})
        return
    for name in variant.cells:
        try:
            figures = subject.cell(name) | {"parameters": parameters(subject.network)}
        except Exception as error:
            figures = {"failed": reason(error)}
        if "failed" in figures and device == "cuda":  # outside the handler, which holds the tensors of the failed call
            torch.cuda.empty_cache()
        found(key(name, variant), described(name, variant, size) | figures)


def reason(error: BaseException) -> str:
    """In a few words, as it stands in the table."""
    import torch

    from dragon.errors import OutOfMemory

    if isinstance(error, torch.OutOfMemoryError | OutOfMemory | MemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:150] if lines else ''}".replace("|", "/")


# ---- all processes


class Results:
    """The file of one card, written whole after every cell."""

    def __init__(self, folder: Path, card: str, toy: bool) -> None:
        self.folder, self.name = folder, re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") if not toy else "toy"
        self._head = {"card": card, "toy": toy}

    def read(self) -> dict[str, Any]:
        file = self.folder / f"{self.name}.json"
        if file.is_file():
            stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return stored
        return {"cells": {}}

    def add(self, name: str, cell: Mapping[str, Any]) -> None:
        cells = self.read()["cells"]
        ordered = ["rate", *(key(cell, variant) for variant in VARIANTS for cell in variant.cells)]
        cells = {k: v for k, v in sorted((cells | {name: dict(cell)}).items(), key=lambda kv: ordered.index(kv[0]))}
        keep(self.folder, self.name, self._head | settings() | {"cells": cells})

    def forget(self) -> None:
        (self.folder / f"{self.name}.json").unlink(missing_ok=True)


def run_all(results: Results, jobs: Sequence[str], minutes: float, command: Sequence[str]) -> None:
    """Each job in a process of its own until the time is over; what a process did not get to is said in its cells."""
    end = time.monotonic() + 60 * minutes
    for job in jobs:
        left, why = end - time.monotonic(), ""
        if left < 10:
            why = "not run: no time left"
        else:
            try:
                status = subprocess.run([*command, "--one", job], timeout=left).returncode
                why = f"the process ended with {status}" if status else ""
            except subprocess.TimeoutExpired:
                why = "not finished: no time left"
        done = results.read()["cells"]
        for name, head in cells_of(job).items():
            if name not in done:
                results.add(name, head | {"failed": why or "not measured"})


def cells_of(job: str) -> dict[str, dict[str, Any]]:
    """Names and heads of a job's cells; the job "rate" has one."""
    if job == "rate":
        return {"rate": {}}
    variant = VARIANTS[int(job)]
    return {key(name, variant): described(name, variant, _size()) for name in variant.cells}


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _size() -> Size:
    return FULL if _gpu() else SMALLEST


def card() -> str:
    """The GPU's name, or that there is none."""
    import torch

    return torch.cuda.get_device_name() if _gpu() else TOY_CARD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--results", type=Path, default=GPU_RESULTS if _gpu() else ROOT / "runs" / "pipeline_gpu")
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cuda" if _gpu() else "cpu"
    results = Results(options.results, card(), device == "cpu")
    if options.one == "rate":
        results.add("rate", matrix_rate(_size(), device))
        return
    if options.one:
        measure(VARIANTS[int(options.one)], _size(), device, results.add)
        return
    print(f"{card()}: {options.minutes:g} minutes at most", flush=True)
    results.forget()
    command = [sys.executable, __file__, "--results", str(options.results)]
    run_all(results, ["rate", *map(str, range(len(VARIANTS)))], options.minutes, command)
    write_page(options.out)
    if device == "cpu":
        print("no GPU here: these figures are of a toy on the CPU, and the table of the page stays open", flush=True)


if __name__ == "__main__":
    main()
