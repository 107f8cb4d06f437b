"""From any image to what an image encoder sees: resized, cropped to the centre, normalised as its processor file says.

Works on tensors in float32, without the rounding to 8 bits of image libraries, on any device; knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dragon.encoders.pretrained import reading
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.media import Media

_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # by the numbers of PIL, as the files have them
BATCH = 32
"""Images a model sees at once: bounds memory, changes no result."""


@dataclass(frozen=True)
class ImageInput:
    """resize: length of the shorter side, or (height, width); None: as it is. crop: (height, width) of the centre.

    Then (x - mean) / std of each colour, for x in [0, 1].
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resampling: str = "bicubic"

    @staticmethod
    def read(source: str, encoder: str) -> ImageInput:
        """From the preprocessor_config.json of a hub id or folder.

        Raises:
            ConfigError: there is none, or it asks for what is not done here.
        """
        from transformers.image_processing_base import ImageProcessingMixin

        said = reading(
            lambda: ImageProcessingMixin.get_image_processor_dict(source)[0], source, encoder, "an image processor"
        )
        try:
            return _of(said)
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"encoder {encoder!r}: the image processor of {source!r} is not understood ({type(error).__name__}: "
                f"{error}); expected size, crop_size, resample (2 or 3), image_mean and image_std"
            ) from error

    @property
    def settings(self) -> dict[str, object]:
        """For an encoder's settings."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __call__(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, 3, h', w')."""
        size = self._size(images.shape[-2], images.shape[-1])
        if size != tuple(images.shape[-2:]):
            images = torch.nn.functional.interpolate(
                images, size, mode=self.resampling, antialias=True, align_corners=False
            ).clamp(0, 1)
        if self.crop is not None:
            images = _centre(images, self.crop)
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short = self.resize
        return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def images(media: Media, encoder: str) -> Tensor:
    """(b, 3, h, w) float32 in [0, 1]; one channel is shown on all three.

    Raises:
        ShapeError: not images. NotFinite: an image holds NaN or infinity.
    """
    shape = tuple(media.tensor.shape)
    if media.rate is not None or media.tensor.ndim != 4 or shape[1] not in (1, 3) or 0 in shape[2:]:
        raise ShapeError(
            f"encoder {encoder!r} got media of shape {shape} with rate {media.rate}; expected images: "
            "(b, 3, height, width) in [-1, 1] without a rate"
        )
    finite = torch.isfinite(media.tensor).flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"image {row} (prompt {media.prompts[row]!r}) holds NaN or infinity; expected finite values")
    return (media.tensor.detach().float().expand(-1, 3, -1, -1) * 0.5 + 0.5).clamp(0, 1)


def _of(said: Mapping[str, Any]) -> ImageInput:
    resize = _lengths(said["size"]) if said.get("do_resize", True) else None
    crop = _lengths(said["crop_size"]) if said.get("do_center_crop", "crop_size" in said) else None
    plain = said.get("do_normalize", True)
    return ImageInput(
        resize=resize,
        crop=(crop, crop) if isinstance(crop, int) else crop,
        mean=tuple(said["image_mean"]) if plain else (0.0, 0.0, 0.0),
        std=tuple(said["image_std"]) if plain else (1.0, 1.0, 1.0),
        resampling=_RESAMPLING[int(said.get("resample", 3))],
    )


def _lengths(value: Any) -> int | tuple[int, int]:
    """224, {"shortest_edge": 224} and {"height": 224, "width": 224} are all in use."""
    if isinstance(value, int):
        return value
    return int(value["shortest_edge"]) if "shortest_edge" in value else (int(value["height"]), int(value["width"]))


def _centre(images: Tensor, crop: tuple[int, int]) -> Tensor:
    (height, width), (h, w) = images.shape[-2:], crop
    if height < h or width < w:
        raise ShapeError(f"images of {height} x {width} after resizing; expected at least the crop of {h} x {w}")
    top, left = (height - h) // 2, (width - w) // 2
    return images[..., top : top + h, left : left + w]
