"""Memory told without weights: what is told is what tensors take, measured by torch's own profiler."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dragon.build import build, build_policy
from dragon.cli import main
from dragon.config import TrainConfig, from_dict
from dragon.diffusion import SeededNoise
from dragon.errors import ConfigError
from dragon.estimate import Estimate, estimate
from dragon.footprint import Footprint, size_of
from dragon.learner import Learner
from dragon.media import Generation
from dragon.policy.sizes import PUBLISHED
from dragon.policy.weightless import sizes
from dragon.pool import PairPool
from tiny_pipelines import families, family, tiny_pipeline

MB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Audio whose transformer and decoder take more than what else a test allocates."""
    from diffusers import AutoencoderOobleck, StableAudioDiTModel

    pipe = family("stable_audio").tiny()
    pipe.register_modules(
        vae=AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 4],
            decoder_channels=32,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[1, 2],
            sampling_rate=800,
        ),
        transformer=StableAudioDiTModel(
            sample_size=512,
            in_channels=4,
            num_layers=3,
            attention_head_dim=32,
            num_attention_heads=4,
            num_key_value_attention_heads=2,
            out_channels=4,
            cross_attention_dim=6,
            time_proj_dim=8,
            global_states_input_dim=12,
            cross_attention_input_dim=6,
        ),
    )
    place = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(str(place))
    return str(place)


def config(
    folder: str, micro: int = 4, tuning: str = "lora", batch: int = 4, pairs: int = 8, **options: Any
) -> TrainConfig:
    return from_dict(
        {
            "prompts": "mini:train",
            "eval_prompts": "mini:test",
            "policy": {"name": "pipeline", "options": {"folder": folder, **options}},
            "tuning": {"kind": tuning, "rank": 4},
            "rewards": [{"name": "random"}],
            "rollout": {"prompts_per_step": 4, "steps": 2, "guidance": 3.0, "batch_size": batch},
            "update": {"pairs_per_update": pairs, "micro_batch_size": micro},
        }
    )


def growth(work: Any) -> int:
    """The most that is allocated beyond what was there before, by torch's profiler."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    todo, seen = list(found.profiler.kineto_results.experimental_event_tree()), []
    while todo:
        event = todo.pop()
        todo += event.children
        if event.tag == _EventType.Allocation:
            seen.append((event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.total_allocated))
    _, size, total = min(seen)
    # the profiler's total goes on from an earlier look of this process
    return int(max(seen, key=lambda one: one[2])[2] - (total - size))


def parts_at_rest(found: Estimate) -> int:
    """Weights and what training keeps: all that is there before an update."""
    return sum(found.parts.values()) + sum(found.kept.values())


def learner(wanted: TrainConfig) -> tuple[Learner, PairPool]:
    policy = build_policy(wanted)
    update = wanted.update
    made = Learner(
        policy,
        build("objective", wanted.objective),
        weight_decay=update.weight_decay,
        betas=update.betas,
        max_grad_norm=update.max_grad_norm,
        ema_decay=update.ema_decay,
        old_decay=update.old_decay,
        pairs_per_update=update.pairs_per_update,
        micro_batch_size=update.micro_batch_size,
        calibration_updates=0,
        beta_target=1.0,
    )
    prompts = tuple(f"prompt {i}" for i in range(8))
    sides = []
    for first in (0, 8):
        seeds = tuple(range(first, first + 8))
        latents = SeededNoise(seeds).draw(policy.event_shape)  # type: ignore[attr-defined]
        sides.append(Generation(latents, policy.encode(prompts), prompts, seeds))
    return made, PairPool(*sides)


@pytest.mark.parametrize(
    ("tuning", "checkpointed"),
    [
        ("lora", False),
        ("full", True),
        pytest.param("lora", True, marks=pytest.mark.slow),
        pytest.param("full", False, marks=pytest.mark.slow),
    ],
)
def test_the_peak_of_an_update_is_what_was_told(folder: str, tuning: str, checkpointed: bool) -> None:
    wanted = config(folder, tuning=tuning, gradient_checkpointing=checkpointed)
    told = estimate(wanted)
    made, pool = learner(wanted)
    made.update(pool, torch.Generator().manual_seed(0), 1e-4)  # the optimiser's state is there from now on
    measured = growth(lambda: made.update(pool, torch.Generator().manual_seed(1), 1e-4))
    # told at rest: the gradients of the update before are gone by the time that new ones come
    expected = told.stages["training"] - parts_at_rest(told)
    assert measured > 10 * MB
    assert measured == pytest.approx(expected, rel=0.15)


@pytest.mark.slow
def test_the_peak_of_a_call_in_bfloat16_is_what_was_told(folder: str) -> None:
    wanted = config(folder, micro=1, pairs=2, weights="bfloat16", precision="bfloat16")
    told = estimate(wanted)
    made, pool = learner(wanted)
    made.update(pool, torch.Generator().manual_seed(0), 1e-4)
    measured = growth(lambda: made.update(pool, torch.Generator().manual_seed(1), 1e-4))
    assert measured > 5 * MB
    assert measured == pytest.approx(told.stages["training"] - parts_at_rest(told), rel=0.2)


@pytest.mark.parametrize("stage", ["roll-out", "decoding"])
def test_the_peak_of_sampling_is_what_was_told(folder: str, stage: str) -> None:
    wanted = config(folder, batch=16, decode_rows=4, sampler="euler")
    told = estimate(wanted)
    policy = build_policy(wanted)
    prompts, seeds = [f"prompt {i}" for i in range(16)], list(range(16))
    made = policy.generate(prompts, seeds, steps=2, guidance=3.0)
    if stage == "roll-out":
        measured = growth(lambda: policy.generate(prompts, seeds, steps=2, guidance=3.0))
    else:
        measured = growth(lambda: policy.decode(made))
    expected = told.stages[stage] - parts_at_rest(told) - size_of(policy.trainable().values())
    if stage == "decoding":
        expected -= size_of([made.latents])
    assert measured == pytest.approx(expected, rel=0.15)


def test_activations_are_linear_in_rows(folder: str) -> None:
    by_rows = [estimate(config(folder, micro=rows)).stages["training"] for rows in (1, 2, 3)]
    first, second = (b - a for a, b in zip(by_rows, by_rows[1:], strict=False))
    assert first > MB and second == pytest.approx(first, rel=0.02)


@pytest.mark.slow
def test_checkpointing_lora_and_bfloat16_each_take_less(folder: str) -> None:
    plain = estimate(config(folder)).stages["training"]
    assert estimate(config(folder, gradient_checkpointing=True)).stages["training"] < 0.6 * plain
    assert estimate(config(folder, weights="bfloat16", precision="bfloat16")).stages["training"] < 0.8 * plain
    assert estimate(config(folder, tuning="full")).peak > estimate(config(folder)).peak


def test_on_a_gpu_autocast_keeps_norms_in_float32_and_the_text_encoder_is_off_the_device(folder: str) -> None:
    options: dict[str, Any] = {"weights": "bfloat16", "precision": "bfloat16"}
    here = estimate(config(folder, **options))
    wanted = from_dict({**_plain(config(folder, **options)), "device": "cuda"})
    there = estimate(wanted)  # no GPU is needed for it
    assert there.stages["training"] > here.stages["training"]
    assert there.stages["prompts"] - there.stages["all clips"] < here.stages["prompts"]


def test_many_processes_share_rows_and_shards_share_weights(folder: str) -> None:
    alone = estimate(config(folder, tuning="full"))
    two = estimate(config(folder, tuning="full"), processes=2)
    sharded = estimate(config(folder, tuning="full"), processes=2, sharded=True)
    assert two.kept["clips of a step"] == alone.kept["clips of a step"] / 2
    assert two.parts == alone.parts == sharded.parts
    assert sharded.stages["training"] < two.stages["training"]
    weights = alone.parts["transformer"]
    kept = sum(size for name, size in two.kept.items() if name in ("average", "optimiser", "old policy", "start"))
    saved = two.stages["all clips"] - sharded.stages["all clips"]
    assert saved == pytest.approx((2 * weights + kept) / 2, rel=0.01)  # weights and gradients


def test_the_published_sizes_are_those_that_their_authors_state() -> None:
    """Billions of parameters: 1.06 (Stable Audio Open, 2407.14358), 1.4 (Stable Audio 3 medium), 2 (SD 3 medium)."""
    stated = {
        "stabilityai/stable-audio-open-1.0": ("transformer", 1.057),
        "stabilityai/stable-audio-3-medium-base": ("transformer", 1.4),
        "stabilityai/stable-diffusion-3-medium-diffusers": ("transformer", 2.0),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": ("unet", 0.86),
        "ruixiangma/LongCat-AudioDiT-1B-Diffusers": ("transformer", 1.0),
        "cvssp/audioldm2": ("unet", 0.35),
    }
    for name, (part, billions) in stated.items():
        assert _parameters(name, part) / 1e9 == pytest.approx(billions, rel=0.06), name


def test_a_folder_gives_the_sizes_of_its_config_files(folder: str) -> None:
    found = sizes(folder)
    assert found.kind == "StableAudioPipeline" and set(found.tokens) == {"tokenizer"}
    assert found.parts["transformer"].arguments["num_layers"] == 3
    told = estimate(config(folder))
    pipe = build_policy(config(folder))._backbone._pipe  # type: ignore[attr-defined]
    real = {n: sum(p.nbytes for p in m.parameters()) for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    for name, size in real.items():
        assert told.parts[name] == pytest.approx(size, rel=0.25, abs=20_000), name  # each tensor is rounded up


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_every_family_can_be_told(name: str, tmp_path: Path) -> None:
    made = tiny_pipeline(name, tmp_path)
    wanted = _plain(config(str(tmp_path), **made.OPTIONS))
    wanted["rollout"]["guidance"] = made.GUIDANCE
    told = estimate(from_dict(wanted))
    assert told.stages["training"] > told.stages["all clips"] - told.kept["clips of a step"] > 0


def test_what_cannot_be_told_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="no sizes are known of 'nobody/nothing'.*stable-audio-open-1.0"):
        estimate(config("nobody/nothing"))
    with pytest.raises(ConfigError, match="policy is 'mini'"):
        estimate(from_dict({**_plain(config(folder)), "policy": {"name": "mini"}}))
    with pytest.raises(ConfigError, match="unknown to StableAudioPipeline"):
        estimate(config(folder, second=3))


def test_the_command_says_one_line_a_stage_and_what_it_leaves_out(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(_plain(config(folder))))
    assert main(["plan", str(path), "--estimate", "--processes", "2", "--sharded"]) == 0
    text = capsys.readouterr().out
    for stage in ("prompts", "roll-out", "decoding", "all clips", "training"):
        assert f"\n{stage} " in text
    assert "not counted" in text and "one of 2 processes" in text
    assert main(["plan", str(path), "--estimate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak"] > 0
    assert main(["plan", str(path), "--estimate", "--device", "cuda"]) == 0  # which this machine need not have
    assert main(["plan", str(path), "--estimate", "--hours", "3"]) == 2
    assert main(["plan", str(path), "--sharded"]) == 2


def test_a_footprint_counts_storages_from_birth_to_end() -> None:
    held = torch.zeros(256)
    with Footprint([held]) as seen:
        assert seen.now == 1024
        other = held + 1
        view = other[:3]
        del other
        assert seen.now == 2048  # the view keeps it
        del view
        assert seen.now == 1024 and seen.restart() == 2048 and seen.peak == 1024


def _parameters(name: str, part: str) -> int:
    from dragon.policy.weightless import _component

    module: nn.Module = _component(PUBLISHED[name].parts[part])
    return sum(p.numel() for p in module.parameters())


def _plain(wanted: TrainConfig) -> dict[str, Any]:
    from dragon.config import to_dict

    return to_dict(wanted)
