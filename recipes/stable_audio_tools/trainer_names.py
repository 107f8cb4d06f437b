"""Names of weights: stable-audio-tools' own -> diffusers', and back.

Knows names and how they pair up, not what the weights are. A pair is one tensor of the trainer's and the tensors of
diffusers' that stand in it, stacked by rows (the trainer keeps queries, keys and values in one matrix). Shapes may
differ by dimensions of size 1. Both directions read the same pairs, so they cannot disagree.

The trainer's tree: model.model (the transformer), pretransform.model (the autoencoder), conditioner.conditioners.ID.
Checked against stable-audio-tools 0.0.19 (`compare.py`; tests/recipes/test_stable_audio_tools.py holds its names,
shapes and outputs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dragon.errors import ConfigError

TRANSFORMER, AUTOENCODER, CONDITIONERS = "model.model.", "pretransform.model.", "conditioner.conditioners."
ROTARY = f"{TRANSFORMER}transformer.rotary_pos_emb.inv_freq"
"""Computed, not trained; `trainer_files` compares it."""


@dataclass(frozen=True)
class Pair:
    """theirs: a name of the trainer's. ours: names in a diffusers model, whose tensors are stacked in it by rows."""

    theirs: str
    ours: tuple[str, ...]


def transformer_pairs(layers: int) -> list[Pair]:
    """Of a `StableAudioDiTModel` with so many layers."""
    return [_under(TRANSFORMER, "", pair) for pair in _transformer(layers)]


def autoencoder_pairs(strides: int) -> list[Pair]:
    """Of an `AutoencoderOobleck` with so many strides."""
    halves = (("encoder", _encoder(strides)), ("decoder", _decoder(strides)))
    return [_under(f"{AUTOENCODER}{half}.layers.", f"{half}.", pair) for half, pairs in halves for pair in pairs]


def projection_pairs(text: str, start: str, end: str, projected: bool) -> list[Pair]:
    """Of a `StableAudioProjectionModel`, for conditioners with these names; projected: the text has a linear layer."""
    found = []
    for name, ours in ((start, "start"), (end, "end")):
        ours = f"{ours}_number_conditioner.time_positional_embedding."
        found += [_under(f"{CONDITIONERS}{name}.embedder.embedding.", ours, pair) for pair in _number()]
    if projected:
        found += [_under(f"{CONDITIONERS}{text}.", "", pair) for pair in _both("proj_out", "text_projection")]
    return found


def to_ours(state: Mapping[str, Tensor], pairs: Sequence[Pair], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The weights of a diffusers model whose tensors have `shapes`, float32.

    Raises:
        ConfigError: a name of the trainer's is missing, or its tensor has another shape; all such names at once.
    """
    problems, found = [], {}
    for pair in pairs:
        if pair.theirs not in state:
            problems.append(f"{pair.theirs} is missing")
            continue
        value = state[pair.theirs]
        parts = value.chunk(len(pair.ours))
        expected = [shapes[name] for name in pair.ours]
        if [_core(part.shape) for part in parts] != [_core(shape) for shape in expected]:
            rows = (sum(shape[0] for shape in expected), *expected[0][1:]) if len(expected) > 1 else expected[0]
            problems.append(f"{pair.theirs} has shape {tuple(value.shape)}; the settings say {tuple(rows)}")
            continue
        for name, part, shape in zip(pair.ours, parts, expected, strict=True):
            found[name] = part.float().reshape(shape).clone()
    left = sorted(shapes.keys() - {name for pair in pairs for name in pair.ours})
    assert not left, f"no pair for {left}"
    _refuse(problems)
    return found


def to_theirs(weights: Mapping[str, Tensor], pairs: Sequence[Pair], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trainer's tensors of a diffusers model's weights; `like` has their shapes. Float32."""
    return {
        pair.theirs: torch.cat([weights[name].float().cpu() for name in pair.ours]).reshape(like[pair.theirs].shape)
        if len(pair.ours) > 1
        else weights[pair.ours[0]].float().cpu().reshape(like[pair.theirs].shape)
        for pair in pairs
    }


def check_unknown(state: Mapping[str, Tensor], known: Sequence[str]) -> None:
    """Raises ConfigError for names of the trainer that nothing was made of: their weights would be lost."""
    _refuse([f"{name} is unknown" for name in sorted(state.keys() - set(known))])


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ConfigError(
            f"{len(problems)} weights do not fit model_config.json:\n  " + "\n  ".join(problems[:8]) + more + "\n"
            "expected the checkpoint that was trained with this model_config.json"
        )


def _core(shape: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)


def _under(theirs: str, ours: str, pair: Pair) -> Pair:
    return Pair(theirs + pair.theirs, tuple(ours + name for name in pair.ours))


def _both(theirs: str, ours: str) -> list[Pair]:
    """Weight and bias."""
    return [Pair(f"{theirs}.{name}", (f"{ours}.{name}",)) for name in ("weight", "bias")]


def _transformer(layers: int) -> Iterator[Pair]:
    yield Pair("timestep_features.weight", ("time_proj.weight",))
    for layer in ("0", "2"):
        yield from _both(f"to_timestep_embed.{layer}", f"timestep_proj.{layer}")
        yield Pair(f"to_cond_embed.{layer}.weight", (f"cross_attention_proj.{layer}.weight",))
        yield Pair(f"to_global_embed.{layer}.weight", (f"global_proj.{layer}.weight",))
    for conv in ("preprocess_conv", "postprocess_conv"):
        yield Pair(f"{conv}.weight", (f"{conv}.weight",))
    yield Pair("transformer.project_in.weight", ("proj_in.weight",))
    yield Pair("transformer.project_out.weight", ("proj_out.weight",))
    for i in range(layers):
        for pair in _block():
            yield _under(f"transformer.layers.{i}.", f"transformer_blocks.{i}.", pair)


def _block() -> Iterator[Pair]:
    for theirs, ours in (("pre_norm", "norm1"), ("cross_attend_norm", "norm2"), ("ff_norm", "norm3")):
        yield Pair(f"{theirs}.gamma", (f"{ours}.weight",))
        yield Pair(f"{theirs}.beta", (f"{ours}.bias",))
    yield Pair("self_attn.to_qkv.weight", ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight"))
    yield Pair("self_attn.to_out.weight", ("attn1.to_out.0.weight",))
    yield Pair("cross_attn.to_q.weight", ("attn2.to_q.weight",))
    yield Pair("cross_attn.to_kv.weight", ("attn2.to_k.weight", "attn2.to_v.weight"))
    yield Pair("cross_attn.to_out.weight", ("attn2.to_out.0.weight",))
    yield from _both("ff.ff.0.proj", "ff.net.0.proj")
    yield from _both("ff.ff.2", "ff.net.2")


def _encoder(strides: int) -> Iterator[Pair]:
    yield from _conv("0", "conv1")
    for i in range(strides):
        here, block = f"{i + 1}.layers.", f"block.{i}."
        for unit in range(3):
            yield from _unit(f"{here}{unit}.layers.", f"{block}res_unit{unit + 1}.")
        yield from _snake(f"{here}3", f"{block}snake1")
        yield from _conv(f"{here}4", f"{block}conv1")
    yield from _snake(f"{strides + 1}", "snake1")
    yield from _conv(f"{strides + 2}", "conv2")


def _decoder(strides: int) -> Iterator[Pair]:
    yield from _conv("0", "conv1")
    for i in range(strides):
        here, block = f"{i + 1}.layers.", f"block.{i}."
        yield from _snake(f"{here}0", f"{block}snake1")
        yield from _conv(f"{here}1", f"{block}conv_t1")
        for unit in range(3):
            yield from _unit(f"{here}{unit + 2}.layers.", f"{block}res_unit{unit + 1}.")
    yield from _snake(f"{strides + 1}", "snake1")
    yield from _conv(f"{strides + 2}", "conv2", bias=False)


def _unit(theirs: str, ours: str) -> Iterator[Pair]:
    yield from _snake(f"{theirs}0", f"{ours}snake1")
    yield from _conv(f"{theirs}1", f"{ours}conv1")
    yield from _snake(f"{theirs}2", f"{ours}snake2")
    yield from _conv(f"{theirs}3", f"{ours}conv2")


def _snake(theirs: str, ours: str) -> Iterator[Pair]:
    for name in ("alpha", "beta"):
        yield Pair(f"{theirs}.{name}", (f"{ours}.{name}",))


def _conv(theirs: str, ours: str, bias: bool = True) -> Iterator[Pair]:
    """With weight normalisation: a length (g) and a direction (v)."""
    for name in ("weight_g", "weight_v", *(("bias",) if bias else ())):
        yield Pair(f"{theirs}.{name}", (f"{ours}.{name}",))


def _number() -> Iterator[Pair]:
    yield Pair("0.weights", ("0.weights",))
    yield from _both("1", "1")
