"""DINOv2: images as one vector each, or one a patch.

Oquab et al. 2023, DINOv2: Learning Robust Visual Features without Supervision (arXiv 2304.07193); for Frechet distances
of images Stein et al. 2023 (arXiv 2306.04675).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.images import BATCH, ImageInput, images
from dragon.encoders.pretrained import architecture, load_model
from dragon.errors import ConfigError
from dragon.media import Media


class Dinov2Encoder:
    """(b, 1, f): the class token after the last normalisation; tokens "patches": (b, s, f), row by row of the image.

    model: hub id or folder of a transformers Dinov2Model (with or without registers) and its image processor.
    """

    def __init__(self, model: str, *, tokens: Literal["class", "patches"] = "class", device: str = "cpu") -> None:
        from transformers import AutoModel

        if tokens not in ("class", "patches"):
            raise ConfigError(f"encoder 'dinov2': tokens {tokens!r}; expected 'class' or 'patches'")
        self._model = load_model(AutoModel, model, self.name, device)
        config = self._model.config
        if not config.model_type.startswith("dinov2"):
            raise ConfigError(
                f"encoder 'dinov2': {model!r} is a model of type {config.model_type!r}; expected a DINOv2"
            )
        self._input = ImageInput.read(model, self.name)
        self._tokens, self._device = tokens, device
        self._first = 1 + int(getattr(config, "num_register_tokens", 0))
        self.settings = {
            "kind": "dinov2, version 1",
            "model": weights_hash(self._model.state_dict()),
            "config": architecture(config),
            "input": self._input.settings,
            "tokens": tokens,
        }

    @property
    def name(self) -> str:
        return "dinov2"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return int(self._model.config.hidden_size)

    def embed_media(self, media: Media) -> Tensor:
        seen = images(media, self.name).to(self._device)
        with torch.no_grad():
            found = torch.cat([self._of(self._input(part)) for part in seen.split(BATCH)])
        return windows.checked(found, media, self.name)

    def _of(self, pixels: Tensor) -> Tensor:
        states = self._model(pixel_values=pixels).last_hidden_state
        return states[:, :1] if self._tokens == "class" else states[:, self._first :]
