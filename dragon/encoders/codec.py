"""The built-in codec's latents as frames: 80 a clip, 64 features, in the space the model generates in.

Per-song Frechet distance in the generator's own latents needs no further network (Bai et al. 2025, arXiv
2504.15217). Clips are mixed to mono, resampled and cut into windows by dragon.encoders.windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.media import Media


class Codec(Protocol):
    """What CodecEncoder needs of a codec: (n, samples) waveforms at `rate` -> (n, s, f)."""

    @property
    def rate(self) -> int: ...

    @property
    def samples(self) -> int: ...

    def encode(self, waveform: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]: ...


class CodecEncoder:
    """Latent frames of a codec.

    folder: a pipeline folder whose codec to use; None: the shipped one. codec: a loaded one, instead of both.
    The fingerprint is that of the codec's fixed transform (its stored buffers): a decoder's parameters are left out,
    since latents stay the same when the decoder is trained anew.
    """

    def __init__(self, folder: str | None = None, *, codec: Codec | None = None, device: str = "cpu") -> None:
        if codec is None:
            from dragon.mini import load_pipeline

            codec = load_pipeline(folder).codec
        if isinstance(codec, torch.nn.Module):
            codec.to(device).eval().requires_grad_(False)
        self._codec: Codec = codec
        self._device = device
        with torch.no_grad():
            self._features = codec.encode(torch.zeros(1, codec.samples, device=device)).shape[-1]
        self._windows = windows.Windows(codec.samples)
        self.settings = {
            "transform": weights_hash(_transform(codec)),
            "rate": codec.rate,
            "samples": codec.samples,
            "windows": self._windows.rule,
        }

    @property
    def name(self) -> str:
        return "mini-codec"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self._features

    def embed_media(self, media: Media) -> Tensor:
        wave = windows.mono(media, self._codec.rate, self.name).to(self._device)
        frames = windows.frames_of_windows(wave, self._windows, self._codec.encode)
        return windows.checked(frames, media, self.name)


def _transform(codec: Codec) -> dict[str, Tensor]:
    """All stored values that are not parameters."""
    parameters = {name for name, _ in codec.named_parameters()}
    return {key: value for key, value in codec.state_dict().items() if key not in parameters}
