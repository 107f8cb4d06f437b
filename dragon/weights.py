"""Weights from a .safetensors file, and from nothing else; damaged or foreign ones are refused with a reason.

Knows tensors and names, no model. A pickle runs code when it is read, whatever its file is called: none is ever opened
as one. What no reader can find is a bit that changed one number into another: the format has no checksum.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dragon.errors import ConfigError
from dragon.texts import short

_PICKLE, _ZIP = b"\x80", b"PK"  # how a pickle, and what torch.save writes, begins


def read_weights(path: str | os.PathLike[str], what: str = "weights") -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; what: how a message calls them.

    Raises:
        ConfigError: no such file, another format (a pickle is named as one), a damaged file, NaN or infinity.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = os.fspath(path)
    if not os.path.isfile(place):  # pathlib would raise for a name that is too long
        raise ConfigError(f"{what}: no file {short(place)}; expected a .safetensors file")
    try:
        with open(place, "rb") as file:
            head = file.read(2)
        if head.startswith(_PICKLE) or head == _ZIP:
            raise ConfigError(
                f"{what}: {place} is a pickle, which can run any code when it is read, and is not opened; "
                "expected safetensors: save the tensors again with safetensors.torch.save_file"
            )
        tensors = load_file(place)
    except SafetensorError as error:
        raise ConfigError(
            f"{what}: {place} is damaged or no safetensors ({error}); copy, download or save it again"
        ) from error
    except OSError as error:
        raise ConfigError(f"{what}: {place} cannot be read ({error.strerror}); check its permissions") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{what}: {name} in {place} holds NaN or infinity; copy, download or save it again")
    return tensors


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Raises ConfigError unless these are the weights of `module`: all names, shapes and kinds of numbers.

    Of weights that are tied in the module one name is enough.
    """
    every = module.state_dict()
    tied = dict(module.named_parameters(remove_duplicate=False)).keys() - dict(module.named_parameters()).keys()
    missing = sorted(every.keys() - tied - tensors.keys())
    unknown = sorted(tensors.keys() - every.keys())
    both = sorted(every.keys() & tensors.keys())
    shapes = [name for name in both if every[name].shape != tensors[name].shape]
    kinds = [n for n in both if every[n].is_floating_point() and not tensors[n].is_floating_point()]
    if missing or unknown or shapes or kinds:
        counted = ", ".join(
            f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
            for names, what in (
                (missing, "missing"),
                (unknown, "unknown"),
                (shapes, "of another shape"),
                (kinds, "that are whole numbers"),
            )
            if names
        )
        raise ConfigError(
            f"{Path(source)} does not hold the weights of a {type(module).__name__}: {counted}; "
            "it belongs to another model or another version, or is incomplete"
        )
