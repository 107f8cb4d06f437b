"""The Descript Audio Codec's continuous latents as frames, before quantisation (86 a second at 44.1 kHz).

Kumar et al. 2023, High-Fidelity Audio Compression with Improved RVQGAN (arXiv 2306.06546). Frames of the encoder
alone: the quantiser and the decoder play no part, and neither is in the fingerprint.
"""

from __future__ import annotations

from dragon.encoders.channels import WholeFrames
from dragon.encoders.latents import LatentEncoder
from dragon.encoders.pretrained import load_model


class DacEncoder(LatentEncoder):
    """(b, s, f): one frame every `hop` samples of the model (512 at 44.1 kHz), f its hidden size (1024); mono.

    model: hub id or folder of a transformers DacModel. Windows of `seconds` (to the nearest whole frame); the last one
    is filled with zeros, whose frames are left out; a shorter clip is heard in one of its own length.
    """

    def __init__(self, model: str, *, seconds: float = 10.0, device: str = "cpu") -> None:
        from transformers import DacModel

        loaded = load_model(DacModel, model, "dac", device)
        config = loaded.config
        super().__init__(
            "dac",
            loaded.encoder.state_dict(),
            config,
            rate=config.sampling_rate,
            channels=1,
            rule=WholeFrames.of(seconds, config.sampling_rate, config.hop_length, "dac"),
            features=config.hidden_size,
            frames=lambda wave: loaded.encoder(wave).transpose(1, 2),
            device=device,
        )
