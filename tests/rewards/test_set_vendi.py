"""The Vendi reward: sets, swaps, bounds and influence against full recomputation and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dragon import mini
from dragon.contrast import LeaveOneOut, Swap
from dragon.encoders.mini import MiniEncoder
from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.media import Media
from dragon.protocols import InfluenceReward, SetReward, SwappableReward
from dragon.rewards.clap import ClapScore
from dragon.rewards.set_vendi import SetVendi
from dragon.rewards.vendi import vendi_score
from dragon.scoring import Scored, Scoring, WeightedReward
from dragon.testing import check_reward

ORDERS = [0.5, 0.9, 1.0, 1.1, 2.0, 3.0, math.inf]
WIDE, TALL = (12, 30), (40, 6)
"""(clips, features) of fewer clips than features, and of more."""


def vectors(rows: int, size: int, seed: int = 0) -> Tensor:
    """(rows, 1, size) of uneven spread, so that no two eigenvalues are equal."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.4, 1.6, size, dtype=torch.float64)
    return (torch.randn(rows, 1, size, generator=generator, dtype=torch.float64) + 0.3) * spread


def vendi(q: float = 1.0) -> SetVendi:
    return SetVendi(Spectral(bands=16), q)


def clips(count: int, seed: int = 0) -> Media:
    tensor = 0.1 * torch.randn(count, 1, 32_000, generator=torch.Generator().manual_seed(seed))
    return Media(tensor, tuple(f"prompt {i}" for i in range(count)), 16_000)


def mixed(queue: Tensor, clip: Tensor, share: float, q: float) -> float:
    """Score of (1 - share) * queue + share * clip, by weights."""
    weights = torch.cat(
        [torch.full((len(queue),), (1 - share) / len(queue), dtype=torch.float64), torch.tensor([share])]
    )
    return float(vendi_score(torch.cat([queue, clip[None]])[:, 0], q, weights))


# ---- embeddings and sets


def test_it_keeps_the_contract_of_set_rewards():
    for q in (0.5, 1, 2, math.inf):
        check_reward(vendi(q))
    reward = SetVendi(MiniEncoder(model=mini.random_encoder(0)), name="variety")
    check_reward(reward, clips(4))
    assert reward.name == "variety"
    assert isinstance(reward, SetReward) and isinstance(reward, SwappableReward) and isinstance(reward, InfluenceReward)


def test_a_joint_encoder_gives_its_clip_embedding_and_another_the_mean_of_its_frames():
    media = clips(3)
    joint, plain = MiniEncoder(model=mini.random_encoder(0)), Spectral(bands=16)
    torch.testing.assert_close(SetVendi(joint).embed(media)[:, 0], joint.embed_clips(media), rtol=1e-5, atol=1e-6)
    mean = plain.embed_media(media).mean(dim=1)
    found = SetVendi(plain).embed(media)
    assert found.shape == (3, 1, 16)
    torch.testing.assert_close(found[:, 0], mean / mean.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_each_set_scores_as_by_itself_whatever_the_blocks(q: float, shape: tuple[int, int], monkeypatch):
    features = vectors(*shape)
    members = torch.stack([torch.randperm(shape[0], generator=torch.Generator().manual_seed(i))[:10] for i in range(7)])
    expected = [float(vendi_score(features[rows, 0], q)) for rows in members]
    found = vendi(q).score_sets(features, members)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("dragon.rewards.set_vendi._BLOCK_NUMBERS", 1)
    assert vendi(q).score_sets(features, members).tolist() == pytest.approx(expected, rel=1e-12)


# ---- swaps


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize(("size", "count"), [(24, 10), (6, 20)])
def test_neighbours_and_the_tracked_value_equal_full_recomputation_after_hundreds_of_swaps(
    q: float, size: int, count: int
):
    features, reward = vectors(60, size), vendi(q)
    scorer = reward.swap_scorer(features)
    generator = torch.Generator().manual_seed(0)
    members = torch.randperm(60, generator=generator)[:count]
    scorer.start(members)
    inside = members.tolist()
    for step in range(300):
        outside = [row for row in range(60) if row not in inside]
        leaving = inside[int(torch.randint(count, (), generator=generator))]
        entering = outside[int(torch.randint(len(outside), (), generator=generator))]
        scorer.swap(leaving, entering)
        inside[inside.index(leaving)] = entering
        if step % 100 == 99:
            now = torch.tensor(inside)
            assert scorer.value == pytest.approx(float(reward.score_sets(features, now[None])[0]), rel=1e-12)
            rest = torch.tensor([row for row in range(60) if row not in inside])
            there, here = now[torch.arange(len(rest)) % count], rest
            sets = torch.where(now == there[:, None], here[:, None], now)
            torch.testing.assert_close(
                scorer.neighbours(there, here), reward.score_sets(features, sets), rtol=1e-11, atol=0
            )


def test_blocks_of_neighbours_change_nothing(monkeypatch):
    features = vectors(30, 6)
    scorer = vendi().swap_scorer(features)
    scorer.start(torch.arange(10))
    there, here = torch.arange(10), torch.arange(10, 20)
    expected = scorer.neighbours(there, here)
    monkeypatch.setattr("dragon.rewards.set_vendi._BLOCK_NUMBERS", 1)
    torch.testing.assert_close(scorer.neighbours(there, here), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize(("size", "count"), [(24, 10), (6, 20), (6, 7)])
def test_bounds_hold_for_every_swap(q: float, size: int, count: int):
    features = vectors(40, size)
    scorer = vendi(q).swap_scorer(features)
    for seed in range(5):
        members = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        scorer.start(members[:count])
        there, here = (t.flatten() for t in torch.meshgrid(members[:count], members[count:], indexing="ij"))
        exact = scorer.neighbours(there, here)
        low, high = scorer.bounds(there, here)
        assert bool((low <= exact).all()) and bool((exact <= high).all())
        if q > 1 or count > size:  # else a clip adds a direction, of which a tangent knows nothing
            assert bool(high.isfinite().any())


def test_bounds_are_close_where_one_clip_is_a_small_part_of_the_set():
    features = vectors(220, 6)
    for q in (0.5, 1.0, 3.0, math.inf):
        scorer = vendi(q).swap_scorer(features)
        scorer.start(torch.arange(200))
        there, here = torch.arange(20), torch.arange(200, 220)
        change = scorer.neighbours(there, here) - scorer.value
        slack = scorer.bounds(there, here)[1] - scorer.value - change
        assert float(slack.mean()) < 0.1 * float(change.abs().mean())


def test_a_swap_search_ends_with_a_more_diverse_set_than_it_began_with():
    features = vectors(48, 8)
    scored = Scored((24, 2), {}, {"vendi": features}, {})
    for objective in ("difference", "positive"):
        split = Scoring([WeightedReward(vendi())], Swap(objective)).split(scored, torch.Generator().manual_seed(0))
        assert split.figures["swap/end"] > split.figures["swap/start"]
        assert split.figures["vendi/positive"] > split.figures["vendi/negative"]


# ---- influence


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_influence_equals_finite_differences(q: float, shape: tuple[int, int]):
    queue = vectors(*shape)
    found = vendi(q).influence(queue, queue[:6])
    step = 1e-4  # one-sided, of third order: shares cannot be negative
    for clip, value in zip(queue[:6], found.tolist(), strict=True):
        f0, f1, f2, f3 = (mixed(queue, clip, i * step, q) for i in range(4))
        slope = (-11 * f0 + 18 * f1 - 9 * f2 + 2 * f3) / (6 * step)
        assert value == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("q", ORDERS)
def test_influence_of_clips_that_are_not_in_the_queue_but_in_its_span(q: float):
    queue, fresh = vectors(*TALL), vectors(5, 6, seed=9)
    found = vendi(q).influence(queue, fresh)
    slopes = [
        (4 * mixed(queue, c, 1e-4, q) - mixed(queue, c, 2e-4, q) - 3 * mixed(queue, c, 0, q)) / 2e-4 for c in fresh
    ]
    assert found.tolist() == pytest.approx(slopes, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_the_mean_influence_of_the_queue_is_zero(q: float, shape: tuple[int, int]):
    queue = vectors(*shape)
    found = vendi(q).influence(queue, queue)
    assert abs(float(found.mean())) < 1e-11 * float(found.abs().mean()) * shape[0]


def test_a_queue_of_nearly_equal_clips_spans_all_of_them():
    # embeddings of one model lie close together: rank 20 and float32 noise, fewer clips than features
    generator = torch.Generator().manual_seed(0)
    queue = torch.randn(300, 20, generator=generator) @ torch.randn(20, 512, generator=generator) + 5
    queue = (queue / queue.norm(dim=1, keepdim=True))[:, None]
    for q in (0.5, 1.0):
        found = vendi(q).influence(queue, queue[:50])
        assert bool(found.isfinite().all())
        assert float(found.abs().max()) < 1e3


def test_influence_next_to_order_one_is_continuous():
    queue = vectors(*TALL)
    at_one = vendi(1.0).influence(queue, queue)
    for offset in (-1e-9, 1e-9):
        torch.testing.assert_close(vendi(1 + offset).influence(queue, queue), at_one, rtol=1e-7, atol=1e-8)


def test_influence_of_large_orders_goes_to_that_of_order_inf():
    queue = vectors(*TALL)
    torch.testing.assert_close(
        vendi(1e5).influence(queue, queue), vendi(math.inf).influence(queue, queue), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0, math.inf])
def test_influence_predicts_what_swaps_change(q: float):
    queue = vectors(300, 6)
    reward = vendi(q)
    scorer = reward.swap_scorer(queue)
    scorer.start(torch.arange(280))
    there, here = torch.arange(20), torch.arange(280, 300)
    change = scorer.neighbours(there, here) - scorer.value
    found = reward.influence(queue[:280], torch.cat([queue[there], queue[here]]))
    predicted = (found[20:] - found[:20]) / 280
    # first order: what is left falls like 1 / n, here about 5 %
    assert float((predicted - change).abs().mean()) < 0.1 * float(change.abs().mean())


def test_influence_is_close_to_leaving_a_clip_out_of_a_large_set():
    features = vectors(200, 6)
    left_out = LeaveOneOut().score(vendi(), features)
    found = vendi().influence(features, features)
    assert float(torch.corrcoef(torch.stack([found, left_out]))[0, 1]) > 0.999
    # a clip less also makes the set smaller, which costs every clip about the same
    assert float((left_out - found).std()) < 0.05 * float(found.std())


def test_order_two_equals_the_spectral_form():
    # q = 2 takes a shorter way for sets and swaps; the derivative is the general one
    features = vectors(*TALL)
    near = SetVendi(Spectral(bands=16), 2 + 1e-9)
    members = torch.arange(30)[None]
    torch.testing.assert_close(
        vendi(2).score_sets(features, members), near.score_sets(features, members), rtol=1e-8, atol=0
    )
    torch.testing.assert_close(
        vendi(2).influence(features, features), near.influence(features, features), rtol=1e-6, atol=1e-8
    )


def test_a_rare_clip_earns_more_than_a_common_one():
    common = torch.tensor([1.0, 0.0]).repeat(9, 1)
    rare = torch.tensor([[0.0, 1.0]])
    queue = torch.cat([common, rare])[:, None]
    for q in (0.5, 1.0, 2.0, math.inf):
        found = vendi(q).influence(queue, queue)
        assert float(found[-1]) > 0 > float(found[0])


# ---- refusals


def test_a_clip_outside_the_queues_span_has_no_finite_derivative():
    queue = torch.eye(4)[:3, None]
    new = torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.1]]])
    for q in (0.5, 1.0):
        with pytest.raises(ConfigError, match="clip 1 lies outside .* put the clips into the queue first"):
            vendi(q).influence(queue, new)
    # above order 1 a new direction does not matter at first order: tr rho^q is 1/9 at q = 3 and only shrinks
    assert vendi(3.0).influence(queue, torch.eye(4)[3:, None]).tolist() == pytest.approx([3 * 3 / 2])


def test_order_zero_has_no_derivative():
    with pytest.raises(ConfigError, match="q = 0 counts dimensions .* use q = 0.5 or 1"):
        vendi(0.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="order q is -1"):
        vendi(-1.0)
    with pytest.raises(ShapeError, match=r"\(4, 2, 3\); expected \(clips, 1, f\)"):
        vendi().score_sets(torch.ones(4, 2, 3), torch.arange(4)[None])
    silent = vectors(4, 3)
    silent[2] = 0
    with pytest.raises(ShapeError, match="row 2 is all zeros"):
        vendi().score_sets(silent, torch.arange(4)[None])
    silent[2] = math.nan
    with pytest.raises(NotFinite, match="queue: row 2"):
        vendi().influence(silent, vectors(4, 3))


def test_mixed_with_a_clap_score_noise_pays_less_than_alone():
    # two clips a prompt, one on the prompt's axis and one of noise: alone the score picks noise, the mixture need not
    axes = torch.eye(4, 12).repeat_interleave(2, 0)
    noise = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    features = torch.where(torch.arange(8)[:, None] % 2 == 0, 0.7 * axes + 0.7 * axes.roll(2, 0), noise)[:, None]
    fit = torch.tensor([[1.0, 0.0]]).repeat(4, 1).double()
    clap = ClapScore(MiniEncoder(model=mini.random_encoder(0)))
    scored = Scored((4, 2), {"clap_score": fit}, {"vendi": features}, {})
    picked = []
    for weight in (0.0, 4.0):
        rewards = [WeightedReward(clap, weight), WeightedReward(vendi())] if weight else [WeightedReward(vendi())]
        table = scored if weight else Scored((4, 2), {}, {"vendi": features}, {})
        split = Scoring(rewards, Swap()).split(table, torch.Generator().manual_seed(0))
        picked.append(int((split.pairs.positive % 2).sum()))
    assert picked[0] > picked[1]
