"""What the built-in readers hear in a clip: whether an attribute (style, lead, tempo, drums, ...) has one value.

Its mean over clips is the share that shows the value, so a tuned model's shift toward its exemplars can be read from
the audio, by classifiers that are neither reward nor judge. For measurement: as a training reward it would teach the
readers' mistakes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragon.encoders.windows import mono
from dragon.errors import ConfigError
from dragon.media import Media


class Heard:
    """1 where the built-in readers hear `value` of `attribute` in a clip, else 0.

    name: what reports call it; None: "heard_VALUE".

    Raises:
        ConfigError: an attribute or value that the readers do not know, with those they do.
    """

    abstains = False

    def __init__(self, attribute: str, value: str, *, device: str = "cpu", name: str | None = None) -> None:
        from dragon.mini import load_readers

        self._readers = load_readers().to(device)
        self._device = device
        known = self._readers.attributes
        if attribute not in known:
            raise ConfigError(f"heard: no attribute {attribute!r}; known: {', '.join(known)}")
        if value not in known[attribute]:
            raise ConfigError(f"heard: {attribute} has no value {value!r}; known: {', '.join(known[attribute])}")
        self._attribute, self._value = attribute, value
        self._name = f"heard_{value}" if name is None else name

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64, 0 or 1. Raises AudioError: not audio."""
        wave = mono(media, self._readers.rate, self.name).to(self._device)
        heard = self._readers.read(wave)[self._attribute]
        return torch.tensor([float(value == self._value) for value in heard], dtype=torch.float64)
