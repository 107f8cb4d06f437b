"""Audio files and samples: round trips, resampling against a known signal, and every fault by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch

from dragon import audio
from dragon.audio import Audio
from dragon.errors import AudioError, NotFinite, ShapeError
from dragon.media import Media


def sine(hz: float, rate: int, seconds: float) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize(
    ("name", "subtype", "error"), [("a.wav", "FLOAT", 0), ("a.wav", "PCM_16", 1 / 32768), ("a.flac", "PCM_24", 2**-23)]
)
def test_a_saved_clip_loads_as_it_was(tmp_path, name: str, subtype: str, error: float):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 500)).astype(np.float32)
    audio.save(tmp_path / name, Audio(samples, 22_050), subtype)
    back = audio.load(tmp_path / name)
    assert back.rate == 22_050 and back.samples.dtype == np.float32 and back.samples.shape == (2, 500)
    assert np.abs(back.samples - samples).max() <= error
    assert back.seconds == pytest.approx(500 / 22_050)


def test_what_lies_outside_full_scale_is_clipped_and_not_wrapped(tmp_path):
    audio.save(tmp_path / "a.wav", Audio(np.array([[1.5, -1.5]], np.float32), 8000))
    np.testing.assert_allclose(audio.load(tmp_path / "a.wav").samples, [[1, -1]], atol=1e-4)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(NotFinite, match="a.wav"):
        audio.save(tmp_path / "a.wav", Audio(np.array([[np.nan]], np.float32), 8000))
    assert not (tmp_path / "a.wav").exists()
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        audio.save(tmp_path / "a.wav", Audio(np.zeros(3, np.float32), 8000))
    with pytest.raises(AudioError, match="cannot be written"):
        audio.save(tmp_path / "missing" / "a.wav", Audio(np.zeros((1, 3), np.float32), 8000))


def test_files_that_are_not_there_or_not_audio_are_named(tmp_path):
    with pytest.raises(AudioError, match="no such file"):
        audio.load(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(b"not audio at all")
    with pytest.raises(AudioError, match="a.wav: cannot be read as audio"):
        audio.load(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="a.wav: empty"):
        audio.load(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_a_file_that_was_cut_short_is_not_taken_for_a_short_clip(tmp_path, suffix: str):
    place = tmp_path / f"a.{suffix}"
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(place, noise, 16_000)
    whole = place.read_bytes()
    assert audio.load(place).seconds == pytest.approx(2.0)
    place.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match="cut short" if suffix in ("wav", "mp3") else "cannot be read as audio"):
        audio.load(place)
    place.write_bytes(whole[:50])
    with pytest.raises(AudioError) as error:
        audio.load(place)
    assert "regular file" not in str(error.value)


def test_a_wav_whose_writer_did_not_know_its_length_is_whole(tmp_path):
    """As a program writes it that streams to a pipe: all ones for the sizes."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(content)
    assert audio.load(tmp_path / "a.wav").samples.shape == (1, 16_000)


def test_almost_long_enough_does_not_read_as_long_enough():
    assert audio.fault(Audio(np.ones((1, 15_999), np.float32), 16_000), 1.0) == (
        "too short (0.99 s, expected at least 1 s)"
    )


@pytest.mark.parametrize(("rate", "to_rate"), [(44_100, 16_000), (16_000, 44_100), (48_000, 16_000)])
def test_a_sine_resampled_is_the_sine_at_the_new_rate(rate: int, to_rate: int):
    found = audio.resample(sine(440, rate, 0.5), rate, to_rate)
    expected = sine(440, to_rate, 0.5)
    assert found.shape == expected.shape
    edge = to_rate // 50  # the filter needs signal on both sides
    assert float((found - expected)[edge:-edge].abs().max()) < 1e-3


def test_what_the_new_rate_cannot_hold_is_removed():
    assert float(audio.resample(sine(10_000, 48_000, 0.5), 48_000, 16_000)[400:-400].abs().max()) < 1e-3


@pytest.mark.parametrize("samples", [1, 999, 10_001])
def test_the_length_is_the_rounded_ratio(samples: int):
    assert audio.resample(torch.zeros(2, 3, samples), 44_100, 16_000).shape == (
        2,
        3,
        round(samples * 16_000 / 44_100) or 1,
    )


def test_rows_are_resampled_each_by_itself_and_equal_rates_change_nothing():
    x = torch.randn(5, 2, 400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(audio.resample(x, 8000, 16_000)[3, 1], audio.resample(x[3, 1], 8000, 16_000))
    assert audio.resample(x, 8000, 8000) is x
    with pytest.raises(AudioError, match="from 0 to 8000"):
        audio.resample(x, 0, 8000)


def test_mono_is_the_mean_of_the_channels():
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert audio.to_mono(x).tolist() == [[2.0, 4.0]]
    assert Audio(x[0].numpy(), 8000).mono().tolist() == [2.0, 4.0]
    with pytest.raises(ShapeError):
        audio.to_mono(x[0])


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((1, 0)), "empty"),
        (np.array([[0.0, np.nan]]), "holds NaN or infinity"),
        (np.full((2, 8000), 5e-5), "silent"),
        (np.full((1, 4000), 0.1), "too short \\(0.50 s, expected at least 0.75 s\\)"),
    ],
)
def test_each_fault_has_its_reason(samples: np.ndarray, reason: str):
    with pytest.raises(AudioError, match=f"clip 7: {reason}"):
        audio.check(Audio(samples.astype(np.float32), 8000), "clip 7", min_seconds=0.75)
    audio.check(Audio(np.full((1, 8000), 0.1, np.float32), 8000), "good", min_seconds=0.75)


def test_audio_files_are_listed_sorted_below_the_folder(tmp_path):
    for name in ("b.wav", "a/z.FLAC", "notes.txt", ".hidden.wav", ".cache/x.wav", "a/m.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in audio.list_audio(tmp_path)] == ["a/m.mp3", "a/z.FLAC", "b.wav"]
    with pytest.raises(AudioError, match="no audio files"):
        (tmp_path / "empty").mkdir()
        audio.list_audio(tmp_path / "empty")
    with pytest.raises(AudioError, match="no such folder"):
        audio.list_audio(tmp_path / "missing")


def test_media_falls_into_clips_and_its_broken_row_is_named():
    media = Media(torch.ones(2, 1, 4), ("a", "b"), 8000)
    assert [(a.samples.shape, a.rate) for a in audio.to_audio(media)] == [((1, 4), 8000)] * 2
    media.tensor[1, 0, 2] = math.inf
    with pytest.raises(NotFinite, match=r"clip 1 \(prompt 'b'\)"):
        audio.check_finite(media)
