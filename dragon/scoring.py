"""What a step's clips are worth, and which of them become D+ and D-: rewards -> pairs.

Knows rewards by their protocols and tables of scores; neither policies nor weights. Instance rewards score each clip.
A set reward scores sets: it becomes a score of each clip by its credit, or judges whole sets in a swap search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from dragon.contrast import (
    Credit,
    Influence,
    Judge,
    Mean,
    Pairs,
    RewardMixture,
    Swap,
    swap_scorer,
    swap_variance,
)
from dragon.contrast.mixture import within_prompt_variance
from dragon.errors import ConfigError, NotFinite
from dragon.media import Media
from dragon.protocols import InstanceReward, SetReward, SwapScorer
from dragon.verdicts import SILENCE, Verdicts, set_scores, verdicts


@dataclass(frozen=True)
class WeightedReward:
    """A reward of clips or of sets, and its weight in the mixture that ranks samples."""

    reward: InstanceReward | SetReward
    weight: float = 1.0


@dataclass(frozen=True)
class Scored:
    """What the rewards say of a step's b = m * k clips; row = prompt * k + sample.

    shape: (m, k). scores: (m, k) float64 of each instance reward. features: (b, s, f) of each set reward. seconds: of
    each reward. silent: (b,) whether a clip of audio is; empty if that is not known.
    """

    shape: tuple[int, int]
    scores: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    seconds: Mapping[str, float]
    silent: Tensor = torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True)
class Split:
    """D+ and D- of a step.

    scores: (m, k) mixture, NaN where a clip took no part. rewards: of each reward its mean, or the score of all clips
    as one set. reward: their mixture. figures: of each reward its mean (or set's score) on D+ and on D-, what set
    rewards tell of themselves, and how a swap search went. waiting: why there is no contrast yet; usually empty.
    """

    pairs: Pairs
    scores: Tensor
    rewards: Mapping[str, float]
    reward: float
    figures: Mapping[str, float] = field(default_factory=dict)
    waiting: str = ""


class Scoring:
    """The rewards of a run, their mixture, the credit of its set rewards, and the contrast.

    contrast: scores (m, k) and a generator -> pairs; or `Swap`, which lets set rewards judge whole sets.
    reward_timeout: seconds that one reward may take for a batch of clips; 0: no limit.

    Raises:
        ConfigError: no rewards, or two of one name.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        contrast: Callable[[Tensor, Generator], Pairs] | Swap,
        credit: Credit | None = None,
        reward_timeout: float = 0.0,
    ) -> None:
        self.rewards, self.contrast, self.reward_timeout = tuple(rewards), contrast, reward_timeout
        names = [r.reward.name for r in self.rewards]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"rewards are {names}; expected at least one, each with a name of its own")
        self.credit = Influence() if credit is None else credit
        self.mixture = RewardMixture([r.weight for r in self.rewards])
        self._sets = {r.reward.name: r.reward for r in self.rewards if isinstance(r.reward, SetReward)}

    def judge(self, media: Media, seeds: Sequence[int]) -> Verdicts:
        """Every reward's word on each clip of one batch.

        Raises:
            NotFinite, PluginError: a reward broke its contract; names it, and prompt and seed where they are known.
        """
        return verdicts({w.reward.name: w.reward for w in self.rewards}, media, seeds, timeout=self.reward_timeout)

    def scored(self, verdicts: Verdicts, shape: tuple[int, int]) -> Scored:
        """What was said of all clips of a step; shape: (m, k)."""
        tables = {name: scores.view(shape) for name, scores in verdicts.scores.items()}
        return Scored(shape, tables, verdicts.features, verdicts.seconds, verdicts.peaks < SILENCE)

    def split(self, scored: Scored, generator: Generator) -> Split:
        """D+ and D- by the contrast."""
        if isinstance(self.contrast, Swap):
            return self._by_search(self.contrast, scored, generator)
        return self._by_scores(self.contrast, scored, generator)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values that `load_state_dict` reads."""
        return {"mixture": self.mixture.state_dict(), "credit": self.credit.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], anew: frozenset[str] = frozenset()) -> None:
        """Goes on from what `state_dict` gave; `anew` may name "rewards" (all of it) and "credit", which stay as new.

        Raises:
            ConfigError: the state is of other rewards.
        """
        if "rewards" not in anew:
            self.mixture.load_state_dict(state["mixture"])
            if "credit" not in anew:
                self.credit.load_state_dict(state.get("credit", {}))

    def _by_scores(self, contrast: Callable[[Tensor, Generator], Pairs], scored: Scored, generator: Generator) -> Split:
        """Set rewards through their credits, then one table of scores."""
        shape, rewards = scored.shape, self._values(scored)
        credits = {name: self.credit.score(reward, scored.features[name]) for name, reward in self._sets.items()}
        if any(credit is None for credit in credits.values()):
            none = torch.full(shape, torch.nan, dtype=torch.float64)
            waiting = f"the queue of recent clips is filling up to the {self.credit.minimum} that a credit needs"
            return Split(_NO_PAIRS, none, rewards, math.nan, waiting=waiting)
        credited = {name: credit.view(shape) for name, credit in credits.items() if credit is not None}
        tables = {name: credited[name] if name in credited else scored.scores[name] for name in rewards}
        for name, table in tables.items():
            if name in credits and not bool(table.isfinite().all()):
                raise NotFinite(f"the credit of set reward {name!r} holds NaN or infinity; mend the reward")
        scores = self.mixture.combine(list(tables.values()))
        # a credit tells clips apart and averages to about 0; what the set is worth is the set's own score
        offsets = sum(
            factor * (rewards[name] - _mean(tables[name])) for factor, name in self._factors() if name in credits
        )
        pairs = contrast(scores, generator)
        figures = self._figures(scored, pairs)
        for name, credit in credits.items():
            tell = getattr(self._sets[name], "figures", None)
            if tell is not None and credit is not None:
                figures |= {f"{name}/{key}": float(value) for key, value in tell(scored.features[name], credit).items()}
        return Split(pairs, scores, rewards, _mean(scores) + offsets, figures)

    def _by_search(self, swap: Swap, scored: Scored, generator: Generator) -> Split:
        """Set rewards judge whole sets; instance rewards take part by the mean of a set's members."""
        shape, rewards = scored.shape, self._values(scored)
        usable = ~torch.stack([torch.zeros(shape), *(table for table in scored.scores.values())]).isnan().any(0)
        # two scorers each: one follows D+, one D-
        scorers: dict[str, tuple[SwapScorer, SwapScorer]] = {
            name: (Mean(table.nan_to_num(0.0)), Mean(table.nan_to_num(0.0))) for name, table in scored.scores.items()
        }
        for name, reward in self._sets.items():
            features = scored.features[name]
            scorers[name] = swap_scorer(reward, features), swap_scorer(reward, features)
        if len(rewards) > 1:
            spread = {name: within_prompt_variance(table) for name, table in scored.scores.items()}
            spread |= {name: swap_variance(scorers[name][0], usable, generator) for name in self._sets}
            self.mixture.observe([spread[name] for name in rewards])
        judges = [Judge(*scorers[name], weight=factor) for factor, name in self._factors()]
        pairs, trace = swap.search(judges, usable, generator)
        scores = torch.full((usable.numel(),), torch.nan, dtype=torch.float64)
        scores[pairs.positive], scores[pairs.negative] = pairs.gap / 2, -pairs.gap / 2
        figures = self._figures(scored, pairs)
        if len(pairs):
            figures |= {f"swap/{key}": float(getattr(trace, key)) for key in _TRACED}
        value = sum(factor * rewards[name] for factor, name in self._factors())
        return Split(pairs, scores.view(shape), rewards, value, figures)

    def _factors(self) -> Iterator[tuple[float, str]]:
        return zip(self.mixture.factors, (r.reward.name for r in self.rewards), strict=True)

    def _values(self, scored: Scored) -> dict[str, float]:
        """Of each reward, in the order they were given: its mean, or the score of all clips as one set."""
        every = torch.arange(math.prod(scored.shape))
        return {w.reward.name: self._on(w.reward.name, scored, [every])[0] for w in self.rewards}

    def _figures(self, scored: Scored, pairs: Pairs) -> dict[str, float]:
        """What each reward says of D+ and of D-."""
        if len(pairs) < 2:
            return {}
        found: dict[str, float] = {}
        for weighted in self.rewards:
            name = weighted.reward.name
            sides = self._on(name, scored, [pairs.positive, pairs.negative])
            found |= {f"{name}/{side}": value for side, value in zip(("positive", "negative"), sides, strict=True)}
        return found

    def _on(self, name: str, scored: Scored, sets: Sequence[Tensor]) -> list[float]:
        """A reward's mean over, or score of, sets of rows of one size."""
        if name not in self._sets:
            return [_mean(scored.scores[name].flatten()[rows]) for rows in sets]
        return set_scores(name, self._sets[name], scored.features[name], sets)


_NO_PAIRS = Pairs(
    torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64)
)
_TRACED = ("start", "end", "passes", "kept", "asked", "screened", "optimal")


def why_no_pairs(scored: Scored, split: Split) -> str:
    """For a step without a contrast."""
    mute = [name for name, table in scored.scores.items() if table.isnan().all()]
    if split.waiting:
        return split.waiting
    if len(scored.silent) and bool(scored.silent.all()):
        return f"all {len(scored.silent)} clips are silent"
    if mute:
        return f"reward {', '.join(map(repr, mute))} abstained on every sample"
    if split.pairs.ties:
        return "the samples of each prompt have equal scores, so there is nothing to learn from"
    return "no prompt has two samples on which no reward abstained"


def _mean(values: Tensor) -> float:
    """Mean without NaN; NaN if nothing is left."""
    return float(values.double().nanmean())
