"""EnCodec: its latents against transformers' own encoding, windows, stereo, level, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecFeatureExtractor, EncodecModel

from dragon.encoders import get_encoder
from dragon.encoders.encodec import EncodecEncoder
from dragon.errors import AudioError, ConfigError, NotFinite
from dragon.media import Media
from dragon.protocols import Encoder

SMALL = dict(num_filters=2, hidden_size=8, codebook_size=16, num_lstm_layers=1, upsampling_ratios=[4, 2])
RATE = 800
MONO = EncodecConfig(**SMALL, sampling_rate=RATE, target_bandwidths=[0.4])
STEREO = EncodecConfig(
    **SMALL, sampling_rate=RATE, target_bandwidths=[0.4], audio_channels=2, normalize=True, chunk_length_s=1.0,
    overlap=0.01, use_causal_conv=False, norm_type="time_group_norm",
)  # fmt: skip


def saved(config: EncodecConfig, folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    EncodecModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mono(tmp_path_factory) -> str:
    return saved(MONO, tmp_path_factory.mktemp("mono"))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory) -> str:
    return saved(STEREO, tmp_path_factory.mktemp("stereo"))


def noise(clips: int = 2, seconds: float = 2.0, rate: int = RATE, channels: int = 1) -> Media:
    made = 0.1 * torch.randn(clips, channels, round(seconds * rate), generator=torch.Generator().manual_seed(0))
    return Media(made, tuple(f"prompt {i}" for i in range(clips)), rate)


def by_transformers(folder: str, media: Media) -> list[Tensor]:
    """What the model's encoder gives inside `encode`, chunk by chunk, for input that its own feature extractor made."""
    model = EncodecModel.from_pretrained(folder).eval()
    config = model.config
    prepare = EncodecFeatureExtractor(
        config.audio_channels, RATE, chunk_length_s=config.chunk_length_s, overlap=config.overlap
    )
    seen: list[Tensor] = []
    model.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.mT))
    wave = media.tensor[0] if config.audio_channels == 2 else media.tensor[0, 0]
    inputs = prepare(wave.numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        model.encode(inputs["input_values"], inputs["padding_mask"], bandwidth=0.4)
    return seen


def test_the_latents_are_those_that_transformers_quantises(mono: str):
    media = noise(1)
    (expected,) = by_transformers(mono, media)
    assert expected.shape == (1, 200, 8)
    torch.testing.assert_close(EncodecEncoder(mono).embed_media(media), expected, rtol=1e-5, atol=1e-6)


def test_a_model_with_chunks_is_cut_and_levelled_as_transformers_does(stereo: str):
    media = noise(1, 2.5, channels=2)
    chunks = by_transformers(stereo, media)
    found = EncodecEncoder(stereo).embed_media(media)
    # transformers starts a fourth chunk in the overlap after the clip, and keeps the frames of zeros
    assert [c.shape[1] for c in chunks] == [100, 100, 100, 1]
    expected = torch.cat(chunks, dim=1)
    assert found.shape[1] == 200 + (2000 - 2 * 792) // 8
    torch.testing.assert_close(found, expected[:, : found.shape[1]], rtol=1e-4, atol=1e-5)


def test_levels_do_not_count_where_the_model_normalises(mono: str, stereo: str):
    media = noise(1, 1.0, channels=2)
    half = Media(media.tensor / 2, media.prompts, RATE)
    torch.testing.assert_close(
        EncodecEncoder(stereo).embed_media(half), EncodecEncoder(stereo).embed_media(media), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(
        EncodecEncoder(mono).embed_media(half), EncodecEncoder(mono).embed_media(media), atol=1e-3
    )


def test_a_mono_clip_is_heard_on_both_channels_and_a_stereo_one_is_mixed_for_a_mono_model(mono: str, stereo: str):
    one, two = noise(1), noise(1, channels=2)
    both = Media(one.tensor.expand(-1, 2, -1), one.prompts, RATE)
    encoder = EncodecEncoder(stereo)
    torch.testing.assert_close(encoder.embed_media(one), encoder.embed_media(both))
    swapped = Media(two.tensor.flip(1), two.prompts, RATE)
    assert not torch.allclose(encoder.embed_media(two), encoder.embed_media(swapped), atol=1e-3)
    mean = Media(two.tensor.mean(dim=1, keepdim=True), two.prompts, RATE)
    torch.testing.assert_close(EncodecEncoder(mono).embed_media(two), EncodecEncoder(mono).embed_media(mean))


@pytest.mark.parametrize("kind", ["mono", "stereo"])
def test_a_batch_equals_its_clips_one_by_one(kind: str, request):
    encoder = EncodecEncoder(request.getfixturevalue(kind), seconds=1.0)
    media = noise(3, 2.3, rate=1100, channels=2)
    together = encoder.embed_media(media)
    assert isinstance(encoder, Encoder) and together.dtype == torch.float32 and together.shape[2] == encoder.features
    for row in range(3):
        torch.testing.assert_close(together[[row]], encoder.embed_media(media.rows([row])), rtol=1e-5, atol=1e-5)


def test_every_sample_is_heard_once_and_zeros_give_no_frames(mono: str):
    media = noise(1, 2.5)
    found = EncodecEncoder(mono, seconds=1.0).embed_media(media)
    assert found.shape == (1, 250, 8)
    last = EncodecEncoder(mono, seconds=1.0).embed_media(Media(media.tensor[..., 1600:], media.prompts, RATE))
    torch.testing.assert_close(found[:, 200:], last, rtol=1e-5, atol=1e-6)


def test_the_fingerprint_is_that_of_the_encoder(mono: str, tmp_path: Path):
    found = EncodecEncoder(mono).fingerprint
    model = EncodecModel.from_pretrained(mono)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    model.save_pretrained(tmp_path / "decoder")
    assert EncodecEncoder(str(tmp_path / "decoder")).fingerprint == found
    assert get_encoder({"name": "encodec", "options": {"model": mono}}).fingerprint == found
    other = saved(MONO, tmp_path / "other", seed=1)
    assert len({found, EncodecEncoder(other).fingerprint, EncodecEncoder(mono, seconds=5).fingerprint}) == 3
    # weights alone do not say how the edges are padded
    padded = EncodecConfig(**MONO.to_dict() | {"pad_mode": "constant"})
    assert EncodecEncoder(saved(padded, tmp_path / "padded")).fingerprint != found


def test_what_cannot_work_is_refused(mono: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"encoder 'encodec': a model cannot be read from 'nowhere/at-all' \(OSError"):
        EncodecEncoder("nowhere/at-all")
    with pytest.raises(ConfigError, match="seconds 0.001; expected at least one frame of 0.0100 s"):
        EncodecEncoder(mono, seconds=0.001)
    model = EncodecModel.from_pretrained(mono)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("encoder.layers.0.")}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match=r"lacks \d+ weights of EncodecModel .*\(encoder.layers.0.*incomplete"):
        EncodecEncoder(str(tmp_path))
    model.config.num_filters = 4
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a model cannot be read from"):
        EncodecEncoder(str(tmp_path))
    media = noise()
    media.tensor[1, 0, 3] = torch.nan
    with pytest.raises(NotFinite, match=r"clip 1 \(prompt 'prompt 1'\)"):
        EncodecEncoder(mono).embed_media(media)
    with pytest.raises(AudioError, match="encoder 'encodec' got media"):
        EncodecEncoder(mono).embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "frames"),
    [
        ({}, 150),  # 24 kHz: 75 a second
        (
            {"sampling_rate": 48_000, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}
            | {"use_causal_conv": False, "norm_type": "time_group_norm"},
            3 * 150 - 147,  # three seconds begun every .99 s; the last one holds .02 s of sound
        ),
    ],
)
def test_models_of_the_published_sizes(changes: dict, frames: int, tmp_path: Path):
    encoder = EncodecEncoder(saved(EncodecConfig(**changes), tmp_path))
    assert encoder.features == 128
    assert encoder.embed_media(noise(1, 2.0, rate=24_000)).shape == (1, frames, 128)
