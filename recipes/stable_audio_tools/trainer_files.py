"""A checkpoint of stable-audio-tools -> its weights by the names of the model, whatever wraps them.

Two kinds are read: safetensors, and torch's zip or pickle with `weights_only`, which runs no code of the file. Names:

    model.model.*   conditioner.*   pretransform.*                        unwrapped, as the trainer exports it
    diffusion.model.model.*   diffusion.conditioner.*   ...               as the trainer keeps it while it trains
    diffusion_ema.ema_model.model.*                                       its average of the network, which is exported
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from trainer_names import ROTARY, TRANSFORMER

from dragon.errors import ConfigError
from dragon.weights import read_weights

Which = Literal["auto", "ema", "model"]
_TRAINED, _AVERAGE, _AVERAGES = "diffusion.", "diffusion_ema.ema_model.", "diffusion_ema."


def read_checkpoint(path: str | os.PathLike[str], which: Which = "auto") -> dict[str, Tensor]:
    """The weights of the model, unwrapped. which: "auto" takes the average where there is one, as the trainer does.

    Raises:
        ConfigError: no such file, one that cannot be read without running code of it, numbers that are not finite, no
            weights of such a model, or no average where "ema" asks for it.
    """
    place = os.fspath(path)
    if not os.path.isfile(place):
        raise ConfigError(f"no file {place}; expected a model.safetensors or .ckpt of stable-audio-tools")
    state = read_weights(place, "checkpoint") if Path(place).suffix == ".safetensors" else _read_pickle(place)
    return unwrapped(state, place, which)


def unwrapped(state: Mapping[str, Tensor], source: str, which: Which = "auto") -> dict[str, Tensor]:
    """As `read_checkpoint`, of the tensors in it; source: the file, for messages."""
    averaged = any(name.startswith(_AVERAGE) for name in state)
    if which == "ema" and not averaged:
        raise ConfigError(f"{source} holds no averaged weights (diffusion_ema.ema_model.*); use --weights model")
    wrapped = averaged or any(name.startswith(f"{_TRAINED}{TRANSFORMER}") for name in state)
    if not wrapped:
        found = dict(state)
    else:
        found = {n.removeprefix(_TRAINED): value for n, value in state.items() if not n.startswith(_AVERAGES)}
        if averaged and which != "model":
            found |= {
                f"model.{n.removeprefix(_AVERAGE)}": value for n, value in state.items() if n.startswith(_AVERAGE)
            }
    if not any(name.startswith(TRANSFORMER) for name in found):
        raise ConfigError(
            f"{source} holds no {TRANSFORMER}* (first names: {sorted(state)[:3]}); expected the checkpoint of a "
            "diffusion_cond model of stable-audio-tools, wrapped or unwrapped"
        )
    return found


def check_rotary(state: Mapping[str, Tensor], head: int) -> None:
    """Raises ConfigError unless rotary positions are those that the pipeline computes: base 10,000, half of a head."""
    if ROTARY not in state:
        return
    width = head // 2
    wanted = 10_000.0 ** -(torch.arange(0, width, 2).float() / width)
    found = state[ROTARY].float()
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3):  # it may be stored in half
        raise ConfigError(
            f"{ROTARY} has {len(found)} frequencies from {float(found[0]):.3g} to {float(found[-1]):.3g}; the pipeline "
            f"computes {len(wanted)} from 1 to {float(wanted[-1]):.3g} (base 10,000, half of a head of {head})"
        )


def _read_pickle(place: str) -> dict[str, Tensor]:
    try:
        content = torch.load(place, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(place))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # of torch's message the reason alone, without its advice to turn weights_only off
        reason = re.search(r"(?:Trying to load u|U)nsupported [^\n]*", str(error))
        said = (reason[0] if reason else " ".join(str(error).split()))[:200]
        raise ConfigError(
            f"{place} cannot be read without running code of the file ({said}); where you trust it, export it with the "
            "trainer's unwrap_model.py --use-safetensors, and give that file"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in found.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ConfigError(f"{name} in {place} holds NaN or infinity; take an earlier checkpoint")
    return found
