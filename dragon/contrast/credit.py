"""Credit: a set reward becomes a score of each clip, so that any contrast and objective can use it.

Knows set rewards by their protocols. Both credits are in one unit: exchanging clip i for clip j in a set of n clips
changes its score by about (credit_j - credit_i) / n.

    leave-one-out   (n - 1) (r(D) - r(D without i)), exact, of the step's own clips D
    influence       d/de r((1 - e) Q + e i) at e = 0, where Q is a queue of recent clips that holds the step's own

A step's few clips make noisy sets; the queue is larger, so its credits are closer to those of the policy's whole
distribution. It forgets, because the policy moves. Own extension of DRAGON (arXiv 2504.15217), which splits by swaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from dragon.errors import ConfigError
from dragon.protocols import InfluenceReward, SetReward


class Credit(Protocol):
    """Set reward and features of a step's clips -> a score of each; may keep state between steps.

    minimum: clips that must have been seen before there is a score.
    """

    @property
    def minimum(self) -> int: ...

    def score(self, reward: SetReward, features: Tensor) -> Tensor | None:
        """(b,) float64, or None while too little has been seen."""
        ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


class LeaveOneOut:
    """(n - 1) times what the set of the step's clips loses without a clip; costs n scores of sets."""

    minimum = 3

    def score(self, reward: SetReward, features: Tensor) -> Tensor:
        """(b,) float64."""
        return leave_one_out(reward, features)

    def state_dict(self) -> dict[str, object]:
        """Nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Nothing is kept between steps."""


class Influence:
    """Derivative of the set reward at a queue of the last `queue` clips.

    minimum: no credit is given before the queue holds so many clips.

    Raises:
        ConfigError: queue or minimum below 2, or minimum above queue.
    """

    def __init__(self, queue: int = 2048, minimum: int = 256) -> None:
        if not 2 <= minimum <= queue:
            raise ConfigError(f"influence with queue {queue}, minimum {minimum}; expected 2 <= minimum <= queue")
        self.queue, self.minimum = queue, minimum
        self._queues: dict[str, Tensor] = {}

    def held(self, name: str) -> int:
        """Clips in the queue of that reward."""
        return len(self._queues.get(name, ()))

    def score(self, reward: SetReward, features: Tensor) -> Tensor | None:
        """(b,) float64 credits at a queue that ends with these clips; None while it holds fewer than `minimum`."""
        fresh = features.detach().to("cpu")
        old = self._queues.get(reward.name)
        queue = fresh if old is None else torch.cat([old, fresh])
        self._queues[reward.name] = queue = queue[-max(self.queue, len(fresh)) :]
        return influence(reward, queue, fresh) if len(queue) >= self.minimum else None

    def state_dict(self) -> dict[str, object]:
        """The queues; tensors are shared, since a queue is never changed in place."""
        return {"queues": dict(self._queues)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Takes over the queues."""
        queues = state.get("queues", {})
        assert isinstance(queues, Mapping)
        self._queues = dict(queues)


def leave_one_out(reward: SetReward, features: Tensor) -> Tensor:
    """(b,) float64: (b - 1) (r(D) - r(D without i)) of the set D of all b clips, b >= 3."""
    n = len(features)
    if n < LeaveOneOut.minimum:
        raise ConfigError(f"leave-one-out credit of {n} clips; expected at least 3: draw more prompts or samples")
    every = torch.arange(n)
    others = every.repeat(n, 1)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
    whole = reward.score_sets(features, every[None]).double().cpu()
    return (n - 1) * (whole - reward.score_sets(features, others).double().cpu())


def influence(reward: SetReward, queue: Tensor, features: Tensor) -> Tensor:
    """(b,) float64: the reward's closed form, or n + 1 times what adding the clip to the queue of n changes.

    The second has an error of order 1 / n.
    """
    if isinstance(reward, InfluenceReward):
        return reward.influence(queue, features).double().cpu()
    n = len(queue)
    joined = torch.cat([queue, features])
    grown = torch.cat([torch.arange(n).repeat(len(features), 1), n + torch.arange(len(features))[:, None]], dim=1)
    now = reward.score_sets(joined, torch.arange(n)[None]).double().cpu()
    return (n + 1) * (reward.score_sets(joined, grown).double().cpu() - now)
