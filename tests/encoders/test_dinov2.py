"""DINOv2: class token and patches against the model's own, batches, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from dragon.encoders import get_encoder
from dragon.encoders.dinov2 import Dinov2Encoder
from dragon.encoders.images import ImageInput, images
from dragon.errors import ConfigError, ShapeError
from dragon.media import Media
from dragon.protocols import Encoder

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)


def saved(folder: Path, seed: int = 0, registers: int | None = None) -> str:
    torch.manual_seed(seed)
    if registers is None:
        model: hf.PreTrainedModel = hf.Dinov2Model(hf.Dinov2Config(**SMALL))
    else:
        model = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=registers))
    model.save_pretrained(folder)
    hf.BitImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("dinov2"))


def noise(count: int = 3, height: int = 40, width: int = 50) -> Media:
    made = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Media(made, tuple(f"prompt {i}" for i in range(count)))


def test_the_vector_is_the_class_token_after_the_last_normalisation(folder: str):
    media, model = noise(), hf.Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(ImageInput.read(folder, "dinov2")(images(media, "dinov2"))).pooler_output
    encoder = Dinov2Encoder(folder)
    assert isinstance(encoder, Encoder) and encoder.features == 16
    torch.testing.assert_close(encoder.embed_media(media), expected[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("registers", [None, 3])
def test_patches_are_neither_class_nor_register_tokens(registers: int | None, tmp_path: Path):
    path, media = saved(tmp_path, registers=registers), noise()
    model = hf.AutoModel.from_pretrained(path).eval()
    with torch.no_grad():
        states = model(ImageInput.read(path, "dinov2")(images(media, "dinov2"))).last_hidden_state
    assert states.shape[1] == 16 + 1 + (registers or 0)
    found = Dinov2Encoder(path, tokens="patches").embed_media(media)
    torch.testing.assert_close(found, states[:, -16:], rtol=1e-5, atol=1e-6)


def test_a_batch_equals_its_images_one_by_one(folder: str):
    for tokens in ("class", "patches"):
        encoder = Dinov2Encoder(folder, tokens=tokens)
        together = encoder.embed_media(noise())
        for row in range(3):
            alone = encoder.embed_media(noise().rows([row]))
            torch.testing.assert_close(together[[row]], alone, rtol=1e-4, atol=1e-5)


def test_the_fingerprint_tells_weights_and_tokens_apart(folder: str, tmp_path: Path):
    found = Dinov2Encoder(folder).fingerprint
    assert get_encoder({"name": "dinov2", "options": {"model": folder}}).fingerprint == found
    assert Dinov2Encoder(saved(tmp_path / "copy")).fingerprint == found
    other = Dinov2Encoder(saved(tmp_path / "other", seed=1))
    assert len({found, other.fingerprint, Dinov2Encoder(folder, tokens="patches").fingerprint}) == 3


def test_what_cannot_work_is_refused(folder: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="a model cannot be read from 'nowhere/at-all'"):
        Dinov2Encoder("nowhere/at-all")
    with pytest.raises(ConfigError, match="tokens 'cls'; expected 'class' or 'patches'"):
        Dinov2Encoder(folder, tokens="cls")  # type: ignore[arg-type]
    torch.manual_seed(0)
    config = hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    hf.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a model of type 'vit'; expected a DINOv2"):
        Dinov2Encoder(str(tmp_path))
    with pytest.raises(ShapeError, match="expected images"):
        Dinov2Encoder(folder).embed_media(Media(torch.zeros(1, 1, 9), ("a",), 8))
