"""Any transformers model of sound at a chosen layer, as frames: wav2vec 2.0, HuBERT, WavLM, MERT, Whisper's encoder.

Which layer serves best depends on the question (Li et al. 2023, MERT, arXiv 2306.00107, compare them for music). The
model's own feature extractor prepares the waveform.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dragon.encoders import windows
from dragon.encoders.channels import frames_of_channels
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.pretrained import architecture, load_model, reading
from dragon.encoders.windows import Windows
from dragon.errors import ConfigError
from dragon.media import Media

LEAST_SECONDS = 0.1
"""Shorter clips are followed by zeros up to here: models of speech need about 25 ms for their first frame."""


class HiddenEncoder:
    """(b, s, f): the hidden states of one layer; rate and preparation are those of the model's feature extractor.

    model: hub id or folder. layer: 0 is the input of the first block, n the output of block n, -1 the last.
    seconds: window of a model that takes any length (MERT was trained with 5). A shorter clip is heard whole, without
    zeros, which would enter the normalisation; a longer one is cut without overlap, and a rest of at least half a
    window gives one more that ends with the clip. Whisper hears its own 30 s, zeros after a short clip, their frames
    cut.
    remote_code: run the Python code that comes with the model (MERT needs it); read that code first.

    Raises:
        ConfigError: it cannot be loaded, has no such layer, or hears neither waveforms nor Whisper's spectrograms.
    """

    def __init__(
        self, model: str, layer: int = -1, *, seconds: float = 10.0, remote_code: bool = False, device: str = "cpu"
    ) -> None:
        from transformers import AutoFeatureExtractor, AutoModel

        self._extractor = reading(
            lambda: AutoFeatureExtractor.from_pretrained(model, trust_remote_code=remote_code),
            model,
            self.name,
            "a feature extractor",
        )
        loaded = load_model(AutoModel, model, self.name, device, trust_remote_code=remote_code)
        config = loaded.config
        blocks = int(config.num_hidden_layers)
        if not -blocks - 1 <= layer <= blocks:
            raise ConfigError(f"encoder 'hidden': layer {layer} of {model!r}; expected -{blocks + 1} to {blocks}")
        self._layer = layer % (blocks + 1)
        self._rate, self._features, self._device = self._extractor.sampling_rate, int(config.hidden_size), device
        self._fixed = int(getattr(self._extractor, "n_samples", 0))  # Whisper's extractor says its one length
        self._model = loaded.get_encoder() if config.is_encoder_decoder else loaded
        self._check_input(model)
        samples = self._fixed or round(seconds * self._rate)
        if samples < LEAST_SECONDS * self._rate:
            raise ConfigError(f"encoder 'hidden': seconds {seconds:g}; expected at least {LEAST_SECONDS:g}")
        self._windows = Windows(samples, tail="pad" if self._fixed else "end")
        self.settings = {
            "kind": "hidden layer, version 1",
            "model": weights_hash(self._model.state_dict()),
            "config": architecture(config),
            "extractor": _prepared(self._extractor),
            "layer": self._layer,
            "rate": self._rate,
            "samples": samples,
            "windows": self._windows.rule if self._fixed else f"a shorter clip whole; {self._windows.rule}",
        }

    @property
    def name(self) -> str:
        return "hidden"

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self._features

    def embed_media(self, media: Media) -> Tensor:
        wave = windows.mono(media, self._rate, self.name)
        rule = self._windows
        if not self._fixed and wave.shape[1] < rule.samples:
            rule = Windows(max(wave.shape[1], round(LEAST_SECONDS * self._rate)))
        return windows.checked(frames_of_channels(wave[:, None], rule, self._states), media, self.name)

    def _states(self, wave: Tensor) -> Tensor:
        inputs = {key: value.to(self._device) for key, value in self._prepare(wave[:, 0].cpu().numpy()).items()}
        return self._model(**inputs, output_hidden_states=True).hidden_states[self._layer]

    def _prepare(self, waves: np.ndarray) -> Any:
        return self._extractor(list(waves), sampling_rate=self._rate, return_tensors="pt")

    def _check_input(self, source: str) -> None:
        length = self._fixed or round(LEAST_SECONDS * self._rate)
        found = self._prepare(np.zeros((1, length), np.float32))
        heard = next(iter(found.values()))
        if heard.ndim != 2 and not self._fixed:
            raise ConfigError(
                f"encoder 'hidden': {source!r} ({type(self._model).__name__}) hears {tuple(found)} of shape "
                f"{tuple(heard.shape)}, whose frames have no known times; expected a model of waveforms (wav2vec 2.0, "
                "HuBERT, WavLM, MERT) or Whisper. Write a function for it: encoder 'function'"
            )


def _prepared(extractor: Any) -> str:
    """Fingerprint of what the feature extractor does to a waveform."""
    said = {k: v for k, v in extractor.to_dict().items() if isinstance(v, str | int | float | bool)}
    return fingerprint(**{k: v for k, v in said.items() if k not in ("_name_or_path", "transformers_version")})
