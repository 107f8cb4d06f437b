"""The world that the built-in model was trained on: its splits, captions and music keep their promises."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dragon.mini import prompts, vocabulary
from dragon.mini.words import split

RECIPE = Path(__file__).parents[2] / "recipes" / "mini"


@pytest.fixture(scope="module")
def world() -> ModuleType:
    return _module("world")


@pytest.fixture(scope="module")
def composer() -> ModuleType:
    return _module("compose")


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(RECIPE))  # its scripts import each other as top-level modules
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPE))


def test_a_work_is_the_same_clip_every_time(world: ModuleType, composer: ModuleType) -> None:
    assert world.draw_clip(17) == world.draw_clip(17)
    assert composer.compose(world.draw_clip(17)) == composer.compose(world.draw_clip(17))


def test_splits_share_no_work(world: ModuleType) -> None:
    ranges = list(world.WORKS.values())
    assert all(not set((a[0], a[-1])) & set(b) and a != b for a in ranges for b in ranges if a is not b)


def test_held_out_pairs_are_never_trained_on(world: ModuleType) -> None:
    trained = {(c.style, c.lead) for c in map(world.draw_clip, range(3000))}
    assert not trained & world.HELD_OUT_PAIRS
    share = len(world.HELD_OUT_PAIRS) / (len(world.STYLES) * len(world.LEADS))
    assert share == pytest.approx(0.1)
    assert {s for s, _ in trained} == set(world.STYLES) and {lead for _, lead in trained} == set(world.LEADS)
    assert all(
        (c.style, c.lead) in world.HELD_OUT_PAIRS for c in (world.draw_clip(i, held_out=True) for i in range(50))
    )


def test_a_caption_reveals_half_and_tells_the_truth(world: ModuleType) -> None:
    for i in range(200):
        clip = world.draw_clip(i)
        text, revealed = world.caption(clip, random.Random(i))
        assert len(revealed) in (4, 5)
        for name, values in world.PHRASES.items():
            said = {v for v, ways in values.items() if any(part in ways for part in text.split(", "))}
            assert said == ({clip.attributes()[name]} if name in revealed else set())


def test_every_word_of_every_caption_is_in_the_vocabulary(world: ModuleType) -> None:
    assert set(world.vocabulary()) <= set(vocabulary())
    for name in ("train", "test", "open_train", "open_test"):
        assert not {w for p in prompts(name) for w in split(p)} - set(vocabulary())


def test_open_prompts_name_no_style(world: ModuleType) -> None:
    ways = {way for values in world.PHRASES["style"].values() for way in values}
    assert not any(part in ways for p in prompts("open_train") for part in p.split(", "))


def test_every_clip_starts_on_a_downbeat_and_marks_its_beats(world: ModuleType, composer: ModuleType) -> None:
    """Of the first five beats at least four carry an onset, in every style, with and without drums."""
    seen = set()
    for i in range(400):
        clip = world.draw_clip(i)
        beat = 60.0 / clip.bpm
        onsets = {round(n.start / beat, 3) for n in composer.compose(clip)}
        assert 0.0 in onsets
        assert sum(float(b) in onsets for b in range(5)) >= 4 or clip.density == "sparse", clip
        seen.add((clip.style, clip.drums))
    assert len(seen) == 2 * len(world.STYLES)


def test_notes_stay_in_the_key(world: ModuleType, composer: ModuleType) -> None:
    """Melody, chords and bass share one key: all use its seven tones."""
    inside = total = 0
    for i in range(200):
        clip = world.draw_clip(i)
        tones = {(clip.tonic + step) % 12 for step in composer.SCALES[clip.mode]}
        notes = [n for n in composer.compose(clip) if n.channel != composer.DRUM_CHANNEL]
        inside += sum(n.key % 12 in tones for n in notes)
        total += len(notes)
    assert inside == total


def test_attributes_move_what_they_name(world: ModuleType, composer: ModuleType) -> None:
    """Busy melodies have more notes, high ones lie higher, loud ones are struck harder, means over many works."""
    clips = [world.draw_clip(i) for i in range(600)]

    def mean(name: str, value: str, of) -> float:
        lead = [[n for n in composer.compose(c) if n.channel == 0] for c in clips if getattr(c, name) == value]
        return sum(of(notes) for notes in lead) / len(lead)

    assert mean("density", "busy", len) > 1.5 * mean("density", "sparse", len)
    key = lambda notes: sum(n.key for n in notes) / len(notes)  # noqa: E731
    assert mean("register", "high", key) - mean("register", "low", key) == pytest.approx(20, abs=2)
    velocity = lambda notes: sum(n.velocity for n in notes) / len(notes)  # noqa: E731
    assert mean("dynamics", "loud", velocity) > mean("dynamics", "soft", velocity) + 20
