"""Swap search with the shipped set rewards' own scorers: monotone, one-swap optimal, and brute force on few pairs."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Generator, Tensor

from dragon.contrast import Judge, Swap
from dragon.encoders.spectral import Spectral
from dragon.exemplars import ExemplarSet
from dragon.protocols import SetReward, SwappableReward
from dragon.rewards.set_frechet import SetFrechet
from dragon.rewards.set_kernel import SetKernel
from dragon.rewards.set_vendi import SetVendi

PAIRS, SIZE = 7, 5
ENCODER = Spectral(bands=SIZE)


def frames(clips: int, each: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(clips, 1, SIZE, generator=generator, dtype=torch.float64)
    return own + 0.5 * torch.randn(clips, each, SIZE, generator=generator, dtype=torch.float64) + 0.3


def exemplars() -> ExemplarSet:
    table = frames(40, 2, 99).flatten(0, 1)
    moments = table.mean(0), table.mT.cov()
    return ExemplarSet("given", "spectral", ENCODER.fingerprint, *moments, len(table), bandwidth=1.5, features=table)


REWARDS: dict[str, tuple[SetReward, int]] = {
    "frechet": (SetFrechet(exemplars(), ENCODER), 1),
    "frechet of many frames": (SetFrechet(exemplars(), ENCODER), 4),
    "kernel": (SetKernel(exemplars(), ENCODER), 4),
    "vendi": (SetVendi(ENCODER), 1),
    "vendi, q = 2": (SetVendi(ENCODER, 2.0), 1),
}


@pytest.mark.parametrize("kind", ["difference", "positive"])
@pytest.mark.parametrize("name", REWARDS)
def test_a_search_climbs_to_a_one_swap_optimum_and_restarts_to_the_best_of_all(name: str, kind: str) -> None:
    reward, each = REWARDS[name]
    assert isinstance(reward, SwappableReward)
    features = frames(2 * PAIRS, each, 3)
    choices = torch.tensor(list(product((0, 1), repeat=PAIRS)))  # all ways to deal the pairs
    rows = 2 * torch.arange(PAIRS)
    up, down = (reward.score_sets(features, rows + taken) for taken in (choices, 1 - choices))
    values = up - down if kind == "difference" else up
    ends = []
    for seed in range(6):
        judge = Judge(reward.swap_scorer(features), reward.swap_scorer(features))
        usable = torch.ones(PAIRS, 2, dtype=torch.bool)
        pairs, trace = Swap(kind).search([judge], usable, Generator().manual_seed(seed))
        assert trace.optimal and list(trace.path) == sorted(trace.path)
        taken = pairs.positive - rows
        place = int((taken * 2 ** torch.arange(PAIRS - 1, -1, -1)).sum())
        assert torch.equal(choices[place], taken)
        assert trace.end == pytest.approx(float(values[place]), rel=1e-9)
        neighbours = [int(place ^ (1 << bit)) for bit in range(PAIRS)]
        assert float(values[neighbours].max()) <= trace.end + 1e-6 * abs(trace.end)
        ends.append(trace.end)
    assert max(ends) == pytest.approx(float(values.max()), rel=1e-9)
