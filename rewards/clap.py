"""CLAP score: how well a clip fits its prompt, as the cosine of an audio and a text embedding.

Knows encoders by their protocol. Wu et al. (2023, arXiv 2211.06687) for the joint space; as a reward in Bai et al.
(2025, arXiv 2504.15217).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dragon.encoders.lookup import EncoderSpec, get_joint_encoder
from dragon.errors import ShapeError
from dragon.exemplars.features import Features, as_features
from dragon.media import Media


@dataclass(frozen=True, eq=False)
class ClapResult:
    """Mean cosine (value, in [-1, 1]) and the cosine of each pair, (n,) float64."""

    value: float
    scores: np.ndarray
    n: int
    d: int

    def __float__(self) -> float:
        return self.value


def clap_score(audio: Features, text: Features) -> ClapResult:
    """Cosine of row i of `audio` with row i of `text`, both (n, d); rows need not have length 1.

    Raises:
        ShapeError: sizes differ, no rows, or a row of zeros. NotFinite: NaN or infinity, with the row.
    """
    sound = as_features(audio, "audio embeddings")
    words = as_features(text, "text embeddings", size=sound.shape[1], like=audio)
    if len(sound) != len(words):
        raise ShapeError(f"{len(sound)} audio embeddings, {len(words)} text embeddings; expected one caption a clip")
    scores = (unit_rows(sound, "audio embeddings") * unit_rows(words, "text embeddings")).sum(dim=1)
    return ClapResult(float(scores.mean()), scores.cpu().numpy(), *sound.shape)


def unit_rows(table: Tensor, what: str) -> Tensor:
    """(n, d) with each row divided by its length; ShapeError for a row of zeros, which has no direction."""
    length = table.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        row = int((length[:, 0] == 0).nonzero()[0, 0])
        raise ShapeError(f"{what}: row {row} is all zeros and has no direction; drop it or embed it anew")
    return table / length


class PromptCosine:
    """What every reward of prompt fit is: the cosine of a clip's embedding with its prompt's, by one encoder."""

    abstains = False

    def __init__(self, encoder: EncoderSpec, device: str, name: str) -> None:
        self._name = name
        self.encoder = get_joint_encoder(encoder, device=device)

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64. Raises NotFinite, AudioError as the encoder does."""
        audio = self.encoder.embed_clips(media).cpu()
        return torch.from_numpy(clap_score(audio, self.encoder.embed_text(media.prompts).cpu()).scores)


class ClapScore(PromptCosine):
    """Reward: cosine of a clip's embedding with its prompt's. In [-1, 1], higher is better.

    encoder: name, {name, options} or object of a joint encoder. device: where a named encoder runs. name: what
    reports call it.
    """

    def __init__(self, encoder: EncoderSpec = "mini", *, device: str = "cpu", name: str = "clap_score") -> None:
        super().__init__(encoder, device, name)
