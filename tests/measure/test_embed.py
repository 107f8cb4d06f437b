"""One pass: each file decoded once and embedded once in its life, whatever its name, batch or company."""

from __future__ import annotations

import os
import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon import audio, mini
from dragon.audio import Audio
from dragon.encoders.mini import MiniEncoder
from dragon.encoders.spectral import Spectral
from dragon.errors import AudioError, ConfigError, NotFinite, ShapeError
from dragon.exemplars.gaussian import Gaussian, squared_parts
from dragon.measure import embed, embedded
from dragon.measure.embed import embed_folder
from dragon.measure.store import EmbeddingStore
from dragon.media import Media
from dragon.protocols import JointEncoder


class Counting(Spectral):
    """The spectral encoder, with a note of every batch it hears."""

    def __init__(self, bands: int = 64) -> None:
        super().__init__(bands)
        object.__setattr__(self, "heard", [])

    def embed_media(self, media: Media) -> Tensor:
        self.heard.append(media.prompts)  # type: ignore[attr-defined]
        return super().embed_media(media)


def clip(seed: int, seconds: float = 1.2, rate: int = 16_000, channels: int = 1) -> Audio:
    drawn = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return Audio((0.1 * drawn).astype(np.float32), rate)


def folder(place: Path, count: int = 5, **options: float) -> Path:
    place.mkdir()
    for number in range(count):
        audio.save(place / f"{number}.wav", clip(number, **options))  # type: ignore[arg-type]
    return place


def heard(encoder: Counting) -> list[str]:
    return [name for batch in encoder.heard for name in batch]  # type: ignore[attr-defined]


# ---- what comes back


def test_features_are_those_of_the_encoder_on_each_file_alone(tmp_path):
    """Of every format, rate and number of channels."""
    makes = [
        ("a.wav", 16_000, 1),
        ("b.flac", 44_100, 2),
        ("c.ogg", 22_050, 1),
        ("d.mp3", 48_000, 2),
        ("e.wav", 8000, 3),
    ]
    for number, (name, rate, channels) in enumerate(makes):
        subtype = {"ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}.get(name[-3:], "PCM_16")
        audio.save(tmp_path / name, clip(number, 1.3, rate, channels), subtype)
    encoders = [Spectral(), MiniEncoder(model=mini.random_encoder(0))]
    found = embed_folder(tmp_path, encoders)
    for encoder, one in zip(encoders, found, strict=True):
        assert one.encoder is encoder and one.source == str(tmp_path)
        assert one.names == tuple(name for name, _, _ in makes) and len(one) == 5
        assert one.rates == tuple(rate for _, rate, _ in makes)
        assert one.channels == tuple(channels for _, _, channels in makes)
        for number, name in enumerate(one.names):
            alone = audio.load(tmp_path / name)
            media = Media(torch.from_numpy(alone.samples)[None], (name,), alone.rate)
            frames = encoder.embed_media(media)[0]
            assert torch.equal(one.frames(number), frames)
            assert one.counts[number] == len(frames) and one.seconds[number] == alone.seconds
            vector = encoder.embed_clips(media)[0] if isinstance(encoder, JointEncoder) else frames.mean(dim=0)
            torch.testing.assert_close(one.clips()[number], vector, rtol=1e-6, atol=1e-7)
            assert np.array_equal(one.audio(number).samples, alone.samples)


def test_a_batch_gives_what_its_clips_give_one_by_one(tmp_path):
    place = folder(tmp_path / "songs", 5)
    audio.save(place / "2b.wav", clip(9, 1.7))  # another length in between
    audio.save(place / "3b.wav", clip(9, channels=2))
    encoder = MiniEncoder(model=mini.random_encoder(0))
    (alone,), (together,) = (embed_folder(place, [encoder], batch=batch) for batch in (1, 4))
    assert alone.names == together.names and alone.counts == together.counts
    torch.testing.assert_close(together.pooled(), alone.pooled(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.clips(), alone.clips(), rtol=1e-4, atol=1e-5)


def test_consecutive_clips_of_one_shape_share_a_batch(tmp_path):
    place = folder(tmp_path / "songs", 5)
    audio.save(place / "2b.wav", clip(9, 1.7))
    encoder = Counting()
    embed_folder(place, [encoder], batch=2)
    assert encoder.heard == [("0.wav", "1.wav"), ("2.wav",), ("2b.wav",), ("3.wav", "4.wav")]


def test_a_joint_encoder_may_give_frames_and_clips_by_one_run(tmp_path):
    class OneRun(MiniEncoder):
        def embed_both(self, media: Media) -> tuple[Tensor, Tensor]:
            return super().embed_media(media), super().embed_clips(media)

        def embed_media(self, media: Media) -> Tensor:
            raise AssertionError("a second run")

    place, model = folder(tmp_path / "songs", 2), mini.random_encoder(0)
    (one,), (two,) = (embed_folder(place, [kind(model=model)]) for kind in (OneRun, MiniEncoder))
    assert torch.equal(one.pooled(), two.pooled()) and torch.equal(one.clips(), two.clips())


# ---- once in its life


def test_each_file_is_decoded_once_for_all_encoders_and_never_again(tmp_path, monkeypatch):
    place, store = folder(tmp_path / "songs"), EmbeddingStore(tmp_path / "store")
    decoded: list[str] = []
    load = audio.load

    def counted(path: str | os.PathLike[str]) -> Audio:
        decoded.append(Path(path).name)
        return load(path)

    monkeypatch.setattr(audio, "load", counted)
    first, second, third = Counting(), Counting(bands=32), Counting(bands=16)
    before = embed_folder(place, [first, second], store=store)
    names = [f"{n}.wav" for n in range(5)]
    assert decoded == names and heard(first) == names and heard(second) == names
    after = embed_folder(place, [first, second], store=store)
    assert decoded == names and heard(first) == names
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one.pooled(), two.pooled()) and one.seconds == two.seconds and one.counts == two.counts
    embed_folder(place, [first, third], store=store)  # decoded for the new one alone
    assert decoded == names * 2 and heard(first) == names and heard(third) == names


def test_a_changed_file_is_embedded_again_and_a_renamed_or_copied_one_is_not(tmp_path):
    place, store, encoder = folder(tmp_path / "songs", 3), EmbeddingStore(tmp_path / "store"), Counting()
    (before,) = embed_folder(place, [encoder], store=store)
    encoder.heard.clear()
    (place / "0.wav").rename(place / "new.wav")
    shutil.copy(place / "2.wav", place / "copy.wav")
    audio.save(place / "1.wav", clip(77))
    (after,) = embed_folder(place, [encoder], store=store)
    assert heard(encoder) == ["1.wav"]
    assert after.names == ("1.wav", "2.wav", "copy.wav", "new.wav")
    assert torch.equal(after.frames(3), before.frames(0)) and torch.equal(after.frames(2), before.frames(2))
    assert not torch.equal(after.frames(0), before.frames(1))


def test_equal_files_are_embedded_once_in_a_pass(tmp_path):
    place, encoder = folder(tmp_path / "songs", 2), Counting()
    shutil.copy(place / "0.wav", place / "0-copy.wav")
    shutil.copy(place / "0.wav", place / "9.wav")
    (found,) = embed_folder(place, [encoder])
    assert len(heard(encoder)) == 2 and len(found) == 4 and len(set(found.hashes)) == 2
    assert torch.equal(found.frames(0), found.frames(3))


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path):
    class Stop(Counting):
        def embed_media(self, media: Media) -> Tensor:
            if len(self.heard) == 2:  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            return super().embed_media(media)

    place, store = folder(tmp_path / "songs", 6), EmbeddingStore(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        embed_folder(place, [Stop()], store=store, batch=2)
    assert not any(thread.name == "dragon-read-ahead" for thread in threading.enumerate())
    encoder = Counting()
    (found,) = embed_folder(place, [encoder], store=store)
    assert heard(encoder) == ["4.wav", "5.wav"] and len(found) == 6


def test_a_broken_file_of_the_store_is_embedded_again(tmp_path):
    place, store, encoder = folder(tmp_path / "songs", 3), EmbeddingStore(tmp_path / "store"), Counting()
    (before,) = embed_folder(place, [encoder], store=store)
    expected = before.pooled()
    before.shelf.place(before.hashes[1]).write_bytes(b"cut")
    encoder.heard.clear()
    with pytest.warns(UserWarning, match="is broken"):
        (after,) = embed_folder(place, [encoder], store=store)
    assert heard(encoder) == ["1.wav"] and torch.equal(after.pooled(), expected)


# ---- bad files and bad encoders


def spoil(place: Path) -> list[str]:
    """Adds one file of each fault to 0.wav ... 4.wav; the reasons in the order of the files."""
    import soundfile

    (place / "1-text.wav").write_bytes(b"no audio")
    soundfile.write(place / "2-nan.wav", np.full((20_000, 1), np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(place / "3-empty.wav", np.zeros((0, 1)), 16_000)
    audio.save(place / "4-silent.wav", Audio(np.zeros((1, 20_000), np.float32), 16_000))
    audio.save(place / "5-short.wav", clip(0, 0.4))
    reasons = ("cannot be read", "holds NaN", "empty", "silent", "too short (0.40 s")
    names = ("1-text", "2-nan", "3-empty", "4-silent", "5-short")
    return [f"{name}.wav: {reason}" for name, reason in zip(names, reasons, strict=True)]


def test_all_bad_files_are_listed_and_the_encoders_stop_at_the_first(tmp_path):
    place, encoder, store = folder(tmp_path / "songs"), Counting(), EmbeddingStore(tmp_path / "store")
    reasons = spoil(place)
    with pytest.raises(AudioError, match="5 of 10 audio files") as error:
        embed_folder(place, [encoder], batch=1, store=store)
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    assert all(line.strip().startswith(reason) for line, reason in zip(lines[1:], reasons, strict=True))
    assert heard(encoder) == ["0.wav"]  # 1-text.wav comes next


def test_bad_files_can_be_skipped_and_are_kept_in_the_result(tmp_path):
    place = folder(tmp_path / "songs")
    (clean,) = embed_folder(place, [Spectral()])
    reasons = spoil(place)
    (found,) = embed_folder(place, [Spectral()], skip_bad=True)
    assert found.names == clean.names and torch.equal(found.pooled(), clean.pooled())
    assert all(str(bad).startswith(reason) for bad, reason in zip(found.bad, reasons, strict=True))
    for name in found.names:
        (place / name).unlink()
    with pytest.raises(AudioError, match="5 of 5 .* nothing is left"):
        embed_folder(place, [Spectral()], skip_bad=True)


def test_a_stored_clip_is_still_too_short_for_a_stricter_call(tmp_path):
    place, store = folder(tmp_path / "songs", 2, seconds=1.2), EmbeddingStore(tmp_path / "store")
    embed_folder(place, [Spectral()], store=store)
    with pytest.raises(AudioError, match=r"0\.wav: too short \(1\.20 s, expected at least 2 s\)"):
        embed_folder(place, [Spectral()], store=store, min_seconds=2)


def test_clips_that_one_encoder_refuses_are_bad_for_all(tmp_path):
    class Picky(Spectral):
        name = "picky"

        def embed_media(self, media: Media) -> Tensor:
            if bool((media.tensor[:, 0, 0] > 0).any()):
                raise AudioError("begins above zero")
            return super().embed_media(media)

    place = folder(tmp_path / "songs", 6)
    refused = [f"{n}.wav" for n in range(6) if audio.load(place / f"{n}.wav").samples[0, 0] > 0]
    assert 0 < len(refused) < 6
    shutil.copy(place / refused[0], place / "9.wav")
    found = embed_folder(place, [Spectral(), Picky()], skip_bad=True)
    for one in found:
        assert [str(bad) for bad in one.bad] == [
            f"{name}: encoder 'picky': begins above zero" for name in [*refused, "9.wav"]
        ]
        assert len(one) == 6 - len(refused) == len(one.clips())
    with pytest.raises(AudioError, match="'picky': begins above zero"):
        embed_folder(place, [Spectral(), Picky()])


def test_an_encoder_that_breaks_its_contract_is_named(tmp_path):
    class Odd(Spectral):
        def embed_media(self, media: Media) -> Tensor:
            found = super().embed_media(media)
            if self.bands == 8:
                found[list(media.prompts).index("1.wav"), 0, 0] = torch.nan
            return found[..., :-1] if self.bands == 9 else found[:1] if self.bands == 10 else found

    place = folder(tmp_path / "songs", 3)
    with pytest.raises(NotFinite, match=r"'spectral' made NaN or infinity of 1\.wav"):
        embed_folder(place, [Odd(bands=8)])
    with pytest.raises(ShapeError, match=r"gave frames \(3, 18, 8\); expected \(3, frames, 9\)"):
        embed_folder(place, [Odd(bands=9)])
    with pytest.raises(ShapeError, match=r"gave frames \(1, 18, 10\)"):
        embed_folder(place, [Odd(bands=10)])


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"min_seconds": -1}, {"encoders": []}])
def test_settings_that_cannot_work_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="expected a batch of at least 1"):
        embed_folder(tmp_path, **({"encoders": [Spectral()]} | wrong))


# ---- statistics


def songs(tmp_path: Path, encoders: Sequence[Spectral] | None = None) -> embedded.Embedded:
    place = folder(tmp_path / "songs", 4)
    audio.save(place / "2b.wav", clip(9, 3.0))
    return embed_folder(place, encoders or [Spectral(bands=8)])[0]


@pytest.mark.parametrize("rows", [4096, 25, 1])
def test_streamed_moments_are_those_of_all_frames(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(embedded, "_BLOCK_ROWS", rows)
    found = songs(tmp_path)
    expected = Gaussian.of_frames(found.pooled())
    assert found.total == len(found.pooled()) == sum(found.counts)
    assert found.moments().n == found.total
    torch.testing.assert_close(found.moments().mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.moments().covariance, expected.covariance, rtol=1e-11, atol=1e-12)
    assert sum(squared_parts(found.moments(), expected)) < 1e-9 * expected.trace


def test_sums_of_disjoint_clips_merge(tmp_path):
    found = songs(tmp_path)
    both = found.sums([0, 3]).merged(found.sums([1, 2, 4]))
    torch.testing.assert_close(both.scatter, found.sums().scatter, rtol=1e-11, atol=1e-10)
    assert both.n == found.total and found.sums([]).n == 0


def test_few_frames_keep_an_exact_factor(tmp_path):
    """18 frames of 64 features: the covariance has rank 17, and a set is at distance 0 from itself."""
    (found,) = embed_folder(folder(tmp_path / "songs", 1), [Spectral()])
    one = found.moments()
    assert one.factor.shape == (18, 64)
    assert sum(squared_parts(one, one)) < 1e-12 * one.trace


def test_drawn_frames_are_rows_without_repeats_in_their_order(tmp_path):
    found = songs(tmp_path)
    pooled = found.pooled()
    drawn = found.pooled(limit=30, seed=3)
    places = [int((pooled == row).all(dim=1).nonzero()[0, 0]) for row in drawn]
    assert len(places) == 30 and places == sorted(set(places))
    assert places == torch.randperm(len(pooled), generator=torch.Generator().manual_seed(3))[:30].sort().values.tolist()
    assert torch.equal(found.pooled(limit=30, seed=3), drawn) and not torch.equal(found.pooled(limit=30, seed=4), drawn)
    assert torch.equal(found.pooled(limit=len(pooled)), pooled)
    with pytest.raises(ConfigError, match="limit 0"):
        found.pooled(limit=0)


def test_features_that_went_away_are_an_error_and_not_other_features(tmp_path):
    found = songs(tmp_path)
    found.shelf.place(found.hashes[0]).unlink()
    with pytest.raises(ConfigError, match=r"0\.wav: its features are gone"):
        found.frames(0)
    audio.save(found.paths[1], clip(50))
    with pytest.raises(AudioError, match=r"1\.wav: changed"):
        found.audio(1)


# ---- progress and memory


def test_progress_counts_every_file_once_up_to_the_total(tmp_path):
    place = folder(tmp_path / "songs")
    spoil(place)
    told: list[tuple[int, int, float, float]] = []
    embed_folder(place, [Spectral()], skip_bad=True, batch=2, progress=lambda *state: told.append(state))
    counts = [done for done, _, _, _ in told]
    assert counts == sorted(set(counts)) and counts[-1] == 10 and {total for _, total, _, _ in told} == {10}
    assert all(rate > 0 for _, _, rate, _ in told)
    assert told[-1][3] == 0 and told[0][3] == pytest.approx((10 - told[0][0]) / told[0][2])


def test_what_is_held_does_not_grow_with_the_number_of_clips(tmp_path, monkeypatch):
    """Decoded clips alive while the encoder works, of 6 and of 24 files."""
    alive: weakref.WeakSet[Audio] = weakref.WeakSet()
    load, ahead = audio.load, embed.read_ahead

    def watched(path: str | os.PathLike[str]) -> Audio:
        found = load(path)
        alive.add(found)
        return found

    class Watching(Spectral):
        def embed_media(self, media: Media) -> Tensor:
            time.sleep(0.02)  # slower than reading
            most.append(len(alive))
            return super().embed_media(media)

    monkeypatch.setattr(audio, "load", watched)
    monkeypatch.setattr(embed, "read_ahead", lambda jobs, size: ahead(jobs, size, limit=200_000))
    peaks = []
    for count in (6, 24):
        most: list[int] = []
        embed_folder(folder(tmp_path / str(count), count), [Watching()], batch=2)
        peaks.append(max(most))
    # 77 kB a clip: three wait, one more is read, two are heard, and the loop holds one
    assert max(peaks) <= 7
