"""DAC: its latents against transformers' own encoding, windows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers import DacConfig, DacModel
from transformers.models.dac import modeling_dac

from dragon.encoders import get_encoder
from dragon.encoders.dac import DacEncoder
from dragon.errors import AudioError, ConfigError
from dragon.media import Media
from dragon.protocols import Encoder

RATE = 800
CONFIG = DacConfig(
    encoder_hidden_size=4, decoder_hidden_size=16, downsampling_ratios=[2, 4], n_codebooks=2, codebook_size=16,
    codebook_dim=2, sampling_rate=RATE,
)  # fmt: skip


def saved(folder: Path, seed: int = 0) -> str:
    """Random weights of a size that makes the encoder's output of order one."""
    torch.manual_seed(seed)
    model = DacModel(CONFIG)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("dac"))


def noise(clips: int = 2, seconds: float = 2.0, rate: int = RATE, channels: int = 1) -> Media:
    made = 0.1 * torch.randn(clips, channels, round(seconds * rate), generator=torch.Generator().manual_seed(0))
    return Media(made, tuple(f"prompt {i}" for i in range(clips)), rate)


def test_the_latents_are_those_that_transformers_quantises(folder: str):
    media = noise()
    model = DacModel.from_pretrained(folder).eval()
    seen = []
    model.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.mT))
    with torch.no_grad():
        model.encode(media.tensor)
    found = DacEncoder(folder, seconds=2.0).embed_media(media)
    assert found.shape == (2, 200, 16) and float(found.std()) > 1e-3
    torch.testing.assert_close(found, seen[0], rtol=1e-5, atol=1e-6)


def test_windows_hold_whole_frames_and_zeros_give_none(folder: str):
    encoder = DacEncoder(folder, seconds=0.997)  # nearest: 100 frames of 8 samples
    media = noise(1, 2.503)
    found = encoder.embed_media(media)
    assert found.shape == (1, 251, 16)  # 2002 samples: 250 frames and a part
    padded = torch.nn.functional.pad(media.tensor, (0, 2400 - 2002))
    pieces = [Media(p, media.prompts, RATE) for p in padded.split(800, dim=-1)]
    expected = torch.cat([encoder.embed_media(p) for p in pieces], dim=1)[:, :251]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_short_clip_is_heard_in_a_window_of_its_own_as_transformers_does(folder: str):
    media, heard = noise(1, 1.0), []
    encoder = DacEncoder(folder)

    def listen(module, inputs, _output) -> None:
        if isinstance(module, modeling_dac.DacEncoder):
            heard.append(inputs[0].shape)

    hook = register_module_forward_hook(listen)
    try:
        found = encoder.embed_media(Media(media.tensor[..., :797], media.prompts, RATE))
    finally:
        hook.remove()
    assert heard == [(1, 1, 800)]
    filled = torch.nn.functional.pad(media.tensor[..., :797], (0, 3))
    with torch.no_grad():
        expected = DacModel.from_pretrained(folder).eval().encoder(filled).mT
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_equals_its_clips_one_by_one_at_any_rate_and_channels(folder: str):
    encoder = DacEncoder(folder, seconds=1.0)
    media = noise(3, 2.3, rate=1100, channels=2)
    together = encoder.embed_media(media)
    assert isinstance(encoder, Encoder) and together.dtype == torch.float32 and together.shape[2] == encoder.features
    for row in range(3):
        torch.testing.assert_close(together[[row]], encoder.embed_media(media.rows([row])), rtol=1e-5, atol=1e-6)
    mean = Media(media.tensor.mean(dim=1, keepdim=True), media.prompts, media.rate)
    torch.testing.assert_close(together, encoder.embed_media(mean))


def test_the_fingerprint_is_that_of_the_encoder(folder: str, tmp_path: Path):
    found = DacEncoder(folder).fingerprint
    model = DacModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    model.save_pretrained(tmp_path / "decoder")
    assert DacEncoder(str(tmp_path / "decoder")).fingerprint == found
    assert get_encoder({"name": "dac", "options": {"model": folder}}).fingerprint == found
    other = DacEncoder(saved(tmp_path / "other", seed=1)).fingerprint
    assert len({found, other, DacEncoder(folder, seconds=5).fingerprint}) == 3


def test_what_cannot_work_is_refused(folder: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"encoder 'dac': a model cannot be read from 'nowhere/at-all' \(OSError"):
        DacEncoder("nowhere/at-all")
    with pytest.raises(ConfigError, match="expected at least one frame"):
        DacEncoder(folder, seconds=0)
    with pytest.raises(AudioError, match="encoder 'dac' got media"):
        DacEncoder(folder).embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))


@pytest.mark.slow
def test_a_model_of_the_published_size(tmp_path: Path):
    DacModel(DacConfig(sampling_rate=44_100, downsampling_ratios=[2, 4, 8, 8])).save_pretrained(tmp_path)
    encoder = DacEncoder(str(tmp_path))
    assert encoder.features == 1024
    assert encoder.embed_media(noise(1, 1.0, rate=44_100)).shape == (1, 87, 1024)  # 44100 / 512 = 86.1
