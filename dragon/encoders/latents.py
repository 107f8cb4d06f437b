"""Frames of a model that turns a waveform into latents: what codecs and autoencoders of others share.

Knows no architecture: a subclass loads a model and says rate, channels, windows, and how windows become frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.channels import WholeFrames, channels, frames_of_channels
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.pretrained import architecture
from dragon.media import Media


class LatentEncoder:
    """(b, s, f): `frames` (n, channels, samples) -> (n, s', f) over the windows of each clip.

    weights, config: of the part that makes latents, all that identifies it.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, Tensor],
        config: Any,
        *,
        rate: int,
        channels: int,
        rule: WholeFrames | windows.Windows,
        features: int,
        frames: Callable[[Tensor], Tensor],
        device: str,
    ) -> None:
        self._name, self._features, self._frames, self._device = name, features, frames, device
        self._rate, self._channels, self._windows = rate, channels, rule
        self.settings = {
            "kind": f"{name} latents, version 1",
            "model": weights_hash(weights),
            "config": architecture(config),
            "rate": rate,
            "channels": channels,
            "windows": rule.rule,
        }

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self._features

    def embed_media(self, media: Media) -> Tensor:
        wave = channels(media, self._rate, self._channels, self.name).to(self._device)
        return windows.checked(frames_of_channels(wave, self._windows, self._frames), media, self.name)
