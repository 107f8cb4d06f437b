"""A policy takes a pipeline over and leaves no more behind in it, nor in the process, than it must."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from dragon.policy.pipeline import family_of
from tiny_pipelines import families, family


def hooks(pipe: Any) -> int:
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for part in parts for m in part.modules())


def replaced(pipe: Any) -> set[str]:
    """Methods that lie in a network itself, before its class's."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return {
        name for part in parts for name, value in vars(part).items() if callable(value) and hasattr(type(part), name)
    }


@pytest.mark.parametrize("name", families())
def test_a_second_family_of_a_pipeline_adds_no_hooks_and_neither_replaces_a_method(name):
    module = family(name)
    torch.manual_seed(0)
    pipe, filters = module.tiny(), list(warnings.filters)
    before, made_by = replaced(pipe), family_of(module.KIND, module.OPTIONS)
    made_by(pipe)
    first = hooks(pipe)
    made_by(pipe)
    assert hooks(pipe) == first
    assert replaced(pipe) == before
    assert warnings.filters == filters


def test_a_step_of_stable_audio_is_silent_and_other_warnings_are_not():
    module = family("stable_audio")
    made = family_of(module.KIND, module.OPTIONS)(module.tiny())
    scheduler, z = made.schedule(3), torch.randn(1, *made.event_shape)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for t in scheduler.timesteps:
            z = scheduler.step(z, t, z, return_dict=False)[0]
        warnings.warn("another", stacklevel=1)
    assert [str(w.message) for w in said] == ["another"]
