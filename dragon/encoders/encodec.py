"""EnCodec's continuous latents as frames: 75 a second at 24 kHz, before quantisation.

Défossez et al. 2022, High Fidelity Neural Audio Compression (arXiv 2210.13438). Frames of the encoder alone: the
quantiser and the decoder play no part, and neither is in the fingerprint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.channels import WholeFrames, channels, frames_of_channels
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.pretrained import architecture, load_model
from dragon.encoders.windows import Windows
from dragon.media import Media


class EncodecEncoder:
    """(b, s, f): one frame every `hop` samples of the model (24 kHz: 320), f its hidden size (128).

    model: hub id or folder of a transformers EncodecModel; rate, channels (the 48 kHz model hears stereo) and level
    normalisation are the model's. A model with chunks of its own (48 kHz: 1 s every .99 s) is cut into those, any other
    into windows of `seconds`; the last one is filled with zeros, whose frames are left out.
    """

    def __init__(self, model: str, *, seconds: float = 10.0, device: str = "cpu") -> None:
        from transformers import EncodecModel

        loaded = load_model(EncodecModel, model, self.name, device)
        config = loaded.config
        self._encoder, self._normalize, self._device = loaded.encoder, bool(config.normalize), device
        self._rate, self._channels, self._features = config.sampling_rate, config.audio_channels, config.hidden_size
        if config.chunk_length is None:
            self._windows: WholeFrames | Windows = WholeFrames.of(seconds, self._rate, config.hop_length, self.name)
        else:
            self._windows = Windows(config.chunk_length, config.chunk_stride or 0, tail="pad")
        self.settings = {
            "kind": "encodec latents, version 1",
            "model": weights_hash(loaded.encoder.state_dict()),
            "config": architecture(config),
            "rate": self._rate,
            "channels": self._channels,
            "windows": self._windows.rule,
        }

    @property
    def name(self) -> str:
        return "encodec"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self._features

    def embed_media(self, media: Media) -> Tensor:
        wave = channels(media, self._rate, self._channels, self.name).to(self._device)
        return windows.checked(frames_of_channels(wave, self._windows, self._frames), media, self.name)

    def _frames(self, wave: Tensor) -> Tensor:
        if self._normalize:  # each window to unit power, as the model was trained
            power = wave.mean(dim=1, keepdim=True).square().mean(dim=-1, keepdim=True)
            wave = wave / (torch.sqrt(power) + 1e-8)
        return self._encoder(wave).transpose(1, 2)
