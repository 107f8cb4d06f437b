"""The codec of the built-in model: 5.12 s of audio <-> 80 latent frames of 64 numbers.

Encoding is fixed: log bands (dragon.mini.analysis), four frames stacked, principal components,
each divided by the square root of its standard deviation, all by one number so that the mean
square is 1. Decoding is a small convolutional network (ConvNeXt blocks, Liu et al. 2022) that
predicts magnitude and phase of a short-time spectrum, inverted by an overlap-add (as in Vocos,
Siuzdak 2023). Knows no text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from dragon.mini.analysis import BANDS, HOP, RATE, SAMPLES, Bands, fit_length

STACK = 4


class MiniCodec(ModelMixin, ConfigMixin):
    """Waveform (b, n) at 16 kHz <-> latents (b, 80, 64)."""

    rate = RATE
    samples = SAMPLES

    @register_to_config
    def __init__(
        self,
        channels: int = 64,
        coarse_width: int = 256,
        coarse_layers: int = 2,
        width: int = 224,
        layers: int = 4,
        n_fft: int = 1024,
    ) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.bands = Bands()
        self.register_buffer("mean", torch.zeros(STACK * BANDS))
        self.register_buffer("components", torch.zeros(STACK * BANDS, channels))
        self.register_buffer("scale", torch.ones(channels))
        self.proj_in = nn.Conv1d(channels, coarse_width, 3, padding=1)
        self.coarse = nn.Sequential(*(_ConvNeXt(coarse_width) for _ in range(coarse_layers)))
        self.upsample = nn.Linear(coarse_width, STACK * width)
        self.proj_bands = nn.Linear(BANDS, width)
        self.fine = nn.Sequential(*(_ConvNeXt(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3 * (n_fft // 2 + 1))
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def fit(self, mean: Tensor, components: Tensor, scale: Tensor) -> None:
        """Sets the fixed transform: latents = (stacked bands - mean) @ components / scale."""
        self.mean.copy_(mean)
        self.components.copy_(components)
        self.scale.copy_(scale)

    def encode(self, waveform: Tensor) -> Tensor:
        """(b, n) -> (b, 80, 64); clips are cut or padded with silence to 5.12 s."""
        return self.transform(stacked_bands(self.bands(fit_length(waveform))))

    def transform(self, stacked: Tensor) -> Tensor:
        """Stacked bands (b, s, 352) -> latents (b, s, 64)."""
        return (stacked - self.mean) @ self.components / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(b, s, 64) -> (b, 1024 s) waveform in [-1, 1]."""
        return self.invert(self.spectrum(latents))

    def spectrum(self, latents: Tensor) -> Tensor:
        """(b, s, 64) -> complex (b, n_fft / 2 + 1, 4 s + 1), what the inverse transform reads."""
        b, s, _ = latents.shape
        bands = (latents * self.scale) @ self.components.T + self.mean
        h = self.coarse(self.proj_in(latents.transpose(1, 2))).transpose(1, 2)
        h = self.upsample(h).reshape(b, STACK * s, -1) + self.proj_bands(bands.reshape(b, STACK * s, BANDS))
        h = self.head(self.norm(self.fine(h.transpose(1, 2)).transpose(1, 2))).float().transpose(1, 2)
        h = torch.cat([h, h[..., -1:]], dim=-1)  # a centred transform has one frame more than hops
        log_magnitude, real, imag = h.chunk(3, dim=1)
        direction = torch.complex(real, imag)
        direction = direction / direction.abs().clamp_min(1e-5)
        return torch.exp(log_magnitude.clamp(-12.0, 7.0)) * direction

    def invert(self, spectrum: Tensor) -> Tensor:
        """Complex spectrum -> waveform in [-1, 1]."""
        length = (spectrum.shape[-1] - 1) * HOP
        return torch.istft(spectrum, self.n_fft, HOP, self.n_fft, self.window, length=length).clamp(-1.0, 1.0)


def stacked_bands(bands: Tensor) -> Tensor:
    """(b, s, f) -> (b, s / 4, 4 f)."""
    b, s, f = bands.shape
    return bands[:, : s - s % STACK].reshape(b, s // STACK, STACK * f)


class _ConvNeXt(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # a (1, 7) two-dimensional convolution takes half the time of Conv1d on a CPU
        self.depthwise = nn.Conv2d(width, width, (1, 7), padding=(0, 3), groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 3 * width)
        self.contract = nn.Linear(3 * width, width)
        self.gain = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(x.unsqueeze(2)).squeeze(2).transpose(1, 2)
        h = self.contract(F.gelu(self.expand(self.norm(h)))) * self.gain
        return x + h.transpose(1, 2)
