"""Weights spread over processes: each keeps its share of every tensor, and the whole exists only while it is needed.

Knows torch's `fully_shard` (FSDP2; Zhao et al. 2023, arXiv 2304.11277, as rewritten on DTensor), and neither policies
nor the launch. Without sharding every function here gives back what it was given, so callers need not ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from dragon.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(module: nn.Module) -> None:
    """Spreads the parameters of `module` over all processes, in place; afterwards `parameters()` gives DTensors.

    A group of weights is gathered when its part of the module runs, forward or backward, and dropped after it: each
    block of a list of modules is one, the rest is another. So every forward and backward is a collective: all
    processes must make the same number of calls. Gradients are averaged over processes.

    Raises:
        ConfigError: no process group was started.
    """
    if not _processes_started():
        raise ConfigError("no processes to shard over; start several with accelerate launch or torchrun")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(module.parameters()).device
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in units(module):
        # Weights kept after a forward (torch's choice for the root) would be stale once others are put in place.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def units(module: nn.Module) -> list[nn.Module]:
    """The parts of `module` whose weights are gathered together: its blocks, and last the module with what is left."""
    return [*_blocks(module), module]


def is_sharded(parameters: Mapping[str, Tensor]) -> bool:
    """Whether these parameters, or any of them, are spread over processes."""
    return any(_is_share(parameter) for parameter in parameters.values())


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every process (a collective); another tensor as it is."""
    return tensor.full_tensor() if _is_share(tensor) else tensor


def placed(value: Tensor, like: Tensor) -> Tensor:
    """The whole tensor `value`, the same on every process, sharded as `like` is. Nothing is sent.

    As it is where `like` is not sharded, or `value` is already.
    """
    if _is_share(value) or not _is_share(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.detach(), like.device_mesh, like.placements, src_data_rank=None)


def is_writer(parameters: Mapping[str, Tensor]) -> bool:
    """Whether this process is the one to store these parameters: of sharded ones, the first."""
    return not is_sharded(parameters) or torch.distributed.get_rank() == 0


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost lists of modules: a transformer's blocks, but no lists inside them."""
    for part in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(part, nn.ModuleList):
            yield part
        else:
            yield from _blocks(part)


def _is_share(tensor: Tensor) -> TypeGuard[DTensor]:
    if not _processes_started():
        return False  # without loading DTensor, which takes most of a second
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _processes_started() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
