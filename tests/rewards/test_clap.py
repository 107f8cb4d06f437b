"""CLAP score and judge: cosines of the right pairs, whatever the batch, with a stand-in encoder worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon.encoders.spectral import Spectral
from dragon.errors import NotFinite, PluginError, ShapeError
from dragon.media import Media
from dragon.protocols import InstanceReward
from dragon.rewards import ClapScore, JudgeScore, clap_score


class Compass:
    """A clip points where its first two samples say; the captions east, north and west say where they point."""

    name = "compass"
    fingerprint = "compass"
    features = 2
    asked: list[str]

    def embed_media(self, media: Media) -> Tensor:
        return self.embed_clips(media)[:, None]

    def embed_clips(self, media: Media) -> Tensor:
        return torch.nn.functional.normalize(media.tensor[:, 0, :2], dim=-1)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([{"east": [1.0, 0.0], "north": [0.0, 1.0], "west": [-1.0, 0.0]}[p] for p in prompts])


def media(*rows: tuple[float, float, str]) -> Media:
    return Media(torch.tensor([[[x, y]] for x, y, _ in rows], dtype=torch.float32), tuple(p for *_, p in rows), 16_000)


@pytest.mark.parametrize("kind", [ClapScore, JudgeScore])
def test_each_clip_is_compared_with_its_own_prompt(kind: type):
    reward = kind(Compass())
    assert isinstance(reward, InstanceReward)
    clips = media((2, 0, "east"), (0, 1, "east"), (3, 0, "west"), (3, 3, "north"))
    scores = reward.score(clips)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor([1, 0, -1, 0.5**0.5], dtype=torch.float64), rtol=1e-6, atol=1e-7)
    assert reward.score(clips.rows([3, 0])).tolist() == scores[[3, 0]].tolist()


def test_the_function_normalises_pairs_and_averages():
    rng = np.random.default_rng(0)
    audio, text = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    expected = [a @ t / np.linalg.norm(a) / np.linalg.norm(t) for a, t in zip(audio, text, strict=True)]
    result = clap_score(audio, text)
    np.testing.assert_allclose(result.scores, expected, rtol=1e-12)
    assert float(result) == pytest.approx(np.mean(expected), rel=1e-12)
    assert float(clap_score(audio * 7, text * 0.1)) == pytest.approx(float(result), rel=1e-12)


def test_what_does_not_pair_is_refused():
    with pytest.raises(ShapeError, match="5 audio embeddings, 4 text embeddings"):
        clap_score(np.ones((5, 3)), np.ones((4, 3)))
    with pytest.raises(ShapeError, match="row 0 is all zeros"):
        clap_score(np.zeros((1, 3)), np.ones((1, 3)))
    with pytest.raises(NotFinite, match="audio embeddings: row 1"):
        clap_score(np.array([[1.0], [np.nan]]), np.ones((2, 1)))


def test_an_encoder_without_text_is_refused_by_name():
    with pytest.raises(PluginError, match="encoder 'spectral' embeds no text"):
        ClapScore(Spectral())
    with pytest.raises(PluginError, match="spectral"):
        ClapScore("spectrall")
