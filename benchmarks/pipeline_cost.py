"""What a policy costs over the pipeline that it drives: docs/pipeline_cost.md.

    python benchmarks/pipeline_cost.py                        # some 12 CPU minutes
    python benchmarks/pipeline_cost.py --cases stable_audio_1 # only that case anew
    python benchmarks/pipeline_cost.py --cases                # only the page, of what is kept

Claim: a roll-out through the policy takes less than 2 % more CPU time than the pipeline's own `__call__`.

Each case is a randomly initialised pipeline with LoRA on its denoiser, and both sides run that same network: the
pipeline called with `prompt_embeds`, the policy with the prompts it remembers, so that neither encodes text. One
generator a sample, latents as output, results compared first. Rounds run both sides one after the other, in turn first;
a ratio is that of one round. Clocks around the network say where the rest goes. A few rounds run the policy's reference
(LoRA off) too. Finished cases lie as JSON in benchmarks/results/pipeline_cost; the page is made of all that are there,
and of what `pipeline_gpu.py` has kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from random_pipelines import PROMPTS, SMALL, parameters, stable_audio, stable_diffusion  # noqa: E402
from seeded_runs import ROOT, processor  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "pipeline_cost"
GPU_RESULTS = ROOT / "benchmarks" / "results" / "pipeline_gpu"
PAGE = ROOT / "docs" / "pipeline_cost.md"
LIMIT = 0.02
TARGET = 0.4  # of the card's measured matrix rate
STEPS, ROUNDS, RANK = 6, 20, 16
REFERENCE_ROUNDS = 4
SIDES = ("own", "policy", "reference")


@dataclass(frozen=True)
class Case:
    """A pipeline, the rows of a batch, and what its own call is given besides the prompts."""

    name: str
    family: str
    make: Callable[[], Any]
    rows: int
    guidance: float


def _audio() -> Any:
    return stable_audio(SMALL, decoder_channels=4, text_tokens=32)


def _images() -> Any:
    return stable_diffusion((96, 192, 384), latent=16)


CASES = [
    Case(f"{family}_{rows}", family, make, rows, guidance)
    for family, make, guidance in (("stable_audio", _audio, 7.0), ("stable_diffusion", _images, 7.5))
    for rows in (1, 4)
]


# ---- measuring


class Inside:
    """CPU seconds spent inside a module, and its calls."""

    def __init__(self, module: Any) -> None:
        self.seconds, self.calls, self._began = 0.0, 0, 0.0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._began = time.process_time()

    def _end(self, *_: object) -> None:
        self.seconds += time.process_time() - self._began
        self.calls += 1


def measure(case: Case, rounds: int = ROUNDS, steps: int = STEPS) -> dict[str, Any]:
    """CPU seconds of each round, whole and inside the network, of the three sides.

    Raises:
        SystemExit: the sides do not sample the same latents, or do not call the network equally often.
    """
    import torch

    from dragon.policy.pipeline import PipelinePolicy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    pipe = case.make()
    policy = PipelinePolicy(pipe, rank=RANK)
    prompts, seeds = PROMPTS[: case.rows], list(range(case.rows))
    given = own_conditions(pipe, prompts)
    inside = Inside(getattr(pipe, policy._backbone._family.part))  # type: ignore[attr-defined]

    def own() -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = {"num_inference_steps": steps, "guidance_scale": case.guidance, "output_type": "latent"}
        return pipe(**given, **call, generator=generators, return_dict=False)[0]

    def through_policy() -> Any:
        return policy.generate(prompts, seeds, steps=steps, guidance=case.guidance).latents

    def reference() -> Any:
        with policy.reference():
            return through_policy()

    sides = dict(zip(SIDES, (own, through_policy, reference), strict=True))
    found = {name: run() for name, run in sides.items()}  # warm, the prompts encoded and remembered
    difference = float((found["own"] - found["policy"]).abs().max() / found["own"].abs().max())
    if not difference < 1e-4:
        raise SystemExit(f"{case.name}: the policy's latents differ from the pipeline's by {difference:.1e}")
    timed: dict[str, list[list[float]]] = {name: [] for name in SIDES}
    for number in range(rounds):
        calls = {}
        order = ["own", "policy"] if number % 2 else ["policy", "own"]
        for name in order + ["reference"] * (number < REFERENCE_ROUNDS):
            within, before, began = inside.seconds, inside.calls, time.process_time()
            sides[name]()
            timed[name].append([time.process_time() - began, inside.seconds - within])
            calls[name] = inside.calls - before
        if len(set(calls.values())) != 1:
            raise SystemExit(f"{case.name}: calls of the network differ: {calls}")
    return settings() | {
        "family": case.family,
        "parameters": parameters(getattr(pipe, policy._backbone._family.part)),  # type: ignore[attr-defined]
        "latent": list(policy.event_shape),
        "rows": case.rows,
        "steps": steps,
        "guidance": case.guidance,
        "difference": difference,
        "seconds": timed,
        "load": os.getloadavg()[0],
    }


def own_conditions(pipe: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """What the pipeline's call takes in place of prompts."""
    import torch

    with torch.no_grad():
        if type(pipe).__name__ == "StableDiffusionPipeline":
            text, nothing = pipe.encode_prompt(list(prompts), "cpu", 1, True)
            return {"prompt_embeds": text, "negative_prompt_embeds": nothing}
        tokens = pipe.tokenizer(
            list(prompts), padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
        )
        text = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        seconds = pipe.transformer.config.sample_size * pipe.vae.hop_length / pipe.vae.config.sampling_rate
        return {"prompt_embeds": text, "attention_mask": tokens.attention_mask, "audio_end_in_s": seconds}


Interval = tuple[float, float, float]
"""A value with the ends of its 95 % interval."""


def ratio(seconds: Mapping[str, Sequence[Sequence[float]]], side: str, to: str) -> Interval:
    """Geometric mean, over the rounds that ran both, of one side's whole time to another's."""
    logs = [math.log(a[0] / b[0]) for a, b in zip(seconds[side], seconds[to], strict=False)]
    value, low, high = map(math.exp, _mean(logs))
    return value, low, high


def extra(seconds: Mapping[str, Sequence[Sequence[float]]]) -> Interval:
    """What the policy spends outside the network more than the pipeline's call does, as a share of that whole call.

    The network is the same and is called equally often, so this is what the ratio says without the network's own noise.
    """
    whole = median(total for total, _ in seconds["own"])
    pairs = zip(seconds["policy"], seconds["own"], strict=True)
    return _mean([((a[0] - a[1]) - (b[0] - b[1])) / whole for a, b in pairs])


def _mean(values: Sequence[float]) -> Interval:
    """With its interval by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values), fmean(values) - half, fmean(values) + half


def outside(seconds: Mapping[str, Sequence[Sequence[float]]], side: str) -> float:
    """Median CPU seconds that are not spent in the network, as a share of the pipeline's whole call."""
    whole = median(total for total, _ in seconds["own"])
    return median(total - within for total, within in seconds[side]) / whole


def settings() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "peft")
    return {"machine": processor(), "versions": ", ".join(f"{name} {version(name)}" for name in names)}


def keep(folder: Path, name: str, found: Mapping[str, Any]) -> None:
    """Prints what was found and keeps it, whole or not at all."""
    print(json.dumps(found), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.json.part"
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / f"{name}.json")


# ---- the page


def write_page(place: Path = PAGE) -> None:
    """The page of all that is kept."""
    place.write_text(page(kept(RESULTS), kept(GPU_RESULTS)), encoding="utf-8")


def kept(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def page(cost: Mapping[str, Any], cards: Mapping[str, Any]) -> str:
    """docs/pipeline_cost.md."""
    lines = ["# What a policy costs over its pipeline", ""]
    if cost:
        lines += cost_lines(cost)
    lines += ["", "## On a GPU", "", *gpu_lines({name: f for name, f in cards.items() if not f["toy"]})]
    return "\n".join(lines) + "\n"


def cost_lines(cost: Mapping[str, Any]) -> list[str]:
    some = next(iter(cost.values()))
    lines = [
        f"Made by `python benchmarks/pipeline_cost.py` on {some['machine']}, one thread; {some['versions']}.",
        "",
        "A roll-out through the policy against the pipeline's own `__call__`: the same randomly initialised network "
        f"with the same LoRA (rank {RANK}), the same prompts (given as `prompt_embeds` there, remembered here), steps, "
        "guidance and seeds; latents equal within "
        f"{max(case['difference'] for case in cost.values()):.0e} of the largest. {some['steps']} steps, "
        f"{len(some['seconds']['own'])} rounds of both sides one after the other. CPU seconds are medians; ratios are "
        "within a round, with 95 % intervals over rounds. The last columns leave the network out, which is the same "
        "for both and is called equally often: shares of the pipeline's whole call.",
        "",
        verdict(cost),
        "",
        "| family | weights | latents | rows | own call | policy | ratio | outside the network: own | policy | more |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cost.values():
        seconds = case["seconds"]
        own, policy = (median(total for total, _ in seconds[side]) for side in ("own", "policy"))
        middle, low, high = ratio(seconds, "policy", "own")
        more, least, most = extra(seconds)
        lines.append(
            f"| {case['family']} | {case['parameters'] / 1e6:.0f} M | {' x '.join(map(str, case['latent']))} | "
            f"{case['rows']} | {own:.2f} s | {policy:.2f} s | {middle:.3f} [{low:.3f}, {high:.3f}] | "
            f"{outside(seconds, 'own'):.2%} | {outside(seconds, 'policy'):.2%} | "
            f"{more:+.2%} [{least:+.2%}, {most:+.2%}] |"
        )
    lora = [ratio(case["seconds"], "policy", "reference")[0] for case in cost.values()]
    return [
        *lines,
        "",
        "LoRA itself is in both sides. Against the reference, where it is off, a roll-out takes "
        f"{min(lora):.2f} to {max(lora):.2f} times as long at these sizes; a layer of width n does 4 r / n more work, "
        "and narrow networks pay more for the additional calls.",
    ]


def verdict(cost: Mapping[str, Any]) -> str:
    """Whether the claim holds, and by which of the two measures."""
    claim = f"Claim: less than {LIMIT:.0%} more CPU time."
    whole = max(ratio(case["seconds"], "policy", "own")[2] for case in cost.values())
    clocked = max(extra(case["seconds"])[2] for case in cost.values())
    if whole < 1 + LIMIT:
        return f"{claim} It holds: no interval of the ratio reaches above {whole:.3f}."
    if clocked < LIMIT:
        return (
            f"{claim} It holds by the clocks around the network: no interval of the last column reaches above "
            f"{clocked:+.2%}. Whole calls vary too much on this machine, which other work shares, to say it alone "
            f"(an interval of the ratio reaches to {whole:.3f})."
        )
    return f"{claim} It does NOT hold here: the policy's part outside the network may reach {clocked:+.2%}."


def gpu_lines(cards: Mapping[str, Any]) -> list[str]:
    wanted = (
        "A randomly initialised network of Stable Audio Open's size (1.06 billion weights, latents 64 x 1024, "
        f"bfloat16, LoRA rank {RANK}): a roll-out of 8 clips in 16 steps with guidance, an update on 8 pairs, decoding "
        f"8 clips. Target: at least {TARGET:.0%} of the card's own rate of bfloat16 matrix products in roll-out and "
        "training."
    )
    if not cards:
        return [
            wanted,
            "",
            "**OPEN: not measured yet.** No GPU was at hand. On a machine with one, "
            "`python benchmarks/pipeline_gpu.py` fills this table in under 8 minutes (without one it runs at toy size "
            "on the CPU, which shows that the script works and nothing about cost).",
            "",
            "| card | what | compiled | checkpointed | seconds | share of matrix rate | peak memory |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            "| OPEN | | | | | | |",
        ]
    lines = [wanted, ""]
    for card in cards.values():
        rate = card["cells"].get("rate", {}).get("tflops")
        lines += [
            f"Made by `python benchmarks/pipeline_gpu.py` on {card['card']}; {card['versions']}. Matrix rate: "
            + (f"{rate:.0f} TFLOP/s." if rate else "not measured.")
            + " The share counts the products that the result needs: what checkpointing does again is not in it.",
            "",
            "| what | compiled | checkpointed | seconds | share of matrix rate | peak memory | first call |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, cell in card["cells"].items():
            if name != "rate":
                lines.append(_gpu_line(cell, rate))
        lines.append("")
    return lines[:-1]


def _gpu_line(cell: Mapping[str, Any], rate: float | None) -> str:
    yes = {True: "yes", False: "no"}
    head = f"| {cell['what']} | {yes[cell['compiled']]} | {yes[cell['checkpointed']]} |"
    if "seconds" not in cell:
        return f"{head} {cell['failed']} | | | |"
    share = cell["tflop"] / cell["seconds"] / rate if rate and cell.get("tflop") else None
    shown = "" if share is None else f"{share:.0%}"
    return f"{head} {cell['seconds']:.2f} | {shown} | {cell['peak_gb']:.1f} GB | {cell['first']:.1f} s |"


def main() -> None:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    for case in CASES:
        if case.name in options.cases:
            keep(RESULTS, case.name, measure(case, options.rounds))
    write_page(options.out)


if __name__ == "__main__":
    main()
