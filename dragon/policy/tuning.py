"""Which weights of a denoiser are trained, how to see it without the training, and how it is stored.

Knows torch modules and PEFT's LoRA layers, not what the module models. Two kinds behind one interface:
`LoraTuning` adds low-rank matrices (Hu et al. 2021, arXiv 2106.09685) and its reference is the module with
the adapters off; `FullTuning` trains all weights and keeps a copy of the first ones. Everything else is
frozen and in eval mode, so that no dropout or statistics differ between policy and reference.

Either may be sharded (`dragon.sharding`): then every call of a tuning but `write` is made by all processes, and the
files that the first one writes are those of a run that is not sharded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dragon.errors import ConfigError, ShapeError
from dragon.sharding import is_sharded, is_writer, placed, shard, whole
from dragon.weights import read_weights

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
FULL_WEIGHTS, FULL_CONFIG = "diffusion_pytorch_model.safetensors", "config.json"  # diffusers' names
_PEFT_PREFIX = "base_model.model."


class Tuning(Protocol):
    """The part of a policy that owns its trainable weights."""

    def trainable(self) -> dict[str, Parameter]: ...

    def reference(self) -> AbstractContextManager[None]: ...

    def stored(self) -> dict[str, Tensor]: ...

    def write(self, stored: Mapping[str, Tensor], folder: str) -> None: ...

    def save(self, folder: str) -> None: ...

    def load(self, folder: str) -> None: ...

    def shard(self) -> None: ...


class LoraTuning:
    """A PEFT adapter on the linear layers of `module` whose names end in one of `targets`.

    The adapter starts as the identity (its second matrix is 0) and is float32, whatever the module is. seed: of its
    first matrix; the global random state is left as it was. The update is scaled by alpha / rank.
    also: called with what is written (matrices by their names in the module, PEFT's settings, the folder), to write it
    in a second format.

    Raises:
        ConfigError: rank below 1, alpha not positive, or a target that ends no linear layer's name.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int = 0,
        also: Callable[[Mapping[str, Tensor], Mapping[str, Any], str], None] | None = None,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        if rank < 1 or not alpha > 0:
            raise ConfigError(f"LoRA rank is {rank} and alpha {alpha}; expected rank >= 1 and alpha > 0")
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        for target in targets:
            if not any(name == target or name.endswith("." + target) for name in linear):
                raise ConfigError(f"LoRA target {target!r} ends no linear layer's name; the layers are {linear}")
        if not targets:
            raise ConfigError(f"no LoRA targets; name endings of these linear layers: {linear}")
        freeze(module)
        self._module = module
        self._config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(self._config, module)
        module.eval()
        self._also = also
        self._trainable = _trained(module)
        for p in self._trainable.values():
            p.data = p.data.float()

    def trainable(self) -> dict[str, Parameter]:
        """The adapter's matrices, by their names in the module."""
        return dict(self._trainable)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside it the adapters are off; may be nested."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [part for part in self._module.modules() if isinstance(part, BaseTunerLayer)]
        were_off = [layer.disable_adapters for layer in layers]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer, was_off in zip(layers, were_off, strict=True):
                layer.enable_adapters(not was_off)

    def stored(self) -> dict[str, Tensor]:
        """The adapter's matrices, whole and on the CPU, by PEFT's names; of sharded ones on the first process alone."""
        return _stored({_peft_key(name): p for name, p in self._trainable.items()})

    def write(self, stored: Mapping[str, Tensor], folder: str) -> None:
        """Writes what `stored` gave, without other processes."""
        _write(stored, folder, ADAPTER_WEIGHTS)
        self._config.target_modules = sorted(self._config.target_modules)  # a set: its order changes with the process
        self._config.save_pretrained(folder)
        if self._also:
            matrices = {key.removeprefix(_PEFT_PREFIX): value for key, value in stored.items()}
            self._also(matrices, self._config.to_dict(), folder)

    def save(self, folder: str) -> None:
        """Writes the adapter in PEFT's format: `PeftModel.from_pretrained(module, folder)` reads it."""
        _save(self, folder)

    def load(self, folder: str) -> None:
        """Reads an adapter of the same rank, alpha and targets.

        Raises:
            ConfigError: no adapter in `folder`, or one of another shape.
        """
        stored = _read_config(_existing(folder, ADAPTER_CONFIG))
        here = {"r": self._config.r, "lora_alpha": self._config.lora_alpha}
        differing = {key: (stored.get(key), value) for key, value in here.items() if stored.get(key) != value}
        if differing:
            raise ConfigError(
                f"adapter in {folder} differs (stored, expected): {differing}; "
                "build the policy with the stored rank and alpha"
            )
        names = {_peft_key(name): name for name in self._trainable}
        _copy_into(self._trainable, _read(folder, ADAPTER_WEIGHTS), names, folder)

    def shard(self) -> None:
        """Shards the module, frozen weights too, over all processes; `trainable()` is new afterwards."""
        shard(self._module)
        self._trainable = _trained(self._module)


class FullTuning:
    """Trains every parameter of `module`; a copy of the starting weights is the reference.

    config: JSON text that says what the module is; stored beside the weights, so that a diffusers model
    (`module.to_json_string()`) loads with `from_pretrained`.
    """

    def __init__(self, module: nn.Module, *, config: str) -> None:
        module.eval()
        module.requires_grad_(True)
        self._module, self._config = module, config
        self._trainable = _trained(module)
        self._start = {name: p.detach().clone() for name, p in self._trainable.items()}

    def trainable(self) -> dict[str, Parameter]:
        """All parameters, by their names in the module."""
        return dict(self._trainable)

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the parameters are the starting ones; may be nested."""
        return swapped(self._trainable, self._start)

    def stored(self) -> dict[str, Tensor]:
        """Weights and buffers, whole and on the CPU; of sharded ones on the first process alone."""
        return _stored(self._module.state_dict())

    def write(self, stored: Mapping[str, Tensor], folder: str) -> None:
        """Writes what `stored` gave, without other processes."""
        _write(stored, folder, FULL_WEIGHTS)
        with open(os.path.join(folder, FULL_CONFIG), "w", encoding="utf-8") as file:
            file.write(self._config)

    def save(self, folder: str) -> None:
        """Writes weights and buffers with the config, under diffusers' file names."""
        _save(self, folder)

    def load(self, folder: str) -> None:
        """Reads weights that `save` wrote; the reference stays the starting weights.

        Raises:
            ConfigError: no weights in `folder`, or those of another model.
        """
        state = self._module.state_dict()
        _copy_into(state, _read(folder, FULL_WEIGHTS), {name: name for name in state}, folder)

    def shard(self) -> None:
        """Shards the module and its starting weights over all processes; `trainable()` is new afterwards."""
        shard(self._module)
        self._trainable = _trained(self._module)
        self._start = {name: placed(value, self._trainable[name]) for name, value in self._start.items()}


def swapped(parameters: Mapping[str, Parameter], values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Inside it `parameters` have `values`; the old ones return on leaving, whatever happened inside.

    A graph recorded before still has its own weights when it is walked after leaving, and optimiser state stays
    valid. Do not train inside: the values given would change. values: whole tensors, or sharded like the parameters.

    Raises:
        ShapeError: other names or shapes than the parameters'.
    """
    if parameters.keys() != values.keys():
        wrong = sorted(parameters.keys() ^ values.keys())
        raise ShapeError(f"{len(wrong)} parameter names differ, first {wrong[:3]}; expected those of trainable()")
    for name, p in parameters.items():
        if p.shape != values[name].shape:
            raise ShapeError(f"value of {name} has shape {tuple(values[name].shape)}; expected {tuple(p.shape)}")
    return _overwritten(parameters, values) if is_sharded(parameters) else _exchanged(parameters, values)


@contextmanager
def _exchanged(parameters: Mapping[str, Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Storage changes places: nothing is copied."""
    before = {name: p.data for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.data = values[name].detach().to(p.device, p.dtype)
        yield
    finally:
        try:
            _give_back(parameters, before)
        except KeyboardInterrupt:  # some would keep the other's storage, and what is saved next would be wrong
            _give_back(parameters, before)
            raise


def _give_back(parameters: Mapping[str, Parameter], storage: Mapping[str, Tensor]) -> None:
    for name, p in parameters.items():
        p.data = storage[name]


@contextmanager
def _overwritten(parameters: Mapping[str, Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """This process's shards are copied: the whole weights are gathered from storage that stays where it is."""
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        _copy(parameters, values)
        yield
    finally:
        _copy(parameters, before)


def freeze(module: nn.Module) -> None:
    """No gradients and eval mode for all of `module`."""
    module.eval()
    module.requires_grad_(False)


def _trained(module: nn.Module) -> dict[str, Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _peft_key(name: str) -> str:
    # PEFT's files name neither the adapter ("default") nor the bare module, but its own wrapper.
    return _PEFT_PREFIX + name.replace(".default.", ".")


def _existing(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise ConfigError(f"{path} does not exist; expected a folder that this policy's `save` wrote (a run's final/)")
    return path


def _read_config(path: str) -> dict[str, object]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); copy or save the adapter again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; expected PEFT's object of settings")
    return found


def _read(folder: str, name: str) -> dict[str, Tensor]:
    return read_weights(_existing(folder, name), "tuned weights")


def _save(tuning: Tuning, folder: str) -> None:
    stored = tuning.stored()
    if is_writer(tuning.trainable()):
        tuning.write(stored, folder)


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole of `tensors` on the CPU if this process is the one to write, else nothing."""
    writes, stored = is_writer(tensors), {}
    for key, value in tensors.items():
        full = whole(value.detach())  # all processes take part, one of them keeps it
        if writes:
            stored[key] = full.cpu().contiguous()
    return stored


def _write(stored: Mapping[str, Tensor], folder: str, name: str) -> None:
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    save_file(dict(stored), os.path.join(folder, name), metadata={"format": "pt"})


def _copy_into(here: Mapping[str, Tensor], stored: Mapping[str, Tensor], names: Mapping[str, str], folder: str) -> None:
    """Copies stored tensors into those of the same name; `names` maps stored names to names here."""
    missing, unknown = sorted(names.keys() - stored.keys()), sorted(stored.keys() - names.keys())
    shapes = [key for key, name in names.items() if key in stored and stored[key].shape != here[name].shape]
    if missing or unknown or shapes:
        raise ConfigError(
            f"weights in {folder} belong to another model or tuning: {len(missing)} missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(shapes)} of another shape {shapes[:2]}; "
            "build the policy with the settings that they were saved with"
        )
    _copy(here, {name: stored[key] for key, name in names.items()})


@torch.no_grad()
def _copy(here: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        here[name].copy_(placed(value, here[name]))
