"""The training loop: sample, score, pair, and learn from the contrast. One step is read from top to bottom.

Knows protocols (policy, reward, objective) and tables of scores; no class that implements them, no configuration
file, no folder. `Trainer.run` is an iterator of reports: logging, checkpoints and stopping belong to its caller.

Method: DRAGON (Bai et al., arXiv 2504.15217): samples of the current model are split into D+ and D- by a reward,
and the model learns their contrast against its frozen start. The loop, its defaults, replay and the calibration of
beta are this project's reconstruction; no code was published.

Randomness: every number drawn comes from (seed, step, purpose), so that a resumed run equals an unbroken one to the
bit on the CPU, and no result depends on `batch_size` but by rounding. A step happens wholly or not at all: an interrupt
or an error inside it puts the state of the last whole step back.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from dragon.contrast import Credit, Pairs, Swap
from dragon.errors import ConfigError, PluginError
from dragon.learner import Learner, Update
from dragon.media import Cond, Generation, Media
from dragon.pool import PairPool
from dragon.processes import Alone, Processes, share
from dragon.protocols import Objective, Policy
from dragon.rollout import Judged, Rollout, Stopwatch
from dragon.scoring import Scored, Scoring, WeightedReward, why_no_pairs
from dragon.texts import short
from dragon.verdicts import SILENCE


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of a run. Names and defaults are those of `dragon.config`, where each is explained.

    Raises:
        ConfigError: names every number out of its range.
    """

    seed: int = 0
    max_steps: int = 40
    prompts_per_step: int = 16
    num_generations: int = 4
    rollout_steps: int = 8
    guidance: float = 2.0
    batch_size: int = 32
    overlap_scoring: bool = False
    reward_timeout: float = 0.0
    """Seconds; 0: no limit."""
    updates_per_step: int = 3
    pairs_per_update: int = 24
    micro_batch_size: int = 24
    replay_steps: int = 0
    old_decay: float = 0.8
    learning_rate: float = 2e-4
    warmup_steps: int = 2
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    """0: gradients are not clipped."""
    max_skipped_updates: int = 10
    ema_decay: float = 0.9
    beta_calibration_updates: int = 6
    beta_target: float = 1.0

    def __post_init__(self) -> None:
        least = {
            "prompts_per_step": 1,
            "num_generations": 2,  # one sample alone has nothing to be compared with
            "rollout_steps": 1,
            "batch_size": 1,
            "updates_per_step": 1,
            "pairs_per_update": 1,
            "micro_batch_size": 1,
            "max_steps": 0,
            "replay_steps": 0,
            "warmup_steps": 0,
            "weight_decay": 0,
            "max_grad_norm": 0,
            "max_skipped_updates": 0,
            "reward_timeout": 0,
            "beta_calibration_updates": 0,
        }
        wrong = [
            f"{name} is {getattr(self, name)}; expected at least {low}"
            for name, low in least.items()
            if not getattr(self, name) >= low
        ]
        wrong += [
            f"{name} is {getattr(self, name)}; expected a positive finite number"
            for name in ("learning_rate", "beta_target")
            if not 0 < getattr(self, name) < math.inf
        ]
        decays = {"old_decay": self.old_decay, "ema_decay": self.ema_decay, "betas": min(self.betas)}
        decays |= {"betas[1]": max(self.betas)}
        wrong += [f"{name} is {value}; expected 0 <= value < 1" for name, value in decays.items() if not 0 <= value < 1]
        if wrong:
            raise ConfigError("training settings:\n  " + "\n  ".join(wrong))


@dataclass(frozen=True)
class StepReport:
    """What one step saw and did. `step` counts finished steps, so the first report says 1.

    rewards: mean score by reward, for a set reward the score of all clips as one set; reward: their mixture; means
    are over samples on which no one abstained. figures: each reward on D+ and on D-, and more (dragon.scoring.Split).
    gap: mean of mixture(D+) - mixture(D-) over the fresh pairs. implicit_accuracy: share of trained pairs whose
    winner gained more over the reference than its loser (ties count one half). gain_positive, gain_negative: mean
    gain on D+ and D-. z0: KTO's zero point. beta_gain_median: median |beta * gain|. grad_norm: before clipping.
    Means are over the step's updates; NaN where there is none. pairs: fresh pairs; ties_dropped: pairs dropped.
    scores: (m, k) mixture, NaN where a reward abstained; row = prompt * k + sample. skipped: why there was no update;
    empty if there was one. skipped_updates: updates of the run so far that were left out for a NaN or infinity.
    media, seeds: the clips of this process, which are rows first_row, ... of the scores; alone, all m * k.
    seconds: rollout, decode, score, search, train. whole_seconds: of the step; with overlapped scoring less than their
    sum.
    """

    step: int
    rewards: Mapping[str, float]
    reward: float
    figures: Mapping[str, float]
    gap: float
    loss: float
    implicit_accuracy: float
    gain_positive: float
    gain_negative: float
    z0: float
    beta: float | None
    beta_gain_median: float
    grad_norm: float
    learning_rate: float
    pairs: int
    ties_dropped: int
    seconds: Mapping[str, float]
    reward_seconds: Mapping[str, float]
    skipped: str
    media: Media
    seeds: tuple[int, ...]
    scores: Tensor
    first_row: int = 0
    skipped_updates: int = 0
    whole_seconds: float = math.nan

    @property
    def clip_scores(self) -> Tensor:
        """(b,) mixture of each clip of `media`."""
        return self.scores.flatten()[self.first_row : self.first_row + len(self.media)]


class Trainer:
    """Tunes `policy` toward the weighted sum of `rewards`.

    prompts: training prompts; `columns`: the prompt file's other columns, one value a prompt, given to rewards.
    contrast: scores (m, k) and a generator -> pairs of rows (`dragon.contrast`), or `Swap`. credit: how a set reward
    scores single clips, where the contrast is not `Swap`; None: influence at a queue of recent clips.

    >>> for report in Trainer(policy, rewards, prompts, contrast=best_worst(), objective=NFT(),
    ...                       settings=TrainSettings()).run():      # doctest: +SKIP
    ...     print(report.step, report.reward)
    """

    def __init__(
        self,
        policy: Policy,
        rewards: Sequence[WeightedReward],
        prompts: Sequence[str],
        *,
        contrast: Callable[[Tensor, Generator], Pairs] | Swap,
        objective: Objective,
        settings: TrainSettings,
        columns: Mapping[str, Sequence[object]] | None = None,
        credit: Credit | None = None,
        processes: Processes = Alone(),
    ) -> None:
        self.policy, self.prompts, self.settings = policy, tuple(prompts), settings
        self.processes = processes
        self.columns = {name: tuple(values) for name, values in (columns or {}).items()}
        _check_prompts(self.prompts, self.columns)
        self._digest = _derived(self.prompts, sorted(self.columns.items()))
        self.scoring = Scoring(rewards, contrast, credit, settings.reward_timeout)
        self.rollout = Rollout(
            policy,
            steps=settings.rollout_steps,
            guidance=settings.guidance,
            batch_size=settings.batch_size,
            overlap=settings.overlap_scoring,
        )
        self.learner = Learner(
            policy,
            objective,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            max_grad_norm=settings.max_grad_norm,
            ema_decay=settings.ema_decay,
            old_decay=settings.old_decay,
            pairs_per_update=settings.pairs_per_update,
            micro_batch_size=settings.micro_batch_size,
            calibration_updates=settings.beta_calibration_updates,
            beta_target=settings.beta_target,
            max_skipped_updates=settings.max_skipped_updates,
            processes=processes,
        )
        self.step = 0
        self._replay: list[PairPool] = []
        self._silence_told = False
        self._before: dict[str, Any] | None = None  # the last whole step, while another is made
        self.report: StepReport | None = None  # of the last step made; one that was taken back is above `step`

    @property
    def objective(self) -> Objective:
        """The objective in use, at its calibrated beta once that is known."""
        return self.learner.objective

    def run(self, steps: int | None = None) -> Iterator[StepReport]:
        """Trains for `steps` more steps (None: as many as are left), never beyond `max_steps`.

        Between two reports the state is that of a whole step: save, stop and call again as you like.

        Raises:
            NotFinite: a score, sample, prediction, loss or gradient; names part, prompt and seed.
            PluginError: a reward broke its contract. OutOfMemory: a single row does not fit.
            OtherProcess: another process of the run has stopped.
        """
        last = self.settings.max_steps if steps is None else min(self.step + steps, self.settings.max_steps)
        while self.step < last:
            with self._whole_or_not():
                self.report = report = self._one_step()
            yield report

    def ema_weights(self) -> dict[str, Tensor]:
        """Copies of the averaged weights, which are the ones to evaluate and save."""
        return {n: v.to(self.learner.parameters[n], copy=True) for n, v in self.learner.ema.values.items()}

    def state_dict(self, *, shares: bool = False) -> dict[str, Any]:
        """All that it takes to go on as if nothing had happened: tensors (copies on the CPU) and JSON values.

        shares: see `Learner.state_dict`; for this process to go back to, not to store.
        """
        return {
            "step": self.step,
            "prompts": self._digest,
            "learner": self.learner.state_dict(shares=shares),
            **self.scoring.state_dict(),
            "replay": [pool.state_dict() for pool in self._replay],
            "rollout": self.rollout.state_dict(),
            "silence_told": self._silence_told,
        }

    def load_state_dict(self, state: Mapping[str, Any], anew: frozenset[str] = frozenset()) -> None:
        """Goes on from what `state_dict` gave, in a trainer made with the same parts and settings.

        anew: parts that start as in a new run: "objective", "optimizer", "rewards" (their mixture, credit and the
        pairs that are replayed), "credit"; "prompts" may be others.

        Raises:
            ConfigError: the state is of another objective, other rewards, prompts or weights.
        """
        if state.get("prompts", self._digest) != self._digest and "prompts" not in anew:  # absent in version 0.1
            raise ConfigError(
                "the training prompts or their columns have changed since the checkpoint, so the run would not be the "
                "same; put the file back as it was, or add --resume.allow prompts"
            )
        self.learner.load_state_dict(state["learner"], anew)
        self.scoring.load_state_dict(state, anew)
        replay = [] if "rewards" in anew else state["replay"]
        self._replay = [PairPool.from_state(pool, self.learner.device) for pool in replay]
        self.rollout.load_state_dict(state.get("rollout", {}))
        self._silence_told = bool(state.get("silence_told", False))
        self.step = int(state["step"])

    # One step, in order.

    def _one_step(self) -> StepReport:
        watch, start = Stopwatch(), time.perf_counter()
        index = self._draw_prompts()
        own, first_row = self._roll_out(index, watch)
        generation, scored = self._gathered(own, index)
        silence = {"silent": _mean(scored.silent)} if own.media.rate else {}
        self._tell_silence(scored, generation)
        with watch("search"):
            split = self.scoring.split(scored, self._generator("pairs"))
            self._check_same(split.pairs)
        pairs = split.pairs
        skipped = "" if len(pairs) else why_no_pairs(scored, split)
        updates: list[Update] = []
        with watch("train"):
            if skipped and not split.waiting:
                self._warn(f"{skipped}; no update was made")
            elif not skipped:
                updates = self._learn(generation, pairs)
        if updates and all(update.skipped for update in updates):
            skipped = updates[0].skipped
        self.step += 1
        return StepReport(
            step=self.step,
            rewards=split.rewards,
            reward=split.reward,
            figures={**split.figures, **silence},
            gap=_mean(pairs.gap),
            loss=_mean([u.loss for u in updates]),
            implicit_accuracy=_mean([u.implicit_accuracy for u in updates]),
            gain_positive=_mean([u.gain_positive for u in updates]),
            gain_negative=_mean([u.gain_negative for u in updates]),
            z0=_mean([u.z0 for u in updates]),
            beta=self.objective.beta,
            beta_gain_median=_mean([u.beta_gain_median for u in updates]),
            grad_norm=_mean([u.grad_norm for u in updates]),
            learning_rate=self._learning_rate(self.step - 1),
            pairs=len(pairs),
            ties_dropped=pairs.ties,
            seconds=watch.stages,
            reward_seconds=scored.seconds,
            skipped=skipped,
            media=own.media,
            seeds=own.generation.seeds,
            scores=split.scores,
            first_row=first_row,
            skipped_updates=self.learner.skipped,
            whole_seconds=time.perf_counter() - start,
        )

    def _draw_prompts(self) -> list[int]:
        """m indices of prompts: every prompt comes once an epoch, in an order drawn for that epoch."""
        m, n = self.settings.prompts_per_step, len(self.prompts)
        chosen, orders = [], {}
        for position in range(self.step * m, (self.step + 1) * m):
            epoch, place = divmod(position, n)
            if epoch not in orders:
                generator = Generator().manual_seed(_derived(self.settings.seed, "epoch", epoch))
                orders[epoch] = torch.randperm(n, generator=generator).tolist()
            chosen.append(orders[epoch][place])
        return chosen

    def _roll_out(self, index: Sequence[int], watch: Stopwatch) -> tuple[Judged, int]:
        """This process's share of the samples from the current policy, judged, and the row of the first one."""
        k = self.settings.num_generations
        prompts, seeds = self._all_rows(index)
        columns = {name: [values[i] for i in index for _ in range(k)] for name, values in self.columns.items()}
        mine, most = share(len(index), self.processes), -(-len(index) // self.processes.count)
        rows = range(mine.start * k, mine.stop * k)
        with self.rollout.together(self.processes):
            parts = self.rollout.each(
                prompts, seeds, self.scoring.judge, watch, columns=columns, rows=rows, most=most * k
            )
            return Judged.cat(list(parts)), rows.start

    def _gathered(self, own: Judged, index: Sequence[int]) -> tuple[Generation, Scored]:
        """All processes' samples and what was said of them; row = prompt * k + sample."""
        gather, made = self.processes.gather, own.generation
        cond = Cond({name: gather(tensor) for name, tensor in made.cond.tensors.items()})
        generation = Generation(gather(made.latents), cond, *self._all_rows(index))
        said = own.verdicts.gathered(self.processes)
        return generation, self.scoring.scored(said, (len(index), self.settings.num_generations))

    def _all_rows(self, index: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Prompt and seed of each sample of the step, whichever process draws it: k of each prompt in turn."""
        prompts = tuple(self.prompts[i] for i in index for _ in range(self.settings.num_generations))
        return prompts, tuple(_derived(self.settings.seed, self.step, "sample", row) for row in range(len(prompts)))

    def _check_same(self, pairs: Pairs) -> None:
        """All processes hold the same scores, so they must have come to the same D+ and D-."""
        sides = torch.stack([pairs.positive, pairs.negative]).tolist()
        digests = self.processes.gather_values(_derived(sides))
        if len(set(digests)) > 1:
            raise PluginError(
                f"step {self.step + 1}: the processes made different pairs of the same scores ({digests}); expected "
                "one result: a set reward, credit or contrast draws numbers of its own, or the machines differ"
            )

    def _tell_silence(self, scored: Scored, generation: Generation) -> None:
        """One warning a run."""
        silent = scored.silent.nonzero().flatten().tolist()
        if not silent or self._silence_told:
            return
        self._silence_told = True
        row = silent[0]
        self._warn(
            f"{len(silent)} of {len(generation)} clips are silent (peak below {SILENCE:g}), such as that of prompt "
            f"{short(generation.prompts[row])}, seed {generation.seeds[row]}; listen to it, and watch the figure "
            "`silent` of later steps"
        )

    def _warn(self, text: str) -> None:
        """All processes come to the same warnings, and one speaks."""
        if self.processes.main:
            warnings.warn(f"step {self.step + 1}: {text}", stacklevel=5)

    def _learn(self, generation: Generation, pairs: Pairs) -> list[Update]:
        """The step's updates, on its own pairs and those that are replayed."""
        s, rate = self.settings, self._learning_rate(self.step)
        fresh = PairPool(generation.rows(pairs.positive.tolist()), generation.rows(pairs.negative.tolist()))
        pool = PairPool.cat([*self._replay, fresh])
        warm = self.step >= s.warmup_steps
        updates = [
            self.learner.update(pool, self._generator("update", i), rate, calibrate=warm)
            for i in range(s.updates_per_step)
        ]
        self.learner.follow()
        self._replay = [*self._replay, fresh][-s.replay_steps :] if s.replay_steps else []
        return updates

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up: `warmup_steps` steps below the full rate."""
        return self.settings.learning_rate * min(1.0, (step + 1) / (self.settings.warmup_steps + 1))

    def _generator(self, *purpose: object) -> Generator:
        """On the CPU wherever the policy is, so that a run draws the same numbers on every device."""
        return Generator().manual_seed(_derived(self.settings.seed, self.step, *purpose))

    @contextmanager
    def _whole_or_not(self) -> Iterator[None]:
        """Global random numbers from (seed, step); on any exception the state before is put back.

        Costs one copy of weights, moments and averages in main memory (of sharded ones, of the share, on the device).
        """
        self._before = self.state_dict(shares=True)
        with _global_numbers(_derived(self.settings.seed, self.step, "global"), self.learner.device):
            try:
                yield
                self._before = None
            except BaseException:
                self.go_back()
                raise

    def go_back(self) -> None:
        """Puts the last whole step back if one was broken off; again, if a signal broke that off, too."""
        if self._before is not None:
            self.load_state_dict(self._before)
            self._before = None


@contextmanager
def _global_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Global random numbers of torch, numpy and Python from `seed` (dropout, careless rewards), restored after."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _derived(*parts: object) -> int:
    """A seed of 31 bits (torch's CPU generator uses 32) that depends on every part."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") >> 1


def _check_prompts(prompts: Sequence[str], columns: Mapping[str, Sequence[object]]) -> None:
    if not prompts:
        raise ConfigError("there are no training prompts; expected at least one")
    for name, values in columns.items():
        if len(values) != len(prompts):
            raise ConfigError(f"column {name!r} has {len(values)} values for {len(prompts)} prompts; expected one each")


def _mean(values: Tensor | Sequence[float]) -> float:
    """Mean without NaN; NaN if nothing is left."""
    return float(torch.as_tensor(values, dtype=torch.float64).nanmean())
