"""One optimiser step on pairs: from samples and noise through the objective to new weights.

Knows a policy and an objective by their protocols, and pairs of latents; no rewards, no clips, no loop. The result
of an update does not depend on how it is cut into micro-batches, and KTO's zero point is that of the whole batch.
Noise is drawn once a pair and shared by both sides, by policy, reference and old policy (method: Wallace et al.
2023, Diffusion-DPO; pairs as D+ and D- after DRAGON, arXiv 2504.15217).

Several processes draw the same batch, each learns from its share of the rows, and the gradients are summed: the result
is that of one process but for the order of sums. What one process cannot do (a NaN, no memory), all of them know
before they go on, so that they skip or repeat an update together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor

from dragon.batching import Batching, out_of_memory
from dragon.diffusion.ema import Ema
from dragon.errors import ConfigError, NotFinite
from dragon.loss_scale import LossScale
from dragon.media import not_finite
from dragon.objectives import calibrated_beta, gain, zero_point
from dragon.pool import Batch, PairPool
from dragon.processes import Alone, Processes, share
from dragon.protocols import Objective, Policy, Terms
from dragon.sharding import is_sharded, placed, whole
from dragon.texts import first_line


@dataclass(frozen=True)
class Update:
    """Figures of one optimiser step; means over its pairs, `grad_norm` before clipping, NaN where there is none.

    skipped: what was not finite, so that nothing changed; all figures are then NaN. Empty for a real update.
    """

    loss: float = math.nan
    implicit_accuracy: float = math.nan
    gain_positive: float = math.nan
    gain_negative: float = math.nan
    z0: float = math.nan
    beta_gain_median: float = math.nan
    grad_norm: float = math.nan
    skipped: str = ""


class Learner:
    """The trained weights with all that follows them: AdamW, EMA, the moving old policy and the calibration of beta.

    max_grad_norm 0: no clipping. calibration_updates: the gains of that many updates, the first that are allowed to
    calibrate, set beta once so that the median of |beta * gain| is `beta_target`; then beta stays (0: as stated).
    micro_batch_size is halved when memory runs out. An update with a NaN or infinity is left out; after more than
    `max_skipped_updates` of them the run stops. A policy whose `precision` is "float16" gets a loss scale.
    processes: those that share the run, each with the same policy, whole or sharded; None: this one alone.
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
        processes: Processes | None = None,
    ) -> None:
        self.policy, self.objective = policy, objective
        self.processes = processes or Alone()
        self.parameters = policy.trainable()
        if not self.parameters:
            raise ConfigError("the policy has no trainable parameters; expected some: see its tuning options")
        self.device = next(iter(self.parameters.values())).device
        self.updates = self.skipped = 0
        self.ema = Ema(self.parameters, ema_decay)
        self._old = Ema(self.parameters, old_decay) if objective.needs_old else None
        self._optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=0.0, betas=betas, weight_decay=weight_decay
        )
        self._max_grad_norm, self._max_skipped = max_grad_norm or math.inf, max_skipped_updates
        self._scale = LossScale(getattr(policy, "precision", "float32") == "float16")
        self._sharded = is_sharded(self.parameters)
        self._pairs = pairs_per_update
        self._batching = Batching(micro_batch_size, "micro-batch", "update.micro_batch_size", fixed=self._sharded)
        self._calibration_updates, self._beta_target = calibration_updates, beta_target
        self._calibration: list[Tensor] = []  # gains, until beta is frozen
        self._beta_frozen = objective.beta is None or not calibration_updates

    def update(self, pool: PairPool, generator: Generator, learning_rate: float, *, calibrate: bool = True) -> Update:
        """One optimiser step on pairs drawn from `pool` without replacement; the same call in every process.

        calibrate: whether this update's gains may set beta; not during warm-up, when they are too small to tell.

        Raises:
            NotFinite: a prediction, the loss or the gradient, once more often than `max_skipped_updates`; names the
                part, the prompt and the seed. OutOfMemory: a micro-batch of one pair does not fit.
        """
        batch = self._draw(pool, generator)
        try:
            found = self._gradients(batch)
        except NotFinite as error:
            return self._left_out(error)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._scale.served()
        self.ema.update(self.parameters)
        self.updates += 1
        losses, positive, negative = found.rows.cpu().unbind(1)
        gains, inside = torch.cat([positive, negative]), positive - negative
        beta = self.objective.beta
        update = Update(
            loss=float(losses.mean()),
            implicit_accuracy=float(((inside > 0).double() + 0.5 * (inside == 0)).mean()),
            gain_positive=float(positive.mean()),
            gain_negative=float(negative.mean()),
            z0=math.nan if found.z0 is None else float(found.z0),
            beta_gain_median=math.nan if beta is None else beta * float(gains.abs().quantile(0.5)),
            grad_norm=float(found.norm),
        )
        if calibrate and self.updates > 1:  # at the first update the policy still is its reference: every gain is 0
            self._calibrate(gains)
        return update

    def follow(self) -> None:
        """Moves the old policy toward the present one; once a roll-out."""
        if self._old:
            self._old.update(self.parameters)

    def state_dict(self, *, shares: bool = False) -> dict[str, Any]:
        """Copies on the CPU, and JSON values; with sharded weights a call of all processes.

        shares: of sharded weights only this process's share, on its device; no other process takes part.
        """
        moments = self._optimizer.state_dict()["state"]
        copies = _shares if shares else _wholes
        return {
            "updates": self.updates,
            "skipped": self.skipped,
            "micro_batch": self._batching.halved,
            "scale": self._scale.state_dict(),
            "objective": self.objective.name,
            "beta": self.objective.beta,
            "beta_frozen": self._beta_frozen,
            "calibration": list(self._calibration),
            "weights": copies(self.parameters),
            "ema": copies(self.ema.values),
            "old": copies(self._old.values) if self._old else {},
            "optimizer": {name: copies(moments[i]) for i, name in enumerate(self.parameters) if i in moments},
        }

    def load_state_dict(self, state: Mapping[str, Any], anew: frozenset[str] = frozenset()) -> None:
        """Goes on from what `state_dict` gave.

        anew: parts that start as in a new run, at the stored weights: "objective" (beta, its calibration and the old
        policy), "optimizer" (moments and loss scale); other names are no concern of the learner.

        Raises:
            ConfigError: the state is of another objective (unless it starts anew) or of other weights.
        """
        if state["objective"] != self.objective.name and "objective" not in anew:
            raise ConfigError(
                f"stored state is of objective {state['objective']!r}, this run has {self.objective.name!r}; "
                "resume with the same objective or start a new run"
            )
        _check_same_weights(state["weights"], self.parameters)
        self.updates = int(state["updates"])
        self.skipped = int(state.get("skipped", 0))  # absent, as are micro_batch and scale, in those of version 0.1
        self._batching.restore(state.get("micro_batch", ()))
        with torch.no_grad():
            for name, value in self._as_weights(state["weights"]).items():
                self.parameters[name].copy_(value)
        self.ema.load_state_dict(self._as_weights(state["ema"]))
        if self._old:
            self._old.load_state_dict(self._as_weights(state["weights" if "objective" in anew else "old"]))
        if "objective" not in anew:
            if state["beta"] is not None and state["beta"] != self.objective.beta:
                self.objective = self.objective.with_beta(state["beta"])
            self._beta_frozen, self._calibration = bool(state["beta_frozen"]), list(state["calibration"])
        moments = {}
        if "optimizer" not in anew:
            self._scale.load_state_dict(state.get("scale", {}))
            moments = state["optimizer"]
        by_index = {
            i: {key: _as(value, parameter).clone() for key, value in moments[name].items()}
            for i, (name, parameter) in enumerate(self.parameters.items())
            if name in moments
        }
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": by_index})
        self._optimizer.zero_grad(set_to_none=True)

    def _as_weights(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: _as(value, self.parameters[name]) for name, value in stored.items()}

    def _draw(self, pool: PairPool, generator: Generator) -> Batch:
        pairs = pool.rows(torch.randperm(len(pool), generator=generator)[: self._pairs].tolist())
        draw = self.policy.draw_noising
        if self.objective.paired:
            # one sigma and noise for both sides: their difference then has no noise-level variance
            shared = draw(pairs.positive.latents, generator)
            return Batch(pairs, shared, shared)
        pairs = pairs.unpaired()
        return Batch(pairs, draw(pairs.positive.latents, generator), draw(pairs.negative.latents, generator))

    def _gradients(self, batch: Batch) -> _Found:
        """The clipped gradient of the whole batch, in every process.

        Done again with smaller micro-batches where memory runs out, and with a smaller loss scale where it overflows.
        """
        scale = self._scale.state_dict()
        while True:
            try:
                found = self._attempt(batch)
                if found.norm.isfinite():
                    return found
                if not self._scale.lower():
                    self._scale.load_state_dict(scale)  # it was not to blame
                    self._blame_gradient(batch)
            except _NoMemory as error:
                self._batching.halve(min(self._batching.size, self._largest_share(batch)), str(error))

    def _attempt(self, batch: Batch) -> _Found:
        """Gradients of this process's rows, summed over processes; with the figures of all rows."""
        self._optimizer.zero_grad(set_to_none=True)
        chunks = self._chunks(batch)
        frozen, z0 = self._frozen_terms(chunks)
        # fully_shard averages gradients over processes; the sum is wanted
        factor = self._scale.value * (self.processes.count if self._sharded else 1)
        rows = [torch.zeros(0, 3, dtype=torch.float64, device=self.device)]
        with self._local() as faults:
            for chunk, others in zip(chunks, frozen, strict=True):
                terms = chunk.with_policy(others, self._predict(chunk, "the policy's prediction", faults))
                loss = self.objective(terms)
                faults.append(not_finite(f"the loss {self.objective.name!r}", loss, chunk.pairs.positive))
                (loss.sum() * (factor * chunk.counts) / len(batch)).backward()
                if chunk.counts:
                    rows.append(torch.cat([loss.detach()[:, None], _gains(terms)], 1))
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_grad_norm)
        return _Found(self.processes.gather(torch.cat(rows)), z0, whole(norm))

    def _chunks(self, batch: Batch) -> list[Batch]:
        """This process's rows in micro-batches; with sharded weights every process has equally many."""
        rows, size = share(len(batch), self.processes), self._batching.size
        chunks = [batch.rows(rows[start : start + size]) for start in range(0, len(rows), size)]
        if self._sharded:
            calls = -(-self._largest_share(batch) // size)
            chunks += [replace(batch.rows([0]), counts=False)] * (calls - len(chunks))
        return chunks

    def _largest_share(self, batch: Batch) -> int:
        return -(-len(batch) // self.processes.count)

    def _frozen_terms(self, chunks: Sequence[Batch]) -> tuple[list[Terms], Tensor | None]:
        """Terms of each chunk, with the reference's prediction in the policy's place; z0 is over all processes."""
        gains = [torch.zeros(0, 2, dtype=torch.float64, device=self.device)]
        with self._local() as faults, torch.no_grad():
            with self.policy.reference():
                reference = [self._predict(chunk, "the reference's prediction", faults) for chunk in chunks]
            old = reference
            if self._old:
                with self.policy.weights(self._old.values):
                    old = [self._predict(chunk, "the old policy's prediction", faults) for chunk in chunks]
            frozen = [
                chunk.terms(chunk.both(self.policy.target), r, o)
                for chunk, r, o in zip(chunks, reference, old, strict=True)
            ]
            if self.objective.needs_z0:
                for chunk, terms in zip(chunks, frozen, strict=True):
                    prediction = self._predict(chunk, "the policy's prediction", faults)
                    if chunk.counts:
                        gains.append(_gains(chunk.with_policy(terms, prediction)))
        if not self.objective.needs_z0:
            return frozen, None
        z0 = zero_point(self.processes.gather(torch.cat(gains)))
        return [replace(terms, z0=z0) for terms in frozen], z0

    def _predict(self, batch: Batch, part: str, faults: list[str]) -> Tensor:
        """(2b, *d) raw predictions, D+ first."""
        prediction = batch.both(self.policy.predict, batch.cond)
        for value, side in zip(batch.split(prediction), (batch.pairs.positive, batch.pairs.negative), strict=True):
            faults.append(not_finite(part, value, side))
        return prediction

    @contextmanager
    def _local(self) -> Iterator[list[str]]:
        """Runs local work, then raises the same error in every process if it failed in any.

        What is not finite is put into the list and the work goes on, since with sharded weights all processes make
        the same number of calls.

        Raises (in all processes alike):
            NotFinite: the first text that any process put into its list. _NoMemory: it ran out in one of them.
        """
        faults: list[str] = []
        no_memory = ""
        with nullcontext() if self._sharded else self.processes.together():
            try:
                yield faults
            except NotFinite as error:  # a part that checks for itself
                faults.append(str(error))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                no_memory = first_line(error)
                if self._sharded:  # the others wait inside their calls: nothing can be agreed on
                    self._batching.halve(self._batching.size, no_memory)
        told = self.processes.gather_values((no_memory, next(filter(None, faults), "")))
        for text, _ in told:
            if text:
                raise _NoMemory(text)
        for _, text in told:
            if text:
                raise NotFinite(text)

    def _sum_gradients(self) -> None:
        """Over processes, and without the loss scale."""
        if not self._sharded:  # there the backward pass has summed them
            reached = self.processes.gather_values([p.grad is not None for p in self.parameters.values()])
            for p, anywhere in zip(self.parameters.values(), map(any, zip(*reached, strict=True)), strict=True):
                if anywhere and p.grad is None:  # this process has no rows
                    p.grad = torch.zeros_like(p)
            self.processes.add([p.grad for p in self.parameters.values() if p.grad is not None])
        if self._scale.value != 1:
            for p in self.parameters.values():
                if p.grad is not None:
                    p.grad.div_(self._scale.value)

    def _blame_gradient(self, batch: Batch) -> NoReturn:
        """Raises NotFinite with the name of the first pair whose own gradient is not finite (z0 of that pair alone).

        Every process looks at every pair: with sharded weights each of them is needed for all.
        """
        for i in range(len(batch)):
            one = batch.rows([i])
            better, worse = one.pairs.positive, one.pairs.negative
            self._optimizer.zero_grad(set_to_none=True)
            (frozen,), _ = self._frozen_terms([one])
            with self._local() as faults:
                terms = one.with_policy(frozen, self._predict(one, "the policy's prediction", faults))
                self.objective(terms).sum().backward()
                faults += [
                    f"the gradient of {name!r} is not finite for prompt {better.prompts[0]!r}, seeds "
                    f"{better.seeds[0]} (better) and {worse.seeds[0]} (worse); expected finite numbers; "
                    "lower learning_rate or beta"
                    for name, p in self.parameters.items()
                    if p.grad is not None and not whole(p.grad).isfinite().all()
                ]
        raise NotFinite(
            f"the gradient over {len(batch)} pairs is not finite though each pair's is (first prompt "
            f"{batch.pairs.positive.prompts[0]!r}, seed {batch.pairs.positive.seeds[0]}); lower learning_rate or beta"
        )

    def _left_out(self, error: NotFinite) -> Update:
        """An update that did not happen; the error itself once there were too many."""
        self._optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        if self.skipped > self._max_skipped:
            count = f"number {self.skipped} to be left out, and max_skipped_updates is {self._max_skipped}"
            raise NotFinite(f"{error}; this update is {count}") if self._max_skipped else error
        if self.processes.main:
            warnings.warn(
                f"an update is left out, number {self.skipped} of at most {self._max_skipped} of the run: {error}",
                stacklevel=3,
            )
        return Update(skipped=str(error))

    def _calibrate(self, gains: Tensor) -> None:
        """Sets beta from the first gains, once and never again: adapting it on would dissolve the anchor."""
        if self._beta_frozen:
            return
        self._calibration.append(gains)
        if len(self._calibration) == self._calibration_updates:
            beta = calibrated_beta(torch.cat(self._calibration), self._beta_target)
            self.objective, self._calibration, self._beta_frozen = self.objective.with_beta(beta), [], True


@dataclass(frozen=True)
class _Found:
    """What a backward pass over all processes gives beside the gradients.

    rows: (b, 3) float64, loss and gains on D+ and D- of each pair of the batch. norm: of the gradient before clipping.
    """

    rows: Tensor
    z0: Tensor | None
    norm: Tensor


class _NoMemory(Exception):
    """Memory ran out in one of the processes."""


@torch.no_grad()
def _gains(terms: Terms) -> Tensor:
    """(b, 2) float64, gain on D+ and on D-."""
    return torch.stack([gain(terms.positive), gain(terms.negative)], 1).double()


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


def _wholes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(value.detach()).to("cpu", copy=True) for name, value in tensors.items()}


def _shares(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().clone() if is_sharded({name: value}) else value.detach().to("cpu", copy=True)
        for name, value in tensors.items()
    }


def _as(value: Tensor, parameter: Tensor) -> Tensor:
    """A stored tensor where the parameter lies: on its device, and sharded as it is (if it has the same shape)."""
    return placed(value.to(parameter.device), parameter) if value.shape == parameter.shape else value
