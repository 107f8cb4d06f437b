"""Encoders: media or text -> features, one encoder a file. `get_encoder` turns a name into one."""

from __future__ import annotations

from dragon.encoders.lookup import get_encoder

__all__ = ["get_encoder"]
