"""A whole upsampling run: a file of transitions in; a fitted model, new transitions and a report of their quality out.

`upsample` is what `dragon upsample` does, callable from Python. Loading this package imports no torch.
"""

from __future__ import annotations

from dragon.upsample.settings import UpsampleSettings

__all__ = ["UpsampleSettings"]
