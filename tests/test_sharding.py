"""Claims about sharded weights: two processes, each with its half, equal one that has them all.

`story` goes through all that training asks of a policy and tells every number, `learning` does so of a learner. This
process tells them, and so do two that run this file as a script; the claims compare the tellings.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dragon import checkpoint, run
from dragon.config import from_dict
from dragon.diffusion import Ema
from dragon.errors import ConfigError, DragonError
from dragon.learner import Learner
from dragon.objectives import KTO, NFT
from dragon.policy import ToyPolicy
from dragon.policy.base import DiffusionPolicy
from dragon.policy.tuning import FULL_WEIGHTS
from dragon.pool import PairPool
from dragon.processes import Alone, Launched, Processes, share
from dragon.protocols import Objective
from dragon.sharding import is_sharded, is_writer, placed, shard, whole

ROWS = 5
"""Three of the first process and two of the second: both make the same calls."""


def toy() -> DiffusionPolicy:
    return ToyPolicy(hidden=7)  # neither 7 nor the output's 2 x 7 divides evenly by rows over processes


def mini(**options: object) -> DiffusionPolicy:
    """A random pipeline of the built-in model's classes, without a layer of zeros."""
    from dragon.mini import random_pipeline
    from dragon.policy import MiniPolicy

    return MiniPolicy(random_pipeline(seed=0, width=32, layers=2), **options)  # type: ignore[arg-type]


def pipeline() -> DiffusionPolicy:
    """A tiny one of diffusers' classes."""
    from dragon.policy import PipelinePolicy
    from tiny_pipelines import family, randomise

    module = family("stable_audio")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = module.tiny()
    randomise(*(part for part in pipe.components.values() if isinstance(part, nn.Module)))
    return PipelinePolicy(pipe, rank=3, **module.OPTIONS)


POLICIES: dict[str, Callable[[], DiffusionPolicy]] = {
    "toy": toy,
    "lora": lambda: mini(rank=3, alpha=6.0),
    "full": lambda: mini(tuning="full", gradient_checkpointing=True),
    "pipeline": pipeline,
}
RATES = {"toy": 1e-3, "lora": 1e-3, "full": 1e-4, "pipeline": 1e-4}
"""Of learning. Large enough that gains are more than rounding, which beta is calibrated on; small enough that a weight
whose gradient is nothing but rounding stays within 1e-5, as AdamW steps by the rate whatever the gradient's size."""
OBJECTIVES: dict[str, Objective] = {"KTO": KTO(beta=50, paired=False), "NFT": NFT(anchor=0.3)}
"""One with a zero point and a beta to calibrate, one with an old policy."""


def prompts_of(policy: DiffusionPolicy) -> list[str]:
    return ["left", "up", "right", "down", "up"] if isinstance(policy, ToyPolicy) else ["slow piano", *["drums"] * 4]


def story(policy: DiffusionPolicy, folder: Path, processes: Processes) -> dict[str, Tensor]:
    """What one process sees of a short training, each process on its rows; weights and moments whole."""
    prompts, draw = prompts_of(policy), torch.Generator().manual_seed(0)
    latents = torch.randn(ROWS, *policy.event_shape, generator=draw)
    noising, cond = policy.draw_noising(latents, draw), policy.encode(prompts)
    target = policy.target(latents, noising)
    told: dict[str, Tensor] = {}

    @torch.no_grad()
    def look(name: str) -> None:
        told[name] = policy.predict(latents, noising, cond)

    def tell(name: str, tensors: Mapping[str, Tensor]) -> None:
        told.update({f"{name} {key}": whole(value.detach()).clone() for key, value in tensors.items()})

    parameters = policy.trainable()
    start = {name: whole(p.detach()).clone() for name, p in parameters.items()}
    ema, optimizer = Ema(parameters, 0.5), torch.optim.AdamW(parameters.values(), lr=1e-3)
    for step in range(3):
        error = (policy.predict(latents, noising, cond) - target).flatten(1).square().mean(1)
        with policy.reference():
            look(f"reference {step}")  # between forward and backward, where it must change no gradient
        (processes.count * error[list(share(ROWS, processes))].sum() / ROWS).backward()
        tell(f"gradient {step}", {name: p.grad for name, p in parameters.items() if p.grad is not None})
        told[f"norm {step}"] = whole(nn.utils.clip_grad_norm_(parameters.values(), 0.1))
        optimizer.step()
        optimizer.zero_grad()
        ema.update(parameters)
    tell("weight", parameters)
    tell("average", ema.values)
    for name, p in parameters.items():
        tell(f"moments {name}", {key: optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq")})

    look("trained")
    with policy.weights(ema.values):
        look("under the averages")
        with policy.weights(start), pytest.raises(RuntimeError), policy.reference():
            raise RuntimeError
        look("under the averages again")
    look("trained again")
    with policy.weights({name: told[f"average {name}"] for name in parameters}):
        look("under whole values")
    told["samples"] = policy.generate(prompts, range(ROWS), steps=2, guidance=2.0).latents

    again = Ema(parameters, 0.5)
    again.load_state_dict({name: placed(whole(v), parameters[name]) for name, v in ema.state_dict().items()})
    tell("average again", again.values)
    policy.save(str(folder))
    if processes.count > 1:
        torch.distributed.barrier()  # the first process writes, all read
    with torch.no_grad():
        for p in parameters.values():
            p.zero_()
    policy.load(str(folder))
    look("loaded")
    tell("loaded weight", parameters)
    return told


def learning(
    policy: DiffusionPolicy, objective: Objective, processes: Processes, learning_rate: float
) -> dict[str, Tensor]:
    """Three updates on five pairs, in micro-batches of two; then a fourth, and the same fourth after a stop and after
    going back."""

    def learner() -> Learner:
        return Learner(
            policy,
            objective,
            weight_decay=0.01,
            betas=(0.9, 0.99),
            max_grad_norm=0.5,
            ema_decay=0.9,
            old_decay=0.5,
            pairs_per_update=ROWS,
            micro_batch_size=2,
            calibration_updates=2,
            beta_target=1.0,
            processes=processes,
        )

    prompts = prompts_of(policy)
    better, worse = (policy.generate(prompts, range(s, s + ROWS), steps=2, guidance=1.0) for s in (0, 100))
    pool, told = PairPool(better, worse), {}

    def update(it: Learner, step: int) -> None:
        figures = vars(it.update(pool, torch.Generator().manual_seed(step), learning_rate))
        told[f"figures {step}"] = torch.tensor([value for name, value in figures.items() if name != "skipped"])
        it.follow()

    first, second = learner(), learner()
    for step in range(3):
        update(first, step)
    stored = {"again": first.state_dict(), "back": first.state_dict(shares=True)}
    for it, when in ((first, "on"), (second, "again"), (first, "back")):
        if when in stored:
            it.load_state_dict(stored[when])
        update(it, 3)
        state = it.state_dict()
        tensors = {f"{part} {key}": value for part in ("weights", "ema", "old") for key, value in state[part].items()}
        for name, moments in state["optimizer"].items():
            tensors |= {f"{key} {name}": value for key, value in moments.items()}
        told |= {f"{when} {name}": value for name, value in tensors.items()}
    return told


def all_told(kind: str, folder: Path, processes: Processes) -> dict[str, Tensor]:
    """The story, and what was learned by each objective, from a new policy each."""

    def policy() -> DiffusionPolicy:
        new = POLICIES[kind]()
        if processes.count > 1:
            new.shard()
        return new

    told = story(policy(), folder, processes)
    for name, objective in OBJECTIVES.items():
        told |= {f"{name} {key}": value for key, value in learning(policy(), objective, processes, RATES[kind]).items()}
    return told


def tell(kind: str, folder: Path, processes: Processes) -> None:
    """One of two processes: goes through all with sharded weights and stores what it saw."""
    policy = POLICIES[kind]()
    total = sum(p.numel() for p in policy.trainable().values())
    policy.shard()
    shards = [p.to_local() for p in policy.trainable().values()]  # type: ignore[attr-defined]
    told = all_told(kind, folder / "saved", processes)
    told["held"] = torch.tensor([sum(shard.numel() for shard in shards), total])
    save_file({name: value.contiguous() for name, value in told.items()}, folder / f"{processes.rank}.safetensors")


RUN = {
    "policy": {"name": "toy"},
    "rewards": [{"name": "height.py:Height"}],
    "prompts": "train.txt",
    "eval_prompts": "test.txt",
    "evaluation": {"prompts": 4, "samples_per_prompt": 2, "steps": 2, "guidance": 1},
    "rollout": {"guidance": 1, "prompts_per_step": 3, "steps": 2, "batch_size": 4},
    "update": {"replay_steps": 1, "pairs_per_update": 5, "micro_batch_size": 2},
    "num_generations": 3,
    "learning_rate": 3e-4,
    "eval_steps": 2,
    "save_steps": 2,
    "report_to": "none",
}
HEIGHT = """
class Height:
    name, abstains = "height", False

    def score(self, media):
        return media.tensor.double().flatten(1)[:, 1]
"""


def prepare(folder: Path) -> None:
    """What a run reads."""
    (folder / "height.py").write_text(HEIGHT)
    (folder / "train.txt").write_text("left\nright\nup\n")
    (folder / "test.txt").write_text("up\ndown\n" * 2)


def train(name: str, processes: Processes, **changes: object) -> None:
    """A run of the toy in the present folder: one of two processes, asked to shard."""
    run.train(from_dict({**RUN, "output_dir": name, **changes}), say=lambda text: None, processes=processes)


def run_sharded(folder: Path, processes: Processes) -> None:
    """One of two processes: a run of four steps, and one that stops after two and goes on."""
    run.sharding_asked = lambda: True  # accelerate itself shards on GPUs only
    train("through", processes, max_steps=4)
    train("stopped", processes, max_steps=2)
    train("stopped", processes, max_steps=4, resume_from_checkpoint="latest")


FULL_AT = {
    "checkpoint of step 1": "state.safetensors",
    "checkpoint of step 1, in the policy's format": "weights/",
    "the tuned weights": ".final.partial/",
}
"""What cannot be written, by the part of its path where the disk is full."""


def run_on_a_full_disk(folder: Path, processes: Processes) -> None:
    """One of two processes: three runs whose first process cannot write; tells what each of them ended with."""
    import safetensors.torch

    place = ""

    def refused(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
        if place in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata)

    run.sharding_asked = lambda: True
    checkpoint.save_file = safetensors.torch.save_file = refused  # only the first process writes
    told = {}
    for number, (what, place) in enumerate(FULL_AT.items()):  # noqa: B007, which does not see `refused`
        try:
            train(str(number), processes, max_steps=1)
        except DragonError as error:
            told[what] = f"{type(error).__name__}: {error}"
    (folder / f"{processes.rank}.json").write_text(json.dumps(told))


def as_process(rank: int, folder: Path, what: str) -> None:
    """What this file does as a script, as process `rank` of two that meet in `folder`."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    processes = Launched(cpu=True)
    if what == "run":
        run_sharded(folder, processes)
    elif what == "full disk":
        run_on_a_full_disk(folder, processes)
    else:
        tell(what, folder, processes)
    torch.distributed.destroy_process_group()


_FOUND_IN = (Path(__file__).parents[1], Path(__file__).parent / "shared")


def run_two(folder: Path, what: str, timeout: float = 200) -> None:
    """Both processes, in `folder`; their output if one of them fails. timeout: of each, in seconds."""
    running = []
    for rank in range(2):
        launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder), what, str(rank)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, _FOUND_IN)), **launch},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
    try:
        for process in running:
            said, _ = process.communicate(timeout=timeout)
            assert process.returncode == 0, said
    finally:
        for process in running:
            process.kill()
            process.wait()


KINDS = [pytest.param(kind, marks=[pytest.mark.slow] if kind != "toy" else []) for kind in POLICIES]


@pytest.fixture(scope="module", params=KINDS)
def tellings(request, tmp_path_factory) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Path]:
    """(of one process with all weights, of the two with sharded ones, the folder of files saved/ and alone/)."""
    folder = tmp_path_factory.mktemp(request.param)
    run_two(folder, request.param)
    alone = all_told(request.param, folder / "alone", Alone())
    return alone, [load_file(folder / f"{rank}.safetensors") for rank in range(2)], folder


def assert_same(tellings, *names: str) -> None:
    """To 1e-5, on both processes, of all that begins with one of `names`."""
    alone, shared, _ = tellings
    told = [name for name in alone if name.startswith(names)]
    assert told
    for name in told:
        for other in shared:
            close = torch.allclose(other[name], alone[name], rtol=1e-5, atol=1e-5, equal_nan=True)
            assert close, f"{name} differs by {float((other[name] - alone[name]).abs().nan_to_num().max()):.2g}"


def test_each_process_holds_about_half_of_the_weights(tellings) -> None:
    _, shared, _ = tellings
    held, total = zip(*(told["held"].tolist() for told in shared), strict=True)
    assert sum(held) == total[0] and max(held) < 0.65 * total[0]


def test_gradients_and_their_norm_are_those_of_the_whole_batch(tellings) -> None:
    assert_same(tellings, "gradient", "norm")
    assert any(value.abs().max() > 1e-3 for name, value in tellings[0].items() if name.startswith("gradient"))


def test_weights_moments_and_averages_after_three_steps_are_equal(tellings) -> None:
    assert_same(tellings, "weight", "moments", "average")


def test_predictions_and_samples_are_equal(tellings) -> None:
    assert_same(tellings, "trained", "under", "samples", "loaded")


def test_the_reference_stays_the_starting_model(tellings) -> None:
    _, shared, _ = tellings
    assert_same(tellings, "reference")
    for told in shared:
        assert torch.equal(told["reference 0"], told["reference 2"])
        assert not torch.allclose(told["reference 0"], told["trained"], atol=1e-4)


def test_weights_put_in_place_are_seen_and_the_old_ones_return_even_after_an_error(tellings) -> None:
    for told in tellings[1]:
        assert torch.equal(told["under the averages"], told["under the averages again"])
        assert torch.equal(told["under the averages"], told["under whole values"])
        assert torch.equal(told["trained"], told["trained again"])
        assert not torch.allclose(told["trained"], told["under the averages"], atol=1e-6)


def test_what_is_stored_comes_back_to_the_bit(tellings) -> None:
    for told in tellings[1]:
        assert torch.equal(told["trained"], told["loaded"])
        again = [name for name in told if name.startswith("average again ")]
        assert again and all(torch.equal(told[name], told[name.replace(" again", "")]) for name in again)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_learner_of_sharded_weights_equals_one_of_whole_weights(tellings, objective) -> None:
    """Figures, zero point, calibrated beta, old policy: with micro-batches that only one of the processes has."""
    assert_same(tellings, f"{objective} figures", f"{objective} on")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("when", ["again", "back"])
def test_a_learner_of_sharded_weights_goes_on_from_its_state_to_the_bit(tellings, objective, when) -> None:
    for told in tellings[1]:
        on = [name for name in told if name.startswith(f"{objective} on ")]
        assert on and all(torch.equal(told[name], told[name.replace(" on ", f" {when} ", 1)]) for name in on)


def test_both_processes_see_the_same(tellings) -> None:
    _, (one, two), _ = tellings
    assert one.keys() == two.keys() and all(
        torch.equal(one[name].nan_to_num(), two[name].nan_to_num()) for name in one if name != "held"
    )


def test_the_first_process_writes_the_files_of_an_unsharded_run(tellings) -> None:
    _, _, folder = tellings
    files = {place: {f.name: f for f in (folder / place).iterdir()} for place in ("saved", "alone")}
    assert files["saved"].keys() == files["alone"].keys()
    for name, file in files["saved"].items():
        if name.endswith(".safetensors"):
            shared, alone = load_file(file), load_file(files["alone"][name])
            assert shared.keys() == alone.keys()
            assert all(torch.allclose(shared[key], alone[key], atol=1e-5) for key in alone)
        elif name.endswith(".json"):
            shared, alone = (json.loads(f.read_text()) for f in (file, files["alone"][name]))
            for config in (shared, alone):
                config["target_modules"] = sorted(config.get("target_modules", []))  # PEFT keeps a set
            assert shared == alone


@pytest.mark.slow
def test_a_sharded_run_equals_one_of_one_process_and_goes_on_to_the_bit_after_a_stop(tmp_path, monkeypatch) -> None:
    """Prompts and pairs are dealt out unevenly, and still no process waits for calls of the other."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    run_two(tmp_path, "run")
    train("alone", Alone(), max_steps=4)

    weights = {name: load_file(tmp_path / name / "final" / FULL_WEIGHTS) for name in ("alone", "through", "stopped")}
    for key, value in weights["alone"].items():
        torch.testing.assert_close(weights["through"][key], value, rtol=1e-5, atol=1e-5)
        assert torch.equal(weights["through"][key], weights["stopped"][key])
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("alone", "through", "stopped")
    ]
    for alone, through, stopped in zip(*logs, strict=True):
        for figure in ("reward", "gap", "loss", "implicit_accuracy", "grad_norm"):
            assert through[figure] == pytest.approx(alone[figure], rel=1e-4, abs=1e-5, nan_ok=True), figure
            assert through[figure] == pytest.approx(stopped[figure], rel=0, abs=0, nan_ok=True), figure
    judged = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("alone", "through", "stopped")]
    rates = [found["rewards"]["height"]["win_rate"] for found in judged]
    assert rates[0] == pytest.approx(rates[1]) and rates[1] == rates[2]


def test_nothing_is_gathered_while_the_first_process_writes(tmp_path, monkeypatch, one_process) -> None:
    """So that it may fail there while the others wait for nothing but its word."""
    from torch.distributed.tensor import DTensor

    written = []

    def watched(write: Callable[..., object]) -> Callable[..., object]:
        def inside(*arguments: object, **keywords: object) -> object:
            written.append(write.__name__)
            with patch.object(DTensor, "full_tensor", side_effect=AssertionError("gathered")):
                return write(*arguments, **keywords)

        return inside

    for module, name in ((checkpoint, "save"), (run, "save_final")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    monkeypatch.setattr(run, "sharding_asked", lambda: True)
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    train("out", Alone(), max_steps=1)
    assert written == ["save", "save_final"]


@pytest.mark.slow
def test_a_full_disk_ends_a_sharded_run_in_all_processes_with_the_reason(tmp_path) -> None:
    """The first process alone fails to write; the other must not be left inside a call of both."""
    prepare(tmp_path)
    run_two(tmp_path, "full disk", timeout=60)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first.keys() == second.keys() == FULL_AT.keys()
    for what in FULL_AT:
        message = f"Unwritable: {what.split(',')[0]} cannot be written to "
        assert first[what].startswith(message) and "No space left on device" in first[what]
        assert second[what] == f"OtherProcess: process 0 of 2 has stopped: {first[what]}"
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name]


def test_a_policy_that_cannot_be_sharded_is_refused_with_what_it_lacks() -> None:
    class Whole:
        name = "whole"

    with pytest.raises(ConfigError, match=r"'whole' lacks one of shard\(\), stored\(\) and write\(\).*gpu8_ddp"):
        run._shard(Whole())  # type: ignore[arg-type]


def test_without_processes_every_function_gives_back_what_it_got() -> None:
    tensor = torch.zeros(2)
    assert whole(tensor) is tensor and placed(tensor, torch.ones(2)) is tensor
    assert not is_sharded({"a": tensor}) and not is_sharded({}) and is_writer({"a": tensor})


def test_sharding_without_processes_says_how_to_start_them() -> None:
    with pytest.raises(ConfigError, match="accelerate launch or torchrun"):
        shard(nn.Linear(2, 2))


class Nested(nn.Module):
    """Lists inside lists, as in a U-Net: the outer ones' items run as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(2, 2)
        self.levels = nn.ModuleList([nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))]), nn.Linear(2, 2)])
        self.levels[1].inner = nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, x: Tensor) -> Tensor:
        level = self.levels[1]
        return level.inner[0](level(self.levels[0][0](self.input(x))))  # type: ignore[index,operator]


def test_blocks_of_lists_are_gathered_one_by_one_and_the_rest_together(one_process) -> None:
    from torch.distributed.fsdp import FSDPModule

    net = Nested()
    shard(net)
    assert is_sharded(dict(net.named_parameters()))
    groups = [name for name, part in net.named_modules() if isinstance(part, FSDPModule)]
    assert groups == ["", "levels.0.0", "levels.1"]


def test_a_value_is_placed_once_and_made_whole_again(one_process) -> None:
    net = nn.Linear(3, 5)
    before = net.weight.detach().clone()
    shard(net)
    value = placed(before, net.weight)
    assert is_sharded({"weight": value}) and placed(value, net.weight) is value
    assert torch.equal(whole(value), before) and torch.equal(whole(net.weight), before)


if __name__ == "__main__":
    as_process(int(sys.argv[3]), Path(sys.argv[1]), sys.argv[2])
