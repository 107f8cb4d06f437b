"""Waveform -> log-spectral bands: the fixed front end of the codec and of both encoders.

Below 1 kHz one band a semitone, read with a long window; above, bands of equal ratio, read with a
short one. So a pitch class is a place in the spectrum, and an onset stays sharp. Torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RATE = 16_000
HOP = 256
SAMPLES = 81_920
FRAMES = SAMPLES // HOP

_LOW_KEYS = range(36, 84)  # MIDI: C2 to B5, one band each
_HIGH_BANDS = 40
_LOW_WINDOW, _LOW_FFT = 2048, 4096
_HIGH_WINDOW = 1024
_FLOOR = 1e-3
BANDS = len(_LOW_KEYS) + _HIGH_BANDS


class Bands(nn.Module):
    """(b, n) waveform at 16 kHz -> (b, n // 256, 88) log magnitudes, natural log, floor 1e-3."""

    low: Tensor
    high: Tensor
    low_window: Tensor
    high_window: Tensor

    def __init__(self) -> None:
        super().__init__()
        low = [440.0 * 2.0 ** ((key - 69) / 12.0) for key in (_LOW_KEYS[0] - 1, *_LOW_KEYS, _LOW_KEYS[-1] + 1)]
        edge = low[-2]
        high = [edge * (7800.0 / edge) ** (i / (_HIGH_BANDS + 1)) for i in range(_HIGH_BANDS + 2)]
        self.register_buffer("low", _triangles(low, _LOW_FFT), persistent=False)
        self.register_buffer("high", _triangles(high, _HIGH_WINDOW), persistent=False)
        self.register_buffer("low_window", torch.hann_window(_LOW_WINDOW), persistent=False)
        self.register_buffer("high_window", torch.hann_window(_HIGH_WINDOW), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        waveform = waveform.float()
        low = _magnitude(waveform, _LOW_FFT, self.low_window)
        high = _magnitude(waveform, _HIGH_WINDOW, self.high_window)
        frames = waveform.shape[-1] // HOP
        bands = torch.cat([self.low @ low[..., :frames], self.high @ high[..., :frames]], dim=1)
        return torch.log(bands.clamp_min(_FLOOR)).transpose(1, 2)


def _magnitude(waveform: Tensor, n_fft: int, window: Tensor) -> Tensor:
    spectrum = torch.stft(
        waveform, n_fft, HOP, window.shape[0], window, center=True, pad_mode="reflect", return_complex=True
    )
    return spectrum.abs() * (2.0 / window.sum())  # a full-scale sine reads 1 whatever the window


def _triangles(edges: list[float], n_fft: int) -> Tensor:
    """(len(edges) - 2, n_fft // 2 + 1) triangular filters; at least one bin wide, peak 1."""
    freqs = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * RATE / n_fft
    width = RATE / n_fft
    filters = []
    for left, centre, right in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        rise = (freqs - centre) / max(centre - left, width) + 1.0
        fall = 1.0 - (freqs - centre) / max(right - centre, width)
        filters.append(torch.minimum(rise, fall).clamp(0.0, 1.0))
    return torch.stack(filters).float()


def fit_length(waveform: Tensor, samples: int = SAMPLES) -> Tensor:
    """(b, samples): longer clips lose their end, shorter ones are padded with silence."""
    missing = samples - waveform.shape[-1]
    return nn.functional.pad(waveform, (0, missing)) if missing > 0 else waveform[..., :samples]
