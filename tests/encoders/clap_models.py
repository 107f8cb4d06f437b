"""Small random CLAPs and a small RoBERTa tokenizer, made where the tests need them; weights as a training leaves them.

Knows transformers' classes and LAION's names of weights, and none of dragon's encoders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = ["slow", "fast", "piano", "music", "strings", "a", "the", "drum"]


def write_tokenizer(folder: Path) -> Path:
    """A RoBERTa tokenizer of bytes and a few merges, in files that RobertaTokenizer reads."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(parents=True, exist_ok=True)
    made = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator([" ".join(WORDS)] * 8, vocab_size=300, special_tokens=special, show_progress=False)
    made.save_model(str(folder))
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def config(size: str = "toy", *, fusion: bool = False) -> Any:
    """The transformers.ClapConfig of "toy", or of HTSAT "tiny" or "base" with a text model of one layer."""
    from transformers import ClapConfig

    width, depths = {"toy": (16, [2, 1]), "tiny": (96, [2, 2, 6, 2]), "base": (128, [2, 2, 12, 2])}[size]
    audio = {
        "patch_embeds_hidden_size": width,
        "patch_size": 8 if size == "toy" else 4,  # a quarter of the work
        "patch_stride": [8, 8] if size == "toy" else [4, 4],
        "depths": depths,
        "num_attention_heads": [4, 8, 16, 32] if size != "toy" else [2, 4],
        "hidden_size": width * 2 ** (len(depths) - 1),
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    text = {
        "vocab_size": 300,
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 514,
        "layer_norm_eps": 1e-5,
    }
    return ClapConfig(audio_config=audio, text_config=text, projection_dim=24 if size == "toy" else 512)


def random_clap(size: str = "toy", *, fusion: bool = False, seed: int = 0) -> Any:
    """A transformers.ClapModel whose every weight and statistic is drawn, none left at 0 or 1."""
    from transformers import ClapModel

    model = ClapModel(config(size, fusion=fusion)).eval()
    perturb(model.state_dict(), seed)
    return model


def perturb(state: dict[str, Tensor], seed: int) -> None:
    """Draws every weight anew, in place: a name or an order that is mixed up then changes the features."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(state.items()):
        if not value.is_floating_point() or "extractor" in name or name.endswith("attn_mask"):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(1 + drawn.square())
        elif "batch_norm" in name or "bn0" in name:  # levels in dB, as a trained model has them
            value.copy_(-40 + 10 * drawn if name.endswith("running_mean") else 0.05 * (1 + 0.2 * drawn))
        elif value.ndim < 2:
            value.copy_(0.2 * drawn + (1 if name.endswith("weight") else 0))
        else:
            value.copy_(drawn / value[0].numel() ** 0.5)


def laion_state(model: Any) -> dict[str, Tensor]:
    """The weights of a transformers.ClapModel under LAION's names, as a training writes them."""
    found: dict[str, Tensor] = {}
    state = model.state_dict()
    for name, value in state.items():
        name = name.replace("text_model.", "text_branch.").replace("audio_model.audio_encoder.", "audio_branch.")
        name = (
            name.replace("batch_norm.", "bn0.").replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        )
        name = name.replace("_projection.linear1", "_projection.0").replace("_projection.linear2", "_projection.2")
        if name.startswith("audio_branch.layers"):
            name = name.replace("attention.self.", "attn.").replace("attention.output.dense", "attn.proj")
            name = name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
            if ".key." in name or ".value." in name:
                continue
            if ".query." in name:
                place = [name.replace("query", part) for part in ("query", "key", "value")]
                found[name.replace("query", "qkv")] = torch.cat([_attention(state, p) for p in place])
                continue
        found[name] = value
    found = {key: value for key, value in found.items() if not key.endswith("token_type_ids")}
    found["audio_branch.tscam_conv.weight"] = torch.ones(2, 2)  # the classifier, which no embedding reads
    found["text_transform.sequential.0.weight"] = torch.ones(2, 2)
    return {f"module.{key}": value for key, value in found.items()}


def _attention(state: dict[str, Tensor], laion_name: str) -> Tensor:
    return state[laion_name.replace("audio_branch.", "audio_model.audio_encoder.").replace("attn.", "attention.self.")]
