"""What a metric gives, and what a metric is. Knows numbers and sides, no metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from dragon.intervals import Floats
from dragon.measure.sides import Reference, Side

Better = Literal["lower", "higher"]
Need = Literal["reference", "reference frames", "reference clips", "captions"]


@dataclass(frozen=True, eq=False)
class Measured:
    """One number of one set.

    replicates: (g,) the value with each group of clips left out. scores: (n,) one value a clip, NaN for none; the
    value is their mean. error: standard error and degrees of freedom, where the metric has its own. None: has none.
    bounds: what an interval cannot leave.
    grows: whether the value depends on the number of clips, so that only sets of equal size compare. facts: what it
    was computed from and by, JSON values.
    """

    metric: str
    value: float
    better: Better
    replicates: Floats | None = None
    scores: Floats | None = None
    error: tuple[float, int] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    grows: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@runtime_checkable
class SetMetric(Protocol):
    """A metric of encoded clips. `needs`: what must be there besides the clips."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def measure(self, side: Side, reference: Reference | None) -> list[Measured]: ...
