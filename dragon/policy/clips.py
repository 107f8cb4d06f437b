"""What pipelines of audio share: the length of a clip in seconds.

Knows numbers, no pipeline.
"""

from __future__ import annotations

import math

from dragon.errors import ConfigError


def in_seconds(asked: float | None, own: float, shortest: float, longest: float = math.inf, why: str = "") -> float:
    """Length of clips: the seconds asked for, or the pipeline's own. why: the longest is the longest.

    Raises:
        ConfigError: out of range, or not a number.
    """
    seconds = own if asked is None else float(asked)
    if not (shortest <= seconds <= longest and math.isfinite(seconds)):
        most = f"to {longest:g}" if math.isfinite(longest) else "on"
        raise ConfigError(
            f"seconds is {seconds}; expected a number from {shortest:g} {most}{f', {why}' if why else ''}"
        )
    return seconds
