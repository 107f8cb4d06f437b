"""CLAP by transformers: the front end, windows, captions, fusion, and what a wrong folder says. Small random models."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dragon.encoders import get_encoder
from dragon.encoders.clap import RATE, SAMPLES, Clap, TransformersClap, log_mel, mel_filters
from dragon.encoders.windows import Windows
from dragon.errors import AudioError, ConfigError, NotFinite
from dragon.media import Media
from dragon.protocols import JointEncoder


@pytest.fixture(scope="module")
def folder(clap_models: ModuleType, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("clap")
    clap_models.random_clap().save_pretrained(place)
    return clap_models.write_tokenizer(place)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Clap:
    return Clap(str(folder))


@pytest.fixture(scope="module")
def fused(clap_models: ModuleType, tmp_path_factory) -> Clap:
    place = tmp_path_factory.mktemp("fused")
    clap_models.random_clap(fusion=True).save_pretrained(place)
    return Clap(str(place))


def sounds(seconds: float = 10.0, rate: int = RATE) -> Media:
    """Noise, a tone that comes and goes, and decaying pulses: three spectra far apart."""
    t = torch.arange(round(seconds * rate)) / rate
    noise = 0.1 * torch.randn(len(t), generator=torch.Generator().manual_seed(0))
    tone = 0.4 * torch.sin(2 * math.pi * 440 * t) * (t % 2 < 1.2)
    pulses = 0.3 * torch.sign(torch.sin(2 * math.pi * 90 * t)) * torch.exp(-8 * (t % 0.5))
    return Media(torch.stack([noise, tone, pulses])[:, None], ("noise", "tone", "pulses"), rate)


def extractor(*, fusion: bool = False, **changes: Any) -> Any:
    from transformers import ClapFeatureExtractor

    options = {"frequency_min": 50, "truncation": "fusion" if fusion else "rand_trunc", "padding": "repeatpad"}
    return ClapFeatureExtractor(**options | changes)


def extracted(media: Media, made: Any) -> Tensor:
    waves = list(media.tensor[:, 0].numpy())
    return made(waves, sampling_rate=RATE, return_tensors="pt")["input_features"].float()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ---- laws


def test_a_clip_of_ten_seconds_is_one_unit_vector_and_sounds_differ(encoder: Clap):
    found = encoder.embed_media(sounds())
    assert found.shape == (3, 1, encoder.features)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 1))
    similar = found[:, 0] @ found[:, 0].mT
    assert float(similar[~torch.eye(3, dtype=torch.bool)].max()) < 0.999  # else no test below could fail


def test_a_batch_is_its_clips_one_by_one(encoder: Clap):
    media = sounds()
    close(encoder.embed_media(media), torch.cat([encoder.embed_media(media.rows([i])) for i in range(3)]))


def test_a_long_clip_is_its_windows_and_the_same_at_every_call(encoder: Clap):
    """16 s: the first 10 and, for the rest of 6, the last 10; both published front ends take 10 at random."""
    media = sounds(16.0).rows([2])
    state, drawn = torch.get_rng_state(), str(np.random.get_state())
    first, last = (Media(t, media.prompts, RATE) for t in (media.tensor[..., :SAMPLES], media.tensor[..., -SAMPLES:]))
    apart = torch.cat([encoder.embed_media(first), encoder.embed_media(last)], dim=1)
    close(encoder.embed_media(media), apart)
    close(encoder.embed_clips(media), normalize(apart.mean(dim=1), dim=-1))
    assert torch.equal(encoder.embed_media(media), encoder.embed_media(media))
    assert torch.equal(state, torch.get_rng_state()) and drawn == str(np.random.get_state())


def test_a_short_clip_is_repeated_as_often_as_it_fits(encoder: Clap):
    media = sounds(4.0)
    whole = torch.nn.functional.pad(media.tensor.repeat(1, 1, 2), (0, SAMPLES - 8 * RATE))
    close(encoder.embed_media(media), encoder.embed_media(Media(whole, media.prompts, RATE)))


def test_windows_are_an_option(folder: Path):
    media = sounds(8.0).rows([1])
    encoder = get_encoder({"name": "clap", "options": {"model": str(folder), "windows": {"samples": 4 * RATE}}})
    assert isinstance(encoder, Clap)
    halves = [encoder.embed_media(Media(part, media.prompts, RATE)) for part in media.tensor.split(4 * RATE, dim=-1)]
    close(encoder.embed_media(media), torch.cat(halves, dim=1))
    assert encoder.fingerprint != Clap(str(folder)).fingerprint
    assert encoder.settings["windows"] == {"samples": 192_000, "hop": 192_000, "tail": "end", "short": "repeat"}


def test_channels_are_averaged_and_another_rate_sounds_the_same(encoder: Clap):
    mono = sounds().rows([1, 2])
    stereo = Media(torch.cat([1.5 * mono.tensor, 0.5 * mono.tensor], dim=1), mono.prompts, RATE)
    close(encoder.embed_media(stereo), encoder.embed_media(mono))
    at_home, abroad = encoder.embed_media(mono), encoder.embed_media(sounds(10.0, 32_000).rows([1, 2]))
    assert (at_home - abroad)[0].norm() < 0.2 * (at_home[0] - at_home[1]).norm()


# ---- the front end, against others


@pytest.mark.parametrize("fusion", [False, True])
def test_log_mel_is_that_of_the_feature_extractor(fusion):
    media = sounds()
    expected = extracted(media, extractor(fusion=fusion))[:, :1]
    found = log_mel(media.tensor[:, 0], mel_filters(htk=fusion))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # dB; it stores its spectrum in single precision


@pytest.mark.parametrize("htk", [False, True])
def test_filters_are_torchaudios(htk):
    functional = pytest.importorskip("torchaudio.functional")
    kind = {"norm": None, "mel_scale": "htk"} if htk else {"norm": "slaney", "mel_scale": "slaney"}
    expected = functional.melscale_fbanks(513, 50.0, 14_000.0, 64, RATE, **kind).double()
    torch.testing.assert_close(mel_filters(htk=htk), expected, rtol=0, atol=2e-5 * float(expected.max()))


def test_silence_is_100_db_below_and_finite(encoder: Clap):
    assert bool((log_mel(torch.zeros(1, SAMPLES), mel_filters(htk=False)) == -100).all())
    assert bool(torch.isfinite(encoder.embed_media(Media(torch.zeros(1, 1, 9_000), ("",), RATE))).all())


def test_features_are_the_models_own(encoder: Clap, folder: Path):
    from transformers import ClapModel

    model, media = ClapModel.from_pretrained(folder).eval(), sounds()
    with torch.no_grad():
        expected = model.get_audio_features(input_features=extracted(media, extractor())).pooler_output
        other = model.get_audio_features(input_features=extracted(media, extractor(frequency_min=0))).pooler_output
    close(encoder.embed_clips(media), expected)
    assert (other - expected).abs().max() > 1e-3  # the extractor's default would be heard


def test_a_fusion_model_takes_htk_filters_and_no_random_path(fused: Clap, clap_models: ModuleType):
    """The feature extractor marks one clip of a batch as longer, by chance; and a plain mel would be another input."""
    model, media = clap_models.random_clap(fusion=True), sounds()

    def own(mel: Tensor, longer: bool) -> Tensor:
        with torch.no_grad():
            return model.get_audio_features(mel, torch.full((3, 1), longer)).pooler_output

    mel = extracted(media, extractor(fusion=True))
    close(fused.embed_clips(media), own(mel, False))
    assert (own(mel, True) - own(mel, False)).abs().max() > 1e-3
    plain = extracted(media, extractor()).expand(-1, 4, -1, -1)
    assert (own(plain, False) - own(mel, False)).abs().max() > 1e-3
    assert (fused.settings["mel"], fused.settings["architecture"]["fusion"]) == ("htk", True)  # type: ignore[index]


def test_vectors_of_older_versions_are_read(encoder: Clap, folder: Path, monkeypatch):
    """get_audio_features returned a tensor before transformers 5."""
    model = encoder._network.model  # type: ignore[attr-defined]
    expected, now = encoder.embed_clips(sounds()), model.get_audio_features
    monkeypatch.setattr(model, "get_audio_features", lambda **inputs: now(**inputs).pooler_output)
    assert torch.equal(encoder.embed_clips(sounds()), expected)


# ---- captions


def test_captions_are_unit_vectors_whatever_their_batch(encoder: Clap):
    assert isinstance(encoder, JointEncoder)
    captions = ["slow piano music", "a", "fast drum", "slow piano music"]
    found = encoder.embed_text(captions)
    assert found.shape == (4, encoder.features)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    close(found, torch.cat([encoder.embed_text([caption]) for caption in captions]))
    assert torch.equal(found[0], found[3]) and float(found[0] @ found[1]) < 0.999


def test_captions_are_the_models_own_and_end_after_77_tokens(encoder: Clap, folder: Path):
    from transformers import ClapModel, RobertaTokenizer

    model, tokenizer = ClapModel.from_pretrained(folder).eval(), RobertaTokenizer.from_pretrained(folder)
    tokens = tokenizer(["slow strings", "drum"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        close(encoder.embed_text(["slow strings", "drum"]), model.get_text_features(**tokens).pooler_output)
    assert torch.equal(encoder.embed_text([100 * "the "]), encoder.embed_text([200 * "the "]))
    assert not torch.equal(encoder.embed_text([50 * "the "]), encoder.embed_text([200 * "the "]))


def test_clips_need_no_tokenizer_and_captions_say_so(fused: Clap):
    with pytest.raises(ConfigError, match=r"encoder 'clap': .*give the tokenizer it was trained with"):
        fused.embed_text(["drum"])


def test_a_tokenizer_of_another_model_is_refused(clap_models: ModuleType, folder: Path):
    from transformers import AutoTokenizer

    model = clap_models.random_clap()
    model.config.text_config.vocab_size = 200
    network = TransformersClap(model, lambda: AutoTokenizer.from_pretrained(folder), "here", "clap", "cpu")
    with pytest.raises(ConfigError, match=r"of 'here' has \d+ tokens and pads with 1, the text model 200 and 1"):
        network.embed_text(["drum"])


# ---- what it is, and what is wrong


def test_fingerprints_tell_weights_windows_and_architecture_apart(encoder: Clap, folder: Path, clap_models, tmp_path):
    assert Clap(str(folder)).fingerprint == encoder.fingerprint
    assert Clap(str(folder), windows=Windows(SAMPLES, hop=SAMPLES // 2)).fingerprint != encoder.fingerprint
    clap_models.random_clap(seed=1).save_pretrained(tmp_path / "other")
    assert Clap(str(tmp_path / "other")).fingerprint != encoder.fingerprint
    copied = copy(folder, tmp_path / "eps", "config.json", lambda c: c["text_config"].update(layer_norm_eps=1e-6))
    assert Clap(str(copied)).fingerprint != encoder.fingerprint
    assert json.loads(json.dumps(encoder.settings)) == encoder.settings


def copy(folder: Path, place: Path, name: str, change) -> Path:
    shutil.copytree(folder, place)
    content = json.loads((place / name).read_text())
    change(content)
    (place / name).write_text(json.dumps(content))
    return place


def test_another_front_end_is_refused(folder: Path, encoder: Clap, tmp_path: Path):
    place = shutil.copytree(folder, tmp_path / "copy")
    extractor().save_pretrained(place)
    assert Clap(str(place)).fingerprint == encoder.fingerprint
    extractor(frequency_min=0).save_pretrained(place)
    with pytest.raises(
        ConfigError, match=r"states \{'frequency_min': 0\}, LAION's models were trained .*'frequency_min': 50"
    ):
        Clap(str(place))


def test_missing_weights_are_named_and_positions_are_none(folder: Path, encoder: Clap, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    place = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(place / "model.safetensors")
    counted = [key for key in weights if key.endswith(("_ids", "position_index"))]
    save_file({k: v for k, v in weights.items() if k not in counted}, place / "model.safetensors", {"format": "pt"})
    assert len(counted) > 2 and Clap(str(place)).fingerprint == encoder.fingerprint
    del weights["text_projection.linear1.bias"]
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 weights of ClapModel .*text_projection\.linear1\.bias"):
        Clap(str(place))


def test_other_fusions_and_places_are_refused(folder: Path, clap_models: ModuleType, tmp_path: Path):
    model = clap_models.random_clap(fusion=True)
    model.config.audio_config.fusion_type = "iaff_2d"
    with pytest.raises(ConfigError, match="trained with fusion 'iaff_2d'; expected aff_2d or none"):
        TransformersClap(model, lambda: None, "here", "clap", "cpu")
    with pytest.raises(ConfigError, match=r"encoder 'clap': a model cannot be read from '.*nowhere'"):
        Clap(str(tmp_path / "nowhere"))


def test_windows_that_cannot_be_are_refused(folder: Path):
    with pytest.raises(ConfigError, match=r"windows of 480001 samples; CLAP hears at most 480000 \(10 s\)"):
        Clap(str(folder), windows={"samples": 480_001})
    with pytest.raises(ConfigError, match="windows has no length; expected samples, hop, tail, short"):
        Clap(str(folder), windows={"length": 3})


def test_images_empty_audio_and_nan_are_refused(encoder: Clap):
    with pytest.raises(AudioError, match="encoder 'clap' got media"):
        encoder.embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))
    with pytest.raises(AudioError, match="empty audio"):
        encoder.embed_clips(Media(torch.zeros(1, 1, 0), ("a",), RATE))
    media = sounds(0.5)
    media.tensor[1, 0, 5] = math.nan
    with pytest.raises(NotFinite, match=r"clip 1 \(prompt 'tone'\)"):
        encoder.embed_media(media)
