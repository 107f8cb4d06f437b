"""The built-in audio-text encoder: what CLAP is to large models, for the built-in one.

Audio tower: two-dimensional ConvNeXt stages over log bands, one transformer layer over 40 frames,
pooled by attention, mean and spread. Text tower: one transformer layer over words. Trained with a
symmetric contrastive loss (Radford et al. 2021). Needs torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dragon.mini.analysis import BANDS, RATE, Bands, fit_length
from dragon.mini.words import Words


class MiniAudioTextEncoder(nn.Module):
    """Waveforms (b, n) at 16 kHz and texts -> unit vectors (b, 128) in one space."""

    rate = RATE
    fingerprint = "untrained"

    def __init__(self, vocabulary: Sequence[str], width: int = 48, features: int = 128) -> None:
        super().__init__()
        self.config = {"vocabulary": list(vocabulary), "width": width, "features": features}
        self.features = features
        self.words = Words(vocabulary)
        self.bands = Bands()
        wide = 4 * width
        self.stem = nn.Conv2d(1, width, 4, stride=4)
        self.stages = nn.Sequential(
            _Block(width),
            nn.Conv2d(width, 2 * width, 2, stride=2),
            _Block(2 * width),
            _Block(2 * width),
            nn.Conv2d(2 * width, wide, (2, 1), stride=(2, 1)),
            _Block(wide),
        )
        self.to_frames = nn.Linear(wide * (BANDS // 16), features)
        self.position = nn.Parameter(0.02 * torch.randn(40, features))
        self.mixer = nn.TransformerEncoderLayer(
            features, 4, 3 * features, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.pool = AttentionPool(features)
        self.project = nn.Linear(3 * features, features)
        self.text = TextTower(len(self.words), features)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.stem.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.stages.to(memory_format=torch.channels_last)

    def frames(self, waveform: Tensor) -> Tensor:
        """(b, n) -> (b, 40, 128): one feature vector every 128 ms, before pooling."""
        return self.frames_of_bands(self.bands(fit_length(waveform)))

    def frames_of_bands(self, bands: Tensor) -> Tensor:
        """Log bands (b, 320, 88) -> (b, 40, 128)."""
        h = self.stages(self.stem(((bands + 4.0) / 2.0).transpose(1, 2).unsqueeze(1)))
        h = self.to_frames(h.flatten(1, 2).transpose(1, 2))
        return self.mixer(h + self.position)

    def embed_audio(self, waveform: Tensor) -> Tensor:
        """(b, n) -> (b, 128) unit rows."""
        return self.pooled(self.frames(waveform))

    def pooled(self, frames: Tensor) -> Tensor:
        """Frames (b, 40, 128) -> (b, 128) unit rows."""
        parts = [self.pool(frames), frames.mean(1), frames.std(1)]
        return F.normalize(self.project(torch.cat(parts, dim=-1)), dim=-1)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """b texts -> (b, 128) unit rows."""
        return F.normalize(self.text(self.words(texts).to(self.position.device)), dim=-1)


class TextTower(nn.Module):
    """Word numbers (b, l) -> (b, f): one transformer layer, mean over the words that are there."""

    def __init__(self, words: int, features: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, features, padding_idx=0)
        self.mixer = nn.TransformerEncoderLayer(
            features, 4, 2 * features, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.project = nn.Linear(features, features)

    def forward(self, ids: Tensor) -> Tensor:
        empty = ids == 0
        h = self.mixer(self.embed(ids), src_key_padding_mask=empty).masked_fill(empty.unsqueeze(-1), 0.0)
        return self.project(h.sum(1) / (~empty).sum(1, keepdim=True))


class AttentionPool(nn.Module):
    """(b, s, f) -> (b, f): a learned weight a frame."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(features, features), nn.Tanh(), nn.Linear(features, 1))

    def forward(self, frames: Tensor) -> Tensor:
        return (self.score(frames).softmax(dim=1) * frames).sum(1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.expand = nn.Conv2d(width, 3 * width, 1)
        self.contract = nn.Conv2d(3 * width, width, 1)
        self.gain = nn.Parameter(torch.full((width, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.contract(F.gelu(self.expand(self.norm(self.depthwise(x)))))
