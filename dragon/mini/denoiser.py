"""The denoiser of the built-in model: a small diffusion transformer over codec latents.

(x, time, text, mask) -> flow velocity u = noise - x0. Two latent frames make one token; time and
the mean of the text modulate every block (adaLN-single, Chen et al. 2023, PixArt-alpha, section
2.3); words are read by cross-attention; positions are rotary (Su et al. 2021); the feed-forward is
gated (Shazeer 2020) with a depthwise convolution over time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class MiniDenoiser(ModelMixin, ConfigMixin):
    """Shapes: x (b, s, c), time (b,) in [0, 1], text (b, l, f), mask (b, l) bool -> (b, s, c).

    `enable_gradient_checkpointing()` (diffusers) keeps only the input of each block for the backward pass.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        channels: int = 64,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        text_width: int = 128,
        patch: int = 2,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.patch, self.head_width = patch, width // heads
        self.proj_in = nn.Linear(channels * patch, width)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.text = nn.Sequential(nn.Linear(text_width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(_Block(width, heads, text_width) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.scale_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, channels * patch)
        for layer in (self.modulation, self.scale_out, self.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        b, s, c = x.shape
        h = self.proj_in(x.reshape(b, s // self.patch, c * self.patch))
        weight = mask.to(text.dtype).unsqueeze(-1)
        pooled = (text * weight).sum(1) / weight.sum(1).clamp_min(1.0)
        global_cond = F.silu(self.time(_time_features(time)) + self.text(pooled))
        modulation = self.modulation(global_cond).view(b, 6, -1)
        rotary = _rotary(h.shape[1], self.head_width, h.device)
        keys = mask[:, None, None, :]
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = self._gradient_checkpointing_func(block, h, modulation, text, keys, rotary)
            else:
                h = block(h, modulation, text, keys, rotary)
        shift, scale = self.scale_out(global_cond).unsqueeze(1).chunk(2, dim=-1)
        return self.proj_out(self.norm_out(h) * (1 + scale) + shift).reshape(b, s, c)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width, elementwise_affine=False)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.cross_q = nn.Linear(width, width, bias=False)
        self.cross_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.cross_out = nn.Linear(width, width)
        self.q_norm, self.k_norm = _RMSNorm(self.head_width), _RMSNorm(self.head_width)
        self.ff_in = nn.Linear(width, 4 * width)
        self.ff_conv = nn.Conv1d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.ff_out = nn.Linear(2 * width, width)
        nn.init.zeros_(self.cross_out.weight)
        nn.init.zeros_(self.cross_out.bias)

    def forward(self, h: Tensor, modulation: Tensor, text: Tensor, keys: Tensor, rotary: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation).unsqueeze(2).unbind(1)
        x = self.norm1(h) * (1 + scale1) + shift1
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k = self.q_norm(self._split(q)), self.k_norm(self._split(k))
        x = _attend(_rotate(q, rotary), _rotate(k, rotary), self._split(v))
        h = h + (1 + gate1) * self.to_out(self._join(x))
        k, v = self.cross_kv(text).chunk(2, dim=-1)
        x = _attend(self._split(self.cross_q(self.norm2(h))), self._split(k), self._split(v), keys)
        h = h + self.cross_out(self._join(x))
        x = self.norm3(h) * (1 + scale2) + shift2
        value, gate = self.ff_in(x).chunk(2, dim=-1)
        x = self.ff_conv((value * F.silu(gate)).transpose(1, 2)).transpose(1, 2)
        return h + (1 + gate2) * self.ff_out(x)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class _RMSNorm(nn.RMSNorm):
    """Weights follow the input's precision: under autocast torch else leaves its fused kernel, and warns."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
    """Softmax attention written out: over 40 tokens torch's fused CPU kernel takes eight times as long backwards."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if keys is not None:
        scores = scores.masked_fill(~keys, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _time_features(time: Tensor) -> Tensor:
    """(b, 256) sines and cosines of 1000 * time (Vaswani et al. 2017)."""
    freqs = torch.exp(-math.log(10_000.0) * torch.arange(128, device=time.device) / 128)
    angles = 1000.0 * time.float()[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _rotary(length: int, width: int, device: torch.device) -> Tensor:
    """(2, length, width / 2): cosines and sines."""
    freqs = 10_000.0 ** (-torch.arange(0, width, 2, device=device).float() / width)
    angles = torch.arange(length, device=device).float()[:, None] * freqs
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    cos, sin = rotary.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
