"""Frechet distance: closed forms, invariances, a second implementation, and what it refuses."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError, DragonError, NotFinite, ShapeError
from dragon.exemplars import Gaussian, build_from_media
from dragon.media import Media
from dragon.rewards import SongFrechet, frechet_distance, frechet_distance_from_moments, per_song_frechet


def whitened(rows: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of exactly zero mean and unit covariance (ddof 1)."""
    table = np.random.default_rng(seed).standard_normal((rows, size))
    q, _ = np.linalg.qr(table - table.mean(axis=0))
    return q * math.sqrt(rows - 1)


def rotation(size: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def frames(rows: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, size)) @ rng.standard_normal((size, size)) + rng.standard_normal(size)


def by_mpmath(mean: np.ndarray, cov: np.ndarray, other_mean: np.ndarray, other_cov: np.ndarray) -> float:
    """The definition with a matrix square root in 40 digits."""
    with mpmath.workdps(40):
        root = mpmath.sqrtm(mpmath.matrix(cov.tolist()) * mpmath.matrix(other_cov.tolist()))
        trace = sum(mpmath.re(root[i, i]) for i in range(len(cov)))
        return float(np.sum((mean - other_mean) ** 2) + np.trace(cov) + np.trace(other_cov) - 2 * trace)


def exactly(x: np.ndarray, y: np.ndarray) -> float:
    """The distance of two sets of frames in 40 digits from their means on. y: more frames than features.

    With S2 = L L^T, tr (S1 S2)^(1/2) is the sum of the square roots of the eigenvalues of L^T S1 L, singular or not.
    """
    with mpmath.workdps(40):

        def moments(table: np.ndarray) -> tuple[mpmath.matrix, mpmath.matrix]:
            rows, n = mpmath.matrix(table.tolist()), len(table)
            mean = mpmath.matrix([[mpmath.fsum(rows[:, j]) / n for j in range(rows.cols)]])
            for i in range(n):
                rows[i, :] -= mean
            return mean, rows.T * rows / (n - 1)

        (m1, s1), (m2, s2) = moments(x), moments(y)
        lower = mpmath.cholesky(s2)
        values = mpmath.eigsy(lower.T * s1 * lower, eigvals_only=True)
        trace = mpmath.fsum(mpmath.sqrt(max(value, 0)) for value in values)
        spreads = mpmath.fsum(s1[i, i] + s2[i, i] for i in range(s1.rows))
        return float(mpmath.fsum((m1 - m2)[i] ** 2 for i in range(s1.rows)) + spreads - 2 * trace)


# ---- closed forms


def test_a_shift_costs_its_squared_length_and_nothing_else():
    x = whitened(50, 4)
    result = frechet_distance(x + [1.0, 2.0, 0.0, 2.0], x)
    assert float(result) == pytest.approx(9.0, rel=1e-12)
    assert result.mean_part == pytest.approx(9.0, rel=1e-12)
    assert (result.n, result.reference_n, result.d, result.ddof) == (50, 50, 4, 1)


def test_scaled_gaussians_differ_by_the_squared_difference_of_their_spreads():
    x = whitened(60, 3)
    a, b = np.array([1.0, 2.0, 5.0]), np.array([4.0, 2.0, 0.5])
    assert float(frechet_distance(x * a, x[::-1] * b)) == pytest.approx(np.sum((a - b) ** 2), rel=1e-12)


def test_shifted_and_scaled_gaussians_by_their_moments():
    a, b, shift = np.array([1.0, 2.0, 5.0]), np.array([4.0, 2.0, 0.5]), np.array([3.0, 0.0, -4.0])
    found = frechet_distance_from_moments(shift, np.diag(a**2), np.zeros(3), np.diag(b**2))
    assert (found.mean_part, found.covariance_part) == pytest.approx((25.0, np.sum((a - b) ** 2)), rel=1e-14)
    assert (found.n, found.reference_n, found.d) == (0, 0, 3)
    # one turn for both changes nothing, and now neither matrix is diagonal
    turn = rotation(3)
    turned = [turn.T @ np.diag(s**2) @ turn for s in (a, b)]
    assert float(frechet_distance_from_moments(shift, turned[0], np.zeros(3), turned[1])) == pytest.approx(
        float(found), rel=1e-13
    )


def test_orthogonal_lines_have_nothing_in_common_and_slanted_ones_their_cosine():
    # two points each: covariances a^2 u u^T and b^2 v v^T with |a| and |b| = distance / sqrt 2; the trace term is
    # a b |u . v|
    def line(direction: tuple[float, float, float], length: float) -> np.ndarray:
        return np.outer([-length / 2, length / 2], direction)

    along, across, slant = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.6, 0.0, -0.8)
    assert float(frechet_distance(line(along, 6.0), line(across, 8.0))) == pytest.approx(18 + 32, rel=1e-15)
    assert float(frechet_distance(line(along, 6.0), line(slant, 8.0))) == pytest.approx(50 - 2 * 0.6 * 24, rel=1e-14)
    assert float(frechet_distance(line(along, 6.0), line(along, 8.0))) == pytest.approx(2, rel=1e-13)


def test_point_masses_are_their_squared_distance_apart():
    x, y = np.tile([[1.0, 2.0]], (5, 1)), np.tile([[4.0, 6.0]], (7, 1))
    assert float(frechet_distance(x, y)) == 25.0
    # a point against a cloud: the cloud's trace comes on top
    cloud = whitened(30, 2) * [2.0, 3.0]
    assert float(frechet_distance(x, cloud)) == pytest.approx(5 + 13, rel=1e-13)


def test_two_covariances_that_do_not_commute():
    # S1 = diag(1, 4), S2 = [[2, 1], [1, 2]]: of a 2x2 M, tr sqrt M = sqrt(tr M + 2 sqrt det M); tr S1 S2 = 10,
    # det = 4 * 3 = 12; so d^2 = 5 + 4 - 2 sqrt(10 + 2 sqrt 12)
    s1, s2, zero = np.diag([1.0, 4.0]), np.array([[2.0, 1.0], [1.0, 2.0]]), np.zeros(2)
    expected = 9 - 2 * math.sqrt(10 + 2 * math.sqrt(12))
    assert float(frechet_distance_from_moments(zero, s1, zero, s2)) == pytest.approx(expected, rel=1e-13)
    x = whitened(40, 2)
    assert float(frechet_distance(x @ np.diag([1.0, 2.0]), x @ np.linalg.cholesky(s2).T)) == pytest.approx(
        expected, rel=1e-12
    )


def test_the_covariance_divides_by_n_minus_one():
    # {0, 2} has variance 2 (ddof 1), {0, 4} has 8; means 1 and 2: 1 + 2 + 8 - 2 sqrt 16 = 3. With ddof 0: 2
    assert float(frechet_distance(np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]]))) == pytest.approx(3.0, rel=1e-14)


def test_fewer_frames_than_features_are_at_distance_zero_from_themselves():
    x = frames(16, 128)
    assert float(frechet_distance(x, x)) <= 1e-13 * np.trace(np.cov(x.T))
    assert float(frechet_distance(x, x)) >= 0


def test_fewer_frames_than_features_match_the_distance_inside_their_own_span():
    # both sets lie in the first 12 of 96 dimensions, turned: there the covariances have full rank
    small, other = frames(40, 12, 1), frames(40, 12, 2)
    turn = rotation(96)[:12]
    assert float(frechet_distance(small @ turn, other @ turn)) == pytest.approx(
        float(frechet_distance(small, other)), rel=1e-11
    )


# ---- second implementation


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_definition_in_forty_digits(seed: int):
    x, y = frames(30, 5, seed), frames(45, 5, seed + 10)
    expected = by_mpmath(x.mean(axis=0), np.cov(x.T), y.mean(axis=0), np.cov(y.T))
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-11)
    moments = (x.mean(axis=0), np.cov(x.T), y.mean(axis=0), np.cov(y.T))
    assert float(frechet_distance_from_moments(*moments)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("rows", "size"), [(128, 4), (128, 8), (9, 8), (8, 8), (5, 8), (2, 6)])
def test_it_is_right_to_ten_digits_with_any_number_of_frames(rows: int, size: int):
    x, y = frames(rows, size, rows), frames(100, size, size)
    assert float(frechet_distance(x, y)) == pytest.approx(exactly(x, y), rel=1e-12)
    assert per_song_frechet([x], y)[0] == pytest.approx(exactly(x, y), rel=1e-12)


@pytest.mark.parametrize("rows", [10, 11, 12, 13, 40])
def test_the_ways_of_few_and_of_many_frames_agree(rows: int):
    # 12 features; up to 12 frames are their own factor, more are reduced by QR, moments by Cholesky
    x, y = frames(rows, 12, 1), frames(200, 12, 2)
    as_few = Gaussian(torch.tensor(y.mean(0)), torch.tensor(y - y.mean(0)) / math.sqrt(199))
    expected = float(frechet_distance(x, y))
    assert float(frechet_distance(x, as_few)) == pytest.approx(expected, rel=1e-10)
    wide = np.concatenate([x, np.zeros((rows, 90))], axis=1)  # more features than frames in any case
    wide_reference = np.concatenate([y, np.zeros((200, 90))], axis=1)
    assert float(frechet_distance(wide, wide_reference)) == pytest.approx(expected, rel=1e-10)
    by_moments = Gaussian.of_moments(y.mean(0), np.cov(y.T))
    assert float(frechet_distance(x, by_moments)) == pytest.approx(expected, rel=1e-10)


def test_it_equals_scipys_square_root_where_that_is_well_conditioned():
    from scipy.linalg import sqrtm

    x, y = frames(400, 24, 3), frames(300, 24, 4)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s1 + s2) - 2 * np.trace(sqrtm(s1 @ s2)).real
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [30, 300])
def test_factors_from_frames_and_from_moments_agree_on_many_frames(size: int):
    """Two algorithms: QR of the frames, Cholesky factors of their covariances."""
    x, y = frames(400, size, 1), frames(500, size, 2)
    moments = [part for table in (x, y) for part in (table.mean(0), np.cov(table.T))]
    assert float(frechet_distance(x, y)) == pytest.approx(float(frechet_distance_from_moments(*moments)), rel=1e-10)


def test_no_square_root_of_a_matrix_is_taken(monkeypatch):
    """scipy's changed its signature, and loses half of the digits of singular covariances."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("sqrtm")

    monkeypatch.setattr("scipy.linalg.sqrtm", refuse)
    x, y = frames(6, 10, 1), frames(40, 10, 2)
    assert float(frechet_distance(x, y)) > 0 and per_song_frechet([x, x[:1]], y).shape == (2,)


def test_precision_of_the_trace_term_needs_float64():
    # what the file's docstring claims: the same formula in float32 is off by far more than its float64 result
    x = frames(200, 64, 5)
    near = x + 1e-3 * frames(200, 64, 6)
    exact = float(frechet_distance(x, near))
    a, b = (torch.tensor(t - t.mean(0), dtype=torch.float32) / math.sqrt(199) for t in (x, near))
    nuclear = torch.linalg.svdvals(a @ b.mT).sum()
    single = float(a.square().sum() + b.square().sum() - 2 * nuclear) + float(np.sum((x.mean(0) - near.mean(0)) ** 2))
    assert abs(single - exact) > 0.05 * exact


# ---- invariances


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 4), st.integers(3, 40))
def test_scaling_all_features_scales_the_distance_by_the_square(seed: int, exponent: float, rows: int):
    x, y = frames(rows, 8, seed), frames(25, 8, seed + 1)
    scale = 10.0**exponent
    assert float(frechet_distance(x * scale, y * scale)) == pytest.approx(
        scale**2 * float(frechet_distance(x, y)), rel=1e-10
    )


def test_rotation_translation_and_frame_order_change_nothing():
    x, y = frames(50, 10, 1), frames(70, 10, 2)
    expected = float(frechet_distance(x, y))
    turn = rotation(10)
    assert float(frechet_distance(x @ turn, y @ turn)) == pytest.approx(expected, rel=1e-11)
    assert float(frechet_distance(x + 100, y + 100)) == pytest.approx(expected, rel=1e-10)
    assert float(frechet_distance(x[::-1].copy(), np.roll(y, 7, axis=0))) == pytest.approx(expected, rel=1e-11)


def test_a_common_offset_of_ten_thousand_costs_four_digits_and_no_more():
    x, y = frames(50, 10, 1), frames(70, 10, 2)
    assert float(frechet_distance(x + 1e4, y + 1e4)) == pytest.approx(float(frechet_distance(x, y)), rel=1e-10)
    few = frames(6, 10, 3)
    assert float(frechet_distance(few + 1e4, y + 1e4)) == pytest.approx(float(frechet_distance(few, y)), rel=1e-10)


def test_it_is_symmetric_and_numpy_equals_torch():
    x, y = frames(20, 30, 1), frames(90, 30, 2)
    expected = float(frechet_distance(x, y))
    assert float(frechet_distance(y, x)) == pytest.approx(expected, rel=1e-12)
    assert float(frechet_distance(torch.tensor(x), torch.tensor(y))) == expected


def test_a_long_table_is_factored_in_blocks_without_loss(monkeypatch):
    x, y = frames(1000, 6, 1), frames(50, 6, 2)
    expected = float(frechet_distance(x, y))
    monkeypatch.setattr("dragon.exemplars.gaussian._QR_ROWS", 64)
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-12)


def test_a_singular_covariance_given_as_moments_is_allowed():
    x, y = frames(10, 20, 1), frames(200, 20, 2)
    by_moments = frechet_distance_from_moments(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    # null directions of a covariance are known to the root of the rounding error only
    assert float(by_moments) == pytest.approx(float(frechet_distance(x, y)), rel=1e-6)


# ---- faults of other implementations, absent here


def test_large_features_have_no_imaginary_component():
    # a tolerance that is not relative: with few frames and features times 1000 others stop with an error
    x, y = 1000 * frames(20, 40, 1), 1000 * frames(30, 40, 2)
    assert float(frechet_distance(x, y)) == pytest.approx(1e6 * float(frechet_distance(x / 1000, y / 1000)), rel=1e-10)
    assert 0 <= float(frechet_distance(x, x)) <= 1e-13 * np.trace(np.cov(x.T))


def test_few_frames_are_not_biased_low():
    # square roots of what should be exact zeros of a singular product: -6e-7 of the trace with a float64 square root
    from scipy.linalg import sqrtm

    x = frames(16, 64)
    cov = np.cov(x.T)
    peer = 2 * np.trace(cov) - 2 * np.trace(sqrtm(cov @ cov)).real
    assert peer < -1e-9 * np.trace(cov)
    assert 0 <= float(frechet_distance(x, x)) < 1e-13 * np.trace(cov)


def test_features_far_from_zero_keep_their_digits_in_single_precision_and_not_in_half():
    x, y = 5 + 0.1 * frames(200, 16, 1), 5 + 0.1 * frames(200, 16, 2)
    exact = float(frechet_distance(x, y))
    single = float(frechet_distance(x.astype(np.float32), y.astype(np.float32)))
    half = float(frechet_distance(x.astype(np.float16), y.astype(np.float16)))  # how some caches keep features
    assert abs(single / exact - 1) < 1e-6 < abs(half / exact - 1)


def test_gradients_stay_enabled_and_features_untouched():
    x = torch.tensor(frames(10, 4), requires_grad=True)
    before = x.detach().clone()
    frechet_distance(x, frames(20, 4, 1))
    per_song_frechet([x], frames(20, 4, 1))
    assert torch.is_grad_enabled()
    assert x.requires_grad and x.grad is None and torch.equal(x, before)


# ---- per song


def test_each_song_equals_the_distance_of_its_own_frames():
    reference = frames(300, 12, 0)
    songs = [frames(rows, 12, rows) for rows in (2, 5, 12, 40, 7, 40)]
    expected = [float(frechet_distance(song, reference)) for song in songs]
    found = per_song_frechet(songs, reference)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_a_song_of_one_frame_is_the_distance_to_the_mean_plus_the_references_trace():
    reference, song = frames(100, 5, 0), frames(1, 5, 1)
    expected = np.sum((song[0] - reference.mean(0)) ** 2) + np.trace(np.cov(reference.T))
    np.testing.assert_allclose(per_song_frechet([song], reference), [expected], rtol=1e-12)


def test_a_songs_value_does_not_depend_on_its_batch(monkeypatch):
    reference = Gaussian.of_frames(frames(100, 8, 0))
    songs = [frames(rows, 8, rows) for rows in (3, 50, 1, 20)]
    together = per_song_frechet(songs, reference)
    np.testing.assert_allclose(per_song_frechet(songs[::-1], reference)[::-1], together, rtol=1e-12)
    for song, value in zip(songs, together, strict=True):
        np.testing.assert_allclose(per_song_frechet([song], reference), [value], rtol=1e-12)
    monkeypatch.setattr("dragon.rewards.frechet._CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(per_song_frechet(songs, reference), together, rtol=1e-12)


def test_songs_are_unmoved_by_rotation_and_offset_and_scale_by_the_square():
    reference = frames(100, 8, 0)
    songs = [frames(rows, 8, rows) for rows in (1, 3, 50)]
    expected, turn = per_song_frechet(songs, reference), rotation(8)
    np.testing.assert_allclose(
        per_song_frechet([song @ turn for song in songs], reference @ turn), expected, rtol=1e-11
    )
    np.testing.assert_allclose(per_song_frechet([song + 1e4 for song in songs], reference + 1e4), expected, rtol=1e-9)
    for scale in (1e-3, 1e4):
        found = per_song_frechet([song * scale for song in songs], reference * scale)
        np.testing.assert_allclose(found, scale**2 * expected, rtol=1e-10)


def test_a_reference_of_fewer_frames_than_features_serves_songs_too():
    reference, song = frames(9, 40, 0), frames(15, 40, 1)
    np.testing.assert_allclose(
        per_song_frechet([song], reference), [float(frechet_distance(song, reference))], rtol=1e-11
    )
    assert per_song_frechet([reference], reference)[0] <= 1e-12 * np.trace(np.cov(reference.T))


# ---- refusals


def test_what_is_not_finite_is_named_with_its_row():
    good, bad = frames(5, 3), frames(5, 3)
    bad[3, 1] = np.nan
    with pytest.raises(NotFinite, match="generated: row 3"):
        frechet_distance(bad, good)
    bad[3, 1] = np.inf
    with pytest.raises(NotFinite, match="reference: row 3"):
        frechet_distance(good, bad)
    with pytest.raises(NotFinite, match="song 1: row 3"):
        per_song_frechet([good, bad], good)
    with pytest.raises(NotFinite, match="covariance, row 0"):
        frechet_distance_from_moments(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2))


@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (np.zeros((0, 3)), np.eye(3), "generated: 0 rows; expected at least 2"),
        (np.zeros((1, 3)), np.eye(3), "generated: 1 rows"),
        (np.eye(3), np.zeros((1, 3)), "reference: 1 rows"),
        (np.eye(3), np.eye(4), "3 features, reference 4"),
        (np.zeros(3), np.eye(3), r"\(3,\); expected \(n, features\)"),
        (np.zeros((3, 0)), np.eye(3), r"\(3, 0\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(generated: np.ndarray, reference: np.ndarray, message: str):
    with pytest.raises(ShapeError, match=message):
        frechet_distance(generated, reference)


def test_songs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="no songs"):
        per_song_frechet([], np.eye(3))
    with pytest.raises(ShapeError, match="song 1: rows of 4 features; expected 3"):
        per_song_frechet([np.eye(3), np.eye(4)], np.eye(3))
    with pytest.raises(ShapeError, match="song 0: 0 rows"):
        per_song_frechet([np.zeros((0, 3))], np.eye(3))


def test_moments_that_are_no_covariance_are_refused():
    with pytest.raises(ShapeError, match="not symmetric"):
        frechet_distance_from_moments(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2), np.eye(2))
    with pytest.raises(ShapeError, match="eigenvalue -1"):
        frechet_distance_from_moments(np.zeros(2), np.diag([1.0, -1.0]), np.zeros(2), np.eye(2))
    with pytest.raises(ShapeError, match=r"expected \(f,\) and \(f, f\)"):
        frechet_distance_from_moments(np.zeros(3), np.eye(2), np.zeros(2), np.eye(2))


# ---- the reward


def clips(count: int, seed: int, loudness: float = 0.1, seconds: float = 1.5) -> Media:
    generator = torch.Generator().manual_seed(seed)
    tensor = loudness * torch.randn(count, 1, round(16_000 * seconds), generator=generator)
    return Media(tensor, tuple(f"prompt {i}" for i in range(count)), 16_000)


def test_the_reward_is_minus_the_distance_and_prefers_what_sounds_like_the_exemplars():
    encoder = Spectral(bands=16)
    reward = SongFrechet(build_from_media(clips(8, 0), encoder, "noise"), encoder)
    like, unlike = clips(3, 1), clips(3, 1, loudness=0.01)
    assert reward.score(like).dtype == torch.float64
    assert bool((reward.score(like) > reward.score(unlike)).all())
    frames_of = torch.cat(list(encoder.embed_media(clips(8, 0))))
    found = [-float(frechet_distance(f, frames_of)) for f in encoder.embed_media(like)]
    np.testing.assert_allclose(reward.score(like).numpy(), found, rtol=1e-9)


def test_the_rewards_score_does_not_depend_on_the_batch():
    encoder = Spectral(bands=16)
    reward = SongFrechet(build_from_media(clips(8, 0), encoder, "noise"), encoder)
    media = clips(5, 1)
    alone = torch.cat([reward.score(media.rows([i])) for i in range(5)])
    torch.testing.assert_close(reward.score(media), alone, rtol=1e-6, atol=0)


def test_the_encoder_named_in_the_set_is_the_default_and_another_is_refused():
    exemplars = build_from_media(clips(8, 0), Spectral(), "noise")
    assert SongFrechet(exemplars).encoder == Spectral()
    with pytest.raises(ConfigError, match="dragon exemplars build noise .* --encoder spectral"):
        SongFrechet(exemplars, Spectral(hop=512))


def test_few_frames_a_clip_are_warned_of_once():
    encoder = Spectral(bands=16, hop=4096)
    reward = SongFrechet(build_from_media(clips(8, 0), encoder, "noise"), encoder)
    with pytest.warns(UserWarning, match="6 frames a clip"):
        reward.score(clips(2, 1))


def test_a_missing_set_is_one_clear_error():
    with pytest.raises(DragonError, match="no exemplar set 'jazzz'.*dragon exemplars build"):
        SongFrechet("jazzz")
