"""One's own function as an encoder: waveforms in, vectors or frames out.

    def bands(waves):                      # (n, samples) float32 on the CPU, at the rate that was asked for
        return waves.abs().mean(dim=1, keepdim=True)    # (n, f), or frames (n, s, f)

    {name: function, options: {function: my_features.py:bands, rate: 16000}}

Knows windows and fingerprints, nothing of the function but its source.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dragon import registry
from dragon.encoders import windows
from dragon.encoders.channels import frames_of_channels
from dragon.encoders.identity import fingerprint
from dragon.encoders.windows import Windows
from dragon.errors import ConfigError, PluginError
from dragon.media import Media


class FunctionEncoder:
    """(b, s, f): what the function gives for each window of a clip, one after another.

    function: the callable, or module:name or file.py:name of it. rate: what it hears; clips are mixed to mono and
    resampled. seconds: window without overlap (zeros after a short clip, whose frames are cut; a rest of at least half
    a window gives one more that ends with the clip); 0: each clip whole. features: f; 0: found by a trial on a quarter
    of a second (or a window) of noise. name: as it is shown. version: change it whenever the function's results change
    by anything but its own source, such as weights or other modules: stored embeddings are found by source and version.

    Raises:
        PluginError: it is not callable, has neither source nor version, or gives anything but (n, f) or (n, s, f).
    """

    def __init__(
        self,
        function: str | Callable[[Tensor], Any],
        rate: int,
        *,
        seconds: float = 0.0,
        features: int = 0,
        name: str = "",
        version: str = "",
    ) -> None:
        made = registry.resolve("encoder", function) if isinstance(function, str) else function
        if not callable(made):
            raise PluginError(f"encoder 'function': {function!r} is not callable; expected a function of waveforms")
        if rate < 1 or seconds < 0 or features < 0:
            raise ConfigError(
                f"encoder 'function': rate {rate}, seconds {seconds:g}, features {features}; expected a rate in Hz, "
                "seconds and features of at least 0"
            )
        called = getattr(made, "__qualname__", type(made).__qualname__)
        self._name = name or called.replace("<lambda>", "function").rpartition(".")[2]
        self._function, self._rate = made, rate
        self._windows = Windows(round(seconds * rate)) if seconds else None
        self.settings = {
            "kind": "function, version 1",
            "function": called,
            "source": _source(made, self._name, version),
            "version": version,
            "rate": rate,
            "windows": "each clip whole" if self._windows is None else self._windows.rule,
            "samples": 0 if self._windows is None else self._windows.samples,
        }
        self._features = features or self._trial()

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
        wave = windows.mono(media, self._rate, self.name)
        rule = self._windows or Windows(wave.shape[1])
        frames = windows.checked(frames_of_channels(wave[:, None], rule, self._frames), media, self.name)
        if frames.shape[2] != self._features:
            raise PluginError(f"encoder {self.name!r} gave {frames.shape[2]} features; expected {self._features}")
        return frames

    def _frames(self, wave: Tensor) -> Tensor:
        """(n, 1, samples) -> (n, s, f), as the function gives it."""
        given = self._function(wave[:, 0].contiguous().cpu())
        found = torch.from_numpy(given) if isinstance(given, np.ndarray) else given
        if not isinstance(found, Tensor) or found.ndim not in (2, 3) or len(found) != len(wave):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise PluginError(
                f"encoder {self.name!r} gave {shape} for {len(wave)} waveforms; expected a tensor or an array "
                f"({len(wave)}, features), or ({len(wave)}, frames, features)"
            )
        found = found.detach().to("cpu", torch.float32)
        return found[:, None] if found.ndim == 2 else found

    def _trial(self) -> int:
        samples = self._windows.samples if self._windows else max(1, self._rate // 4)
        noise = 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return self._frames(noise).shape[2]


def _source(function: object, name: str, version: str) -> str:
    """Fingerprint of the function's own source text (a class's, for its instances); "" where there is none."""
    try:
        plain = inspect.isroutine(function) or inspect.isclass(function)
        text = inspect.getsource(function if plain else type(function))  # type: ignore[arg-type]
    except (OSError, TypeError):
        text = ""
    if not text and not version:
        raise PluginError(
            f"encoder {name!r}: the function has no source text, so its results cannot be told from another's; give "
            "option version, a text that changes when its results do"
        )
    return fingerprint(source=text)
