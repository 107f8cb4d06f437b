"""A policy's weights on their way into a folder, in the policy's own format.

Knows the protocols, not what the files hold. Storing takes two steps, so that a disk that refuses leaves no process
waiting inside a call of all: first every process takes part in gathering what is sharded, then one of them writes and
asks nothing of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from dragon.protocols import Policy, ShardablePolicy
from dragon.sharding import is_sharded


def weights_writer(policy: Policy, weights: Mapping[str, Tensor]) -> Callable[[Path], None]:
    """What writes `weights` into a folder; for the main process, which calls it without the others.

    With sharded weights a call of all processes: the first one then holds what it will write, on the CPU. Without, it
    costs nothing, and the policy's `save` does all the work later.
    """
    if is_sharded(policy.trainable()):
        assert isinstance(policy, ShardablePolicy)  # or it could not be sharded
        sharded: ShardablePolicy = policy
        with sharded.weights(weights):
            stored = sharded.stored()
        return lambda folder: sharded.write(stored, str(folder))

    def save(folder: Path) -> None:
        with policy.weights(weights):
            policy.save(str(folder))

    return save
