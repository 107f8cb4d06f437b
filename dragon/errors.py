"""The errors users meet: one small tree, so that one `except DragonError` catches them all.

Every message names the value, what was expected and what to do next. The command line turns a
`DragonError` into that one message and exit status 2; anything else is a fault of ours.
"""

from __future__ import annotations


class DragonError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(DragonError):
    """A setting, a file or a combination of them that cannot work."""


class PluginError(DragonError):
    """A plug-in name that does not resolve, or a plug-in that breaks its contract."""


class MissingExtra(DragonError):
    """An optional package is needed and not installed."""


class ShapeError(DragonError):
    """A tensor or array whose shape does not fit."""


class AudioError(DragonError):
    """Audio that cannot be read, is empty, silent or has the wrong rate."""


class NotFinite(DragonError):
    """A NaN or infinity, with the name of the part that made it."""


class OutOfMemory(DragonError):
    """Even the smallest batch does not fit."""


class OtherProcess(DragonError):
    """Another process of the run has stopped; its own message says why."""


class Unwritable(DragonError):
    """A file that cannot be written: a full disk, a quota, no permission."""
