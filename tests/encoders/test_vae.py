"""A pipeline's autoencoder: its posterior mean, its rate and channels, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderOobleck

from dragon.encoders import get_encoder
from dragon.encoders.vae import VaeEncoder
from dragon.errors import AudioError, ConfigError
from dragon.media import Media
from dragon.protocols import Encoder

RATE = 800


def oobleck(seed: int = 0, channels: int = 2) -> AutoencoderOobleck:
    torch.manual_seed(seed)
    return AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=4, audio_channels=channels, sampling_rate=RATE,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> str:
    """The folder of a pipeline, as far as this encoder reads it."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderOobleck"]}))
    oobleck().save_pretrained(folder / "vae")
    return str(folder)


def noise(clips: int = 2, seconds: float = 2.0, rate: int = RATE, channels: int = 2) -> Media:
    made = 0.1 * torch.randn(clips, channels, round(seconds * rate), generator=torch.Generator().manual_seed(0))
    return Media(made, tuple(f"prompt {i}" for i in range(clips)), rate)


def test_frames_are_the_mean_of_the_posterior(pipeline: str):
    media = noise()
    with torch.no_grad():
        posterior = oobleck().encode(media.tensor).latent_dist
        drawn = posterior.sample(torch.Generator().manual_seed(0))
    found = VaeEncoder(pipeline, seconds=2.0).embed_media(media)
    assert found.shape == (2, 200, 4)
    torch.testing.assert_close(found, posterior.mean.mT, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, drawn.mT, atol=1e-3)


def test_a_mono_clip_is_heard_on_both_channels_and_a_stereo_one_is_mixed_for_a_mono_model(
    pipeline: str, tmp_path: Path
):
    one, two = noise(channels=1), noise()
    encoder = VaeEncoder(pipeline)
    both = Media(one.tensor.expand(-1, 2, -1), one.prompts, RATE)
    torch.testing.assert_close(encoder.embed_media(one), encoder.embed_media(both))
    assert not torch.allclose(
        encoder.embed_media(two), encoder.embed_media(Media(two.tensor.flip(1), two.prompts, RATE))
    )
    oobleck(channels=1).save_pretrained(tmp_path)
    mono, mean = VaeEncoder(str(tmp_path)), Media(two.tensor.mean(dim=1, keepdim=True), two.prompts, RATE)
    torch.testing.assert_close(mono.embed_media(two), mono.embed_media(mean))


def test_a_batch_equals_its_clips_one_by_one_and_zeros_give_no_frames(pipeline: str):
    encoder = VaeEncoder(pipeline, seconds=1.0)
    media = noise(3, 2.5, rate=1000)
    together = encoder.embed_media(media)
    assert isinstance(encoder, Encoder) and together.dtype == torch.float32
    assert together.shape == (3, 250, encoder.features)
    for row in range(3):
        torch.testing.assert_close(together[[row]], encoder.embed_media(media.rows([row])), rtol=1e-5, atol=1e-6)


def test_an_autoencoder_that_scales_its_latents_is_asked_for_its_mean(tmp_path: Path):
    from diffusers.models.autoencoders.autoencoder_longcat_audio_dit import LongCatAudioDiTVae

    torch.manual_seed(0)
    vae = LongCatAudioDiTVae(
        channels=4, c_mults=[1, 2], strides=[2, 4], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=8,
        sample_rate=RATE,
    ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path)
    media = noise(channels=1)
    with torch.no_grad():
        expected = vae.encoder(media.tensor).chunk(2, dim=1)[0].mT / 0.71
    found = VaeEncoder(str(tmp_path), seconds=2.0).embed_media(media)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found, VaeEncoder(str(tmp_path), seconds=2.0).embed_media(media))


def test_an_autoencoder_of_patches_gives_its_latents(tmp_path: Path):
    from diffusers.models.autoencoders.autoencoder_same import AutoencoderSAME

    torch.manual_seed(0)
    vae = AutoencoderSAME(
        patch_size=8, encoder_channels=4, encoder_c_mults=(4,), encoder_strides=(2,), encoder_transformer_depths=(1,),
        latent_dim=4, dim_heads=8, sampling_rate=RATE,
    ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path)
    media = noise()
    with torch.no_grad():
        expected = vae.encode(media.tensor).latents.mT
    found = VaeEncoder(str(tmp_path), seconds=2.0).embed_media(media)
    assert found.shape == (2, 100, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_fingerprint_is_that_of_the_encoder(pipeline: str, tmp_path: Path):
    found = VaeEncoder(pipeline).fingerprint
    changed = oobleck()
    with torch.no_grad():
        changed.decoder.conv1.bias.add_(1)
    changed.save_pretrained(tmp_path / "decoder")
    assert VaeEncoder(str(tmp_path / "decoder")).fingerprint == found
    assert get_encoder({"name": "vae", "options": {"model": pipeline}}).fingerprint == found
    oobleck(seed=1).save_pretrained(tmp_path / "other")
    assert (
        len({found, VaeEncoder(str(tmp_path / "other")).fingerprint, VaeEncoder(pipeline, seconds=5).fingerprint}) == 3
    )


def test_what_cannot_work_is_refused(pipeline: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="encoder 'vae': an autoencoder cannot be read from 'nowhere/at-all'"):
        VaeEncoder("nowhere/at-all")
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path / "images")
    with pytest.raises(ConfigError, match="AutoencoderKL of .* does not encode waveforms; expected .*Oobleck"):
        VaeEncoder(str(tmp_path / "images"))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no part 'vae'"):
        VaeEncoder(str(tmp_path))
    with pytest.raises(AudioError, match="encoder 'vae' got media"):
        VaeEncoder(pipeline).embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))
