"""Models that others trained, from a hub id or a folder: float32, evaluation mode, no gradient, nothing missing.

Knows how transformers and diffusers load a model, no architecture. Both fill weights that a file lacks with random
numbers and go on; here that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from dragon.encoders.identity import fingerprint
from dragon.errors import ConfigError, DragonError

TRAINING_ONLY = ("masked_spec_embed",)
"""Weights that only training reads (masked spans of speech models); many checkpoints leave them out."""

# says where a model came from and who wrote the file, not what it computes
_ORIGIN = {
    "_name_or_path", "transformers_version", "_diffusers_version", "torch_dtype", "dtype", "architectures",
    "_commit_hash", "auto_map", "_attn_implementation_autoset", "attn_implementation", "output_hidden_states",
}  # fmt: skip


def load_model(
    kind: Any, source: str, encoder: str, device: str, *, computed: tuple[str, ...] = (), **options: object
) -> Any:
    """`kind.from_pretrained(source)` of a transformers or diffusers class, on `device`.

    computed: ends of the names of what the model counts itself and a file may lack.

    Raises:
        ConfigError: it cannot be loaded, has weights of another shape, or lacks some.
    """
    load = partial(kind.from_pretrained, source, output_loading_info=True, **options)
    model, info = reading(load, source, encoder, "a model")
    missing = sorted(str(key) for key in info["missing_keys"] if not str(key).endswith((*TRAINING_ONLY, *computed)))
    missing += sorted(str(key[0]) for key in info["mismatched_keys"])
    if missing:
        raise ConfigError(
            f"encoder {encoder!r}: {source!r} lacks {len(missing)} weights of {type(model).__name__} or has them in "
            f"another shape ({', '.join(missing[:3])}); it holds another kind of model, or is incomplete"
        )
    return model.to(device, torch.float32).eval().requires_grad_(False)


def reading(load: Callable[[], Any], source: str, encoder: str, what: str) -> Any:
    """`load()`; whatever it raises becomes a ConfigError that names the encoder, the source and the next step."""
    try:
        return load()
    except DragonError:
        raise
    except Exception as error:  # loaders raise OSError, ValueError, KeyError, ImportError and more for a wrong source
        lines = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"encoder {encoder!r}: {what} cannot be read from {source!r} ({type(error).__name__}: {lines[0]}); "
            "expected a folder that save_pretrained wrote, or a hub id that is in the local cache or can be downloaded"
        ) from error


def architecture(config: Any) -> str:
    """Fingerprint of a transformers or diffusers configuration, without where it came from and which version wrote it.

    Beside the hash of the weights it tells models apart whose weights agree and whose computation does not.
    """
    return fingerprint(**_plain(config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key in _ORIGIN:
            continue
        kept[str(key)] = _plain(value) if isinstance(value, Mapping) else _value(value)
    return kept


def _value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_value(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
