"""The space that clips and captions share: what a fit finds and ignores, its file, and the encoder over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dragon import mini, registry
from dragon.encoders.lookup import get_joint_encoder
from dragon.encoders.mini import MiniEncoder
from dragon.encoders.shared import DATA, SharedEncoder, SharedSpace, fit_shared_space
from dragon.errors import AudioError, ConfigError, NotFinite, PluginError, ShapeError
from dragon.media import Media
from dragon.protocols import Encoder, JointEncoder

SIZE, LATENT, PAIRS = 24, 4, 2_000


@dataclass(frozen=True)
class World:
    """A joint space made by hand: 4 shared directions, 6 private ones of each modality, one of the gap, all orthogonal.

    A clip shows the latent with noise, a caption half of its parts (the others are 0), as real captions do.
    """

    axes: Tensor
    gap: float

    def latent(self, count: int, seed: int) -> Tensor:
        return draw(count, LATENT, seed) * torch.tensor([2.0, 1.5, 1.2, 1.0], dtype=torch.float64)

    def audio(self, latent: Tensor, seed: int) -> Tensor:
        private = 2.0 * draw(len(latent), 6, seed) @ self.axes[4:10]
        return latent @ self.shared + private + self.noise(latent, seed) + self.gap * self.axes[20]

    def text(self, latent: Tensor, seed: int) -> Tensor:
        told = torch.rand(latent.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        private = draw(len(latent), 6, seed + 1) @ self.axes[10:16]
        return (latent * told) @ self.shared + private + self.noise(latent, seed + 2)

    @property
    def shared(self) -> Tensor:
        return self.axes[:LATENT]

    def noise(self, latent: Tensor, seed: int) -> Tensor:
        return 0.1 * draw(len(latent), SIZE, seed + 10)


def draw(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def world(gap: float = 5.0) -> World:
    return World(torch.linalg.qr(draw(SIZE, SIZE, 99)).Q, gap)


def pairs(place: World, count: int = PAIRS, seed: int = 0) -> tuple[Tensor, Tensor]:
    latent = place.latent(count, seed)
    return place.audio(latent, seed + 1), place.text(latent, seed + 2)


def fit(audio: Tensor, text: Tensor, **settings: Any) -> SharedSpace:
    return fit_shared_space(audio, text, encoder="by hand", encoder_hash="0123", **settings)


@pytest.fixture(scope="module")
def space() -> SharedSpace:
    return fit(*pairs(world()))


# ---- what a fit finds


def test_the_space_is_the_span_of_the_shared_latent(space: SharedSpace):
    assert space.rank == LATENT
    # cosines of the principal angles between both spans; noise of 1500 pairs turns them by a few hundredths
    cosines = torch.linalg.svdvals(world().shared @ space.basis)
    assert cosines.min() > 0.99
    torch.testing.assert_close(space.basis.mT @ space.basis, torch.eye(LATENT, dtype=torch.float64))


def test_private_directions_and_the_gap_stay_outside(space: SharedSpace):
    outside = world().axes[LATENT:] @ space.basis
    assert outside.norm(dim=1).max() < 0.15
    assert space.gap_size == pytest.approx(5.0, rel=0.05) and space.gap_share < 0.01


def test_coordinates_of_each_modality_have_mean_0_and_variance_1(space: SharedSpace):
    audio, text = pairs(world())
    for found in (space.of_audio(audio), space.of_text(text)):
        torch.testing.assert_close(found.mean(dim=0), torch.zeros(LATENT, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(found.var(dim=0), torch.ones(LATENT, dtype=torch.float64))


def test_held_out_correlations_are_those_of_fresh_pairs(space: SharedSpace):
    audio, text = pairs(world(), 20_000, seed=50)
    x, y = space.of_audio(audio), space.of_text(text)
    fresh = torch.stack([torch.corrcoef(torch.stack([x[:, i], y[:, i]]))[0, 1] for i in range(LATENT)])
    assert (space.correlations - fresh).abs().max() < 4 / math.sqrt(500)
    # a caption that tells a part with probability 1/2 correlates with it by sqrt(1/2), a little less with noise
    assert (fresh - math.sqrt(0.5)).abs().max() < 0.05


def test_a_wider_gap_changes_no_coordinate():
    narrow, wide = fit(*pairs(world(0.0))), fit(*pairs(world(50.0)))
    latent = world().latent(50, 7)
    torch.testing.assert_close(
        narrow.of_audio(world(0.0).audio(latent, 3)), wide.of_audio(world(50.0).audio(latent, 3)), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(narrow.of_text(world().text(latent, 3)), wide.of_text(world().text(latent, 3)))


def test_a_clip_that_moves_along_the_gap_moves_along_the_gap_of_the_space():
    """And by no more than the share of the gap that lies in the space; here the gap is put there on purpose."""
    audio, text = pairs(world(0.0))
    tilted = torch.nn.functional.normalize(world().shared[1] + world().axes[20], dim=0)
    found = fit(audio + 5 * tilted, text)
    assert found.gap_share == pytest.approx(0.5, abs=0.05)
    assert found.gap.norm() == pytest.approx(1)
    step = (found.audio_mean - found.text_mean) / found.gap_size
    moved = found.of_audio(audio + step) - found.of_audio(audio)
    direction = torch.nn.functional.normalize(moved[0], dim=0)
    torch.testing.assert_close(direction, found.gap, rtol=0, atol=1e-9)
    length = (moved[0] * found.audio_sd).norm()  # back in the encoder's units
    assert length.square() == pytest.approx(found.gap_share, rel=1e-6)


def test_without_a_gap_there_is_no_direction_of_it():
    audio, text = pairs(world())
    level = torch.ones(SIZE, dtype=torch.float64)
    found = replace(fit(audio, text), audio_mean=level, text_mean=level)
    assert not found.gap.any() and found.gap_share == 0 == found.gap_size


def test_captions_and_clips_of_one_kind_lie_on_one_side(space: SharedSpace):
    """The point of it all: clips are nearest to the captions of their kind, whatever the gap."""
    place = world()
    kinds = [place.latent(400, 20 + i) + 3 * draw(1, LATENT, 40 + i) for i in range(5)]
    clips = [space.of_audio(place.audio(kind, 60 + i)).mean(dim=0) for i, kind in enumerate(kinds)]
    captions = [space.of_text(place.text(kind, 70 + i)).mean(dim=0) for i, kind in enumerate(kinds)]
    distances = torch.cdist(torch.stack(clips), torch.stack(captions))
    assert distances.argmin(dim=1).tolist() == list(range(5))


def test_permuted_pairs_share_nothing():
    audio, text = pairs(world())
    for seed in range(5):
        with pytest.raises(ConfigError, match="share no direction: the best of 24 correlates .* held-out pairs"):
            fit(audio, text[torch.randperm(PAIRS, generator=torch.Generator().manual_seed(seed))])


def test_few_pairs_keep_only_what_is_far_above_chance():
    audio, text = pairs(world(), 120)
    with pytest.raises(ConfigError, match="expected more than 0.73"):  # 4 / sqrt(30)
        fit(audio, text.roll(1, 0))
    assert fit(*pairs(world(), 400)).rank <= LATENT


def test_a_direction_that_one_modality_does_not_use_is_no_shared_one():
    audio, text = pairs(world())
    wider = [torch.nn.functional.pad(x, (0, 3)) for x in (audio, text)]
    assert fit(*wider).rank == LATENT


def test_what_cannot_be_fitted_is_refused():
    audio, text = pairs(world())
    with pytest.raises(ShapeError, match="one row a pair"):
        fit(audio, text[:-1])
    with pytest.raises(ShapeError, match=r"expected \(pairs, features\)"):
        fit(audio[0], text)
    with pytest.raises(ConfigError, match="99 pairs"):
        fit(audio[:99], text[:99])
    with pytest.raises(ConfigError, match="held_out 1.5"):
        fit(audio, text, held_out=1.5)
    text[3, 4] = math.nan
    with pytest.raises(NotFinite, match="text embeddings: row 3"):
        fit(audio, text)


# ---- the file


def test_a_saved_space_loads_as_it_was(space: SharedSpace, tmp_path: Path):
    path = space.save(tmp_path / "deep" / "mine.safetensors")
    back = SharedSpace.load(path)
    for key in ("audio_mean", "text_mean", "basis", "audio_sd", "text_sd", "correlations", "gap"):
        assert torch.equal(getattr(back, key), getattr(space, key)), key
    for key in ("encoder", "encoder_hash", "pairs", "version", "fingerprint", "gap_size", "gap_share"):
        assert getattr(back, key) == getattr(space, key), key
    assert [p.name for p in path.parent.iterdir()] == ["mine.safetensors"]


def test_files_that_are_no_spaces_are_refused(space: SharedSpace, tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match="a.safetensors is not a shared space"):
        SharedSpace.load(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="no shared space 'minni'; shipped: mini"):
        SharedSpace.load("minni")
    with pytest.raises(ConfigError, match="ends in .safetensors"):
        space.save(tmp_path / "a.pt")
    newer = replace(space, version=2).save(tmp_path / "newer.safetensors")
    with pytest.raises(ConfigError, match="version 2; this program reads version 1"):
        SharedSpace.load(newer)
    with pytest.raises(ShapeError, match="expected basis"):
        replace(space, audio_sd=torch.ones(LATENT + 1))
    with pytest.raises(NotFinite, match="text_sd holds NaN"):
        replace(space, text_sd=torch.full((LATENT,), math.nan))


# ---- the encoder


@dataclass(frozen=True)
class ByHand:
    """A joint encoder of the world above; a clip's samples are its embedding, a caption's number its latent's seed."""

    place: World
    name: str = "by hand"
    fingerprint: str = "0123"
    features: int = SIZE

    def embed_media(self, media: Media) -> Tensor:
        return self.embed_clips(media)[:, None]

    def embed_clips(self, media: Media) -> Tensor:
        return media.tensor[:, 0].float()

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        return torch.cat([self.place.text(self.place.latent(1, int(p)), int(p)) for p in prompts]).float()


def test_the_encoder_gives_the_coordinates_of_the_space(space: SharedSpace):
    encoder = SharedEncoder(ByHand(world()), space)
    audio, _ = pairs(world(), 5, seed=3)
    media = Media(audio[:, None].float(), tuple("abcde"), 16_000)
    assert isinstance(encoder, Encoder) and isinstance(encoder, JointEncoder)
    assert (encoder.name, encoder.features) == ("by hand-shared", LATENT)
    torch.testing.assert_close(encoder.embed_clips(media), space.of_audio(audio).float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder.embed_media(media)[:, 0], encoder.embed_clips(media))
    expected = space.of_text(torch.cat([world().text(world().latent(1, i), i) for i in (4, 9)]))
    torch.testing.assert_close(encoder.embed_text(["4", "9"]), expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.gap, space.gap.float())
    assert encoder.gap.shape == (LATENT,) and encoder.gap.norm() == pytest.approx(1)


def test_the_fingerprint_is_that_of_encoder_and_space(space: SharedSpace):
    made = SharedEncoder(ByHand(world()), space).fingerprint
    assert made == SharedEncoder(ByHand(world()), space).fingerprint
    other = replace(space, text_sd=2 * space.text_sd)
    assert SharedEncoder(ByHand(world()), other).fingerprint != made
    foreign = replace(space, encoder_hash="4567")
    assert SharedEncoder(ByHand(world(), fingerprint="4567"), foreign).fingerprint != made


def test_a_space_of_another_encoder_is_refused(space: SharedSpace):
    with pytest.raises(ConfigError, match=r"fitted for encoder 'by hand' \(fingerprint 0123\).*fit_shared_space"):
        SharedEncoder(ByHand(world(), fingerprint="4567"), space)
    with pytest.raises(ConfigError, match="fitted for encoder 'mini'"):
        SharedEncoder(MiniEncoder(model=mini.random_encoder(0)), "mini")
    with pytest.raises(PluginError, match="embeds no text"):
        SharedEncoder("spectral", space)


# ---- the shipped one


@pytest.fixture(scope="module")
def shipped() -> SharedEncoder:
    found = get_joint_encoder("mini-shared")
    assert isinstance(found, SharedEncoder)
    return found


def test_the_shipped_space_is_that_of_the_shipped_encoder(shipped: SharedEncoder):
    assert registry.resolve("encoder", "mini-shared") is SharedEncoder
    assert [path.name for path in DATA.iterdir()] == ["mini.safetensors"]
    assert shipped.name == "mini-shared" and shipped.space.encoder == "mini" and shipped.space.pairs == 3_000
    # 12 styles, 10 leads, 3 tempi and six attributes of two values have 11 + 9 + 2 + 6 = 28 independent differences
    assert 11 + 4 < shipped.features <= 28
    assert shipped.space.correlations.min() > 0.2


def test_phrases_of_one_meaning_lie_closer_than_those_of_another(shipped: SharedEncoder):
    same = [("fast tempo", "at a fast pace"), ("happy", "in a major key"), ("a waltz", "waltz in three")]
    other = [("slow tempo", "at a slow pace"), ("sad", "in a minor key"), ("a march", "marching band")]
    for (one, two), (three, four) in zip(same, other, strict=True):
        a, b, c, d = shipped.embed_text([one, two, three, four])
        assert max((a - b).norm(), (c - d).norm()) < min((a - c).norm(), (b - d).norm()), one


def test_clips_are_judged_alone_and_bad_ones_named(shipped: SharedEncoder):
    tensor = 0.1 * torch.randn(2, 1, 81_920, generator=torch.Generator().manual_seed(0))
    media = Media(tensor, ("one", "two"), 16_000)
    both = shipped.embed_media(media)
    assert both.shape == (2, 1, shipped.features) and both.dtype == torch.float32
    torch.testing.assert_close(both[1:], shipped.embed_media(media.rows([1])), rtol=1e-3, atol=1e-3)
    media.tensor[1, 0, 5] = math.nan
    with pytest.raises(NotFinite, match=r"clip 1 \(prompt 'two'\)"):
        shipped.embed_media(media)
    with pytest.raises(AudioError):
        shipped.embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))
