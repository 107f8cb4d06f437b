"""Audiobox-Aesthetics as a reward: predicted ratings of a clip, from the package audiobox-aesthetics.

Tjandra et al. (2025, arXiv 2502.05139): four ratings of 1 to 10 by people, predicted from WavLM. An adapter: knows the
package's `AesPredictor` as of version 0.0.4. Clips are mixed and resampled here, by the same rules as for every
encoder; the package cuts them into 10 s windows and averages these by length.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from dragon.encoders import windows
from dragon.errors import ConfigError, MissingExtra, NotFinite
from dragon.media import Media
from dragon.registry import nearest

AXES = {
    "CE": "content enjoyment",
    "CU": "content usefulness",
    "PC": "production complexity",
    "PQ": "production quality",
}
RATE = 16_000


class Audiobox:
    """Reward: mean of predicted ratings of a clip, each about 1 to 10, higher is better.

    axes: which of CE, CU, PC, PQ are averaged. PC says how much is going on, not how good it is, and is left out.
    checkpoint: file of weights in the package's format; None: those of its hub, which are fetched once.
    batch: clips the network sees at once. device: where it runs. name: what reports call it.

    Raises:
        MissingExtra: the package is not installed. ConfigError: unknown axes, or no such file.
    """

    abstains = False

    def __init__(
        self,
        axes: Sequence[str] = ("CE", "CU", "PQ"),
        checkpoint: str | None = None,
        *,
        batch: int = 8,
        device: str = "cpu",
        name: str = "audiobox",
    ) -> None:
        self._name, self._batch = name, batch
        self.axes = (axes,) if isinstance(axes, str) else tuple(axes)
        unknown = [axis for axis in self.axes if axis not in AXES]
        if unknown or not self.axes or batch < 1:
            near = nearest(unknown[0].upper(), AXES) if unknown else ""
            raise ConfigError(
                f"{name}: axes {list(self.axes)}, batch {batch}; expected some of {', '.join(AXES)}"
                f"{f' (did you mean {near}?)' if near else ''} and a batch of at least 1"
            )
        if checkpoint is not None and not os.path.isfile(checkpoint):
            # the package would fetch the published weights instead, without a word
            raise ConfigError(
                f"{name}: no checkpoint {checkpoint!r}; give a file, or leave it out for the published one"
            )
        try:
            from audiobox_aesthetics.infer import initialize_predictor
        except ImportError as error:
            raise MissingExtra(
                f"reward {name!r} needs the package audiobox-aesthetics ({error}); "
                "install it with: pip install 'dragon-media[audiobox]'"
            ) from error
        self._predictor = initialize_predictor(checkpoint)
        # it takes whatever accelerator it finds
        self._predictor.device = torch.device(device)
        self._predictor.model.to(self._predictor.device)

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64. Raises AudioError: not audio, or empty. NotFinite: with the clip."""
        ratings = self.ratings(media)
        return torch.stack([ratings[axis] for axis in self.axes]).mean(dim=0)

    def ratings(self, media: Media) -> dict[str, Tensor]:
        """Axis -> (b,) float64, all four axes."""
        waves = windows.mono(media, RATE, self.name).cpu()
        rows: list[dict[str, float]] = []
        for part in waves.split(self._batch):
            rows += self._predictor.forward([{"path": wave[None], "sample_rate": RATE} for wave in part])
        found = {axis: torch.tensor([row[axis] for row in rows], dtype=torch.float64) for axis in AXES}
        for axis, values in found.items():
            if not bool(values.isfinite().all()):
                row = int((~values.isfinite()).nonzero()[0, 0])
                raise NotFinite(f"{self.name}: {axis} is {values[row]} for clip {row} (prompt {media.prompts[row]!r})")
        return found
