"""A model_config.json of stable-audio-tools -> the settings of a diffusers StableAudioPipeline.

Knows the trainer's settings by their paths. Whatever the pipeline cannot do is refused by name, and so is a setting
that is not known here: a network that is built without it would load and sound wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from dragon.errors import ConfigError

_DIT, _AUTOENCODER = "model.diffusion.config.", "model.pretransform.config."
_ENCODER, _DECODER = f"{_AUTOENCODER}encoder.config.", f"{_AUTOENCODER}decoder.config."

# path -> (the one value that the pipeline has, the trainer's default)
_FIXED: dict[str, tuple[object, object]] = {
    "model_type": ("diffusion_cond", None),
    "model.diffusion.type": ("dit", None),
    "model.diffusion.diffusion_objective": ("v", "v"),
    "model.diffusion.distribution_shift_options": (None, None),
    "model.diffusion.prepend_cond_ids": ([], []),
    "model.diffusion.input_concat_ids": ([], []),
    "model.conditioning.pre_encoded_keys": ([], []),
    f"{_DIT}patch_size": (1, 1),
    f"{_DIT}transformer_type": ("continuous_transformer", "continuous_transformer"),
    f"{_DIT}global_cond_type": ("prepend", "prepend"),
    f"{_DIT}timestep_cond_type": ("global", "global"),
    f"{_DIT}timestep_embed_dim": (None, None),
    f"{_DIT}project_global_cond": (True, True),
    f"{_DIT}input_concat_dim": (0, 0),
    f"{_DIT}prepend_cond_dim": (0, 0),
    f"{_DIT}final_cross_attn_ix": (-1, -1),
    f"{_DIT}causal": (False, False),
    f"{_DIT}rotary_pos_emb": (True, True),
    f"{_DIT}conformer": (False, False),
    f"{_DIT}use_sinusoidal_emb": (False, False),
    f"{_DIT}use_abs_pos_emb": (False, False),
    f"{_DIT}num_memory_tokens": (0, 0),
    f"{_DIT}sliding_window": (None, None),
    f"{_DIT}remove_norms": (False, False),
    f"{_DIT}add_rope": (False, False),
    f"{_DIT}layer_scale": (False, False),
    f"{_DIT}attn_kwargs.qk_norm": ("none", "none"),
    f"{_DIT}attn_kwargs.differential": (False, False),
    f"{_DIT}attn_kwargs.feat_scale": (False, False),
    f"{_DIT}ff_kwargs.mult": (4, 4),
    f"{_DIT}ff_kwargs.no_bias": (False, False),
    f"{_DIT}ff_kwargs.glu": (True, True),
    f"{_DIT}ff_kwargs.use_conv": (False, False),
    f"{_DIT}norm_kwargs.eps": (1e-5, 1e-5),
    "model.pretransform.type": ("autoencoder", None),
    "model.pretransform.scale": (1.0, 1.0),
    f"{_AUTOENCODER}encoder.type": ("oobleck", None),
    f"{_AUTOENCODER}decoder.type": ("oobleck", None),
    f"{_AUTOENCODER}decoder.soft_clip": (False, False),
    f"{_AUTOENCODER}bottleneck.type": ("vae", None),
    f"{_AUTOENCODER}pretransform": (None, None),
    f"{_ENCODER}use_snake": (True, False),
    f"{_ENCODER}antialias_activation": (False, False),
    f"{_DECODER}use_snake": (True, False),
    f"{_DECODER}antialias_activation": (False, False),
    f"{_DECODER}use_nearest_upsample": (False, False),
    f"{_DECODER}final_tanh": (False, True),
}
# sizes that are read below; those with None must be given
_SIZES: dict[str, object] = {
    "sample_size": None,
    "sample_rate": None,
    "model.io_channels": None,
    "model.conditioning.cond_dim": None,
    "model.diffusion.cross_attention_cond_ids": None,
    "model.diffusion.global_cond_ids": None,
    f"{_DIT}io_channels": 32,
    f"{_DIT}embed_dim": 768,
    f"{_DIT}depth": 12,
    f"{_DIT}num_heads": 8,
    f"{_DIT}cond_token_dim": 0,
    f"{_DIT}global_cond_dim": 0,
    f"{_DIT}project_cond_tokens": True,
    f"{_AUTOENCODER}latent_dim": None,
    f"{_AUTOENCODER}downsampling_ratio": None,
    f"{_AUTOENCODER}io_channels": None,
    f"{_ENCODER}in_channels": 2,
    f"{_ENCODER}channels": 128,
    f"{_ENCODER}latent_dim": 32,
    f"{_ENCODER}c_mults": [1, 2, 4, 8],
    f"{_ENCODER}strides": [2, 4, 8, 8],
    f"{_DECODER}out_channels": 2,
    f"{_DECODER}channels": 128,
    f"{_DECODER}latent_dim": 32,
    f"{_DECODER}c_mults": [1, 2, 4, 8],
    f"{_DECODER}strides": [2, 4, 8, 8],
}
# what changes no output of a trained model, or only how it was trained
_FREE = (
    "audio_channels",
    "model.conditioning.default_keys",
    "model.pretransform.iterate_batch",
    "model.pretransform.model_half",
    "model.pretransform.chunked",
    "model.pretransform.enable_grad",
    f"{_AUTOENCODER}encoder.requires_grad",
    f"{_AUTOENCODER}decoder.requires_grad",
    f"{_AUTOENCODER}bottleneck.requires_grad",
    f"{_AUTOENCODER}bottleneck.config",
    f"{_AUTOENCODER}in_channels",
    f"{_AUTOENCODER}out_channels",
    f"{_DIT}zero_init_branch_outputs",
    f"{_DIT}abs_pos_emb_max_length",
    f"{_DIT}attn_kwargs.zero_init_output",
    f"{_DIT}ff_kwargs.zero_init_output",
    f"{_DIT}ff_kwargs.conv_kernel_size",
    f"{_DIT}norm_kwargs.bias",
    f"{_DIT}norm_kwargs.fix_scale",
    f"{_DIT}norm_kwargs.force_fp32",
)
_T5_WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
_T5_DEFAULT = "t5-base"


@dataclass(frozen=True)
class Settings:
    """What the parts of the pipeline are made with. text, start, end: names of the trainer's conditioners."""

    transformer: dict[str, int]
    autoencoder: dict[str, Any]
    projection: dict[str, Any]
    text: str
    start: str
    end: str
    t5: str
    tokens: int
    text_is_trained: bool


def read_settings(path: str | os.PathLike[str]) -> Settings:
    """The settings of a model_config.json.

    Raises:
        ConfigError: no such file, no JSON, or settings that the pipeline cannot express; all of them at once.
    """
    place = os.fspath(path)
    if not os.path.isfile(place):
        raise ConfigError(f"no file {place}; expected the model_config.json that the checkpoint was trained with")
    with open(place, encoding="utf-8") as file:
        try:
            config = json.load(file)
        except ValueError as error:
            raise ConfigError(f"{place} is no JSON ({error}); expected a model_config.json") from error
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), Mapping):
        raise ConfigError(f"{place} has no 'model'; expected a model_config.json of stable-audio-tools")
    return settings_of(config)


def settings_of(config: Mapping[str, Any]) -> Settings:
    """As `read_settings`, of its content."""
    given = dict(_flat({key: value for key, value in config.items() if key not in ("training", "dataset")}))
    conditioners = given.pop("model.conditioning.configs", [])
    problems = list(_problems(given))
    numbers = {path: given.get(path, default) for path, default in _SIZES.items()}
    problems += [f"{path} is missing" for path, value in numbers.items() if value is None]
    if problems:  # without them the sizes mean nothing
        raise _refused(problems)
    parts, problems = _conditioners(conditioners, numbers)
    problems += _fitting(numbers)
    if problems:
        raise _refused(problems)
    return Settings(_transformer(numbers), _autoencoder(numbers), **parts)


def _refused(problems: list[str]) -> ConfigError:
    return ConfigError(
        f"{len(problems)} settings of model_config.json have no counterpart in diffusers' StableAudioPipeline:\n  "
        + "\n  ".join(problems)
        + "\nfor such a model write a Backbone around your own code (docs/own_model.md, the second road)"
    )


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and f"{path}{key}" not in _FREE:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _problems(given: Mapping[str, Any]) -> Iterator[str]:
    for path, value in given.items():
        if path not in _FIXED and path not in _SIZES and path not in _FREE:
            yield f"{path} is {value!r}; this setting is unknown here"
    for path, (wanted, default) in _FIXED.items():
        found = given.get(path, default)
        if found != wanted:
            missing = "" if path in given else " (the trainer's default)"
            yield f"{path} is {found!r}{missing}; expected {wanted!r}"


def _fitting(n: Mapping[str, Any]) -> Iterator[str]:
    """Sizes that the pipeline ties together."""
    ties = (
        (f"{_DIT}io_channels", "model.io_channels", n["model.io_channels"]),
        (f"{_AUTOENCODER}latent_dim", "model.io_channels", n["model.io_channels"]),
        (f"{_DECODER}latent_dim", f"{_AUTOENCODER}latent_dim", n[f"{_AUTOENCODER}latent_dim"]),
        (f"{_ENCODER}latent_dim", "twice the latent (mean and scale)", 2 * n[f"{_AUTOENCODER}latent_dim"]),
        (f"{_ENCODER}channels", f"{_ENCODER}latent_dim, as in AutoencoderOobleck", n[f"{_ENCODER}latent_dim"]),
        (f"{_ENCODER}in_channels", f"{_AUTOENCODER}io_channels", n[f"{_AUTOENCODER}io_channels"]),
        (f"{_DECODER}out_channels", f"{_AUTOENCODER}io_channels", n[f"{_AUTOENCODER}io_channels"]),
        (f"{_DECODER}c_mults", "the encoder's", n[f"{_ENCODER}c_mults"]),
        (f"{_DECODER}strides", "the encoder's", n[f"{_ENCODER}strides"]),
        (f"{_AUTOENCODER}downsampling_ratio", "the product of the strides", prod(n[f"{_ENCODER}strides"])),
        (f"{_DIT}cond_token_dim", "model.conditioning.cond_dim", n["model.conditioning.cond_dim"]),
        (f"{_DIT}global_cond_dim", "start and end second, 2 * cond_dim", 2 * n["model.conditioning.cond_dim"]),
    )
    for path, meaning, expected in ties:
        if n[path] != expected:
            yield f"{path} is {n[path]}; expected {expected} ({meaning})"
    width, heads = n[f"{_DIT}embed_dim"], n[f"{_DIT}num_heads"]
    if width % heads or width // heads < 64:
        yield f"{_DIT}num_heads is {heads} for embed_dim {width}; expected heads of 64 numbers or more"
    elif _cond_width(n) % (width // heads):
        yield f"cross-attention of width {_cond_width(n)} is not a multiple of the heads' {width // heads}"


def _cond_width(n: Mapping[str, Any]) -> int:
    return int(n[f"{_DIT}embed_dim"] if n[f"{_DIT}project_cond_tokens"] else n[f"{_DIT}cond_token_dim"])


def _conditioners(configs: Any, n: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A T5 and two numbers, start and end second, which is all that the pipeline's call can fill in."""
    where = "model.conditioning.configs"
    kinds = [(str(c.get("id")), str(c.get("type"))) for c in configs]
    texts = [name for name, kind in kinds if kind == "t5"]
    if len(texts) != 1 or sorted(kinds) != sorted([*((t, "t5") for t in texts), *_NUMBERS]):
        return {}, [f"{where} are {kinds}; expected one of type 't5', and {list(_NUMBERS)}"]
    text, (start, end) = texts[0], (name for name, _ in _NUMBERS)
    own = {str(c["id"]): dict(c.get("config") or {}) for c in configs}
    problems = []
    for ids, wanted in (("cross_attention_cond_ids", [text, start, end]), ("global_cond_ids", [start, end])):
        if n[f"model.diffusion.{ids}"] != wanted:
            problems.append(f"model.diffusion.{ids} are {n[f'model.diffusion.{ids}']}; expected {wanted}")
    allowed = {text: {"t5_model_name", "max_length", "enable_grad", "project_out"}}
    for name, options in own.items():
        for key in options.keys() - allowed.get(name, {"min_val", "max_val"}):
            problems.append(f"{where}, {name}: {key} is {options[key]!r}; this setting is unknown here")
    ranges = [(own[name].get("min_val", 0), own[name].get("max_val", 1)) for name in (start, end)]
    if ranges[0] != ranges[1]:
        problems.append(f"{where}: {start} is in {ranges[0]} and {end} in {ranges[1]}; expected one range for both")
    t5 = str(own[text].get("t5_model_name", _T5_DEFAULT))
    width = 1024 if t5 in ("t5-3b", "t5-11b") else _T5_WIDTHS.get(t5.rpartition("-")[2])
    cond = int(n["model.conditioning.cond_dim"])
    if width is None:
        problems.append(f"{where}, {text}: t5_model_name is {t5!r}; its width is unknown here")
    elif width == cond and own[text].get("project_out"):
        problems.append(f"{where}, {text}: project_out is True for equal widths; the pipeline has no such layer")
    return {
        "projection": {
            "text_encoder_dim": width,
            "conditioning_dim": cond,
            "min_value": ranges[0][0],
            "max_value": ranges[0][1],
        },
        "text": text,
        "start": start,
        "end": end,
        "t5": t5,
        "tokens": int(own[text].get("max_length", 128)),
        "text_is_trained": bool(own[text].get("enable_grad", False)),
    }, problems


_NUMBERS = (("seconds_start", "number"), ("seconds_total", "number"))


def _transformer(n: Mapping[str, Any]) -> dict[str, int]:
    head = n[f"{_DIT}embed_dim"] // n[f"{_DIT}num_heads"]
    return {
        "sample_size": n["sample_size"] // n[f"{_AUTOENCODER}downsampling_ratio"],
        "in_channels": n["model.io_channels"],
        "out_channels": n["model.io_channels"],
        "num_layers": n[f"{_DIT}depth"],
        "attention_head_dim": head,
        "num_attention_heads": n[f"{_DIT}num_heads"],
        "num_key_value_attention_heads": _cond_width(n) // head,
        "cross_attention_dim": _cond_width(n),
        "cross_attention_input_dim": n[f"{_DIT}cond_token_dim"],
        "global_states_input_dim": n[f"{_DIT}global_cond_dim"],
        "time_proj_dim": 256,  # fixed in the trainer's code
    }


def _autoencoder(n: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "encoder_hidden_size": n[f"{_ENCODER}channels"],
        "downsampling_ratios": n[f"{_ENCODER}strides"],
        "channel_multiples": n[f"{_ENCODER}c_mults"],
        "decoder_channels": n[f"{_DECODER}channels"],
        "decoder_input_channels": n[f"{_DECODER}latent_dim"],
        "audio_channels": n[f"{_AUTOENCODER}io_channels"],
        "sampling_rate": n["sample_rate"],
    }
