"""One optimiser step on pairs: from samples and noise through the objective to new weights.

Knows a policy and an objective by their protocols, and pairs of latents; no rewards, no clips, no loop. The result
of an update does not depend on how it is cut into micro-batches, and KTO's zero point is that of the whole batch.
Noise is drawn once a pair and shared by both sides, by policy, reference and old policy (method: Wallace et al.
2023, Diffusion-DPO; pairs as D+ and D- after DRAGON, arXiv 2504.15217).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.diffusion.ema import Ema
from dragon.errors import ConfigError, NotFinite
from dragon.media import Cond, Generation
from dragon.objectives import calibrated_beta, gain, zero_point
from dragon.processes import Alone, Processes
from dragon.protocols import Noising, Objective, Policy, Side, Terms


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
class Update:
    """Figures of one optimiser step; means over its pairs, `grad_norm` before clipping, NaN where there is none.

    skipped: what was not finite, so that nothing changed; all figures are then NaN. Empty for a real update.
    """

    loss: float
    implicit_accuracy: float
    gain_positive: float
    gain_negative: float
    z0: float
    beta_gain_median: float
    grad_norm: float
    skipped: str = ""


class Learner:
    """The trained weights with all that follows them: AdamW, EMA, the moving old policy and the calibration of beta.

    max_grad_norm 0: no clipping. calibration_updates: the gains of that many updates, the first that are allowed to
    calibrate, set beta once so that the median of |beta * gain| is `beta_target`; then beta stays (0: as stated).
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        *,
        weight_decay: float,
        betas: tuple[float, float],
        max_grad_norm: float,
        ema_decay: float,
        old_decay: float,
        pairs_per_update: int,
        micro_batch_size: int,
        calibration_updates: int,
        beta_target: float,
        max_skipped_updates: int = 0,
        processes: Processes = Alone(),
    ) -> None:
        self.policy, self.objective = policy, objective
        self.processes, self.skipped = processes, 0
        self._max_skipped = max_skipped_updates
        self.parameters = policy.trainable()
        if not self.parameters:
            raise ConfigError("the policy has no trainable parameters; expected some: see its tuning options")
        self.device = next(iter(self.parameters.values())).device
        self.updates = 0
        self.ema = Ema(self.parameters, ema_decay)
        self._old = Ema(self.parameters, old_decay) if objective.needs_old else None
        self._optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=0.0, betas=betas, weight_decay=weight_decay
        )
        self._max_grad_norm = max_grad_norm or math.inf
        self._pairs, self._micro = pairs_per_update, micro_batch_size
        self._calibration_updates, self._beta_target = calibration_updates, beta_target
        self._calibration: list[Tensor] = []  # gains, until beta is frozen
        self._beta_frozen = objective.beta is None or not calibration_updates

    def update(self, pool: PairPool, generator: Generator, learning_rate: float, *, calibrate: bool = True) -> Update:
        """One optimiser step on pairs drawn from `pool` without replacement.

        calibrate: whether this update's gains may set beta; not during warm-up, when they are too small to tell.

        Raises:
            NotFinite: a prediction, the loss or the gradient; names the part, the prompt and the seed.
        """
        batch = self._draw(pool, generator)
        size = range(len(batch))
        chunks = [batch.rows(size[start : start + self._micro]) for start in size[:: self._micro]]
        frozen = self._frozen_terms(chunks)
        self._optimizer.zero_grad(set_to_none=True)
        losses, winners, losers = [], [], []
        for chunk, others in zip(chunks, frozen, strict=True):
            terms = chunk.with_policy(others, self._predict(chunk, "the policy's prediction"))
            loss = self.objective(terms)
            check_finite(f"the loss {self.objective.name!r}", loss, chunk.pairs.positive)
            (loss.sum() / len(batch)).backward()
            losses.append(loss.detach())
            with torch.no_grad():
                winners.append(gain(terms.positive))
                losers.append(gain(terms.negative))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_grad_norm)
        if not norm.isfinite():
            self._blame_gradient(batch)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.ema.update(self.parameters)
        self.updates += 1
        positive, negative = torch.cat(winners).double().cpu(), torch.cat(losers).double().cpu()
        gains, inside = torch.cat([positive, negative]), positive - negative
        beta, z0 = self.objective.beta, frozen[0].z0
        update = Update(
            loss=float(torch.cat(losses).mean()),
            implicit_accuracy=float(((inside > 0).double() + 0.5 * (inside == 0)).mean()),
            gain_positive=float(positive.mean()),
            gain_negative=float(negative.mean()),
            z0=math.nan if z0 is None else float(z0),
            beta_gain_median=math.nan if beta is None else beta * float(gains.abs().quantile(0.5)),
            grad_norm=float(norm),
        )
        if calibrate and self.updates > 1:  # at the first update the policy still is its reference: every gain is 0
            self._calibrate(gains)
        return update

    def follow(self) -> None:
        """Moves the old policy toward the present one; once a roll-out."""
        if self._old:
            self._old.update(self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Copies on the CPU, and JSON values."""
        moments = self._optimizer.state_dict()["state"]
        return {
            "updates": self.updates,
            "objective": self.objective.name,
            "beta": self.objective.beta,
            "beta_frozen": self._beta_frozen,
            "calibration": list(self._calibration),
            "weights": _copies(self.parameters),
            "ema": _copies(self.ema.values),
            "old": _copies(self._old.values) if self._old else {},
            "optimizer": {name: _copies(moments[i]) for i, name in enumerate(self.parameters) if i in moments},
        }

    def load_state_dict(self, state: Mapping[str, Any], anew: frozenset[str] = frozenset()) -> None:
        """Goes on from what `state_dict` gave.

        anew: parts that start as in a new run, at the stored weights: "objective" (beta, its calibration and the old
        policy), "optimizer" (moments and loss scale); other names are no concern of the learner.

        Raises:
            ConfigError: the state is of another objective or of other weights.
        """
        if state["objective"] != self.objective.name:
            raise ConfigError(
                f"stored state is of objective {state['objective']!r}, this run has {self.objective.name!r}; "
                "resume with the same objective or start a new run"
            )
        _check_same_weights(state["weights"], self.parameters)
        self.updates = int(state["updates"])
        if state["beta"] is not None and state["beta"] != self.objective.beta:
            self.objective = self.objective.with_beta(state["beta"])
        self._beta_frozen, self._calibration = bool(state["beta_frozen"]), list(state["calibration"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["weights"][name])
        self.ema.load_state_dict(state["ema"])
        if self._old:
            self._old.load_state_dict(state["old"])
        moments = state["optimizer"]
        by_index = {i: _copies(moments[name]) for i, name in enumerate(self.parameters) if name in moments}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": by_index})
        self._optimizer.zero_grad(set_to_none=True)

    def _draw(self, pool: PairPool, generator: Generator) -> _Batch:
        pairs = pool.rows(torch.randperm(len(pool), generator=generator)[: self._pairs].tolist())
        draw = self.policy.draw_noising
        if self.objective.paired:
            # one sigma and noise for both sides: their difference then has no noise-level variance
            shared = draw(pairs.positive.latents, generator)
            return _Batch(pairs, shared, shared)
        pairs = pairs.unpaired()
        return _Batch(pairs, draw(pairs.positive.latents, generator), draw(pairs.negative.latents, generator))

    def _frozen_terms(self, chunks: Sequence[_Batch]) -> list[Terms]:
        """Terms of each chunk, with the reference's prediction in the policy's place; z0 is over all chunks."""
        with torch.no_grad():
            with self.policy.reference():
                reference = [self._predict(chunk, "the reference's prediction") for chunk in chunks]
            old = reference
            if self._old:
                with self.policy.weights(self._old.values):
                    old = [self._predict(chunk, "the old policy's prediction") for chunk in chunks]
            frozen = [
                chunk.terms(chunk.both(self.policy.target), r, o)
                for chunk, r, o in zip(chunks, reference, old, strict=True)
            ]
            if self.objective.needs_z0:
                current = [
                    chunk.with_policy(terms, self._predict(chunk, "the policy's prediction"))
                    for chunk, terms in zip(chunks, frozen, strict=True)
                ]
                gains = [gain(side) for terms in current for side in (terms.positive, terms.negative)]
                frozen = [replace(terms, z0=zero_point(torch.cat(gains))) for terms in frozen]
        return frozen

    def _predict(self, batch: _Batch, part: str) -> Tensor:
        """(2b, *d) raw predictions, D+ first."""
        prediction = batch.both(self.policy.predict, batch.cond)
        for value, side in zip(batch.split(prediction), (batch.pairs.positive, batch.pairs.negative), strict=True):
            check_finite(part, value, side)
        return prediction

    def _blame_gradient(self, batch: _Batch) -> None:
        """Stops with the name of the first pair whose own gradient is not finite (z0 of that pair alone)."""
        for i in range(len(batch)):
            one = batch.rows([i])
            self._optimizer.zero_grad(set_to_none=True)
            terms = one.with_policy(self._frozen_terms([one])[0], self._predict(one, "the policy's prediction"))
            self.objective(terms).sum().backward()
            for name, parameter in self.parameters.items():
                if parameter.grad is not None and not parameter.grad.isfinite().all():
                    better, worse = one.pairs.positive, one.pairs.negative
                    raise NotFinite(
                        f"the gradient of {name!r} is not finite for prompt {better.prompts[0]!r}, seeds "
                        f"{better.seeds[0]} (better) and {worse.seeds[0]} (worse); expected finite numbers; "
                        "lower learning_rate or beta"
                    )
        raise NotFinite(
            f"the gradient over {len(batch)} pairs is not finite though each pair's is (first prompt "
            f"{batch.pairs.positive.prompts[0]!r}, seed {batch.pairs.positive.seeds[0]}); lower learning_rate or beta"
        )

    def _calibrate(self, gains: Tensor) -> None:
        """Sets beta from the first gains, once and never again: adapting it on would dissolve the anchor."""
        if self._beta_frozen:
            return
        self._calibration.append(gains)
        if len(self._calibration) == self._calibration_updates:
            beta = calibrated_beta(torch.cat(self._calibration), self._beta_target)
            self.objective, self._calibration, self._beta_frozen = self.objective.with_beta(beta), [], True


def check_finite(part: str, value: Tensor, rows: Generation) -> None:
    """Raises NotFinite with the part's name, and the prompt and seed of the first row that is not finite."""
    finite = value.detach().reshape(len(rows), -1).isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise NotFinite(
            f"{part} is not finite for prompt {rows.prompts[row]!r}, seed {rows.seeds[row]} ({int((~finite).sum())} of "
            f"{len(rows)} rows); expected finite numbers; lower learning_rate, or sample this prompt and seed alone"
        )


@dataclass(frozen=True)
class _Batch:
    """Pairs with their noise; both sides go through the network in one call."""

    pairs: PairPool
    positive: Noising
    negative: Noising

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def cond(self) -> Cond:
        return Cond.cat([self.pairs.positive.cond, self.pairs.negative.cond])

    def rows(self, index: Sequence[int]) -> _Batch:
        at = list(index)
        noisings = [Noising(n.sigma[at], n.noise[at]) for n in (self.positive, self.negative)]
        return _Batch(self.pairs.rows(at), *noisings)

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
        (t, t_), (r, r_), (o, o_) = self.split(target), self.split(reference), self.split(old)
        return Terms(Side(t, r, r, o), Side(t_, r_, r_, o_))

    def with_policy(self, terms: Terms, prediction: Tensor) -> Terms:
        better, worse = self.split(prediction)
        return replace(
            terms, positive=replace(terms.positive, policy=better), negative=replace(terms.negative, policy=worse)
        )


def _check_same_weights(stored: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    differing = sorted(stored.keys() ^ parameters.keys()) or [
        f"{name} {tuple(stored[name].shape)} for {tuple(p.shape)}"
        for name, p in parameters.items()
        if stored[name].shape != p.shape
    ]
    if differing:
        raise ConfigError(
            f"stored weights do not fit the policy ({len(differing)} differ: {', '.join(differing[:4])}); "
            "resume with the same policy and tuning or start a new run"
        )


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
