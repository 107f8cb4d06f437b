"""Encoders: shapes, the window rule, independence of batch, rate and channels, and fingerprints."""

from __future__ import annotations

import math

import pytest
import torch

from dragon import mini
from dragon.encoders import get_encoder, windows
from dragon.encoders.codec import CodecEncoder
from dragon.encoders.lookup import get_joint_encoder
from dragon.encoders.mini import MiniEncoder, MiniJudgeEncoder
from dragon.encoders.spectral import Spectral, mel_filters
from dragon.encoders.windows import Windows
from dragon.errors import AudioError, ConfigError, NotFinite, PluginError
from dragon.media import Media
from dragon.protocols import Encoder, JointEncoder

SAMPLES = 81_920


@pytest.fixture(scope="module")
def codec() -> CodecEncoder:
    return CodecEncoder(codec=mini.random_pipeline(seed=0).codec)


@pytest.fixture(scope="module")
def joint() -> MiniEncoder:
    return MiniEncoder(model=mini.random_encoder(0))


@pytest.fixture(scope="module")
def judge() -> MiniJudgeEncoder:
    return MiniJudgeEncoder(model=mini.random_judge(0))


def noise(clips: int, samples: int = SAMPLES, channels: int = 1, seed: int = 0, rate: int = 16_000) -> Media:
    tensor = 0.1 * torch.randn(clips, channels, samples, generator=torch.Generator().manual_seed(seed))
    return Media(tensor, tuple(f"prompt {i}" for i in range(clips)), rate)


def tone(hz: float, rate: int, seconds: float = 5.12) -> Media:
    t = torch.arange(round(rate * seconds)) / rate
    return Media(0.5 * torch.sin(2 * math.pi * hz * t)[None, None], ("a",), rate)


# ---- every encoder


def all_encoders(request) -> list[Encoder]:
    return [*(request.getfixturevalue(name) for name in ("codec", "joint", "judge")), Spectral()]


def test_they_satisfy_the_protocol_and_give_the_stated_shapes(request):
    for encoder in all_encoders(request):
        assert isinstance(encoder, Encoder)
        frames = encoder.embed_media(noise(2))
        assert frames.dtype == torch.float32
        assert frames.shape == (2, frames.shape[1], encoder.features), encoder.name
    assert request.getfixturevalue("codec").embed_media(noise(2)).shape == (2, 80, 64)
    assert request.getfixturevalue("joint").embed_media(noise(1)).shape[1] >= 16


def test_a_clips_features_do_not_depend_on_its_batch(request):
    media = noise(3)
    for encoder in all_encoders(request):
        together = encoder.embed_media(media)
        alone = encoder.embed_media(media.rows([2]))
        torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-5, msg=encoder.name)


def test_channels_are_mixed_to_their_mean(request):
    stereo = noise(1, channels=2)
    mean = Media(stereo.tensor.mean(dim=1, keepdim=True), stereo.prompts, stereo.rate)
    for encoder in all_encoders(request):
        torch.testing.assert_close(encoder.embed_media(stereo), encoder.embed_media(mean))


def test_a_tone_sounds_the_same_at_another_rate(request):
    for encoder in all_encoders(request):
        at_home, abroad = encoder.embed_media(tone(440, 16_000)), encoder.embed_media(tone(440, 44_100))
        other = encoder.embed_media(tone(1500, 16_000))
        # away from the edges, where a resampler has no signal to read
        inner = slice(at_home.shape[1] // 4, 3 * at_home.shape[1] // 4 + 1)
        same = (at_home - abroad)[:, inner].norm()
        assert same < 0.1 * (at_home - other)[:, inner].norm(), encoder.name


def test_what_is_not_finite_is_named_with_row_and_prompt(request):
    media = noise(2)
    media.tensor[1, 0, 5] = math.nan
    for encoder in all_encoders(request):
        with pytest.raises(NotFinite, match=r"clip 1 \(prompt 'prompt 1'\)"):
            encoder.embed_media(media)


def test_images_and_empty_audio_are_refused(request):
    for encoder in all_encoders(request):
        with pytest.raises(AudioError, match=f"encoder '{encoder.name}' got media"):
            encoder.embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))
        with pytest.raises(AudioError, match="empty audio"):
            encoder.embed_media(Media(torch.zeros(1, 1, 0), ("a",), 16_000))


def test_an_encoder_that_makes_nan_is_named():
    with pytest.raises(NotFinite, match=r"encoder 'odd' made NaN or infinity of clip 1 \(prompt 'prompt 1'\)"):
        windows.checked(torch.tensor([[[0.0]], [[math.nan]]]), noise(2), "odd")


def test_no_gradient_and_no_weight_is_left_trainable(joint: MiniEncoder):
    media = noise(1)
    media.tensor.requires_grad_(True)
    assert not joint.embed_media(media).requires_grad
    assert torch.is_grad_enabled()


# ---- the window rule


def test_a_long_clip_gives_the_frames_of_its_windows(codec: CodecEncoder):
    media = noise(1, 2 * SAMPLES)
    first, second = (Media(part, media.prompts, 16_000) for part in media.tensor.split(SAMPLES, dim=-1))
    expected = torch.cat([codec.embed_media(first), codec.embed_media(second)], dim=1)
    torch.testing.assert_close(codec.embed_media(media), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("total", "starts"), [(10, [0]), (14, [0]), (15, [0, 5]), (20, [0, 10]), (24, [0, 10]), (25, [0, 10, 15])]
)
def test_a_rest_of_half_a_window_gives_one_window_at_the_end(total: int, starts: list[int]):
    wave = torch.arange(total, dtype=torch.float32)[None]
    assert Windows(10).cut(wave)[0, :, 0].tolist() == starts
    assert Windows(10).cut(wave).shape == (1, len(starts), 10)


@pytest.mark.parametrize(
    ("tail", "starts", "zeros"), [("drop", [0, 4, 8], 0), ("end", [0, 4, 8, 11], 0), ("pad", [0, 4, 8, 12], 1)]
)
def test_overlapping_windows_and_the_rest_of_a_clip(tail, starts, zeros):
    """21 samples, windows of 10 every 4: the last whole one starts at 8, a rest of 3 stays."""
    rule = Windows(10, hop=4, tail=tail)
    found = rule.cut(torch.arange(1.0, 22.0)[None])
    assert (found[0, :, 0] - 1).tolist() == starts
    assert int((found[0, -1] == 0).sum()) == zeros == rule.zeros(21)


def test_a_short_clip_is_repeated_or_followed_by_zeros():
    wave = torch.tensor([[1.0, 2.0, 3.0]])
    assert Windows(8).cut(wave)[0, 0].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]
    assert Windows(8, short="repeat").cut(wave)[0, 0].tolist() == [1, 2, 3, 1, 2, 3, 0, 0]
    assert (Windows(8).zeros(3), Windows(8, short="repeat").zeros(3)) == (5, 2)


@pytest.mark.parametrize("total", [3, 10, 13, 20, 21, 24, 25])
@pytest.mark.parametrize("tail", ["end", "pad", "drop"])
@pytest.mark.parametrize("hop", [5, 10])
def test_every_frame_but_those_of_zeros_is_kept(total, tail, hop):
    """One frame a sample: the frames of a clip of ones are ones."""
    rule = Windows(10, hop=hop, tail=tail)
    frames = windows.frames_of_windows(torch.ones(1, total), rule, lambda x: x[..., None])
    assert bool((frames == 1).all())
    assert frames.shape[1] == rule.cut(torch.ones(1, total)).shape[1] * 10 - rule.zeros(total)


@pytest.mark.parametrize("wrong", [{"hop": 11}, {"hop": -1}, {"tail": "cut"}, {"short": "loop"}])
def test_a_wrong_window_rule_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Windows(10, **wrong)


def test_a_short_clip_has_only_the_frames_it_fills(codec: CodecEncoder):
    media = noise(1, SAMPLES // 4)
    frames = codec.embed_media(media)
    assert frames.shape[1] == 20
    padded = Media(torch.nn.functional.pad(media.tensor, (0, 3 * SAMPLES // 4)), media.prompts, 16_000)
    torch.testing.assert_close(frames, codec.embed_media(padded)[:, :20], rtol=1e-4, atol=1e-5)


def test_a_long_clips_embedding_is_the_mean_direction_of_its_windows(joint: MiniEncoder):
    media = noise(1, 2 * SAMPLES)
    halves = [joint.embed_clips(Media(p, media.prompts, 16_000)) for p in media.tensor.split(SAMPLES, dim=-1)]
    mean = torch.nn.functional.normalize(halves[0] + halves[1], dim=-1)
    torch.testing.assert_close(joint.embed_clips(media), mean, rtol=1e-4, atol=1e-5)


# ---- text


def test_clips_and_captions_share_a_space_of_unit_vectors(joint: MiniEncoder, judge: MiniJudgeEncoder):
    for encoder in (joint, judge):
        assert isinstance(encoder, JointEncoder)
        clips, text = encoder.embed_clips(noise(2)), encoder.embed_text(["fast piano", "slow strings", "fast piano"])
        assert clips.shape == (2, encoder.features) and text.shape == (3, encoder.features)
        torch.testing.assert_close(clips.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
        assert torch.equal(text[0], text[2])
        torch.testing.assert_close(text[1:2], encoder.embed_text(["slow strings"]), rtol=1e-4, atol=1e-6)


# ---- fingerprints and names


def test_fingerprints_tell_weights_and_settings_apart(codec: CodecEncoder, joint: MiniEncoder):
    assert CodecEncoder(codec=mini.random_pipeline(seed=0).codec).fingerprint == codec.fingerprint
    assert CodecEncoder(codec=mini.random_pipeline(seed=1).codec).fingerprint != codec.fingerprint
    assert MiniEncoder(model=mini.random_encoder(1)).fingerprint != joint.fingerprint
    assert Spectral().fingerprint != Spectral(floor=1e-5).fingerprint
    assert Spectral().fingerprint == Spectral(device="cuda").fingerprint


def test_a_codecs_fingerprint_is_that_of_its_encoding():
    one = mini.random_pipeline(seed=0).codec
    expected = CodecEncoder(codec=one).fingerprint
    with torch.no_grad():
        one.head.weight.add_(1)
    assert CodecEncoder(codec=one).fingerprint == expected
    one.mean.add_(1)
    assert CodecEncoder(codec=one).fingerprint != expected


def test_names_become_encoders():
    assert get_encoder("spectral") == Spectral()
    with pytest.raises(PluginError, match="spectral"):
        get_encoder("spectra")
    with pytest.raises(PluginError, match="is not an encoder"):
        get_encoder(3)
    with pytest.raises(PluginError, match="embeds no text"):
        get_joint_encoder("spectral")


# ---- spectral


def test_a_tone_peaks_in_the_band_that_holds_it():
    encoder = Spectral(bands=32)
    mel_top = 2595 * math.log10(1 + 8000 / 700)
    for hz in (400.0, 1000.0, 3000.0):
        band = int(encoder.embed_media(tone(hz, 16_000)).mean(dim=1).argmax())
        expected = 2595 * math.log10(1 + hz / 700) / mel_top * 33 - 1  # centre of band i: (i + 1) / 33 of the top
        assert abs(band - expected) <= 0.75


def test_ten_times_louder_is_ln_100_more_in_every_band():
    media = noise(1, 4096)
    louder = Media(10 * media.tensor, media.prompts, media.rate)
    encoder = Spectral(bands=16, floor=1e-12)
    difference = encoder.embed_media(louder) - encoder.embed_media(media)
    torch.testing.assert_close(difference, torch.full_like(difference, math.log(100)), rtol=1e-3, atol=1e-3)


def test_mel_triangles_of_neighbours_sum_to_one_between_the_outer_centres():
    filters = mel_filters(20, 2048, 16_000)
    total = filters.sum(dim=0)
    inside = slice(int(filters[0].argmax()) + 1, int(filters[-1].argmax()))
    torch.testing.assert_close(total[inside], torch.ones_like(total[inside]), rtol=1e-5, atol=1e-5)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="some are empty"):
        Spectral(bands=200, window=256)
    with pytest.raises(ConfigError, match="above 0"):
        Spectral(hop=0)
