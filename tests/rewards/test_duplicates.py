"""Duplicates: a share by definition, the same whatever the scale or order, as a metric and as a reward of sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.media import Media
from dragon.rewards import duplicates as module
from dragon.rewards.duplicates import Duplicates, duplicate_share
from dragon.testing import check_reward


def table(n: int = 40, d: int = 12) -> np.ndarray:
    """Random rows, of which the last three repeat row 0, twice, and row 5, a little changed."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, d))
    rows[-1], rows[-2] = rows[0], 3 * rows[0]
    rows[-3] = rows[5] + 0.001 * rng.standard_normal(d)
    return rows


def by_double_loop(rows: np.ndarray, threshold: float) -> float:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    near = [any(i != j and units[i] @ units[j] >= threshold - 1e-9 for j in range(len(rows))) for i in range(len(rows))]
    return float(np.mean(near))


def test_copies_are_found_and_their_share_is_counted():
    found = duplicate_share(table(), threshold=0.999)
    assert float(found) == 5 / 40  # rows 0, -1, -2 and 5, -3
    assert found.twins[5] == 37 and found.twins[37] == 5 and found.twins[0] in (38, 39)
    assert found.cosines[0] == pytest.approx(1, abs=1e-12) and (found.n, found.d) == (40, 12)


def test_none_and_all():
    assert float(duplicate_share(np.eye(5))) == 0
    assert float(duplicate_share(np.ones((5, 3)))) == 1
    assert float(duplicate_share(np.eye(5), threshold=0.0)) == 1  # right angles reach a threshold of 0


@pytest.mark.parametrize("threshold", [-0.5, 0.3, 0.7, 0.999, 1.0])
def test_it_equals_the_double_loop_in_any_blocks(threshold: float, monkeypatch: pytest.MonkeyPatch):
    rows = table()
    expected = by_double_loop(rows, threshold)
    assert float(duplicate_share(rows, threshold)) == pytest.approx(expected, abs=1e-15)
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", 7 * len(rows))
    assert float(duplicate_share(torch.from_numpy(rows), threshold)) == pytest.approx(expected, abs=1e-15)


def test_scale_and_order_change_nothing_and_a_copy_only_adds():
    rows = table()
    share = float(duplicate_share(rows))
    assert float(duplicate_share(rows[::-1].copy() * 100)) == share
    assert float(duplicate_share(np.concatenate([rows, rows[10:11]]))) == pytest.approx((share * 40 + 2) / 41)


def test_the_reward_of_a_set_is_minus_the_metric_of_its_members():
    features = torch.nn.functional.normalize(torch.from_numpy(table()), dim=1)[:, None]
    members = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))[:9] for i in range(50)])
    reward = Duplicates(Spectral(bands=8), threshold=0.9)
    expected = [-float(duplicate_share(features[m, 0], 0.9)) for m in members]
    assert reward.score_sets(features, members).tolist() == expected
    assert min(expected) < 0
    twice = torch.tensor([[1, 1, 2, 3], [1, 2, 3, 4]])  # a row named twice is its own twin
    assert reward.score_sets(features, twice).tolist() == [-0.5, 0]


def test_the_reward_keeps_the_contract():
    t = torch.arange(16_000) / 16_000
    tones = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (110, 440, 440.01, 3520)])[:, None]
    media = Media(0.3 * tones, ("a", "b", "c", "d"), 16_000)
    reward = Duplicates(Spectral(bands=32), threshold=0.999)
    assert check_reward(reward, media).kind == "sets"
    assert reward.score_sets(reward.embed(media), torch.tensor([[0, 1, 2, 3], [0, 1, 3, 3]])).tolist() == [-0.5, -0.5]
    assert reward.score_sets(reward.embed(media), torch.tensor([[0, 1, 3]])).tolist() == [0]


def test_a_mini_encoder_hears_a_copy_and_not_another_clip():
    from dragon import mini
    from dragon.encoders.mini import MiniEncoder

    waves = 0.1 * torch.randn(3, 1, 16_000, generator=torch.Generator().manual_seed(0))
    waves = torch.cat([waves, waves[:1]])
    reward = Duplicates(MiniEncoder(model=mini.random_encoder(0)), threshold=1 - 1e-6)
    features = reward.embed(Media(waves, ("a", "b", "c", "d"), 16_000))
    assert features.shape[1] == 1
    assert reward.score_sets(features, torch.tensor([[0, 1, 2], [0, 1, 3]])).tolist() == [0, pytest.approx(-2 / 3)]


def test_what_has_no_cosine_is_refused():
    with pytest.raises(ConfigError, match=r"threshold is 1.5; expected a cosine above -1, at most 1"):
        duplicate_share(np.eye(3), 1.5)
    with pytest.raises(ConfigError, match="threshold is nan"):
        Duplicates(Spectral(), float("nan"))
    with pytest.raises(ShapeError, match="expected at least 2"):
        duplicate_share(np.ones((1, 3)))
    with pytest.raises(ShapeError, match="row 1 is all zeros"):
        duplicate_share(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(NotFinite, match="row 0"):
        duplicate_share(np.full((2, 2), np.nan))
    with pytest.raises(ShapeError, match="expected .clips, 1, features."):
        Duplicates(Spectral()).score_sets(torch.zeros(3, 2, 4), torch.tensor([[0, 1]]))
