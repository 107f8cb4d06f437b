"""Hidden layers of transformers models of sound: each layer, the model's own preparation, windows, and remote code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from dragon.encoders import get_encoder
from dragon.encoders.hidden import HiddenEncoder
from dragon.errors import AudioError, ConfigError
from dragon.media import Media
from dragon.protocols import Encoder

RATE = 16_000
SMALL = dict(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8, 8),
    conv_kernel=(10, 3, 3), conv_stride=(5, 4, 4), num_feat_extract_layers=3, num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)  # fmt: skip


def saved(model: hf.PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True).save_pretrained(folder)
    return str(folder)


def wav2vec(seed: int = 0, **changes: object) -> hf.Wav2Vec2Model:
    torch.manual_seed(seed)
    return hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SMALL | changes)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved(wav2vec(), tmp_path_factory.mktemp("wav2vec"))


def noise(clips: int = 2, seconds: float = 0.5, rate: int = RATE, channels: int = 1) -> Media:
    made = 0.1 * torch.randn(clips, channels, round(seconds * rate), generator=torch.Generator().manual_seed(0))
    return Media(made, tuple(f"prompt {i}" for i in range(clips)), rate)


def standard(media: Media) -> torch.Tensor:
    """(b, t) of mean 0 and variance 1, as the feature extractor of these models makes it."""
    wave = media.tensor[:, 0]
    return (wave - wave.mean(dim=1, keepdim=True)) / (wave.var(dim=1, correction=0, keepdim=True) + 1e-7).sqrt()


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_each_layer_is_the_models(kind: str, tmp_path: Path):
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(kind, **SMALL)
    model = hf.AutoModel.from_config(config).eval()
    path, media = saved(model, tmp_path), noise()
    with torch.no_grad():
        expected = model(standard(media), output_hidden_states=True).hidden_states
    assert len(expected) == 4
    for layer in (0, 2, 3):
        found = HiddenEncoder(path, layer).embed_media(media)
        torch.testing.assert_close(found, expected[layer], rtol=1e-4, atol=1e-5)
    assert HiddenEncoder(path, -2).fingerprint == HiddenEncoder(path, 2).fingerprint


def test_a_batch_equals_its_clips_one_by_one_at_any_rate_and_channels(folder: str):
    encoder = HiddenEncoder(folder, 1, seconds=0.2)
    media = noise(3, 0.55, rate=22_050, channels=2)
    together = encoder.embed_media(media)
    assert isinstance(encoder, Encoder) and together.dtype == torch.float32 and together.shape[2] == encoder.features
    for row in range(3):
        torch.testing.assert_close(together[[row]], encoder.embed_media(media.rows([row])), rtol=1e-4, atol=1e-5)
    mean = Media(media.tensor.mean(dim=1, keepdim=True), media.prompts, media.rate)
    torch.testing.assert_close(together, encoder.embed_media(mean))


def test_a_long_clip_gives_the_frames_of_its_windows_and_a_short_one_is_heard_whole(folder: str):
    encoder, media = HiddenEncoder(folder, seconds=0.25), noise(1, 0.65)
    pieces = [media.tensor[..., :4000], media.tensor[..., 4000:8000], media.tensor[..., -4000:]]
    expected = [encoder.embed_media(Media(piece, media.prompts, RATE)) for piece in pieces]
    torch.testing.assert_close(encoder.embed_media(media), torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)
    short = noise(1, 0.15)
    torch.testing.assert_close(
        encoder.embed_media(short), HiddenEncoder(folder, seconds=0.15).embed_media(short), rtol=1e-5, atol=1e-6
    )


def test_a_clip_of_a_few_samples_gives_one_frame(folder: str):
    assert HiddenEncoder(folder).embed_media(noise(1, 0.002)).shape[1] == 1


def test_whisper_hears_its_own_window_and_the_frames_of_zeros_are_cut(tmp_path: Path):
    torch.manual_seed(0)
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=100, vocab_size=50, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, num_mel_bins=80,
    )  # fmt: skip
    model = hf.WhisperModel(config).eval()
    prepare = hf.WhisperFeatureExtractor(chunk_length=2)
    model.save_pretrained(tmp_path)
    prepare.save_pretrained(tmp_path)
    encoder, media = HiddenEncoder(str(tmp_path), 1), noise(2, 0.5)
    inputs = prepare(list(media.tensor[:, 0].numpy()), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = model.encoder(inputs["input_features"], output_hidden_states=True).hidden_states[1]
    assert expected.shape == (2, 100, 16)
    found = encoder.embed_media(media)
    assert found.shape == (2, 25, 16)
    torch.testing.assert_close(found, expected[:, :25], rtol=1e-4, atol=1e-5)


def test_the_fingerprint_tells_layer_weights_and_preparation_apart(folder: str, tmp_path: Path):
    found = HiddenEncoder(folder).fingerprint
    assert get_encoder({"name": "hidden", "options": {"model": folder, "layer": 3}}).fingerprint == found
    assert HiddenEncoder(saved(wav2vec(), tmp_path / "copy")).fingerprint == found
    plain = saved(wav2vec(), tmp_path / "plain")
    hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=False).save_pretrained(plain)
    others = [
        HiddenEncoder(folder, 1),
        HiddenEncoder(folder, seconds=5),
        HiddenEncoder(plain),
        HiddenEncoder(saved(wav2vec(seed=1), tmp_path / "other")),
        HiddenEncoder(saved(wav2vec(hidden_act="relu"), tmp_path / "relu")),
    ]
    assert len({found, *(e.fingerprint for e in others)}) == 6


REMOTE = """
from transformers import Wav2Vec2Config, Wav2Vec2Model


class OwnConfig(Wav2Vec2Config):
    model_type = "own_music_model"


class OwnModel(Wav2Vec2Model):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As MERT comes: a model type that transformers does not know, with its Python file."""
    monkeypatch.setattr(hf.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model = wav2vec()
    path = Path(saved(model, tmp_path / "own"))
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own_music_model", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own_model.OwnConfig", "AutoModel": "own_model.OwnModel"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "own_model.py").write_text(REMOTE)
    with pytest.raises(ConfigError, match="encoder 'hidden'"):
        HiddenEncoder(str(path))
    media = noise()
    with torch.no_grad():
        expected = model(standard(media), output_hidden_states=True).hidden_states[2]
    found = HiddenEncoder(str(path), 2, remote_code=True).embed_media(media)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_work_is_refused(folder: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="a feature extractor cannot be read from 'nowhere/at-all'"):
        HiddenEncoder("nowhere/at-all")
    with pytest.raises(ConfigError, match="layer 4 of .*; expected -4 to 3"):
        HiddenEncoder(folder, 4)
    with pytest.raises(ConfigError, match=r"seconds 0.05; expected at least 0.1"):
        HiddenEncoder(folder, seconds=0.05)
    torch.manual_seed(0)
    ast = hf.ASTModel(hf.ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    ast.save_pretrained(tmp_path)
    hf.ASTFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="ASTModel.*whose frames have no known times"):
        HiddenEncoder(str(tmp_path))
    with pytest.raises(AudioError, match="encoder 'hidden' got media"):
        HiddenEncoder(folder).embed_media(Media(torch.zeros(1, 3, 8, 8), ("a",)))
