"""CLIP and what it sees: images against transformers' own processor, captions, and what is refused."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from dragon.encoders import get_encoder
from dragon.encoders.clip import ClipEncoder
from dragon.encoders.images import ImageInput, images
from dragon.encoders.lookup import get_joint_encoder
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.media import Media
from dragon.protocols import JointEncoder

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def saved(folder: Path, seed: int = 0, activation: str = "quick_gelu") -> str:
    torch.manual_seed(seed)
    words = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    common = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, hidden_act=activation
    )
    text = common | dict(vocab_size=54, max_position_embeddings=12, bos_token_id=52, eos_token_id=53, pad_token_id=53)
    vision = common | dict(image_size=32, patch_size=8)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)


def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, image_mean=list(MEAN), image_std=list(STD)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("clip"))


def smooth(count: int = 3, height: int = 50, width: int = 70, channels: int = 3) -> Media:
    """Images with structure at the scale of the model's pixels."""
    coarse = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    made = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 2 - 1
    return Media(made, tuple(f"prompt {i}" for i in range(count)))


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (24, 40), (36, 36)])
def test_images_are_prepared_as_by_transformers(folder: str, shape: tuple[int, int]):
    media = smooth(2, *shape)
    bytes_ = ((media.tensor + 1) * 127.5).round().to(torch.uint8)
    expected = processor()(list(bytes_), return_tensors="pt")["pixel_values"]
    exact = Media(bytes_.float() / 127.5 - 1, media.prompts)
    found = ImageInput.read(folder, "clip")(images(exact, "clip"))
    assert found.shape == expected.shape == (2, 3, 32, 32)
    # transformers rounds to 8 bits after resizing, which moves a value by up to 1 / 510 of the range over std
    assert float((found - expected).abs().max()) < 1.5 / 255 / min(STD)


def test_vectors_are_the_models_own_and_of_length_one(folder: str):
    media, model = smooth(), CLIPModel.from_pretrained(folder).eval()
    encoder = ClipEncoder(folder)
    assert isinstance(encoder, JointEncoder) and encoder.features == 8
    pixels = ImageInput.read(folder, "clip")(images(media, "clip"))
    tokens = CLIPTokenizer.from_pretrained(folder)(["a cat", "dogs"], padding=True, return_tensors="pt")
    with torch.no_grad():
        both = model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(encoder.embed_clips(media), both.image_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.embed_text(["a cat", "dogs"]), both.text_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.embed_media(media)[:, 0], both.image_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.embed_clips(media).norm(dim=1), torch.ones(3))


def test_a_batch_equals_its_images_one_by_one(folder: str):
    encoder, media = ClipEncoder(folder), smooth()
    together = encoder.embed_clips(media)
    for row in range(3):
        torch.testing.assert_close(together[[row]], encoder.embed_clips(media.rows([row])), rtol=1e-5, atol=1e-6)
    prompts = ["a cat", "dogs and cats", "a cat", "z" * 40]
    text = encoder.embed_text(prompts)
    assert text.shape == (4, 8) and torch.equal(text[0], text[2])
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(text[[row]], encoder.embed_text([prompt]), rtol=1e-5, atol=1e-6)


def test_a_grey_image_is_shown_in_all_three_colours(folder: str):
    grey, encoder = smooth(channels=1), ClipEncoder(folder)
    colours = Media(grey.tensor.expand(-1, 3, -1, -1), grey.prompts)
    assert torch.equal(encoder.embed_clips(grey), encoder.embed_clips(colours))


@pytest.mark.parametrize(
    ("said", "resize", "crop"),
    [
        ({"size": 224, "crop_size": 200}, 224, (200, 200)),
        ({"size": {"height": 32, "width": 48}, "do_center_crop": False}, (32, 48), None),
        ({"size": {"shortest_edge": 36}, "do_resize": False, "crop_size": {"height": 8, "width": 9}}, None, (8, 9)),
    ],
)
def test_processor_files_of_every_age_are_read(said: dict, resize, crop, tmp_path: Path):
    said |= {"resample": 2, "image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert ImageInput.read(str(tmp_path), "clip") == ImageInput(resize, crop, MEAN, STD, "bilinear")


def test_the_fingerprint_tells_weights_architecture_and_preparation_apart(folder: str, tmp_path: Path):
    found = ClipEncoder(folder).fingerprint
    assert ClipEncoder(saved(tmp_path / "copy")).fingerprint == found
    assert get_encoder({"name": "clip", "options": {"model": folder}}).fingerprint == found
    larger = Path(saved(tmp_path / "larger"))
    said = json.loads((larger / "preprocessor_config.json").read_text()) | {"size": {"shortest_edge": 40}}
    (larger / "preprocessor_config.json").write_text(json.dumps(said))
    others = [saved(tmp_path / "other", seed=1), saved(tmp_path / "gelu", activation="gelu"), str(larger)]
    assert len({found, *(ClipEncoder(path).fingerprint for path in others)}) == 4


def test_what_cannot_work_is_refused(folder: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"encoder 'clip': a model cannot be read from 'nowhere/at-all'"):
        ClipEncoder("nowhere/at-all")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 4, "resample": 1}')
    with pytest.raises(ConfigError, match="is not understood .*expected size, crop_size, resample"):
        ImageInput.read(str(tmp_path), "clip")
    encoder = ClipEncoder(folder)
    with pytest.raises(ShapeError, match=r"got media of shape \(1, 1, 9\) with rate 8; expected images"):
        encoder.embed_clips(Media(torch.zeros(1, 1, 9), ("a",), 8))
    broken = smooth()
    broken.tensor[2, 0, 0, 0] = torch.inf
    with pytest.raises(NotFinite, match=r"image 2 \(prompt 'prompt 2'\)"):
        encoder.embed_clips(broken)
    with pytest.raises(ShapeError, match="expected at least the crop of 32 x 32"):
        ImageInput(None, (32, 32), MEAN, STD)(torch.zeros(1, 3, 30, 40))
    assert get_joint_encoder({"name": "clip", "options": {"model": folder}}).name == "clip"
