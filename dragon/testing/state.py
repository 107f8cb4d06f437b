"""State of the whole process that a plug-in may not leave changed: what is changed is named, and put back.

The trainer's own results depend on all of it: a run whose reward reseeds torch is no longer that run. Random states are
put back only when a whole check ends, because a plug-in that draws from them must be seen to give other results each
time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from dragon.faults import Faults


class _Part(NamedTuple):
    """law: how a fault ends. key: what is compared, of what `read` gives."""

    law: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    key: Callable[[Any], Hashable]


_MODES = (
    _Part(
        "leaves torch's gradient mode as it was (use `with torch.no_grad():`)",
        torch.is_grad_enabled,
        torch.set_grad_enabled,
        bool,
    ),
    _Part(
        "leaves torch's default dtype as it was (give dtypes to the calls that need them)",
        torch.get_default_dtype,
        torch.set_default_dtype,
        str,
    ),
    _Part(
        "leaves torch's thread count as it was (threads are the caller's choice)",
        torch.get_num_threads,
        torch.set_num_threads,
        int,
    ),
    _Part(
        "leaves torch's deterministic mode as it was (determinism is the caller's choice)",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
        bool,
    ),
    _Part(
        "leaves the working directory as it was (give whole paths to the calls that need them)",
        os.getcwd,
        os.chdir,
        str,
    ),
)

_RANDOM = (
    _Part(
        "leaves torch's random state as it was (draw from a torch.Generator, or inside torch.random.fork_rng)",
        torch.get_rng_state,
        torch.set_rng_state,
        lambda state: state.numpy().tobytes(),
    ),
    _Part(
        "leaves numpy's random state as it was (draw from numpy.random.default_rng)",
        np.random.get_state,
        np.random.set_state,
        lambda state: (state[1].tobytes(), *state[2:]),
    ),
    _Part(
        "leaves the random state of module random as it was (draw from a random.Random of its own)",
        random.getstate,
        random.setstate,
        tuple,
    ),
)


@contextmanager
def untouched(method: str, faults: Faults) -> Iterator[None]:
    """Inside it, what `method` changes of the process becomes a fault; on leaving, its modes are as before."""
    before = [(part, part.read()) for part in (*_MODES, *_RANDOM)]
    try:
        yield
    finally:
        for part, value in before:
            if part.key(part.read()) != part.key(value):
                faults.add(method, part.law)
                if part in _MODES:
                    part.restore(value)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """On leaving it, the random states of torch, numpy and module random are as before."""
    before = [(part, part.read()) for part in _RANDOM]
    try:
        yield
    finally:
        for part, value in before:
            part.restore(value)
