"""Rewards -> D+ and D-: set rewards by credit and by search, alone and in mixtures, and what breaks a contract."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from dragon.contrast import Influence, LeaveOneOut, Swap, all_pairs, best_worst, random_labels
from dragon.errors import ConfigError, NotFinite, PluginError
from dragon.media import Media
from dragon.scoring import Scored, Scoring, Split, WeightedReward, why_no_pairs
from dragon.verdicts import Verdicts


@dataclass(frozen=True)
class Height:
    """Second coordinate of a point; NaN below `floor`."""

    floor: float = -math.inf
    name: str = "height"

    @property
    def abstains(self) -> bool:
        return self.floor > -math.inf

    def score(self, media: Media) -> Tensor:
        found = media.tensor[:, 1, 0].double()
        return found.masked_fill(found < self.floor, torch.nan)


@dataclass(frozen=True)
class Centre:
    """Minus the squared distance of the set's mean to a point."""

    x: float = 2.0
    name: str = "centre"

    def embed(self, media: Media) -> Tensor:
        return media.tensor.mT

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        return -(features[members].double().mean((1, 2)) - torch.tensor([self.x, 0.0])).square().sum(1)

    def figures(self, features: Tensor, credits: Tensor) -> dict[str, float]:
        return {"clips": len(features)}


M, K = 6, 3


def media(seed: int = 0) -> Media:
    points = torch.randn(M * K, 2, 1, generator=Generator().manual_seed(seed))
    return Media(points, tuple(f"prompt {i // K}" for i in range(M * K)), None)


def split(scoring: Scoring, seed: int = 0) -> tuple[Scored, Split]:
    scored = scoring.scored(scoring.judge(media(seed), range(M * K)), (M, K))
    return scored, scoring.split(scored, Generator().manual_seed(seed))


def test_a_set_reward_by_influence_ranks_by_its_gradient() -> None:
    """At a mean left of the target, the clips further right are the better ones."""
    target = 1000.0  # so far that only the first coordinate counts
    scoring = Scoring([WeightedReward(Centre(target))], best_worst(), Influence(queue=100, minimum=2))
    scored, found = split(scoring)
    x = media().tensor[:, 0, 0].view(M, K)
    rows = torch.arange(M) * K
    assert torch.equal(found.pairs.positive, rows + x.argmax(1))
    assert torch.equal(found.pairs.negative, rows + x.argmin(1))
    every = torch.arange(M * K)[None]
    assert found.rewards["centre"] == pytest.approx(float(Centre(target).score_sets(scored.features["centre"], every)))
    assert found.reward == pytest.approx(found.rewards["centre"])
    assert found.figures["centre/positive"] > found.rewards["centre"] > found.figures["centre/negative"]
    assert found.figures["centre/clips"] == M * K


@pytest.mark.parametrize("contrast", [best_worst(), all_pairs(), random_labels(), Swap(), Swap("positive")])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_contrast_takes_set_rewards(contrast: object, mixed: bool) -> None:
    rewards = [WeightedReward(Centre())] + [WeightedReward(Height(), 2.0)] * mixed
    scored, found = split(Scoring(rewards, contrast, LeaveOneOut()))  # type: ignore[arg-type]
    assert len(found.pairs) >= M and not why_no_pairs(scored, found).startswith("reward")
    assert list(found.rewards) == [r.reward.name for r in rewards]
    assert math.isfinite(found.reward)


def test_a_search_beats_credits_and_chance_on_its_own_objective() -> None:
    ends = {}
    for name, contrast in (("swap", Swap()), ("credit", best_worst()), ("random", random_labels())):
        _, found = split(Scoring([WeightedReward(Centre(0.5))], contrast, LeaveOneOut()))
        ends[name] = found.figures["centre/positive"] - found.figures["centre/negative"]
    assert ends["swap"] >= ends["credit"] > ends["random"]


def test_nothing_is_learnt_while_the_queue_fills() -> None:
    scoring = Scoring([WeightedReward(Centre())], best_worst(), Influence(queue=100, minimum=2 * M * K))
    scored, found = split(scoring)
    assert len(found.pairs) == 0 and why_no_pairs(scored, found).startswith(
        "the queue of recent clips is filling up to the "
    )
    assert len(split(scoring, 1)[1].pairs) == M


def test_abstention_of_an_instance_reward_holds_in_a_search() -> None:
    scoring = Scoring([WeightedReward(Centre()), WeightedReward(Height(floor=-1.0))], Swap())
    scored, found = split(scoring)
    silent = scored.scores["height"].isnan().flatten()
    assert silent.any() and not silent[found.pairs.positive].any() and not silent[found.pairs.negative].any()


def test_rewards_are_scored_batch_by_batch_with_the_same_result() -> None:
    scoring = Scoring([WeightedReward(Centre()), WeightedReward(Height())], Swap())
    clips = media()
    parts = [scoring.judge(clips.rows(rows), rows) for rows in (range(4), range(4, 5), range(5, M * K))]
    whole, cut = (scoring.scored(said, (M, K)) for said in (scoring.judge(clips, range(M * K)), Verdicts.cat(parts)))
    assert torch.equal(whole.features["centre"], cut.features["centre"])
    assert torch.equal(whole.scores["height"], cut.scores["height"])


def test_the_state_goes_on_where_it_was() -> None:
    def scoring() -> Scoring:
        return Scoring([WeightedReward(Centre()), WeightedReward(Height())], best_worst(), Influence(60, 20))

    one, two = scoring(), scoring()
    for seed in range(3):
        split(one, seed)
    two.load_state_dict(one.state_dict())
    assert torch.equal(split(one, 3)[1].scores, split(two, 3)[1].scores)


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="each with a name of its own"):
        Scoring([WeightedReward(Centre()), WeightedReward(Centre(0.0))], Swap())


def test_a_set_reward_that_breaks_its_contract_is_named() -> None:
    class Flat(Centre):
        def embed(self, media: Media) -> Tensor:
            return media.tensor[:, :, 0]

    class Holes(Centre):
        def embed(self, media: Media) -> Tensor:
            return media.tensor.mT.masked_fill(media.tensor.mT > 1.5, torch.nan)

    class Scoreless(Centre):
        def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
            return torch.full((len(members),), torch.nan)

    with pytest.raises(PluginError, match=r"set reward 'centre' embedded 18 clips as \(18, 2\)"):
        split(Scoring([WeightedReward(Flat())], Swap()))
    with pytest.raises(NotFinite, match=r"'centre' made NaN or infinity for prompt 'prompt \d', seed \d+"):
        split(Scoring([WeightedReward(Holes())], Swap()))
    with pytest.raises(NotFinite, match=r"'centre' gave \[nan\] for 1 sets of 18 clips"):
        split(Scoring([WeightedReward(Scoreless())], Swap()))
