"""Splitting gathered clips into a set to train toward and one to evaluate with: nothing lost, nothing shared."""

from __future__ import annotations

import pytest
import torch

from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError
from dragon.exemplars.gathered import Ears, Gathered
from dragon.exemplars.sets import Item


def gathered(contents: str) -> Gathered:
    """One item a letter; equal letters, equal content."""
    frames = torch.randn(len(contents), 4, 3, generator=torch.Generator().manual_seed(0))
    items = tuple(Item(f"{i}.wav", letter, 4) for i, letter in enumerate(contents))
    return Gathered(Ears(Spectral()), items, tuple(frames), {"seconds": 1.0})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("contents", "share"), [("abcdefgh", 0.5), ("abcdefgh", 0.25), ("aabbccdddd", 0.4), ("ab", 0.9)]
)
def test_a_split_loses_nothing_and_parts_no_equal_clips(contents: str, share: float, seed: int):
    whole = gathered(contents)
    train, held = whole.split(share, seed)
    assert {i.name for i in train.items} | {i.name for i in held.items} == {i.name for i in whole.items}
    assert not {i.content_hash for i in train.items} & {i.content_hash for i in held.items}
    place = {item.name: frames for item, frames in zip(whole.items, whole.frames, strict=True)}
    for half in (train, held):
        names = [i.name for i in half.items]
        assert names and names == sorted(names)
        assert all(place[n] is frames for n, frames in zip(names, half.frames, strict=True))


def test_the_share_is_kept_where_clips_differ():
    for share, count in ((0.5, 5), (0.2, 2), (0.9, 9), (0.01, 1), (0.99, 9)):
        train, held = gathered("abcdefghij").split(share)
        assert (len(held.items), len(train.items)) == (count, 10 - count)


def test_the_draw_depends_on_the_seed_alone_and_is_fair():
    whole = gathered("abcdef")
    drawn = [{i.name for i in whole.split(0.5, seed)[1].items} for seed in range(200)]
    assert drawn[7] == {i.name for i in whole.split(0.5, 7)[1].items}
    for item in whole.items:  # binomial: 100 expected, sd 7
        assert 72 < sum(item.name in names for names in drawn) < 128


def test_both_halves_say_what_they_are():
    train, held = gathered("abcd").split(0.5, seed=3)
    assert train.settings == {"seconds": 1.0, "part": "train", "of_items": 4, "split_seed": 3}
    made = held.as_set("x_held_out", command=["split", "x", "my folder"])
    assert made.settings["part"] == "held_out" and made.command == "split x 'my folder'"
    assert made.rebuild_command("mini-codec") == "dragon exemplars split x 'my folder' --encoder mini-codec --replace"


def test_what_cannot_be_split_is_refused():
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="held_out is .*between 0 and 1"):
            gathered("ab").split(share)
    with pytest.raises(ConfigError, match="3 items of 1 different content"):
        gathered("aaa").split()
