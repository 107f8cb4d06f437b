"""Centroid: a cosine by hand, its laws, captions, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError, ShapeError
from dragon.exemplars import build_from_media
from dragon.exemplars.collect import build_from_captions
from dragon.media import Media
from dragon.rewards.centroid import Centroid
from dragon.testing import check_reward

ENCODER = Spectral(bands=24)


class Levels:
    """Two features a clip, read from its first two samples; text by its length. `gap` only where a test sets it."""

    name, fingerprint, features = "levels", "levels-1", 2

    def embed_media(self, media):
        return media.tensor[:, :1, :2].double()

    def embed_clips(self, media):
        return self.embed_media(media)[:, 0]

    def embed_text(self, prompts):
        return torch.tensor([[float(len(p)), 1.0] for p in prompts], dtype=torch.float64)


class Centred(Levels):
    gap = torch.tensor([1.0, 0.0])


def points(*rows: tuple[float, float]) -> Media:
    return Media(torch.tensor(rows)[:, None], tuple(map(str, rows)), 16_000)


def tones(low: float, seed: int = 0) -> Media:
    t = torch.arange(16_000) / 16_000
    waves = torch.stack([torch.sin(2 * torch.pi * low * (1 + 0.1 * i) * t) for i in range(4)])[:, None]
    noise = 0.01 * torch.randn(waves.shape, generator=torch.Generator().manual_seed(seed))
    return Media(0.3 * waves + noise, ("a", "b", "c", "d"), 16_000)


def test_by_hand():
    """Exemplars (1, 0), (1, 2): centroid (1, 1). Clips (1, 1), (1, -1), (-3, -3), (2, 0): 1, 0, -1, 1 / sqrt 2."""
    reward = Centroid(build_from_media(points((1, 0), (1, 2)), Levels(), "two"), Levels())
    found = reward.score(points((1, 1), (1, -1), (-3, -3), (2, 0)))
    assert found.tolist() == pytest.approx([1, 0, -1, 0.5**0.5], abs=1e-12)


def test_a_centre_is_subtracted_from_both():
    """Centre (1, 0), centroid (1, 1): direction (0, 1). The clip (2, 1) is (1, 1) from there: 1 / sqrt 2."""
    exemplars = build_from_media(points((1, 0), (1, 2)), Levels(), "two")
    generic = build_from_media(points((0, 0), (2, 0)), Levels(), "generic")
    reward = Centroid(exemplars, Levels(), generic)
    assert reward.score(points((2, 1), (1, 9), (5, 0))).tolist() == pytest.approx([0.5**0.5, 1, 0], abs=1e-12)


def test_exemplars_of_the_set_beat_other_sounds_most_clearly_from_a_centre():
    low, high = tones(200), tones(2000)
    exemplars, generic = (build_from_media(m, ENCODER, n) for m, n in ((low, "low"), (high, "high")))
    plain, centred = Centroid(exemplars, ENCODER), Centroid(exemplars, ENCODER, generic)
    for reward in (plain, centred):
        assert float(reward.score(tones(200, 1)).min()) > float(reward.score(high).max())
    spread = [float(r.score(tones(200, 1)).mean() - r.score(tones(2000, 1)).mean()) for r in (plain, centred)]
    assert spread[1] > 3 * spread[0]


def test_captions_are_compared_with_clip_embeddings():
    """Captions of 3 and 5 letters: centroid (4, 1). The clip (8, 2) points there."""
    with pytest.warns(UserWarning, match="does not centre its modalities"):
        exemplars = build_from_captions(["abc", "abcde"], Levels(), "words")
    reward = Centroid(exemplars, Levels())
    assert reward.score(points((8, 2), (1, -4))).tolist() == pytest.approx([1, 0], abs=1e-12)


def test_it_keeps_the_contract(recwarn):
    assert check_reward(Centroid(build_from_media(tones(200), ENCODER, "low"), ENCODER)).kind == "clips"
    assert not recwarn


def test_shipped_captions_know_their_encoder():
    reward = Centroid("mini_disco_text", name="disco")
    waves = 0.1 * torch.randn(2, 1, 81_920, generator=torch.Generator().manual_seed(0))
    scores = reward.score(Media(waves, ("a", "b"), 16_000))
    assert reward.name == "disco" and bool((scores.abs() <= 1).all()) and float(scores[0]) != float(scores[1])


def test_what_has_no_direction_or_no_common_centre_is_refused():
    two = build_from_media(points((1, 0), (-1, 0)), Levels(), "two")
    with pytest.raises(ConfigError, match="mean of exemplars 'two' is the origin itself"):
        Centroid(two, Levels())
    other = build_from_media(points((1, 0), (1, 2)), Levels(), "other")
    with pytest.raises(ConfigError, match="encoder 'levels' centres by itself; leave centre out"):
        Centroid(other, Centred(), two)
    captions = build_from_captions(["abc", "abcde"], Centred(), "words")
    with pytest.raises(ConfigError, match=r"centre 'two' \(audio\) for exemplars 'words' \(text\).*'mini-shared'"):
        Centroid(captions, Levels(), two)
    with pytest.raises(ConfigError, match="exemplars 'low' were embedded with 'spectral'.*rebuild with"):
        Centroid(other, Levels(), build_from_media(tones(200), ENCODER, "low"))
    with pytest.raises(ShapeError, match="row 1 is all zeros"):
        Centroid(other, Levels()).score(points((1, 1), (0, 0)))
