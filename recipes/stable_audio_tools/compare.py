"""The converted pipeline against stable-audio-tools itself, on a tiny model of random weights.

    python -m venv --system-site-packages /tmp/trainer
    /tmp/trainer/bin/pip install --no-deps stable-audio-tools==0.0.19 einops alias-free-torch einx frozendict \\
        vector-quantize-pytorch local-attention einops-exts descript-audio-codec
    /tmp/trainer/bin/python recipes/stable_audio_tools/compare.py

(in an environment that has dragon, torch and torchaudio). Its own code builds the model and stores it as it does while
it trains; `convert.py` reads that; network, autoencoder and conditioners are compared, then an adapter is trained,
merged by `back.py`, loaded by its own code, and compared again. Every weight is drawn from its name, so that
`--record FILE` can write what the trainer's code gave, for tests that run without the package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import types
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from back import merged
from convert import convert
from torch import Generator, Tensor, nn
from trainer_names import ROTARY

WIDTH = 768  # of the only T5 whose name the trainer knows and that is made tiny here: t5-base
LIMIT = 1e-5  # relative to the largest number, float32


def tiny_config(cond: int = 64) -> dict[str, Any]:
    """A model_config.json in the shape of Stable Audio Open's: 4 latents at 8 samples a frame."""
    oobleck = {"channels": 8, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
    seconds = {"min_val": 0, "max_val": 64}
    return {
        "model_type": "diffusion_cond",
        "sample_size": 128,
        "sample_rate": 800,
        "audio_channels": 2,
        "model": {
            "pretransform": {
                "type": "autoencoder",
                "iterate_batch": True,
                "config": {
                    "encoder": {"type": "oobleck", "config": {**oobleck, "in_channels": 2, "latent_dim": 8}},
                    "decoder": {
                        "type": "oobleck",
                        "config": {**oobleck, "out_channels": 2, "latent_dim": 4, "final_tanh": False},
                    },
                    "bottleneck": {"type": "vae"},
                    "latent_dim": 4,
                    "downsampling_ratio": 8,
                    "io_channels": 2,
                },
            },
            "conditioning": {
                "configs": [
                    {"id": "prompt", "type": "t5", "config": {"t5_model_name": "t5-base", "max_length": 8}},
                    {"id": "seconds_start", "type": "number", "config": seconds},
                    {"id": "seconds_total", "type": "number", "config": seconds},
                ],
                "cond_dim": cond,
            },
            "diffusion": {
                "cross_attention_cond_ids": ["prompt", "seconds_start", "seconds_total"],
                "global_cond_ids": ["seconds_start", "seconds_total"],
                "type": "dit",
                "config": {
                    "io_channels": 4,
                    "embed_dim": 128,
                    "depth": 2,
                    "num_heads": 2,
                    "cond_token_dim": cond,
                    "global_cond_dim": 2 * cond,
                    "project_cond_tokens": False,
                    "transformer_type": "continuous_transformer",
                },
            },
            "io_channels": 4,
        },
        "training": {"use_ema": True},
    }


def drawn(name: str, shape: torch.Size | tuple[int, ...], scale: float = 0.1) -> Tensor:
    """Random numbers that depend on a name alone; scales of norms and of normalised weights lie around 1."""
    generator = Generator().manual_seed(zlib.crc32(name.encode()))
    value = scale * torch.randn(tuple(shape), generator=generator)
    return value + 1 if name.endswith(("gamma", "weight_g")) else value


def inputs(cond: int = 64) -> dict[str, Tensor]:
    """What the parts are given: latents, times, conditions, clips, seconds and hidden states of text."""
    return {
        "z": drawn("z", (2, 4, 16), 1.0),
        "time": torch.tensor([0.2, 0.9]),
        "cross": drawn("cross", (2, 10, cond), 1.0),
        "global": drawn("global", (2, 2 * cond), 1.0),
        "clips": drawn("clips", (1, 2, 128), 0.3),
        "seconds": torch.tensor([0.0, 10.0, 99.0]),
        "hidden": drawn("hidden", (1, 8, WIDTH), 1.0),
    }


@torch.no_grad()
def of_pipeline(pipe: Any, cond: int = 64) -> dict[str, Tensor]:
    """What a converted pipeline makes of `inputs`."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    x = inputs(cond)
    rotary = get_1d_rotary_pos_embed(pipe.rotary_embed_dim, 17, use_real=True, repeat_interleave_real=False)
    network = pipe.transformer(
        x["z"],
        x["time"],
        encoder_hidden_states=x["cross"],
        global_hidden_states=x["global"][:, None],
        rotary_embedding=rotary,
    ).sample
    projection = pipe.projection_model(x["hidden"], x["seconds"], x["seconds"])
    return {
        "network": network,
        "latents": pipe.vae.encode(x["clips"]).latent_dist.mean,
        "clips": pipe.vae.decode(x["z"]).sample,
        "start": projection.seconds_start_hidden_states,
        "total": projection.seconds_end_hidden_states,
        "text": projection.text_hidden_states,
    }


@torch.no_grad()
def of_trainer(model: Any, cond: int = 64) -> dict[str, Tensor]:
    """What the trainer's own model makes of `inputs`."""
    x, conditioners = inputs(cond), model.conditioner.conditioners
    autoencoder = model.pretransform.model
    return {
        "network": model.model(x["z"], x["time"], cross_attn_cond=x["cross"], global_cond=x["global"]),
        "latents": autoencoder.encoder(x["clips"]).chunk(2, dim=1)[0],
        "clips": autoencoder.decode(x["z"]),
        "start": conditioners["seconds_start"](x["seconds"].tolist(), "cpu")[0],
        "total": conditioners["seconds_total"](x["seconds"].tolist(), "cpu")[0],
        "text": conditioners["prompt"].proj_out(x["hidden"]),
    }


def tiny_t5(folder: Path) -> None:
    """A T5 encoder of one layer, and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "slow", "piano", "loud", "drums"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    model = T5EncoderModel(T5Config(vocab_size=8, d_model=WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    fill(model)
    model.save_pretrained(folder)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Every weight drawn from its name: none is left at the zeros that hide a fault."""
    for name, value in module.state_dict().items():
        if name != ROTARY:
            value.copy_(drawn(name, value.shape))


def as_while_training(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names under which the trainer keeps a model while it trains. The average is the model given; the network
    beside it, which is not what is exported, is 0.
    """
    found = {f"diffusion.{name}": value for name, value in state.items() if not name.startswith("model.")}
    for name, value in state.items():
        if name.startswith("model."):
            found[f"diffusion.{name}"] = torch.zeros_like(value)
            found[f"diffusion_ema.ema_{name}"] = value
    return found | {"diffusion_ema.initted": torch.tensor(True), "diffusion_ema.step": torch.tensor(3)}


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each, relative to the largest number."""
    return {
        name: float((ours[name].reshape(value.shape) - value).abs().max() / value.abs().max())
        for name, value in theirs.items()
    }


def _trainer_model(config: dict[str, Any]) -> Any:
    sys.modules.setdefault("k_diffusion", types.ModuleType("k_diffusion"))  # its samplers are not compared
    from stable_audio_tools.models import create_model_from_config
    from transformers import T5EncoderModel

    model = create_model_from_config(config).eval()
    # it loads the text encoder in half precision, which is no matter of names
    model.conditioner.conditioners["prompt"].__dict__["model"] = T5EncoderModel.from_pretrained("t5-base").eval()
    return model


def _compare(cond: int, folder: Path, record: Path | None) -> bool:
    config = tiny_config(cond)
    (folder / "model_config.json").write_text(json.dumps(config))
    model = _trainer_model(config)
    fill(model)
    state = as_while_training(model.state_dict())
    torch.save({"state_dict": state, "global_step": 3}, folder / "model.ckpt")
    convert(folder / "model_config.json", folder / "model.ckpt", folder / "pipeline", t5=str(folder / "t5-base"))
    from diffusers import StableAudioPipeline

    pipe = StableAudioPipeline.from_pretrained(folder / "pipeline")
    theirs = of_trainer(model, cond)
    found = differences(of_pipeline(pipe, cond), theirs)
    with torch.no_grad():
        text = model.conditioner.conditioners["prompt"](["slow piano", "loud"], "cpu")[0]
        found |= differences({"prompts": pipe.encode_prompt(["slow piano", "loud"], "cpu", False)}, {"prompts": text})
    found |= _way_back(config, folder, cond)
    for name, value in found.items():
        print(f"condition {cond:4d}  {name:12s} differs by {value:.1e} of the largest number")
    if record:
        names = {name: list(value.shape) for name, value in model.state_dict().items()}
        outputs = {n: [float(f"{x:.7g}") for x in value.flatten().tolist()] for n, value in theirs.items()}
        record.write_text(json.dumps({"names": names, "outputs": outputs}) + "\n")
    return all(value <= LIMIT for value in found.values())


def _way_back(config: dict[str, Any], folder: Path, cond: int) -> dict[str, float]:
    """An adapter on the pipeline, and its merge in the trainer's own model, give one output."""
    from dragon.policy.pipeline import PipelinePolicy

    policy = PipelinePolicy(str(folder / "pipeline"), rank=2)
    with torch.no_grad():
        for name, p in policy.trainable().items():
            p.copy_(drawn(name, p.shape))
    policy.save(str(folder / "final"))
    weights, changed = merged(folder / "model_config.json", folder / "model.ckpt", folder / "final")
    model = _trainer_model(config)
    before = of_trainer(model, cond)["network"]
    model.load_state_dict(weights)
    theirs = of_trainer(model, cond)["network"]
    assert changed and not torch.allclose(before, theirs)
    ours = of_pipeline(policy._backbone._pipe, cond)["network"]  # type: ignore[attr-defined]
    return {"tuned network": float((ours - theirs).abs().max() / theirs.abs().max())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="JSON of the trainer's names, shapes and outputs")
    given = parser.parse_args()
    out = given.record.resolve() if given.record else None
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)  # the trainer asks for "t5-base", which is then a folder here and no name of the hub
        tiny_t5(Path("t5-base"))
        good = [_compare(64, Path(temporary), out), _compare(WIDTH, Path(temporary), None)]
    sys.exit(0 if all(good) else 1)
