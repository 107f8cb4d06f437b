"""Loudness: the standard's own numbers, its laws, and torchaudio as a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio

from dragon.audio import Audio
from dragon.errors import AudioError, NotFinite
from dragon.rewards.loudness import integrated_loudness, k_weighting


def sine(level: float = 1.0, rate: int = 48_000, seconds: float = 2.0, channels: int = 1) -> Audio:
    t = np.arange(round(seconds * rate)) / rate
    return Audio(np.tile(level * np.sin(2 * np.pi * 997 * t), (channels, 1)).astype(np.float32), rate)


def noise(level: float, seconds: float = 2.0) -> Audio:
    return Audio((level * np.random.default_rng(0).standard_normal((2, round(16_000 * seconds)))).astype("f4"), 16_000)


def test_the_filters_at_48_kHz_are_the_standards():
    """ITU-R BS.1770-4, tables 1 and 2."""
    first = [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585]
    second = [1, -2, 1, 1, -1.99004745483398, 0.99007225036621]
    np.testing.assert_allclose(k_weighting(48_000), [first, second], rtol=0, atol=5e-14)


def test_a_full_scale_sine_is_minus_3_01_and_every_factor_of_ten_is_20_less():
    """997 Hz in one channel: -3.01 LKFS (BS.1770-4, annex 1); in both channels twice the power, 3.01 dB more."""
    assert integrated_loudness(sine()) == pytest.approx(-3.01, abs=0.005)
    assert integrated_loudness(sine(0.1)) == pytest.approx(integrated_loudness(sine()) - 20, abs=1e-4)
    assert integrated_loudness(sine(channels=2)) == pytest.approx(
        integrated_loudness(sine()) + 10 * math.log10(2), abs=1e-6
    )
    assert integrated_loudness(sine(channels=5)) == pytest.approx(
        integrated_loudness(sine()) + 10 * math.log10(3 + 2 * 1.41), abs=1e-6
    )


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 32_000, 44_100, 96_000])
def test_it_depends_little_on_the_rate(rate: int):
    # the shelf's corner is exact at every rate and its skirt warped: .03 dB at 997 Hz
    assert integrated_loudness(sine(rate=rate)) == pytest.approx(-3.01, abs=0.05)


def test_torchaudio_agrees_where_it_does_not_clip():
    """Its filters are near the standard's, not equal: .1 dB on these."""
    for clip in (noise(0.02), noise(0.2), sine(0.3)):
        theirs = float(torchaudio.functional.loudness(torch.from_numpy(clip.samples), clip.rate))
        assert integrated_loudness(clip) == pytest.approx(theirs, abs=0.2)
    loud = noise(0.9)  # filtered peaks beyond 1 are lost there; ours is 20 log10(45) above the same noise at .02
    assert integrated_loudness(loud) == pytest.approx(integrated_loudness(noise(0.02)) + 20 * math.log10(45), abs=1e-4)
    assert float(torchaudio.functional.loudness(torch.from_numpy(loud.samples), 16_000)) < integrated_loudness(loud) - 1


def test_gates_leave_out_silence_and_what_is_10_lu_below():
    tone = sine(0.3, seconds=4).samples
    alone = integrated_loudness(Audio(tone, 48_000))
    quiet = 1e-5 * tone  # -113 LUFS
    assert integrated_loudness(Audio(np.concatenate([tone, quiet], 1), 48_000)) == pytest.approx(alone, abs=0.4)
    assert integrated_loudness(Audio(np.concatenate([tone, 0.03 * tone], 1), 48_000)) == pytest.approx(alone, abs=0.4)


def test_silence_is_minus_infinity_and_short_clips_are_one_block():
    assert integrated_loudness(Audio(np.zeros((1, 16_000), np.float32), 16_000)) == -math.inf
    assert integrated_loudness(sine(seconds=0.2)) == pytest.approx(-3.01, abs=0.1)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(AudioError, match="expected 1, 2, 3 or 5 channels"):
        integrated_loudness(Audio(np.zeros((4, 10), np.float32), 48_000))
    with pytest.raises(AudioError, match="not empty"):
        integrated_loudness(Audio(np.zeros((1, 0), np.float32), 48_000))
    with pytest.raises(AudioError, match="at 2000 Hz; expected at least 4000"):
        integrated_loudness(Audio(np.zeros((1, 10), np.float32), 2000))
    with pytest.raises(NotFinite, match="NaN or infinity"):
        integrated_loudness(Audio(np.full((1, 10), np.nan, np.float32), 16_000))
