"""The built-in audio-text encoder (the reward's) and the built-in judge (never a reward), as encoders.

Knows the models by their interface: `frames`, `embed_audio`, `embed_text`, `rate`, `features`, `fingerprint`
(dragon.mini). Any clip is mixed to mono, resampled and cut into the model's windows (dragon.encoders.windows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.identity import fingerprint
from dragon.encoders.vectors import caption_vectors
from dragon.media import Media


class AudioTextModel(Protocol):
    """What MiniEncoder needs of a model: (n, samples) waveforms at `rate`, and captions, into one space."""

    @property
    def rate(self) -> int: ...

    @property
    def features(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def frames(self, waveform: Tensor) -> Tensor: ...

    def embed_audio(self, waveform: Tensor) -> Tensor: ...

    def embed_text(self, prompts: list[str]) -> Tensor: ...


class _WindowedModel:
    """A model behind the window rule: what both encoders share."""

    def __init__(self, name: str, model: AudioTextModel, device: str) -> None:
        from dragon.mini.analysis import SAMPLES

        if isinstance(model, torch.nn.Module):
            model.to(device).eval().requires_grad_(False)
        self._name, self._model, self._device, self._windows = name, model, device, windows.Windows(SAMPLES)
        self.settings = {
            "model": model.fingerprint,
            "rate": model.rate,
            "samples": SAMPLES,
            "windows": self._windows.rule,
        }

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self._model.features

    def embed_clips(self, media: Media) -> Tensor:
        found = windows.clips_of_windows(self._wave(media), self._windows, self._model.embed_audio)
        return windows.checked(found, media, self.name)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        return caption_vectors(prompts, self._model.embed_text)

    def _frames(self, media: Media, of_window: Callable[[Tensor], Tensor]) -> Tensor:
        return windows.checked(windows.frames_of_windows(self._wave(media), self._windows, of_window), media, self.name)

    def _wave(self, media: Media) -> Tensor:
        return windows.mono(media, self._model.rate, self.name).to(self._device)


class MiniEncoder(_WindowedModel):
    """The built-in audio-text encoder: frames, clips and captions in one space.

    folder: weights of another training of it; None: the shipped ones. model: a loaded one, instead of both.
    """

    def __init__(self, folder: str | None = None, *, model: AudioTextModel | None = None, device: str = "cpu") -> None:
        from dragon.mini import load_encoder

        super().__init__("mini", load_encoder(folder) if model is None else model, device)

    def embed_media(self, media: Media) -> Tensor:
        return self._frames(media, self._model.frames)


class MiniJudgeEncoder(_WindowedModel):
    """The built-in judge, of another architecture and other training works: for evaluation, never trained toward.

    `embed_media` gives one vector a window, the clip's embedding (its frames live in another space than its captions).
    """

    def __init__(self, folder: str | None = None, *, model: AudioTextModel | None = None, device: str = "cpu") -> None:
        from dragon.mini import load_judge

        super().__init__("mini-judge", load_judge(folder) if model is None else model, device)

    def embed_media(self, media: Media) -> Tensor:
        return self._frames(media, lambda window: self._model.embed_audio(window)[:, None])
