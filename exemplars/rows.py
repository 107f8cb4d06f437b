"""Exemplar sets of reinforcement-learning transitions: the same statistics, of rows instead of clips.

Knows transitions and encoders by their protocol. An item is a block of consecutive rows, so that a set can be split and
its halves compared as those of audio can.
"""

from __future__ import annotations

import hashlib
import os

import torch

from dragon.encoders.lookup import EncoderSpec
from dragon.encoders.transitions import TransitionEncoder
from dragon.errors import NotFinite
from dragon.exemplars.gathered import Ears, Gathered
from dragon.exemplars.sets import Item
from dragon.media import Media
from dragon.synther import Transitions, TransitionSpec, read_transitions
from dragon.synther.columns import fit_layout

BLOCK = 256
"""Rows of an item."""


def gather_transitions(
    data: str | os.PathLike[str] | Transitions, encoder: EncoderSpec | None = None, *, device: str = "cpu"
) -> Gathered:
    """One frame a row. encoder: None: "transitions", standardised by these very rows.

    Raises:
        ConfigError, ShapeError, NotFinite: see `read_transitions`; or the encoder's result holds NaN.
    """
    if isinstance(data, Transitions):
        transitions = data
        own: EncoderSpec = TransitionEncoder(data)
    else:
        transitions, own = read_transitions(data), {"name": "transitions", "options": {"data": os.fspath(data)}}
    ears = Ears.of(own if encoder is None else encoder, device)
    table = torch.from_numpy(fit_layout(transitions, TransitionSpec(coding="plain")).table(transitions)).float()
    items, frames = [], []
    for start in range(0, len(table), BLOCK):
        part = table[start : start + BLOCK]
        found = ears.encoder.embed_media(Media(part[:, None], ("",) * len(part))).detach().cpu().flatten(0, 1)
        name = f"rows {start} to {start + len(part) - 1}"
        if not bool(found.isfinite().all()):
            raise NotFinite(f"encoder {ears.encoder.name!r} made NaN or infinity of {name}")
        digest = hashlib.blake2b(part.numpy().tobytes(), digest_size=16).hexdigest()
        items.append(Item(name, digest, len(found)))
        frames.append(found)
    return Gathered(ears, tuple(items), tuple(frames), {"rows": "one frame a transition"}, "transitions")
