"""CLIP: images and captions in one space.

Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision (arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dragon.encoders import windows
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.images import BATCH, ImageInput, images
from dragon.encoders.pretrained import architecture, load_model, reading
from dragon.encoders.vectors import caption_vectors
from dragon.media import Media


class ClipEncoder:
    """(b, 1, f): one unit vector an image, and (b, f) one a caption, in one space.

    model: hub id or folder of a transformers CLIPModel with its tokenizer and image processor. Captions longer than the
    model takes (77 tokens) are cut.
    """

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._model = load_model(CLIPModel, model, self.name, device)
        self._tokenizer = reading(lambda: AutoTokenizer.from_pretrained(model), model, self.name, "a tokenizer")
        self._input = ImageInput.read(model, self.name)
        self._device = device
        self.settings = {
            "kind": "clip, version 1",
            "model": weights_hash(self._model.state_dict()),
            "config": architecture(self._model.config),
            "input": self._input.settings,
            "vocabulary": fingerprint(**self._tokenizer.get_vocab()),
        }

    @property
    def name(self) -> str:
        return "clip"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return int(self._model.config.projection_dim)

    def embed_media(self, media: Media) -> Tensor:
        """(b, 1, f)."""
        return self.embed_clips(media)[:, None]

    def embed_clips(self, media: Media) -> Tensor:
        seen = images(media, self.name).to(self._device)
        with torch.no_grad():
            rows = [_rows(self._model.get_image_features(self._input(part))) for part in seen.split(BATCH)]
        return windows.checked(normalize(torch.cat(rows), dim=-1), media, self.name)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        return caption_vectors(prompts, self._read, BATCH)

    def _read(self, captions: list[str]) -> Tensor:
        tokens = self._tokenizer(
            captions,
            padding="max_length",  # always the same length: a caption's vector does not depend on its batch
            max_length=self._model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        found = self._model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return normalize(_rows(found), dim=-1)


def _rows(found: Any) -> Tensor:
    """transformers < 5 returned the tensor itself."""
    return found if isinstance(found, Tensor) else found.pooler_output
