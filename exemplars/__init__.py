"""Exemplar sets, "sounds like these": build, save, load. Imported as dragon.exemplars."""

if __name__ != "dragon.exemplars":
    # under a second name every class would exist twice, and isinstance and the registry would disagree
    raise ImportError(f"import this package as dragon.exemplars, not as {__name__!r}")

from dragon.exemplars.collect import (
    build_from_captions,
    build_from_folder,
    build_from_media,
    gather_audio,
    gather_captions,
    read_files,
)
from dragon.exemplars.gathered import Gathered
from dragon.exemplars.gaussian import Gaussian
from dragon.exemplars.rows import gather_transitions
from dragon.exemplars.sets import ExemplarSet, Item, available, load

__all__ = [
    "ExemplarSet",
    "Gathered",
    "Gaussian",
    "Item",
    "available",
    "build_from_captions",
    "build_from_folder",
    "build_from_media",
    "gather_audio",
    "gather_captions",
    "gather_transitions",
    "load",
    "read_files",
]
