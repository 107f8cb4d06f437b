"""The Descript Audio Codec's continuous latents as frames, before quantisation (86 a second at 44.1 kHz).

Kumar et al. 2023, High-Fidelity Audio Compression with Improved RVQGAN (arXiv 2306.06546). Frames of the encoder
alone: the quantiser and the decoder play no part, and neither is in the fingerprint.
"""

from __future__ import annotations

from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.channels import WholeFrames, channels, frames_of_channels
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.pretrained import architecture, load_model
from dragon.media import Media


class DacEncoder:
    """(b, s, f): one frame every `hop` samples of the model (512 at 44.1 kHz), f its hidden size (1024); mono.

    model: hub id or folder of a transformers DacModel. Windows of `seconds` (to the nearest whole frame); the last one
    is filled with zeros, whose frames are left out; a shorter clip is heard in one of its own length.
    """

    def __init__(self, model: str, *, seconds: float = 10.0, device: str = "cpu") -> None:
        from transformers import DacModel

        loaded = load_model(DacModel, model, self.name, device)
        config = loaded.config
        self._encoder, self._device = loaded.encoder, device
        self._rate, self._features = config.sampling_rate, config.hidden_size
        self._windows = WholeFrames.of(seconds, self._rate, config.hop_length, self.name)
        self.settings = {
            "kind": "dac latents, version 1",
            "model": weights_hash(loaded.encoder.state_dict()),
            "config": architecture(config),
            "rate": self._rate,
            "windows": self._windows.rule,
        }

    @property
    def name(self) -> str:
        return "dac"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self._features

    def embed_media(self, media: Media) -> Tensor:
        wave = channels(media, self._rate, 1, self.name).to(self._device)
        frames = frames_of_channels(wave, self._windows, lambda x: self._encoder(x).transpose(1, 2))
        return windows.checked(frames, media, self.name)
