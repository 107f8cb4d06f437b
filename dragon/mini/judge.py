"""The judge: a second audio-text encoder that is never a reward.

Another architecture (dilated one-dimensional convolutions over log bands and their change, a
bag-of-words text tower), other works, and for half of its clips another sound font with other lead
timbres. If a tuned model only learnt to please the reward encoder, the judge does not follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dragon.mini.analysis import BANDS, RATE, Bands, fit_length
from dragon.mini.words import Words


class MiniJudge(nn.Module):
    """Waveforms (b, n) at 16 kHz and texts -> unit vectors (b, 96) in one space."""

    rate = RATE
    fingerprint = "untrained"

    def __init__(self, vocabulary: Sequence[str], width: int = 160, features: int = 96) -> None:
        super().__init__()
        self.config = {"vocabulary": list(vocabulary), "width": width, "features": features}
        self.features = features
        self.words = Words(vocabulary)
        self.bands = Bands()
        self.proj_in = nn.Conv1d(2 * BANDS, width, 5, stride=2, padding=2)
        self.layers = nn.ModuleList(_Dilated(width, dilation) for dilation in (1, 2, 4, 8, 16))
        self.project = nn.Sequential(nn.Linear(3 * width, 2 * features), nn.GELU(), nn.Linear(2 * features, features))
        self.embed = nn.Embedding(len(self.words), features, padding_idx=0)
        self.text = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def frames(self, waveform: Tensor) -> Tensor:
        """(b, n) -> (b, 160, 160): one feature vector every 32 ms, before pooling."""
        return self.frames_of_bands(self.bands(fit_length(waveform)))

    def frames_of_bands(self, bands: Tensor) -> Tensor:
        """Log bands (b, 320, 88) -> (b, 160, 160)."""
        shape = (bands + 4.0) / 2.0
        change = F.pad(bands[:, 1:] - bands[:, :-1], (0, 0, 1, 0))
        h = self.proj_in(torch.cat([shape, change], dim=2).transpose(1, 2))
        for layer in self.layers:
            h = layer(h)
        return h.transpose(1, 2)

    def embed_audio(self, waveform: Tensor) -> Tensor:
        """(b, n) -> (b, 96) unit rows."""
        return self.pooled(self.frames(waveform))

    def pooled(self, frames: Tensor) -> Tensor:
        """Frames (b, 160, 160) -> (b, 96) unit rows."""
        pooled = torch.cat([frames.mean(1), frames.amax(1), frames.std(1)], dim=-1)
        return F.normalize(self.project(pooled), dim=-1)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """b texts -> (b, 96) unit rows."""
        ids = self.words(texts).to(self.embed.weight.device)
        count = (ids > 0).sum(1, keepdim=True)
        return F.normalize(self.text(self.embed(ids).sum(1) / count.sqrt()), dim=-1)


class _Dilated(nn.Module):
    """Gated dilated convolution with a residual (van den Oord et al. 2016, WaveNet, eq. 2)."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.gated = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.glu(self.gated(self.norm(x)), dim=1))
