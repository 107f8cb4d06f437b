"""Pictures as files: the same pixels as diffusers' own, and clips of each kind under their own ending."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dragon import audio, image
from dragon.clips import write_clip
from dragon.errors import DragonError, ShapeError
from dragon.media import Media


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_loaded_is_what_was_saved_up_to_half_a_step_of_8_bits(tmp_path: Path, channels: int) -> None:
    made = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image.save(tmp_path / "a.png", made)
    found = image.load(tmp_path / "a.png")
    assert found.shape == made.shape and found.dtype == torch.float32
    assert float((found - made).abs().max()) <= 1 / 255 + 1e-6
    image.save(tmp_path / "b.png", found)
    assert torch.equal(image.load(tmp_path / "b.png"), found)


def test_pixels_are_those_of_diffusers_own_processor(tmp_path: Path) -> None:
    from diffusers.image_processor import VaeImageProcessor

    made = 1.3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for row, wanted in enumerate(VaeImageProcessor().postprocess(made, output_type="pil")):
        image.save(tmp_path / "a.png", made[row])
        assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), np.array(wanted))


def test_black_grey_and_white_have_their_bytes(tmp_path: Path) -> None:
    image.save(tmp_path / "a.png", torch.tensor([[[-1.0, 0.0, 1.0, 9.0]]]))
    assert np.array(Image.open(tmp_path / "a.png")).tolist() == [[0, 128, 255, 255]]


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"image of shape \(4, 2, 2\).*expected \(1 or 3, height, width\)"):
        image.save(tmp_path / "a.png", torch.zeros(4, 2, 2))
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    for name in ("b.png", "none.png"):
        with pytest.raises(DragonError, match=f"{name}: cannot be read as a picture"):
            image.load(tmp_path / name)


def test_each_kind_of_clip_is_a_file_of_its_own_kind(tmp_path: Path) -> None:
    prompts = ("a", "b")
    sound = write_clip(Media(torch.full((2, 1, 4000), 0.5), prompts, 8000), 1, tmp_path / "0001")
    assert (sound.path.name, sound.rate, sound.seconds) == ("0001.wav", 8000, 0.5)
    assert audio.load(sound.path).samples.shape == (1, 4000)
    pictures = torch.stack([torch.full((3, 4, 6), -1.0), torch.full((3, 4, 6), 1.0)])
    seen = write_clip(Media(pictures, prompts), 1, tmp_path / "0001")
    assert (seen.path.name, seen.rate, seen.seconds) == ("0001.png", None, None)
    assert torch.equal(image.load(seen.path), pictures[1])
    for shape in ((2, 2, 1), (2, 4, 3, 3)):  # points; pictures with a fourth channel
        rows = torch.randn(shape)
        kept = write_clip(Media(rows, prompts), 1, tmp_path / "0001")
        assert (kept.path.name, kept.rate) == ("0001.npy", None)
        assert np.array_equal(np.load(kept.path), rows[1].numpy())
