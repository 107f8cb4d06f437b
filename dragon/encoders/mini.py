"""The built-in audio-text encoder (the reward's) and the built-in judge (never a reward), as encoders.

Knows the models by their interface: `frames`, `embed_audio`, `embed_text`, `rate`, `features`, `fingerprint`
(dragon.mini). Any clip is mixed to mono, resampled and cut into the model's windows (dragon.encoders.windows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dragon.encoders import windows
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


class MiniEncoder:
    """The built-in audio-text encoder: frames, clips and captions in one space.

    folder: weights of another training of it; None: the shipped ones. model: a loaded one, instead of both.
    """

    def __init__(self, folder: str | None = None, *, model: AudioTextModel | None = None, device: str = "cpu") -> None:
        if model is None:
            from dragon.mini import load_encoder

            model = load_encoder(folder)
        self._hearing = _Hearing("mini", model, device)

    @property
    def name(self) -> str:
        return self._hearing.name

    @property
    def fingerprint(self) -> str:
        return self._hearing.fingerprint

    @property
    def features(self) -> int:
        return self._hearing.model.features

    def embed_media(self, media: Media) -> Tensor:
        return self._hearing.frames(media)

    def embed_clips(self, media: Media) -> Tensor:
        return self._hearing.clips(media)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        return self._hearing.text(prompts)


class MiniJudgeEncoder:
    """The built-in judge, of another architecture and other training works: for evaluation, never trained toward.

    `embed_media` gives one vector a window, the clip's embedding (its frames live in another space than its captions).
    """

    def __init__(self, folder: str | None = None, *, model: AudioTextModel | None = None, device: str = "cpu") -> None:
        if model is None:
            from dragon.mini import load_judge

            model = load_judge(folder)
        self._hearing = _Hearing("mini-judge", model, device)

    @property
    def name(self) -> str:
        return self._hearing.name

    @property
    def fingerprint(self) -> str:
        return self._hearing.fingerprint

    @property
    def features(self) -> int:
        return self._hearing.model.features

    def embed_media(self, media: Media) -> Tensor:
        return self._hearing.windows(media)

    def embed_clips(self, media: Media) -> Tensor:
        return self._hearing.clips(media)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        return self._hearing.text(prompts)


class _Hearing:
    """A model behind the window rule: what both encoders are made of."""

    def __init__(self, name: str, model: AudioTextModel, device: str) -> None:
        from dragon.mini.analysis import SAMPLES

        if isinstance(model, torch.nn.Module):
            model.to(device).eval().requires_grad_(False)
        self.name = name
        self.model = model
        self.device = device
        self.samples = SAMPLES
        self.fingerprint = windows.fingerprint(
            model=model.fingerprint, rate=model.rate, samples=SAMPLES, windows=windows.WINDOW_RULE
        )

    def wave(self, media: Media) -> Tensor:
        return windows.mono(media, self.model.rate, self.name).to(self.device)

    def frames(self, media: Media) -> Tensor:
        return windows.checked(
            windows.frames_of_windows(self.wave(media), self.samples, self.model.frames), media, self.name
        )

    def windows(self, media: Media) -> Tensor:
        found = windows.frames_of_windows(self.wave(media), self.samples, lambda w: self.model.embed_audio(w)[:, None])
        return windows.checked(found, media, self.name)

    def clips(self, media: Media) -> Tensor:
        return windows.checked(
            windows.clips_of_windows(self.wave(media), self.samples, self.model.embed_audio), media, self.name
        )

    def text(self, prompts: Sequence[str]) -> Tensor:
        distinct = list(dict.fromkeys(prompts))  # k samples share a prompt: embed it once
        with torch.no_grad():
            rows = torch.cat([self.model.embed_text(distinct[i : i + 64]) for i in range(0, len(distinct), 64)])
        place = {prompt: row for row, prompt in enumerate(distinct)}
        return rows[torch.tensor([place[prompt] for prompt in prompts], device=rows.device)].float()
