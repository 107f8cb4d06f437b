"""Pairs of samples to learn from, and one draw of them with its noise.

Knows latents, conditions and seeds by row; no model and no objective. Row i of both sides belongs together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dragon.media import Cond, Generation
from dragon.protocols import Noising, Side, Terms


@dataclass(frozen=True)
class PairPool:
    """Pairs to draw from: row i of `positive` is the better sample of a pair, row i of `negative` the worse one."""

    positive: Generation
    negative: Generation

    def __len__(self) -> int:
        return len(self.positive)

    def rows(self, index: Sequence[int]) -> PairPool:
        """The pairs at `index`, in that order."""
        return PairPool(self.positive.rows(index), self.negative.rows(index))

    def unpaired(self) -> PairPool:
        """The same samples, each winner beside a loser of another prompt, unless one prompt has the majority."""
        order = sorted(range(len(self)), key=lambda i: self.positive.prompts[i])
        prompts = [self.positive.prompts[i] for i in order]
        # sorted by prompt, a turn by the size of the largest group leaves no row beside its own group
        largest = max(prompts.count(prompt) for prompt in set(prompts))
        return PairPool(self.positive.rows(order), self.negative.rows(order[largest:] + order[:largest]))

    @staticmethod
    def cat(parts: Sequence[PairPool]) -> PairPool:
        """All pairs of `parts`, one after another."""
        return PairPool(Generation.cat([p.positive for p in parts]), Generation.cat([p.negative for p in parts]))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values that `from_state` reads."""
        return {
            name: {
                "latents": side.latents,
                "cond": dict(side.cond.tensors),
                "prompts": list(side.prompts),
                "seeds": list(side.seeds),
            }
            for name, side in (("positive", self.positive), ("negative", self.negative))
        }

    @staticmethod
    def from_state(state: Mapping[str, Any], device: torch.device) -> PairPool:
        """What `state_dict` gave, on `device`."""
        sides = [
            Generation(
                side["latents"].to(device),
                Cond({name: value.to(device) for name, value in side["cond"].items()}),
                tuple(side["prompts"]),
                tuple(side["seeds"]),
            )
            for side in (state["positive"], state["negative"])
        ]
        return PairPool(*sides)


@dataclass(frozen=True)
class Batch:
    """Pairs with their noise; both sides go through the network in one call.

    counts: False where the rows only keep this process in step with others.
    """

    pairs: PairPool
    positive: Noising
    negative: Noising
    counts: bool = True

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def cond(self) -> Cond:
        """Conditions of D+, then of D-."""
        return Cond.cat([self.pairs.positive.cond, self.pairs.negative.cond])

    def rows(self, index: Sequence[int]) -> Batch:
        """The pairs at `index` with their noise, in that order."""
        at = list(index)
        better, worse = (Noising(n.sigma[at], n.noise[at]) for n in (self.positive, self.negative))
        return Batch(self.pairs.rows(at), better, worse)

    def both(self, function: Callable[..., Tensor], *rest: object) -> Tensor:
        """function(latents, noising, *rest) of D+ and D- in one call: (2b, *d)."""
        noising = Noising(
            torch.cat([self.positive.sigma, self.negative.sigma]), torch.cat([self.positive.noise, self.negative.noise])
        )
        latents = torch.cat([self.pairs.positive.latents, self.pairs.negative.latents])
        return function(latents, noising, *rest)

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(2b, *d) -> D+ and D-."""
        return value[: len(self)], value[len(self) :]

    def terms(self, target: Tensor, reference: Tensor, old: Tensor) -> Terms:
        """Each (2b, *d); the reference's prediction also stands for the policy's."""
        (t, t_), (r, r_), (o, o_) = self.split(target), self.split(reference), self.split(old)
        return Terms(Side(t, r, r, o), Side(t_, r_, r_, o_))

    def with_policy(self, terms: Terms, prediction: Tensor) -> Terms:
        """`terms` with the policy's own prediction (2b, *d)."""
        better, worse = self.split(prediction)
        return replace(
            terms, positive=replace(terms.positive, policy=better), negative=replace(terms.negative, policy=worse)
        )
