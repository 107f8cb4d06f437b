"""VGGish: its front end against a second implementation, its windows, its level rule, its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dragon.encoders import get_encoder
from dragon.encoders.vggish import VGGish, log_mel, mel_filters
from dragon.errors import AudioError, ConfigError, NotFinite
from dragon.media import Media
from dragon.protocols import Encoder

WIDTHS = (4, 6, 8, 8, 10, 10)
PLACES = (0, 3, 6, 8, 11, 13)


def state(widths: tuple[int, ...] = WIDTHS, hidden: int = 12, features: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the right form; tiny unless the widths say otherwise."""
    generator = torch.Generator().manual_seed(seed)
    made, before = {}, 1
    for place, width in zip(PLACES, widths, strict=True):
        made[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=generator) / (3 * before**0.5)
        made[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
        before = width
    for place, (wide, long) in zip(
        (0, 2, 4), ((hidden, 24 * before), (hidden, hidden), (features, hidden)), strict=True
    ):
        made[f"embeddings.{place}.weight"] = torch.randn(wide, long, generator=generator) / long**0.5
        made[f"embeddings.{place}.bias"] = 0.1 * torch.randn(wide, generator=generator)
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vggish") / "tiny.pth"
    torch.save(state(), path)
    return str(path)


def noise(clips: int = 2, seconds: float = 2.0, rate: int = 16_000, channels: int = 1, level: float = 0.1) -> Media:
    made = level * torch.randn(clips, channels, round(seconds * rate), generator=torch.Generator().manual_seed(1))
    return Media(made, tuple(f"prompt {i}" for i in range(clips)), rate)


def spectra_by_numpy(wave: np.ndarray) -> np.ndarray:
    """The front end once more, in float64, from its description: magnitudes of frames of 25 ms, 64 bands, logarithm."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    starts = range(0, len(wave) - 400 + 1, 160)
    magnitude = np.abs(np.fft.rfft(np.stack([wave[s : s + 400] * hann for s in starts]), 512))
    mel = [1127 * np.log(1 + f / 700) for f in np.arange(257) * 16_000 / 512]
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    bands = np.zeros((257, 64))
    for band in range(64):
        low, mid, high = edges[band : band + 3]
        for bin_, at in enumerate(mel):
            bands[bin_, band] = max(0.0, min((at - low) / (mid - low), (high - at) / (high - mid)))
    return np.log(magnitude @ bands + 0.01)


def test_the_front_end_equals_its_description_in_float64():
    wave = noise(1, 1.0).tensor[0]
    expected = spectra_by_numpy(wave[0].double().numpy())
    found = log_mel(wave.double(), mel_filters())[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    # the figures of float32: log of at least 0.01, so that a relative error of 1e-6 moves it by little more
    single = log_mel(wave, mel_filters().float())[0].numpy()
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-5)


def test_the_triangles_are_straight_in_mel_and_nearly_those_of_torchaudio():
    from torchaudio.functional import melscale_fbanks

    hertz = melscale_fbanks(257, 125.0, 7500.0, 64, 16_000).double()
    difference = (hertz - mel_filters()).abs().max()
    assert 1e-3 < float(difference) < 0.005


def test_the_network_is_the_torch_ports(weights: str):
    """The same keys in torch's own modules, in the order of the port: VGG features, then time, band, channel."""
    layers: list[nn.Module] = []
    before = 1
    for width, pooled in zip(WIDTHS, (True, True, False, True, False, True), strict=True):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()] + [nn.MaxPool2d(2, 2)] * pooled
        before = width
    features = nn.Sequential(*layers)
    embeddings = nn.Sequential(nn.Linear(240, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 8))
    port = nn.ModuleDict({"features": features, "embeddings": embeddings})
    port.load_state_dict(state())
    media = noise(1, 0.96 + 0.015)
    with torch.no_grad():
        spectra = log_mel(media.tensor[:, 0], mel_filters().float())
        assert spectra.shape == (1, 96, 64)
        flat = features(spectra[:, None]).transpose(1, 3).transpose(1, 2).reshape(1, -1)
        expected = embeddings(flat)
    torch.testing.assert_close(VGGish(weights).embed_media(media)[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(VGGish(weights, relu=True).embed_media(media)[0], expected.relu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "plain", "fad"),
    [(0.5, 1, 1), (0.975, 1, 1), (1.0, 1, 1), (1.5, 1, 2), (1.934, 1, 2), (1.935, 2, 2), (10, 10, 19)],
)
def test_examples_of_a_clip(weights: str, seconds: float, plain: int, fad: int):
    """Plain: every .96 s while .975 s are left. The first Frechet Audio Distance: every .5 s while a second is left."""
    media = noise(1, seconds)
    assert VGGish(weights).embed_media(media).shape == (1, plain, 8)
    assert VGGish(weights, protocol="fad").embed_media(media).shape == (1, fad, 8)


def test_examples_are_those_of_the_spectrogram_of_the_whole_clip(weights: str):
    media = noise(1, 3.0)
    whole = log_mel(media.tensor[:, 0], mel_filters().float())[0]
    for at, row in enumerate(VGGish(weights).embed_media(media)[0]):
        piece = media.tensor[..., at * 15_360 : at * 15_360 + 15_600]
        torch.testing.assert_close(log_mel(piece[:, 0], mel_filters().float())[0], whole[96 * at : 96 * (at + 1)])
        alone = VGGish(weights).embed_media(Media(piece, media.prompts, 16_000))[0, 0]
        torch.testing.assert_close(row, alone, rtol=1e-5, atol=1e-6)


def test_the_level_rule_divides_by_the_largest_sample_or_a_tenth(weights: str):
    plain, fad = VGGish(weights), VGGish(weights, protocol="fad")
    loud = noise(1, 1.0)
    peak = loud.tensor.max()
    assert peak > 0.1

    def at(gain: float) -> Media:
        return Media(loud.tensor * gain, loud.prompts, 16_000)

    torch.testing.assert_close(fad.embed_media(at(1.0)), plain.embed_media(at(1 / float(peak))), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fad.embed_media(at(0.5)), fad.embed_media(at(1.0)), rtol=1e-4, atol=1e-5)
    quiet = 0.01 / float(peak)  # a peak of .01 is raised to .1 and no further
    torch.testing.assert_close(fad.embed_media(at(quiet)), plain.embed_media(at(10 * quiet)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.embed_media(at(0.5)), plain.embed_media(at(1.0)), atol=1e-3)


@pytest.mark.parametrize("protocol", ["plain", "fad"])
def test_a_batch_equals_its_clips_one_by_one_and_mono_is_the_mean(weights: str, protocol):
    encoder = VGGish(weights, protocol=protocol)
    media = noise(3, channels=2, rate=22_050)
    together = encoder.embed_media(media)
    assert isinstance(encoder, Encoder) and together.dtype == torch.float32 and together.shape[2] == encoder.features
    for row in range(3):
        torch.testing.assert_close(together[[row]], encoder.embed_media(media.rows([row])), rtol=1e-5, atol=1e-6)
    mean = Media(media.tensor.mean(dim=1, keepdim=True), media.prompts, media.rate)
    torch.testing.assert_close(together, encoder.embed_media(mean))


def test_fingerprints_tell_weights_protocol_and_activation_apart_and_not_the_files_format(weights: str, tmp_path: Path):
    save_file(state(), tmp_path / "tiny.safetensors")
    torch.save(state() | {"pproc.pca_matrix": torch.eye(8)}, tmp_path / "port.pth")
    torch.save(state(seed=1), tmp_path / "other.pth")
    found = VGGish(weights)
    for same in ("tiny.safetensors", "port.pth"):
        assert VGGish(str(tmp_path / same)).fingerprint == found.fingerprint
    others = [VGGish(str(tmp_path / "other.pth")), VGGish(weights, relu=True), VGGish(weights, protocol="fad")]
    assert len({e.fingerprint for e in [found, *others]}) == 4
    by_name = get_encoder({"name": "vggish", "options": {"weights": weights}})
    assert by_name.fingerprint == found.fingerprint


def test_wrong_weights_are_refused_with_what_is_expected(weights: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no weights file 'nowhere.pth'; expected a .pth of the torch port"):
        VGGish("nowhere.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "alien.pth")
    with pytest.raises(ConfigError, match=r"lacks features.0.weight, .*\(18 of 18 tensors\)"):
        VGGish(str(tmp_path / "alien.pth"))
    torch.save(state() | {"embeddings.0.weight": torch.zeros(12, 7)}, tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match="do not fit each other"):
        VGGish(str(tmp_path / "odd.pth"))
    torch.save({"a": Path("x")}, tmp_path / "pickled.pth")
    with pytest.raises(ConfigError, match=r"cannot be read .*UnpicklingError"):
        VGGish(str(tmp_path / "pickled.pth"))
    with pytest.raises(ConfigError, match="protocol 'FAD'; expected 'plain' or 'fad'"):
        VGGish(weights, protocol="FAD")  # type: ignore[arg-type]


def test_bad_audio_is_named(weights: str):
    media = noise(2)
    media.tensor[1, 0, 3] = torch.nan
    with pytest.raises(NotFinite, match=r"clip 1 \(prompt 'prompt 1'\)"):
        VGGish(weights).embed_media(media)
    with pytest.raises(AudioError, match="encoder 'vggish' got media"):
        VGGish(weights).embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))


@pytest.mark.slow
def test_the_real_widths_give_128_features(tmp_path: Path):
    torch.save(state((64, 128, 256, 256, 512, 512), 4096, 128), tmp_path / "full.pth")
    assert VGGish(str(tmp_path / "full.pth")).embed_media(noise(1, 1.0)).shape == (1, 1, 128)
