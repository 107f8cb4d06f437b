"""A plain function as a reward.

Knows nothing of encoders: it hands a batch's clips to the function and checks what comes back. How to write one is told
in README.md beside this file.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dragon.audio import check_finite, to_audio
from dragon.errors import NotFinite, PluginError
from dragon.media import Media

Scores = Sequence[float | None]


class FunctionReward:
    """`function(audio, prompts, **columns) -> list[float | None]`, one score a clip, higher is better.

    audio: list of dragon.audio.Audio (samples (channels, t) float32 numpy, rate in Hz). prompts: list of str.
    columns: those of the prompt file that the function names (all of them, if it takes **kwargs), each a list with one
    value a clip. None means no opinion: the clip is left out of the contrast. name: the function's own, if not given.
    """

    abstains = True

    def __init__(self, function: Callable[..., Scores], name: str | None = None) -> None:
        if not callable(function):
            raise PluginError(f"{function!r} is not a function; expected (audio, prompts, **columns) -> list of scores")
        self._function = function
        self._name = name or str(getattr(function, "__name__", type(function).__name__))
        self._named, self._needed, self._takes_all = _columns_of(function, self._name)

    @property
    def name(self) -> str:
        return self._name

    def score(self, media: Media) -> Tensor:
        """(b,) float64, NaN where the function gave None.

        Raises:
            PluginError: a column it needs is missing; its result is not one number or None a clip.
            NotFinite: a clip, or a score, is NaN or infinite, with row and prompt.
        """
        columns = self._columns(media.columns)
        check_finite(media)
        found: Any = self._function(to_audio(media), list(media.prompts), **columns)
        if isinstance(found, str | bytes | Mapping) or not hasattr(found, "__len__") or not hasattr(found, "__iter__"):
            raise PluginError(
                f"reward {self.name!r} returned {type(found).__name__}; expected a list of {len(media)} floats or None"
            )
        if len(found) != len(media):
            raise PluginError(
                f"reward {self.name!r} returned {len(found)} scores for {len(media)} clips; expected one each"
            )
        rows = zip(found, media.prompts, strict=True)
        return torch.tensor([self._number(v, row, prompt) for row, (v, prompt) in enumerate(rows)], dtype=torch.float64)

    def _columns(self, columns: Mapping[str, Sequence[object]]) -> dict[str, list[object]]:
        missing = [name for name in self._needed if name not in columns]
        if missing:
            there = ", ".join(map(repr, columns)) or "none"
            raise PluginError(
                f"reward {self.name!r} needs column {missing[0]!r}, which the prompts lack (they have: {there}); "
                "add it to the prompt file (of dragon score: --captions), or give the argument a default"
            )
        return {key: list(values) for key, values in columns.items() if self._takes_all or key in self._named}

    def _number(self, value: object, row: int, prompt: str) -> float:
        if value is None:
            return math.nan
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"reward {self.name!r} returned {value!r} for clip {row} (prompt {prompt!r}); expected a number or None"
            ) from error
        if not math.isfinite(number):
            raise NotFinite(
                f"reward {self.name!r} returned {number} for clip {row} (prompt {prompt!r}); return None for no opinion"
            )
        return number


def _columns_of(function: Callable[..., Scores], name: str) -> tuple[set[str], list[str], bool]:
    """(column names it takes, those without a default, whether it takes any)."""
    try:
        # a partial that wears its function's name must still not ask for what it has bound
        follow = not isinstance(function, functools.partial)
        parameters = list(inspect.signature(function, follow_wrapped=follow).parameters.values())
    except ValueError:  # some compiled functions tell no signature
        return set(), [], True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise PluginError(
            f"reward {name!r} takes {len(positional)} positional arguments; expected (audio, prompts, **columns)"
        )
    rest = [p for p in parameters if p not in positional[:2] and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in rest if p.default is p.empty]
    return {p.name for p in rest}, needed, any(p.kind is p.VAR_KEYWORD for p in parameters)
