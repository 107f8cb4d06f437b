"""Images through the ordinary configuration: trained on, evaluated, kept, drawn and shown like clips of audio."""

from __future__ import annotations

import csv
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dragon import image, run, samples
from dragon.build import build_run
from dragon.config import TrainConfig, from_dict
from dragon.policy.pipeline import PipelinePolicy
from tiny_pipelines import WORDS, tiny_pipeline

PROMPTS = [f"{speed} {thing}" for speed in ("slow", "fast", "loud", "quiet") for thing in ("piano", "drums")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pipelines of images, a CLIP, and prompt files."""
    place = tmp_path_factory.mktemp("models")
    for name in ("stable_diffusion", "stable_diffusion_3"):
        tiny_pipeline(name, place / name)
    _clip(place / "clip")
    (place / "train.txt").write_text("\n".join(PROMPTS))
    (place / "test.txt").write_text("\n".join(f"a {word}" for word in WORDS[:8]))
    return place


def _clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    words = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = common | {
        "vocab_size": 54, "max_position_embeddings": 20, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text, vision_config=common | {"image_size": 16, "patch_size": 8})
        CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)


def config(models: Path, output: Path, family: str, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {"folder": str(models / family)}
    if family == "stable_diffusion_3":
        options["text_tokens"] = 8
    clip = {"name": "clip", "options": {"model": str(models / "clip")}}
    return from_dict(
        {
            "output_dir": str(output),
            "prompts": str(models / "train.txt"),
            "eval_prompts": str(models / "test.txt"),
            "policy": {"name": "pipeline", "options": options},
            "tuning": {"rank": 2, "alpha": 2},
            "rewards": [
                {"name": "clap_score", "options": {"encoder": clip, "name": "clip_score"}},
                {"name": "vendi", "options": {"encoder": clip}},
            ],
            "credit": {"name": "leave_one_out"},
            "rollout": {"prompts_per_step": 4, "steps": 2, "guidance": 3.0},
            "update": {"updates_per_step": 2, "pairs_per_update": 4, "beta_calibration_updates": 2},
            "evaluation": {
                "prompts": 8, "samples_per_prompt": 2, "steps": 2, "guidance": 3.0, "set_size": 2, "diversity": clip,
            },
            "num_generations": 2,
            "max_steps": 2,
        }
        | changes
    )  # fmt: skip


@pytest.fixture(scope="module", params=["stable_diffusion", "stable_diffusion_3"])
def folder(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps with a reward of single images and one of their set."""
    output = tmp_path_factory.mktemp("run") / "run"
    run.train(config(models, output, request.param), say=lambda text: None)
    return output


def test_the_adapter_has_learnt_and_both_rewards_are_evaluated(folder: Path) -> None:
    _, policy = run.load_tuned(folder)
    assert isinstance(policy, PipelinePolicy)
    moved = [float(p.detach().abs().max()) for name, p in policy.trainable().items() if "lora_B" in name]
    assert sum(value > 0 for value in moved) > len(moved) / 2  # they start at 0
    found = json.loads((folder / "evaluation.json").read_text())
    assert {name: result["kind"] for name, result in found["rewards"].items()} == {
        "clip_score": "instance",
        "vendi": "set",
    }
    assert found["diversity"]["base"] > 0
    assert json.loads((folder / "versions.json").read_text())["policy"]["loudness"] == "clipped to [-1, 1]"


def test_the_kept_images_are_those_of_prompt_and_seed(folder: Path) -> None:
    with (folder / "samples" / "samples.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16 and {line["rate"] for line in lines} == {line["seconds"] for line in lines} == {""}
    _, policy = run.load_tuned(folder)
    line = next(line for line in lines if line["file"].startswith("tuned/"))
    assert line["file"].endswith(".png")
    made = policy.decode(policy.generate([line["prompt"]], [int(line["seed"])], steps=2, guidance=3.0))
    # half a step of 8 bits, and float32 in batches of another size
    assert float((image.load(folder / "samples" / line["file"]) - made.tensor[0]).abs().max()) < 1 / 255 + 1e-3


def test_pictures_page_and_tensorboard_show_them(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert {path.name for path in (folder / "pictures").iterdir()} >= {"images.png", "scores.png", "win_rates.png"}
    assert not (folder / "pictures" / "spectrograms.png").exists()
    page = (folder / "listen.html").read_text()
    assert page.count("<img ") == 16 and "<audio " not in page and "samples/tuned/0000.png" in page
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    shown = board.Images("clips/best")[0]
    assert (shown.height, shown.width) == (16, 16) and not board.Tags()["audio"]


def test_dragon_sample_writes_pictures(folder: Path, tmp_path: Path) -> None:
    wanted = samples.SampleRequest(prompt=("slow piano", "fast drums"), output_dir=str(tmp_path / "out"))
    written = list(samples.write_samples(str(folder), wanted))
    assert [path.name for path in written] == ["0000.png", "0001.png"]
    assert all(np.array(Image.open(path)).shape == (16, 16, 3) for path in written)
    with (tmp_path / "out" / "samples.csv").open(newline="") as file:
        assert [line["rate"] + line["seconds"] for line in csv.DictReader(file)] == ["", ""]


def test_rewards_see_images_in_minus_one_to_one_also_swapped_between_sets(models: Path, tmp_path: Path) -> None:
    built = build_run(config(models, tmp_path / "run", "stable_diffusion", contrast={"name": "swap"}))
    (report,) = built.trainer().run(1)
    seen = report.media
    assert seen.tensor.shape == (8, 3, 16, 16) and seen.rate is None
    assert float(seen.tensor.abs().max()) <= 1 and float(seen.tensor.min()) < -0.01  # not [0, 1]
    assert set(report.rewards) == {"clip_score", "vendi"}
