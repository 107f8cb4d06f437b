"""Rank the samples of each prompt and pair better with worse: the positive and the negative set.

Knows a table of scores (m prompts, k samples), not what they judge. A contrast is a callable
`(scores, generator) -> Pairs`; those here are made by `best_worst()`, `all_pairs()` and the control
`random_labels()`. NaN means that the reward abstained: that sample is in no pair. Equal scores say
nothing about which sample is better, so tied pairs are dropped and counted (method: DRAGON, arXiv
2504.15217, instance rewards; dropping ties is this project's choice).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dragon.errors import ConfigError, NotFinite, ShapeError

Contrast = Callable[[Tensor, Generator], "Pairs"]


@dataclass(frozen=True)
class Pairs:
    """p pairs of samples of one prompt each; rows count as prompt * k + sample.

    positive, negative: (p,) long, rows of the better and the worse sample. gap: (p,) float64, score of the
    positive minus score of the negative (> 0, except under `random_labels`). ties: pairs dropped as equal.
    """

    positive: Tensor
    negative: Tensor
    gap: Tensor
    ties: int = 0

    def __len__(self) -> int:
        return self.positive.numel()


def best_worst() -> Contrast:
    """One pair a prompt: its best against its worst sample; the first of several equally good ones is taken."""

    def pair(scores: Tensor, generator: Generator) -> Pairs:
        scores, valid = _checked(scores)
        best = scores.masked_fill(~valid, -torch.inf).argmax(1)
        worst = scores.masked_fill(~valid, torch.inf).argmin(1)
        enough = valid.sum(1) >= 2
        prompts = enough.nonzero().squeeze(1)
        return _pairs(scores, prompts, best[prompts], worst[prompts])

    return pair


def all_pairs(max_per_prompt: int | None = None) -> Contrast:
    """Every two samples of a prompt that differ, in a fixed order; k (k - 1) / 2 pairs without ties.

    max_per_prompt: keep at most that many of each prompt's pairs, drawn with the generator.

    Raises:
        ConfigError: max_per_prompt below 1.
    """
    if max_per_prompt is not None and max_per_prompt < 1:
        raise ConfigError(f"max_per_prompt is {max_per_prompt}; expected at least 1, or none for all pairs")

    def pair(scores: Tensor, generator: Generator) -> Pairs:
        scores, valid = _checked(scores)
        m, k = scores.shape
        first, second = torch.triu_indices(k, k, offset=1)
        prompts = torch.arange(m).repeat_interleave(len(first))
        first, second = first.repeat(m), second.repeat(m)
        both = valid[prompts, first] & valid[prompts, second]
        prompts, first, second = prompts[both], first[both], second[both]
        higher = scores[prompts, first] >= scores[prompts, second]
        pairs = _pairs(scores, prompts, torch.where(higher, first, second), torch.where(higher, second, first))
        return pairs if max_per_prompt is None else _thinned(pairs, k, max_per_prompt, generator)

    return pair


def random_labels() -> Contrast:
    """Control: one pair a prompt, two different samples drawn with the generator, whatever their scores.

    Only abstention is respected, so that a control uses the clips that the reward's own run would use.
    `gap` is the pair's true difference of scores, of either sign: its mean is near 0.
    """

    def pair(scores: Tensor, generator: Generator) -> Pairs:
        scores, valid = _checked(scores)
        # The order of random numbers is a random permutation; abstained samples sort last.
        order = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
        order = order.masked_fill(~valid, 2.0).argsort(dim=1, stable=True)
        prompts = (valid.sum(1) >= 2).nonzero().squeeze(1)
        if scores.shape[1] < 2:
            return _pairs(scores, prompts, prompts, prompts)  # no prompt has two samples: empty
        return _pairs(scores, prompts, order[prompts, 0], order[prompts, 1], drop_ties=False)

    return pair


def _checked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as (m, k) float64 on the CPU, and where the reward did not abstain."""
    if scores.ndim != 2:
        raise ShapeError(f"scores of shape {tuple(scores.shape)}; expected (m prompts, k samples)")
    scores = scores.detach().to("cpu", torch.float64)
    if scores.isinf().any():
        prompt, sample = (int(i) for i in scores.isinf().nonzero()[0])
        raise NotFinite(
            f"score of prompt {prompt}, sample {sample} is {float(scores[prompt, sample])}; "
            "expected a finite number, or NaN to abstain; mend the reward"
        )
    return scores, ~scores.isnan()


def _pairs(scores: Tensor, prompts: Tensor, better: Tensor, worse: Tensor, drop_ties: bool = True) -> Pairs:
    gap = scores[prompts, better] - scores[prompts, worse]
    keep = gap > 0 if drop_ties else torch.ones_like(gap, dtype=torch.bool)
    rows = prompts * scores.shape[1]
    return Pairs((rows + better)[keep], (rows + worse)[keep], gap[keep], int((~keep).sum()))


def _thinned(pairs: Pairs, k: int, limit: int, generator: Generator) -> Pairs:
    """At most `limit` pairs of each prompt, drawn uniformly; the order of those kept does not change."""
    draw = torch.rand(len(pairs), generator=generator, dtype=torch.float64)
    kept = torch.zeros(len(pairs), dtype=torch.bool)
    prompts = pairs.positive // k
    for prompt in prompts.unique():
        mine = (prompts == prompt).nonzero().squeeze(1)
        kept[mine[draw[mine].argsort()[:limit]]] = True
    return Pairs(pairs.positive[kept], pairs.negative[kept], pairs.gap[kept], pairs.ties)
