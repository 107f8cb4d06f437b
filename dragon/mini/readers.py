"""Readers: what a clip is, heard from its audio: style, lead, tempo, mode, drums and the rest.

They measure whether a model does what a caption asks. They share nothing with the reward encoder or
the judge: supervised classifiers, over a small convolutional net, the autocorrelation of onsets
(tempo) and the chroma (mode). Each reader's accuracy on real clips stands in the model card; what
reads badly is dropped from claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dragon.mini.analysis import BANDS, RATE, Bands, fit_length

_LAGS = 128  # of 16 ms: two seconds hold a bar of the slowest tempo
_SEMITONE_BANDS = 48


class MiniReaders(nn.Module):
    """Waveforms (b, n) at 16 kHz -> logits of every attribute's values."""

    rate = RATE
    fingerprint = "untrained"

    def __init__(self, attributes: Mapping[str, Sequence[str]], width: int = 96) -> None:
        super().__init__()
        self.config = {"attributes": {k: list(v) for k, v in attributes.items()}, "width": width}
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.bands = Bands()
        self.convolutions = nn.Sequential(
            nn.Conv1d(BANDS, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU(),
        )  # fmt: skip
        size = 2 * width + 3 * BANDS + 4 * _LAGS + 24
        self.norm = nn.BatchNorm1d(size)
        self.heads = nn.ModuleDict(
            {
                k: nn.Sequential(nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, len(v)))
                for k, v in self.attributes.items()
            }
        )

    def forward(self, bands: Tensor) -> dict[str, Tensor]:
        """Log bands (b, 320, 88) -> attribute -> (b, values) logits."""
        h = self.convolutions((bands.transpose(1, 2) + 4.0) / 2.0)
        rise = (bands[:, 1:] - bands[:, :-1]).clamp_min(0.0)
        statistics = [bands.mean(1), bands.std(1), rise.mean(1)]
        features = torch.cat([h.mean(2), h.amax(2), *statistics, _onset_autocorrelation(rise), _chroma(bands)], dim=1)
        features = self.norm(features)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, waveform: Tensor) -> dict[str, list[str]]:
        """The most likely value of each attribute, one a clip."""
        logits = self.forward(self.bands(fit_length(waveform)))
        return {name: [self.attributes[name][i] for i in row.argmax(1).tolist()] for name, row in logits.items()}


def _onset_autocorrelation(rise: Tensor) -> Tensor:
    """(b, 4 * 128): for four ranges of pitch, how alike the onsets are to themselves a lag later."""
    groups = torch.stack([part.mean(2) for part in rise.chunk(4, dim=2)], dim=1)
    groups = groups - groups.mean(2, keepdim=True)
    power = torch.fft.rfft(groups, n=1024).abs().square()
    correlation = torch.fft.irfft(power)[..., :_LAGS]
    return (correlation / correlation[..., :1].clamp_min(1e-6)).flatten(1)


def _chroma(bands: Tensor) -> Tensor:
    """(b, 24): energy of the twelve pitch classes, of the whole and of the bass."""
    energy = torch.exp(bands[..., :_SEMITONE_BANDS]).unflatten(2, (-1, 12))
    whole, bass = energy.mean((1, 2)), energy[:, :, :2].mean((1, 2))
    return torch.cat([F.normalize(whole, dim=1), F.normalize(bass, dim=1)], dim=1)
