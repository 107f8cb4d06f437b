"""What the pipelines over mel latents share: the shape of latents, and clips by a VAE and a vocoder.

Latents are those of a mel-spectrogram, (channels, time, mel bands); time is the first of the two axes. Only as many
frames are denoised as a clip needs.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dragon.policy.clips import in_seconds


class MelClips:
    """Clips of `seconds`; None: of the length that the network was trained on.

    Raises:
        ConfigError: less than one latent.
    """

    def __init__(self, pipe: Any, seconds: float | None) -> None:
        self._pipe = pipe
        vocoder, factor = pipe.vocoder.config, int(pipe.vae_scale_factor)
        frame = math.prod(vocoder.upsample_rates) / vocoder.sampling_rate
        length = in_seconds(seconds, pipe.unet.config.sample_size * factor * frame, shortest=frame * factor)
        self.rate = int(vocoder.sampling_rate)
        self._samples = int(length * vocoder.sampling_rate)
        self.event_shape = (
            int(pipe.unet.config.in_channels),
            math.ceil(int(length / frame) / factor),
            int(vocoder.model_in_dim) // factor,
        )

    def decode(self, latents: Tensor) -> Tensor:
        """(b, 1, t) clips of (b, *d) latents."""
        mel = self._pipe.vae.decode(latents / self._pipe.vae.config.scaling_factor).sample
        clips: Tensor = self._pipe.vocoder(mel[:, 0])
        return clips[:, None, : self._samples]
