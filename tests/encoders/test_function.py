"""One's own function as an encoder: windows, shapes, fingerprints, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon.encoders import get_encoder
from dragon.encoders.function import FunctionEncoder
from dragon.errors import AudioError, ConfigError, NotFinite, PluginError
from dragon.media import Media
from dragon.protocols import Encoder

RATE = 1000


def loudness(waves: Tensor) -> Tensor:
    """(n, 2): root mean square and peak."""
    return torch.stack([waves.square().mean(dim=1).sqrt(), waves.abs().amax(dim=1)], dim=1)


def envelope(waves: Tensor) -> np.ndarray:
    """(n, s, 1): mean of every 100 samples, as numpy."""
    return waves.unfold(1, 100, 100).mean(dim=2, keepdim=True).numpy()


def noise(clips: int = 3, seconds: float = 2.0, rate: int = RATE, channels: int = 1) -> Media:
    made = 0.1 * torch.randn(clips, channels, round(seconds * rate), generator=torch.Generator().manual_seed(0))
    return Media(made, tuple(f"prompt {i}" for i in range(clips)), rate)


def test_a_clip_whole_is_what_the_function_gives():
    media = noise()
    encoder = FunctionEncoder(loudness, RATE)
    assert isinstance(encoder, Encoder)
    assert (encoder.name, encoder.features) == ("loudness", 2)
    torch.testing.assert_close(encoder.embed_media(media), loudness(media.tensor[:, 0])[:, None])


def test_windows_come_one_after_another_and_frames_of_zeros_are_cut():
    media = noise(1, 1.25)
    found = FunctionEncoder(envelope, RATE, seconds=0.5).embed_media(media)
    pieces = [media.tensor[0, 0, :500], media.tensor[0, 0, 500:1000], media.tensor[0, 0, 750:]]
    expected = torch.cat([torch.from_numpy(envelope(piece[None])) for piece in pieces], dim=1)
    torch.testing.assert_close(found, expected)
    short = FunctionEncoder(envelope, RATE, seconds=2.0).embed_media(media)
    torch.testing.assert_close(short[0, :12, 0], media.tensor[0, 0].unfold(0, 100, 100).mean(dim=1))
    assert short.shape == (1, 13, 1)  # the last one holds half a frame of sound


def test_a_batch_equals_its_clips_one_by_one_at_any_rate_and_channels():
    encoder = FunctionEncoder(envelope, RATE, seconds=0.5)
    media = noise(rate=1500, channels=2)
    together = encoder.embed_media(media)
    for row in range(3):
        torch.testing.assert_close(together[[row]], encoder.embed_media(media.rows([row])))
    mean = Media(media.tensor.mean(dim=1, keepdim=True), media.prompts, media.rate)
    torch.testing.assert_close(together, encoder.embed_media(mean))


def test_it_is_found_by_name_in_a_file(tmp_path: Path):
    file = tmp_path / "my_features.py"
    file.write_text("def peak(waves):\n    return waves.abs().amax(dim=1, keepdim=True)\n")
    encoder = get_encoder({"name": "function", "options": {"function": f"{file}:peak", "rate": RATE}})
    media = noise()
    torch.testing.assert_close(encoder.embed_media(media)[:, 0, 0], media.tensor[:, 0].abs().amax(dim=1))


def test_the_fingerprint_follows_source_version_rate_and_window():
    same = FunctionEncoder(loudness, RATE).fingerprint
    assert FunctionEncoder(loudness, RATE).fingerprint == same
    assert FunctionEncoder(loudness, RATE, name="shown otherwise").fingerprint == same
    others = [
        FunctionEncoder(envelope, RATE),
        FunctionEncoder(loudness, RATE, version="2"),
        FunctionEncoder(loudness, RATE + 1),
        FunctionEncoder(loudness, RATE, seconds=1.0),
    ]
    assert len({same, *(e.fingerprint for e in others)}) == 5


def test_a_function_without_source_needs_a_version():
    made: dict = {}
    exec("def hidden(waves):\n    return waves[:, :1]", made)
    with pytest.raises(PluginError, match="no source text.*give option version"):
        FunctionEncoder(made["hidden"], RATE)
    assert FunctionEncoder(made["hidden"], RATE, version="1").features == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w: w.mean(), r"gave \(\) for 2 waveforms; expected a tensor or an array \(2, features\)"),
        (lambda w: w[:1], r"gave \(1, 250\) for 2 waveforms"),
        (lambda w: [1.0, 2.0], "gave list for 2 waveforms"),
    ],
)
def test_a_function_of_another_form_is_refused_when_it_is_made(wrong, message: str):
    with pytest.raises(PluginError, match=message):
        FunctionEncoder(wrong, RATE, version="1")


def test_what_cannot_work_is_refused():
    with pytest.raises(PluginError, match="3 is not callable"):
        FunctionEncoder(3, RATE)
    with pytest.raises(ConfigError, match="rate 0, seconds 0, features 0; expected a rate in Hz"):
        FunctionEncoder(loudness, 0)
    with pytest.raises(PluginError, match="encoder 'loudness' gave 2 features; expected 5"):
        FunctionEncoder(loudness, RATE, features=5).embed_media(noise())
    with pytest.raises(NotFinite, match=r"encoder 'bad' made NaN or infinity of clip 0"):
        FunctionEncoder(lambda w: w[:, :1] * math.inf, RATE, name="bad", version="1").embed_media(noise())
    with pytest.raises(AudioError, match="encoder 'loudness' got media"):
        FunctionEncoder(loudness, RATE).embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))
    with pytest.raises(PluginError, match="needs option 'rate'"):
        get_encoder({"name": "function", "options": {"function": "a.py:b"}})
