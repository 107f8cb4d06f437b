"""What the readers hear: a share of clips, the same in any batch, and only of what they know."""

from __future__ import annotations

import warnings

import pytest
import torch

from dragon.errors import ConfigError
from dragon.media import Media
from dragon.mini import load_readers
from dragon.rewards.heard import Heard
from dragon.testing import check_reward


def clips() -> Media:
    waves = 0.3 * torch.randn(3, 1, 81_920, generator=torch.Generator().manual_seed(0))
    return Media(waves, ("a", "b", "c"), 16_000)


def test_it_keeps_the_contract_of_a_reward() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noise is no disco, three times over
        check_reward(Heard("style", "disco"), clips())


def test_the_values_of_an_attribute_share_the_clips() -> None:
    total = sum(Heard("tempo", value).score(clips()) for value in load_readers().attributes["tempo"])
    assert torch.equal(torch.as_tensor(total), torch.ones(3, dtype=torch.float64))


def test_it_hears_what_the_readers_read() -> None:
    heard = load_readers().read(clips().tensor[:, 0])["lead"]
    assert Heard("lead", heard[0]).score(clips())[0] == 1.0
    assert Heard("lead", heard[0]).name == f"heard_{heard[0]}"


def test_unknown_attributes_and_values_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="no attribute 'mood'; known: style, lead"):
        Heard("mood", "sad")
    with pytest.raises(ConfigError, match="style has no value 'techno'; known: ballad"):
        Heard("style", "techno")
