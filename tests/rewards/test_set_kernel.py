"""The kernel reward: sets, swaps and influence against the plain kernel distance and finite differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon.contrast import LeaveOneOut, Swap
from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.exemplars import ExemplarSet, build_from_media
from dragon.media import Media
from dragon.protocols import InfluenceReward, SetReward, SwappableReward
from dragon.rewards.kernel import kernel_distance, median_distance
from dragon.rewards.set_kernel import PairScorer, SetKernel, gap_share
from dragon.scoring import Scored, Scoring, WeightedReward
from dragon.testing import check_reward

SIZE = 4
ENCODER = Spectral(bands=SIZE)


def frames(clips: int, each: int, seed: int, shift: float = 0.0) -> Tensor:
    """(clips, each, SIZE) float32, clips around means of their own."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(clips, 1, SIZE, generator=generator)
    return means + 0.7 * torch.randn(clips, each, SIZE, generator=generator) + shift


def exemplars(bandwidth: float | None = 1.5, **changes: object) -> ExemplarSet:
    table = frames(10, 5, 99).flatten(0, 1)
    found = ExemplarSet(
        name="noise",
        encoder="spectral",
        encoder_hash=ENCODER.fingerprint,
        mean=table.double().mean(0),
        cov=table.double().T.cov(),
        frames=len(table),
        bandwidth=bandwidth,
        features=table,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def reward(bandwidth: float | None = None, max_frames: int | None = None) -> SetKernel:
    return SetKernel(exemplars(), ENCODER, bandwidth, max_frames=max_frames)


def plain(sets: Tensor, h: float = 1.5) -> float:
    """Minus the kernel distance of all frames of (n, s, f) clips."""
    held = exemplars().features
    assert held is not None
    return -float(kernel_distance(sets.flatten(0, 1), held, h))


def v_statistic(queue: Tensor, clip: Tensor, share: float, h: float = 1.5) -> float:
    """Minus 100 MMD^2 of the weighted frames (1 - share) * queue + share * clip, all pairs counted."""
    held = exemplars().features
    assert held is not None
    x = torch.cat([queue.flatten(0, 1), clip]).double()
    many, few = queue.shape[0] * queue.shape[1], len(clip)
    p = torch.tensor([(1 - share) / many] * many + [share / few] * few, dtype=torch.float64)
    y, r = held.double(), torch.full((len(held),), 1 / len(held), dtype=torch.float64)

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * h * h)).exp()

    return -100 * float(p @ k(x, x) @ p + r @ k(y, y) @ r - 2 * (p @ k(x, y) @ r))


# ---- sets


@pytest.mark.parametrize("each", [1, 7])
def test_each_set_scores_as_the_plain_distance_of_its_frames(each: int):
    features = frames(20, each, 0, 0.3)
    members = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i))[:8] for i in range(5)])
    found = reward().score_sets(features, members)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([plain(features[rows]) for rows in members], rel=1e-11, abs=1e-11)


def test_a_clip_that_stands_twice_in_a_set_counts_twice():
    features = frames(6, 3, 0)
    members = torch.tensor([[0, 1, 1, 4], [5, 5, 5, 5]])
    expected = [plain(features[rows]) for rows in members]
    assert reward().score_sets(features, members).tolist() == pytest.approx(expected, rel=1e-11)


def test_blocks_change_nothing(monkeypatch):
    features, members = frames(9, 5, 0), torch.tensor([[0, 3, 8], [7, 6, 1], [2, 4, 5]])
    expected = reward().score_sets(features, members)
    influences = reward().influence(features, features)
    monkeypatch.setattr("dragon.rewards.set_kernel._BLOCK_FRAMES", 11)
    monkeypatch.setattr("dragon.rewards.set_kernel._BLOCK_NUMBERS", 1)
    torch.testing.assert_close(reward().score_sets(features, members), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reward().influence(features, features), influences, rtol=1e-11, atol=1e-11)


def test_tables_are_kept_for_the_same_features_and_made_anew_when_they_change(monkeypatch):
    from dragon.rewards import set_kernel

    calls = []
    original = set_kernel._pair_sums
    monkeypatch.setattr(set_kernel, "_pair_sums", lambda items: calls.append(len(items)) or original(items))
    kernel, features, some = reward(), frames(9, 5, 0), torch.tensor([[0, 3, 8]])
    calls.clear()
    kernel.score_sets(features, torch.arange(9)[None])
    before = kernel.score_sets(features, some)
    kernel.swap_scorer(features)
    assert calls == [9]
    features[3] += 1
    assert float(kernel.score_sets(features, some)) != float(before)
    assert float(kernel.score_sets(features, some)) == pytest.approx(plain(features[some[0]]), rel=1e-11)
    kernel.score_sets(features, torch.tensor([[1, 2]]))  # rows that the last table lacks
    assert calls == [9, 3, 2]
    with torch.inference_mode():
        silent = frames(9, 5, 0)
        kernel.score_sets(silent, some)
        silent[3] += 1
        assert float(kernel.score_sets(silent, some)) == pytest.approx(plain(silent[some[0]]), rel=1e-11)


def test_far_off_features_stay_exact():
    far = exemplars().features
    assert far is not None
    features, members = frames(8, 5, 0).double(), torch.arange(8)[None]
    moved = SetKernel(exemplars(features=far.double() + 1e6), ENCODER).score_sets(features + 1e6, members)
    # an offset of 1e6 leaves ten digits of the features themselves
    assert float(moved) == pytest.approx(float(reward().score_sets(features, members)), rel=1e-7)


@pytest.mark.parametrize("offset", [1e6, 1e8])
def test_clips_far_from_the_exemplars_keep_the_distances_among_themselves(offset: float):
    moved = torch.round(frames(8, 5, 0).double() + offset, decimals=2)
    x, held = moved.flatten(0, 1) - offset, exemplars().features
    assert held is not None
    y = held.double()
    within = [float((-torch.cdist(a, a).square() / (2 * 1.5**2)).exp().sum() - len(a)) for a in (x, y)]
    expected = -100 * sum(total / (len(a) * (len(a) - 1)) for total, a in zip(within, (x, y), strict=True))
    assert float(reward().score_sets(moved, torch.arange(8)[None])) == pytest.approx(expected, rel=1e-8)


def test_many_frames_score_as_the_plain_distance_does():
    """Two algorithms, tables of sums and blocks of rows, on 450 frames."""
    features = frames(90, 5, 4, 0.2)
    assert float(reward().score_sets(features, torch.arange(90)[None])) == pytest.approx(plain(features), rel=1e-10)


# ---- swaps


def test_neighbours_bounds_and_the_tracked_value_equal_full_recomputation_after_hundreds_of_swaps():
    features, kernel = frames(40, 6, 0, 0.3), reward()
    scorer = kernel.swap_scorer(features)
    generator = torch.Generator().manual_seed(0)
    members = torch.randperm(40, generator=generator)[:15]
    scorer.start(members)
    inside = members.tolist()
    for _ in range(500):
        outside = [row for row in range(40) if row not in inside]
        leaving = inside[int(torch.randint(15, (), generator=generator))]
        entering = outside[int(torch.randint(25, (), generator=generator))]
        scorer.swap(leaving, entering)
        inside[inside.index(leaving)] = entering
    now = torch.tensor(inside)
    assert scorer.value == pytest.approx(plain(features[now]), rel=1e-11)
    rest = torch.tensor([row for row in range(40) if row not in inside])
    there = now[torch.arange(25) % 15]
    sets = torch.where(now == there[:, None], rest[:, None], now)
    exact = scorer.neighbours(there, rest)
    assert exact.tolist() == pytest.approx([plain(features[rows]) for rows in sets], rel=1e-10)
    low, high = scorer.bounds(there, rest)
    assert torch.equal(low, exact) and torch.equal(high, exact)


def test_a_pair_scorer_follows_any_function_of_its_two_sums():
    pairs = torch.arange(16.0, dtype=torch.float64).view(4, 4)
    pairs, singles = pairs + pairs.mT, torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    scorer = PairScorer(pairs, singles, lambda p, s, n: p + 0.5 * s + n)
    scorer.start(torch.tensor([0, 2]))
    # table 0, 20, 10, 10 of rows 0 and 2: sum 0 + 10 + 10 + 20; singles 101; two members
    assert scorer.value == 40 + 50.5 + 2
    # 0 leaves, 3 enters: 20 + 30 + 2 * 25 = 100; singles 1100
    assert scorer.neighbours(torch.tensor([0]), torch.tensor([3])).tolist() == [100 + 550 + 2]
    scorer.swap(0, 3)
    assert scorer.value == 100 + 550 + 2


def test_a_swap_search_brings_the_set_nearer_to_the_exemplars():
    features = frames(60, 6, 0, 0.5)
    scored = Scored((30, 2), {}, {"set_kernel": features}, {})
    split = Scoring([WeightedReward(reward())], Swap()).split(scored, torch.Generator().manual_seed(0))
    assert split.figures["swap/end"] > split.figures["swap/start"]
    assert split.figures["set_kernel/positive"] > split.figures["set_kernel/negative"]


# ---- influence


def test_influence_equals_finite_differences_of_the_weighted_distance():
    queue, fresh = frames(15, 4, 0, 0.3), frames(5, 4, 1)
    found = reward().influence(queue, torch.cat([queue[:3], fresh]))
    step = 1e-4  # the score is quadratic in the share: the three-point slope is exact but for rounding
    for clip, value in zip([*queue[:3], *fresh], found.tolist(), strict=True):
        f0, f1, f2 = (v_statistic(queue, clip, i * step) for i in range(3))
        assert value == pytest.approx((-3 * f0 + 4 * f1 - f2) / (2 * step), rel=1e-8, abs=1e-8)


def test_the_mean_influence_of_the_queue_is_zero():
    queue = frames(15, 4, 0, 0.3)
    found = reward().influence(queue, queue)
    assert abs(float(found.mean())) < 1e-12 * float(found.abs().max())


def test_influence_predicts_what_swaps_change_and_what_leaving_out_costs():
    features, kernel = frames(300, 4, 0, 0.3), reward()
    found = kernel.influence(features, features)
    scorer = kernel.swap_scorer(features)
    scorer.start(torch.arange(280))
    there, here = torch.arange(20), torch.arange(280, 300)
    change = scorer.neighbours(there, here) - scorer.value
    # first order: what is left falls like 1 / n
    assert float(((found[here] - found[there]) / 280 - change).abs().mean()) < 0.1 * float(change.abs().mean())
    left_out = LeaveOneOut().score(kernel, features)
    assert float(torch.corrcoef(torch.stack([found, left_out]))[0, 1]) > 0.995


def test_a_share_of_a_long_queues_frames_gives_nearly_the_same_credits():
    queue = frames(256, 40, 0, 0.3)
    every = reward().influence(queue, queue[:64])
    some = reward(max_frames=1024).influence(queue, queue[:64])
    assert not torch.equal(every, some)
    # measured .9989 with a tenth of the frames
    assert float(torch.corrcoef(torch.stack([every, some]))[0, 1]) > 0.99
    torch.testing.assert_close(reward(max_frames=256 * 40).influence(queue, queue[:64]), every)
    first = queue[:, :1]  # at least one frame of every clip is read
    torch.testing.assert_close(reward(max_frames=1).influence(first, first), reward().influence(first, first))


def test_the_share_takes_different_frames_of_every_clip_and_as_many():
    from dragon.rewards.set_kernel import _spread

    clip = torch.arange(40.0).view(1, 40, 1).repeat(500, 1, 1)
    picked = _spread(clip, 2 * 500)[..., 0]
    assert picked.shape == (500, 2)
    assert bool((picked[:, 1] - picked[:, 0] == 20).all())
    assert len(picked.flatten().unique()) == 40  # every time within a clip has its turn
    assert float(picked.mean()) == pytest.approx(19.5, abs=0.1)


# ---- the reward


def clips(count: int, seed: int, loudness: float = 0.1) -> Media:
    tensor = loudness * torch.randn(count, 1, 24_000, generator=torch.Generator().manual_seed(seed))
    return Media(tensor, tuple(f"prompt {i}" for i in range(count)), 16_000)


def built(encoder: Spectral, media: Media) -> ExemplarSet:
    found = build_from_media(media, encoder, "noise")
    table = encoder.embed_media(media).flatten(0, 1)
    values = {f: getattr(found, f) for f in ("name", "encoder", "encoder_hash", "mean", "cov", "frames", "bandwidth")}
    return ExemplarSet(**values, features=table)


def test_the_reward_prefers_what_sounds_like_the_exemplars_and_keeps_its_contract():
    encoder = Spectral(bands=16)
    kernel = SetKernel(built(encoder, clips(8, 0)), encoder, name="to_noise")
    assert kernel.name == "to_noise"
    assert isinstance(kernel, SetReward) and isinstance(kernel, SwappableReward) and isinstance(kernel, InfluenceReward)
    check_reward(kernel)
    every = torch.arange(4)[None]
    like, unlike = (kernel.score_sets(kernel.embed(media), every) for media in (clips(4, 1), clips(4, 1, 0.01)))
    assert float(like) > float(unlike)
    generated, reference = (kernel.embed(media).flatten(0, 1) for media in (clips(4, 1), clips(8, 0)))
    expected = -float(kernel_distance(generated, reference, kernel.bandwidth))
    assert float(like) == pytest.approx(expected, rel=1e-9)


def test_the_bandwidth_is_the_given_one_else_the_sets_else_the_median_of_its_frames():
    table = exemplars().features
    assert table is not None
    assert SetKernel(exemplars(), ENCODER, 0.7).bandwidth == 0.7
    assert SetKernel(exemplars(), ENCODER).bandwidth == 1.5
    assert SetKernel(exemplars(bandwidth=None), ENCODER).bandwidth == median_distance(table)
    features, members = frames(6, 3, 0), torch.arange(6)[None]
    assert float(reward(0.7).score_sets(features, members)) == pytest.approx(plain(features, 0.7), rel=1e-11)


def test_figures_tell_how_much_of_the_credit_lies_along_the_modality_gap():
    class Gapped(Spectral):
        gap = torch.eye(SIZE)[1]

    features = frames(50, 3, 0)
    along = features.mean(1)[:, 1].double()
    kernel = SetKernel(exemplars(), Gapped(bands=SIZE))
    assert kernel.figures(features, 3 * along - 2)["gap_share"] == pytest.approx(1)
    noise = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float(np.corrcoef(along, along + noise)[0, 1]) ** 2
    assert kernel.figures(features, along + noise)["gap_share"] == pytest.approx(expected)
    assert gap_share(features, torch.ones(50), Gapped.gap) == 0.0
    assert reward().figures(features, along) == {}


# ---- refusals


def test_a_set_without_frames_is_refused_with_the_command_that_rebuilds_it():
    with pytest.raises(
        ConfigError, match="'noise' hold statistics .* dragon exemplars build noise .* --encoder spectral"
    ):
        SetKernel(exemplars(features=None), ENCODER)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="dragon exemplars build"):
        SetKernel(exemplars(), Spectral(bands=SIZE, hop=512))
    with pytest.raises(ConfigError, match="no exemplar set 'jazzz'"):
        SetKernel("jazzz")
    for h in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="expected above 0"):
            SetKernel(exemplars(), ENCODER, h)
    with pytest.raises(ConfigError, match="max_frames is 0"):
        reward(max_frames=0)
    with pytest.raises(ShapeError, match=r"\(3, 2, 5\); expected \(clips, frames, 4\)"):
        reward().score_sets(torch.ones(3, 2, 5), torch.arange(3)[None])
    with pytest.raises(ShapeError, match="at least two frames"):
        reward().score_sets(torch.ones(3, 1, 4), torch.tensor([[1]]))
    bad = frames(5, 3, 0)
    bad[2, 1] = torch.nan
    with pytest.raises(NotFinite, match="queue: row 2"):
        reward().influence(bad, frames(2, 3, 0))
