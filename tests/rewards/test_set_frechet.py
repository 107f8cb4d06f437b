"""The Frechet reward of sets: sets, swaps, bounds and influence against full recomputation and finite differences."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dragon.contrast import LeaveOneOut, Swap
from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.exemplars import ExemplarSet, build_from_media
from dragon.media import Media
from dragon.protocols import InfluenceReward, SetReward, SwappableReward
from dragon.rewards.frechet import frechet_distance, frechet_distance_from_moments
from dragon.rewards.frechet_sets import root_trace_changes, root_traces
from dragon.rewards.set_frechet import SetFrechet
from dragon.scoring import Scored, Scoring, WeightedReward
from dragon.testing import check_reward

# (clips of a set, frames a clip, features): fewer and more frames than features, one frame and many a clip
FEW, MANY = (10, 1, 24), (30, 1, 12)
FEW_LONG, MANY_LONG = (3, 32, 120), (6, 32, 20)
EVEN = (16, 1, 16)
SIZES = [FEW, MANY, FEW_LONG, MANY_LONG, EVEN]


class Table:
    """An encoder of frames that come ready-made."""

    name = "table"
    fingerprint = "table-1"

    def __init__(self, features: int, gap: Tensor | None = None) -> None:
        self.features = features
        if gap is not None:
            self.gap = gap

    def embed_media(self, media: Media) -> Tensor:
        return media.tensor


def frames(clips: int, each: int, size: int, seed: int = 0) -> Tensor:
    """(clips, each, size) of uneven spread, the frames of a clip alike."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1.5, size, dtype=torch.float64)
    own = torch.randn(clips, 1, size, generator=generator, dtype=torch.float64)
    return (0.7 * own + torch.randn(clips, each, size, generator=generator, dtype=torch.float64) + 0.3) * spread


def reference(size: int, rows: int = 400, seed: int = 99) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    return torch.randn(rows, size, generator=generator, dtype=torch.float64) @ mix


def exemplars(table: Tensor) -> ExemplarSet:
    return ExemplarSet("given", "table", "table-1", table.mean(0), torch.atleast_2d(table.mT.cov()), len(table))


def reward(table: Tensor, gap: Tensor | None = None) -> SetFrechet:
    return SetFrechet(exemplars(table), Table(table.shape[1], gap))


def distance(clips: Tensor, table: Tensor) -> float:
    return float(frechet_distance(clips.flatten(0, 1), table))


def traces(clips: Tensor, table: Tensor) -> float:
    """What errors are measured by: both covariances' traces."""
    return float(clips.flatten(0, 1).var(0).sum() + table.var(0).sum())


def draws(total: int, count: int, sets: int) -> Tensor:
    return torch.stack([torch.randperm(total, generator=torch.Generator().manual_seed(i))[:count] for i in range(sets)])


# ---- sets


def test_it_keeps_the_contract_of_set_rewards():
    encoder = Spectral(bands=16)
    made = SetFrechet(build_from_media(clips(8, 0), encoder, "noise"), encoder, name="like_noise")
    assert made.name == "like_noise"
    check_reward(made)
    assert isinstance(made, SetReward) and isinstance(made, SwappableReward) and isinstance(made, InfluenceReward)
    features = made.embed(clips(3, 1))
    assert features.dtype == torch.float32 and features.shape[0] == 3 and features.shape[2] == 16


@pytest.mark.parametrize("shape", SIZES)
def test_a_set_scores_minus_the_distance_of_its_pooled_frames(shape: tuple[int, int, int], monkeypatch):
    n, each, size = shape
    features, table = frames(2 * n, each, size), reference(size)
    members = draws(2 * n, n, 5)
    expected = [-distance(features[rows], table) for rows in members]
    found = reward(table).score_sets(features, members)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    again = torch.stack([rows[torch.randperm(n)] for rows in members])
    assert reward(table).score_sets(features, again).tolist() == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr("dragon.rewards.frechet_sets.BLOCK_NUMBERS", 1)
    assert reward(table).score_sets(features, members).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", SIZES)
def test_leaving_one_or_two_out_equals_the_sets_by_themselves(shape: tuple[int, int, int]):
    n, each, size = shape
    features, table = frames(n, each, size), reference(size)
    every = torch.arange(n)
    for out in (1, 2):
        members = torch.stack([every[(every < i) | (every >= i + out)] for i in range(n - out + 1)])
        expected = [-distance(features[rows], table) for rows in members]
        assert reward(table).score_sets(features, members).tolist() == pytest.approx(expected, rel=1e-10)


def test_leaving_an_outlier_out_leaves_no_rounding_behind():
    features, table = frames(*MANY), reference(12)
    features[4] *= 1e6  # what the others hold is lost in the last digits of a sum that holds it
    rest = torch.tensor([i for i in range(30) if i != 4])
    found = float(reward(table).score_sets(features, torch.stack([rest, torch.arange(29)]))[0])
    assert found == pytest.approx(-distance(features[rest], table), rel=1e-9)
    scorer = reward(table).swap_scorer(features)
    scorer.start(torch.arange(20))
    rows = torch.tensor([i if i != 4 else 25 for i in range(20)])
    for leaving, entering in ((4, 25), (0, 26)):
        scorer.swap(leaving, entering)
        rows = torch.where(rows == leaving, entering, rows)
        assert scorer.value == pytest.approx(-distance(features[rows], table), rel=1e-9)


def test_a_clip_may_stand_in_a_set_more_than_once():
    table = reference(12)
    for n in (8, 40):
        features = frames(n, 1, 12)
        rows = torch.cat([torch.arange(n), torch.tensor([2, 2, 5])])
        assert float(reward(table).score_sets(features, rows[None])) == pytest.approx(
            -distance(features[rows], table), rel=1e-9
        )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.floats(-3, 4), st.sampled_from([0.0, 1e4]), st.sampled_from([FEW, MANY, MANY_LONG]))
def test_scale_squares_and_an_offset_of_both_changes_nothing(
    seed: int, exponent: float, offset: float, shape: tuple[int, int, int]
):
    n, each, size = shape
    features, table, scale = frames(2 * n, each, size, seed), reference(size), 10.0**exponent
    members = draws(2 * n, n, 3)
    expected = reward(table).score_sets(features, members)
    moved = reward(scale * (table + offset))
    # the offset itself rounds the frames to 1e-12 of their spread
    found = moved.score_sets(scale * (features + offset), members)
    torch.testing.assert_close(found, scale**2 * expected, rtol=1e-9, atol=0)
    scorer = moved.swap_scorer(scale * (features + offset))
    scorer.start(members[0])
    assert scorer.value == pytest.approx(scale**2 * float(expected[0]), rel=1e-9)


def test_clips_far_from_the_exemplars_keep_their_covariance_part():
    # the distance is then 12 * 1e8; its covariance part must still be that of the clips moved back
    features, table = frames(*MANY), reference(12)
    rows = torch.arange(30)[None]
    far = float(reward(table).score_sets(features + 1e4, rows))
    gap = (features.flatten(0, 1).mean(0) + 1e4 - table.mean(0)).square().sum()
    near = frechet_distance(features.flatten(0, 1), table)
    assert far == pytest.approx(-float(gap) - near.covariance_part, rel=1e-15)
    found = reward(table).influence(features + 1e4, features + 1e4)
    assert float(found.mean()) == pytest.approx(0, abs=1e-11 * float(found.abs().max()))


def test_a_singular_reference_or_set_is_allowed():
    features, table = frames(40, 1, 12), reference(12)
    flat = features.clone()
    flat[..., 7:] = 0  # dimensions in which nothing varies
    rows = torch.arange(30)[None]
    for clips_, exemplar in ((features, table[:6]), (flat, table), (flat, table[:6]), (0 * features, table)):
        made = reward(exemplar)
        expected = frechet_distance(clips_[:30, 0], made.exemplars)
        tolerance = 1e-9 * traces(clips_[:30], exemplar)
        assert float(made.score_sets(clips_, rows)) == pytest.approx(-float(expected), abs=tolerance)
        scorer = made.swap_scorer(clips_)
        scorer.start(rows[0])
        there, here = torch.arange(10), torch.arange(30, 40)
        sets = torch.where(rows == there[:, None], here[:, None], rows)
        exact = made.score_sets(clips_, sets)
        torch.testing.assert_close(scorer.neighbours(there, here), exact, rtol=0, atol=tolerance)
        low, high = scorer.bounds(there, here)
        assert bool((low <= exact).all()) and bool((exact <= high).all())
        scorer.swap(0, 30)
        assert scorer.value == pytest.approx(float(exact[0]), abs=tolerance)


@pytest.mark.parametrize(("decades", "each", "n"), [(2, 1, 150), (2, 3, 42), (3, 1, 100), (3, 1, 150), (4, 1, 60)])
def test_a_condition_of_both_covariances_up_to_a_million_costs_no_digits(decades: float, each: int, n: int):
    assert precision(decades, each, n) < 1e-10


def test_beyond_that_small_directions_count_as_zero():
    # singular values of the frames themselves would be exact, and slower
    assert 1e-9 < precision(4, 1, 150) < 1e-6


def precision(decades: float, each: int, n: int) -> float:
    """Largest error of sets and of many neighbours, in traces; spreads fall by `decades`, turned."""
    size, spread = 128, torch.logspace(0, -decades, 128, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    own, more = (torch.randn(2 * n, s, size, generator=generator, dtype=torch.float64) for s in (1, each))
    features = (own + 0.3 * more) * spread @ turn
    table = torch.randn(500, size, generator=generator, dtype=torch.float64) * spread @ turn
    made, members = reward(table), torch.arange(n)
    there, here = members[:20], members[:20] + n
    sets = torch.where(members == there[:, None], here[:, None], members)
    expected = torch.tensor([-distance(features[rows], table) for rows in sets], dtype=torch.float64)
    scorer = made.swap_scorer(features)
    scorer.start(members)
    found = torch.stack([made.score_sets(features, sets), scorer.neighbours(there, here)])
    return float((found - expected).abs().max()) / traces(features, table)


# ---- the quadrature


def test_the_integral_is_the_change_of_a_root_in_one_dimension():
    # sqrt(4 + 5) - sqrt(4) = 1; sqrt(4 - 4 (1 - 1e-6)) - 2 = 2e-3 - 2; sqrt(0 + 9) - 0 = 3
    values = torch.tensor([4.0, 0.0], dtype=torch.float64)
    w = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 3.0]]], dtype=torch.float64)
    c = torch.tensor([5.0, -4 * (1 - 1e-6), 1.0], dtype=torch.float64)[:, None, None]
    found = root_trace_changes(values, w, c).tolist()
    assert found == pytest.approx([1.0, 2e-3 - 2, 3.0], abs=2e-10 * 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(-6, 2), st.floats(-4, 4))
def test_the_integral_equals_the_eigenvalues_whatever_the_conditioning(
    seed: int, q: int, decades: float, exponent: float
):
    generator = torch.Generator().manual_seed(seed)
    m = 20
    values = 10**exponent * torch.logspace(decades, 0, m, dtype=torch.float64)
    w = torch.randn(3, q, m, generator=generator, dtype=torch.float64) * values.sqrt()
    c = torch.randn(3, q, q, generator=generator, dtype=torch.float64)
    c = (c + c.mT) / 2
    # shrunk until nothing is negative: |D^(-1/2) W^T C W D^(-1/2)| < 1
    reach = torch.linalg.matrix_norm((w / values.sqrt()).mT @ c @ (w / values.sqrt()), 2)
    c = 0.9 * c / reach[:, None, None]
    expected = root_traces(values.diag() + w.mT @ c @ w) - values.sqrt().sum()
    found = root_trace_changes(values, w, c)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-10 * float(values.max()) ** 0.5)


def test_the_error_of_the_integral_falls_as_its_strip_says(monkeypatch):
    # by e^(-pi^2 / h): at 1.2, 0.8, 0.6 to about 3e-4, 4e-6, 7e-8 of the largest root
    values = torch.logspace(-3, 0, 20, dtype=torch.float64)
    w = 0.3 * torch.randn(50, 2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = torch.eye(2, dtype=torch.float64)[None]
    expected = root_traces(values.diag() + w.mT @ c @ w) - values.sqrt().sum()
    for step in (1.2, 0.8, 0.6):
        monkeypatch.setattr("dragon.rewards.frechet_sets._STEP", step)
        error = float((root_trace_changes(values, w, c) - expected).abs().max())
        assert error < 10 * math.exp(-(math.pi**2) / step)


# ---- swaps


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("low_rank", [False, True])
def test_neighbours_and_the_tracked_value_equal_full_recomputation_after_hundreds_of_swaps(
    shape: tuple[int, int, int], low_rank: bool, monkeypatch
):
    monkeypatch.setattr("dragon.rewards.frechet_swaps._Set._low_rank", lambda self, count: low_rank)
    n, each, size = shape
    total = 2 * n + 5
    features, table = frames(total, each, size), reference(size)
    made = reward(table)
    scorer = made.swap_scorer(features)
    generator = torch.Generator().manual_seed(0)
    inside = torch.randperm(total, generator=generator)[:n].tolist()
    scorer.start(torch.tensor(inside))
    tolerance = 1e-9 * traces(features, table)
    swaps = 24 if low_rank and each > 1 else 200  # of long clips the quadrature is slow
    for step in range(swaps):
        outside = [row for row in range(total) if row not in inside]
        leaving = inside[int(torch.randint(n, (), generator=generator))]
        entering = outside[int(torch.randint(len(outside), (), generator=generator))]
        scorer.swap(leaving, entering)
        inside[inside.index(leaving)] = entering
        if step % (swaps // 3) == 5 or step == swaps - 1:
            now = torch.tensor(inside)
            assert scorer.value == pytest.approx(-distance(features[now], table), abs=tolerance)
            rest = torch.tensor([row for row in range(total) if row not in inside])
            there = now[torch.arange(len(rest)) % n]
            sets = torch.where(now == there[:, None], rest[:, None], now)
            exact = made.score_sets(features, sets)
            torch.testing.assert_close(scorer.neighbours(there, rest), exact, rtol=0, atol=tolerance)


def test_neighbours_are_the_same_alone_among_many_and_in_blocks(monkeypatch):
    features, table = frames(400, 1, 100), reference(100)
    for n in (60, 150):
        scorer = reward(table).swap_scorer(features)
        scorer.start(torch.arange(n))
        there, here = torch.arange(n), torch.arange(200, 200 + n)
        alone = torch.cat([scorer.neighbours(there[i : i + 1], here[i : i + 1]) for i in range(3)])  # eigenvalues
        many = scorer.neighbours(there, here)  # quadrature
        torch.testing.assert_close(many[:3], alone, rtol=0, atol=1e-9 * traces(features, table))
        with monkeypatch.context() as patch:
            patch.setattr("dragon.rewards.frechet_swaps.BLOCK_NUMBERS", 1)
            patch.setattr("dragon.rewards.frechet_sets.BLOCK_NUMBERS", 1)
            torch.testing.assert_close(scorer.neighbours(there, here), many, rtol=1e-10, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([*SIZES, (13, 1, 12), (30, 2, 12)]), st.floats(0, 2))
def test_bounds_hold_for_every_swap_also_around_an_older_set(seed: int, shape: tuple[int, int, int], outlying: float):
    n, each, size = shape
    features, table = frames(2 * n, each, size, seed), reference(size, seed=seed + 1)
    features[::5] *= 10**outlying
    scorer = reward(table).swap_scorer(features)
    order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed))
    scorer.start(order[:n])
    for step in range(min(n, 6)):
        now = torch.cat([order[:n][step:], order[n : n + step]])
        rest = torch.cat([order[n + step :], order[:step]])
        there, here = (t.flatten() for t in torch.meshgrid(now[::3], rest[::3], indexing="ij"))
        low, high = scorer.bounds(there, here)
        exact = scorer.neighbours(there, here)
        assert bool((low <= exact).all()) and bool((exact <= high).all())
        assert bool(low.isfinite().all()) and bool((high.isfinite() == (n * each > size)).all())
        scorer.swap(int(order[step]), int(order[n + step]))


def test_upper_bounds_rule_out_most_swaps_that_lose():
    features, table = frames(160, 8, 20), reference(20)
    scorer = reward(table).swap_scorer(features)
    scorer.start(torch.arange(80))
    there, here = torch.arange(80), torch.arange(80, 160)
    exact, high = scorer.neighbours(there, here), scorer.bounds(there, here)[1]
    lost = exact < scorer.value
    assert 10 < int(lost.sum()) < 70
    assert float((high < scorer.value)[lost].double().mean()) > 0.9


# ---- influence


def mixed(queue: Tensor, clip: Tensor, share: float, table: Tensor) -> float:
    """Minus the distance of (1 - share) * queue + share * clip, both as laws (ddof 0)."""
    parts = [(1 - share, queue.flatten(0, 1)), (share, clip)]
    mean = sum(weight * part.mean(0) for weight, part in parts)
    assert isinstance(mean, Tensor)
    cov = sum(weight * ((part - mean).mT @ (part - mean)) / len(part) for weight, part in parts)
    assert isinstance(cov, Tensor)
    return -float(frechet_distance_from_moments(mean, cov, table.mean(0), torch.atleast_2d(table.mT.cov())))


@pytest.mark.parametrize(("each", "size"), [(1, 6), (5, 8), (1, 1)])
def test_influence_is_the_derivative_of_the_mixture(each: int, size: int):
    queue, table = frames(200, each, size), reference(size)
    fresh = torch.cat([queue[:3], frames(4, each, size, 7)])
    found = reward(table).influence(queue, fresh)
    assert found.dtype == torch.float64
    e = 1e-4  # central differences of order e^4 rounding aside; a share below 0 is a weight like any other
    scale = traces(queue, table)
    for clip, value in zip(fresh, found.tolist(), strict=True):
        up, down, wide, back = (mixed(queue, clip, share, table) for share in (e, -e, 2 * e, -2 * e))
        slope = (8 * (up - down) - (wide - back)) / (12 * e)
        assert value == pytest.approx(slope, abs=1e-6 * scale)
        assert value == pytest.approx((mixed(queue, clip, 1e-6, table) - mixed(queue, clip, 0, table)) / 1e-6, rel=1e-2)


@pytest.mark.parametrize("shape", [(300, 1, 8), (60, 5, 20), (2, 32, 20), (20, 1, 50), (10, 5, 50)])
def test_mean_influence_over_the_queue_is_zero(shape: tuple[int, int, int]):
    queue, table = frames(*shape), reference(shape[2])
    found = reward(table).influence(queue, queue)
    assert float(found.mean()) == pytest.approx(0, abs=1e-10 * traces(queue, table))
    assert float(found.std()) > 1e-3 * traces(queue, table)


def test_influence_of_one_dimension_by_hand():
    # queue {-1, 1}: m 0, S 1; exemplars {2, 4}: m 3, S 2, T = sqrt 2. Of x: -(2 (0 - 3) x + (x^2 - 1) (1 - sqrt 2))
    queue = torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    table = torch.tensor([[2.0], [4.0]], dtype=torch.float64)
    x = torch.tensor([0.0, 3.0, -1.0], dtype=torch.float64)
    expected = 6 * x + (math.sqrt(2) - 1) * (x**2 - 1)
    torch.testing.assert_close(reward(table).influence(queue, x.view(3, 1, 1)), expected)


def test_a_clip_that_moves_the_mean_toward_the_exemplars_has_positive_credit():
    queue = frames(200, 4, 6)
    table = queue.flatten(0, 1)[torch.randperm(800)[:400]] + 3.0
    fresh = torch.stack([queue[0] - queue[0].mean(0) + queue.mean((0, 1)) + shift for shift in (1.5, -1.5)])
    toward, away = reward(table).influence(queue, fresh).tolist()
    assert toward > 0 > away


def test_credits_predict_swaps_to_second_order():
    """r(swap) - r - (c_b - c_a) / n falls like 1 / n^2: of sets that are copies, so that n alone changes."""
    base, table = frames(40, 1, 5), reference(5)
    others = frames(6, 1, 5, 3)
    errors = []
    for copies in (8, 16, 32):
        features = torch.cat([base.repeat(copies, 1, 1), others])
        n = 40 * copies
        credits = reward(table).influence(features[:n], features)
        scorer = reward(table).swap_scorer(features)
        scorer.start(torch.arange(n))
        there, here = torch.arange(6), torch.arange(n, n + 6)
        change = scorer.neighbours(there, here) - scorer.value
        errors.append((change - (credits[here] - credits[there]) / n).abs())
    assert bool((errors[1] < 0.3 * errors[0]).all()) and bool((errors[2] < 0.3 * errors[1]).all())


def test_influence_agrees_with_leave_one_out_of_a_large_set():
    features, table = frames(600, 1, 6), reference(6)
    made = reward(table)
    exact, first = LeaveOneOut().score(made, features), made.influence(features, features)
    exact, first = exact - exact.mean(), first - first.mean()
    assert float((exact - first).norm() / first.norm()) < 0.05


def test_queues_that_span_less_than_the_space_give_the_credit_inside_their_span():
    # clips and exemplars in 4 of 9 dimensions, turned: the same credits as in those 4
    small, table = frames(50, 2, 4), reference(4)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q[:4]
    inside = reward(table).influence(small, small)
    whole = reward(table @ turn).influence(small @ turn, small @ turn)
    torch.testing.assert_close(whole, inside, rtol=1e-6, atol=1e-6 * traces(small, table))
    assert bool(reward(table).influence(small[:1, :1].repeat(3, 1, 1), small).isfinite().all())


def test_blocks_of_the_queue_change_nothing(monkeypatch):
    queue, table = frames(50, 3, 7), reference(7)
    expected = reward(table).influence(queue.float(), queue)
    monkeypatch.setattr("dragon.rewards.set_frechet.BLOCK_NUMBERS", 1)
    torch.testing.assert_close(reward(table).influence(queue.float(), queue), expected, rtol=1e-9, atol=1e-9)


def test_by_forty_digits():
    """T by its definition, with matrix square roots in mpmath."""
    queue, table = frames(30, 1, 3), reference(3)
    made = reward(table)
    mean, shift = queue.mean((0, 1)), queue.mean((0, 1)) - made.exemplars.mean
    cov = (queue[:, 0] - mean).mT @ (queue[:, 0] - mean) / 30
    with mpmath.workdps(40):
        s, r = (mpmath.matrix(m.tolist()) for m in (cov, made.exemplars.cov))
        root = mpmath.sqrtm(s)
        t = root**-1 * mpmath.sqrtm(root * r * root) * root**-1
        transport = torch.from_numpy(np.array((t + t.T).tolist(), dtype=complex).real / 2)
    y = queue[:, 0] - mean
    bend = torch.eye(3, dtype=torch.float64) - transport
    expected = -(2 * y @ shift + (y @ bend * y).sum(1) - (bend @ cov).trace())
    torch.testing.assert_close(made.influence(queue, queue), expected, rtol=1e-9, atol=1e-10)


# ---- in the trainer, figures, refusals


def clips(count: int, seed: int, loudness: float = 0.1) -> Media:
    tensor = loudness * torch.randn(count, 1, 24_000, generator=torch.Generator().manual_seed(seed))
    return Media(tensor, tuple(f"prompt {i}" for i in range(count)), 16_000)


def test_a_swap_search_puts_what_sounds_like_the_exemplars_into_the_positive_set():
    encoder = Spectral(bands=16)
    made = SetFrechet(build_from_media(clips(8, 0), encoder, "noise"), encoder)
    like, unlike = made.embed(clips(10, 1)), made.embed(clips(10, 2, loudness=0.03))
    features = torch.stack([like, unlike], dim=1).flatten(0, 1)  # a prompt's two samples side by side
    scored = Scored((10, 2), {}, {made.name: features}, {})
    split = Scoring([WeightedReward(made)], Swap()).split(scored, torch.Generator().manual_seed(0))
    assert bool((split.pairs.positive % 2 == 0).all())
    assert split.figures["swap/optimal"] == 1


def test_the_share_of_the_modality_gap_is_told_where_the_encoder_has_one():
    features, table = frames(20, 3, 4), reference(4)
    gap = torch.tensor([0.0, 1.0, 0.0, 0.0])
    along = features.mean(1)[:, 1]
    assert reward(table, gap).figures(features, 2 * along + 1)["gap_share"] == pytest.approx(1)
    assert reward(table, gap).figures(features, torch.randn(20))["gap_share"] < 0.5
    assert reward(table).figures(features, along) == {}


def test_the_encoder_named_in_the_set_is_the_default_and_another_is_refused():
    made = build_from_media(clips(8, 0), Spectral(), "noise")
    assert SetFrechet(made).encoder == Spectral()
    with pytest.raises(ConfigError, match="dragon exemplars build noise .* --encoder spectral"):
        SetFrechet(made, Spectral(hop=512))
    with pytest.raises(ConfigError, match="no exemplar set 'jazzz'"):
        SetFrechet("jazzz")


def test_what_does_not_fit_is_refused_by_name():
    made, good = reward(reference(4)), frames(5, 2, 4)
    for features in (good[:, 0], frames(5, 2, 3)):
        with pytest.raises(ShapeError, match=r"set_frechet: features of shape .*; expected \(clips, frames, 4\)"):
            made.score_sets(features, torch.arange(4)[None])
        with pytest.raises(ShapeError, match="set_frechet: features of shape"):
            made.swap_scorer(features)
        with pytest.raises(ShapeError, match="set_frechet: queue of shape"):
            made.influence(features, good)
    with pytest.raises(ShapeError, match="a set of 1 frames"):
        made.score_sets(good[:, :1], torch.tensor([[2]]))
    bad = good.clone()
    bad[3, 1, 2] = torch.nan
    with pytest.raises(NotFinite, match="set_frechet: features: row 3"):
        made.swap_scorer(bad)
    with pytest.raises(NotFinite, match="set_frechet: queue: row 7"):
        made.influence(bad, good)
