"""EnCodec's continuous latents as frames: 75 a second at 24 kHz, before quantisation.

Défossez et al. 2022, High Fidelity Neural Audio Compression (arXiv 2210.13438). Frames of the encoder alone: the
quantiser and the decoder play no part, and neither is in the fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dragon.encoders.channels import WholeFrames
from dragon.encoders.latents import LatentEncoder
from dragon.encoders.pretrained import load_model
from dragon.encoders.windows import Windows


class EncodecEncoder(LatentEncoder):
    """(b, s, f): one frame every `hop` samples of the model (24 kHz: 320), f its hidden size (128).

    model: hub id or folder of a transformers EncodecModel; rate, channels (the 48 kHz model hears stereo) and level
    normalisation are the model's. A model with chunks of its own (48 kHz: 1 s every .99 s) is cut into those, any other
    into windows of `seconds`; the last one is filled with zeros, whose frames are left out.
    """

    def __init__(self, model: str, *, seconds: float = 10.0, device: str = "cpu") -> None:
        from transformers import EncodecModel

        loaded = load_model(EncodecModel, model, "encodec", device)
        config = loaded.config
        rate = config.sampling_rate
        super().__init__(
            "encodec",
            loaded.encoder.state_dict(),
            config,
            rate=rate,
            channels=config.audio_channels,
            rule=WholeFrames.of(seconds, rate, config.hop_length, "encodec")
            if config.chunk_length is None
            else Windows(config.chunk_length, config.chunk_stride or 0, tail="pad"),
            features=config.hidden_size,
            frames=partial(_frames, loaded.encoder, bool(config.normalize)),
            device=device,
        )


def _frames(encoder: Callable[[Tensor], Tensor], normalize: bool, wave: Tensor) -> Tensor:
    if normalize:  # each window to unit power, as the model was trained
        power = wave.mean(dim=1, keepdim=True).square().mean(dim=-1, keepdim=True)
        wave = wave / (torch.sqrt(power) + 1e-8)
    return encoder(wave).transpose(1, 2)
