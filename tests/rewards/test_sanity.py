"""Audio sanity: sound clips have no fault, each fault is graded by its own measure, and grades are lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dragon.audio import Audio
from dragon.config import Spec
from dragon.errors import AudioError, ConfigError, NotFinite
from dragon.media import Media
from dragon.rewards.sanity import AudioSanity, Limits, audio_sanity, clipped_share, silent_share
from dragon.testing import check_reward

RATE = 16_000


def music(seconds: float = 2.0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal((1, round(seconds * RATE)))).clip(-0.98, 0.98).astype("f4")


def faults(samples: np.ndarray) -> dict[str, float]:
    return dict(audio_sanity(Audio(samples.astype(np.float32), RATE)).faults)


def test_a_sound_clip_has_no_fault_and_scores_zero():
    found = audio_sanity(Audio(music(), RATE))
    assert found.faults == {} and float(found) == 0 and found.seconds == 2
    assert str(found).endswith("faults: none")


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        (music(level=0.005), {"quiet"}),
        (music(level=0.0001), {"quiet", "silence"}),
        (0 * music(), {"quiet", "silence"}),
        (music(level=0.9), {"loud"}),
        (np.concatenate([music(1), 0 * music(1)], axis=1), {"silence"}),
        ((20 * music()).clip(-1, 1), {"clipping", "loud"}),
        (music() + 0.1, {"offset"}),
        (music(0.5), {"short"}),
    ],
)
def test_each_fault_is_named_alone(samples: np.ndarray, named: set[str]):
    assert set(faults(samples)) == named


def test_grades_are_straight_lines_between_their_limits():
    """Offsets of .01, .0325 and .1 on a clip of mean 0: 0, (.0325 - .01) / .09 = .25 and 1."""
    clip = music().astype(np.float64)
    clip -= clip.mean()
    offsets = [faults(clip + x).get("offset", 0.0) for x in (0.01, 0.0325, 0.1, 0.5)]
    assert offsets == pytest.approx([0, 0.25, 1, 1], abs=1e-5)
    assert faults(music(0.25))["short"] == pytest.approx(0.75)
    half = audio_sanity(Audio(np.concatenate([music(1), 0 * music(1)], axis=1), RATE))
    assert half.silence == 0.5 and half.faults["silence"] == pytest.approx(0.3 / 0.8)


def test_the_score_is_minus_the_sum_of_the_grades():
    found = audio_sanity(Audio(music(0.25) + 0.2, RATE))
    assert set(found.faults) == {"short", "offset"}
    assert found.value == -sum(found.faults.values()) == pytest.approx(-1.75)


def test_a_flat_top_is_clipping_and_a_high_peak_is_not():
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)[None].astype(np.float32)
    assert clipped_share(Audio(tone, RATE)) == 0
    hard = (2 * tone).clip(-1, 1)
    beyond_half = np.abs(tone) > 0.5  # an arc of 120 degrees of 180: two thirds, less runs that are too short
    assert clipped_share(Audio(hard, RATE)) == pytest.approx(float(beyond_half.mean()), abs=0.01)
    assert clipped_share(Audio(2 * tone, RATE)) == pytest.approx(float(beyond_half.mean()), abs=0.01)  # will be clipped
    assert clipped_share(Audio(0.5 * hard, RATE)) == 0  # a square wave, at half the scale


def test_silence_counts_stretches_of_50_ms_over_all_channels():
    left, nothing = music(1), np.zeros((1, RATE), np.float32)
    assert silent_share(Audio(np.concatenate([left, nothing]), RATE)) == 0
    assert silent_share(Audio(np.concatenate([nothing, nothing]), RATE)) == 1
    assert silent_share(Audio(np.concatenate([left, nothing, nothing, nothing], axis=1), RATE)) == 0.75
    assert silent_share(Audio(music(0.01), RATE)) == 0  # shorter than a stretch


def test_silence_has_no_loudness_and_all_of_its_fault():
    found = audio_sanity(Audio(np.zeros((2, RATE), np.float32), RATE))
    assert found.loudness == -math.inf and found.faults == {"quiet": 1, "silence": 1}


def test_the_reward_keeps_the_contract_and_scores_as_the_function(recwarn):
    clips = [music(), music(level=0.001), music() + 0.1, 0 * music()]
    media = Media(torch.from_numpy(np.stack(clips)), ("a", "b", "c", "d"), RATE)
    assert check_reward(AudioSanity(), media).high == 0
    expected = [audio_sanity(Audio(clip, RATE)).value for clip in clips]
    assert AudioSanity().score(media).tolist() == expected
    assert not recwarn


def test_limits_are_options_and_null_looks_away():
    from dragon.build import build

    media = Media(torch.from_numpy(music() + np.float32(0.1))[None], ("a",), RATE)
    strict = build("reward", Spec("sanity", {"offset": None, "long": [1, 3], "name": "sound"}))
    assert strict.name == "sound" and strict.score(media).tolist() == [-0.5]
    with pytest.raises(ConfigError, match="loud is .*expected .fine, bad., two different numbers"):
        Limits(loud=(1.0, 1.0))


def test_what_is_no_clip_is_refused():
    with pytest.raises(AudioError, match="is empty"):
        audio_sanity(Audio(np.zeros((1, 0), np.float32), RATE))
    with pytest.raises(NotFinite, match="NaN or infinity"):
        audio_sanity(Audio(np.full((1, 9), np.inf, np.float32), RATE))
    with pytest.raises(NotFinite, match=r"clip 0 \(prompt 'a'\)"):
        AudioSanity().score(Media(torch.full((1, 1, 9), torch.nan), ("a",), RATE))
    with pytest.raises(AudioError, match="media without a rate"):
        AudioSanity().score(Media(torch.zeros(1, 3, 4, 4), ("a",)))
