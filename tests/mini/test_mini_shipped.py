"""The shipped weights: small enough, whole, and music that follows its caption.

Bounds lie well below what was seen, so that they fail when something broke, not by chance.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dragon.mini import WEIGHTS, load_encoder, load_judge, load_pipeline, load_readers, prompts, vocabulary

ASKED = [
    {"tempo": tempo, "drums": drums, "lead": lead, "style": style}
    for tempo, drums, lead, style in (
        ("slow", "none", "piano", "ballad"),
        ("fast", "drums", "trumpet", "march"),
        ("medium", "drums", "saxophone", "funk"),
        ("slow", "none", "flute", "lullaby"),
        ("fast", "drums", "synth", "disco"),
        ("medium", "none", "violin", "classical"),
        ("fast", "none", "accordion", "waltz"),
        ("slow", "drums", "marimba", "reggae"),
    )
]
WAYS = {
    "style": {"classical": "classical strings"},
    "tempo": {"medium": "medium tempo"},
    "drums": {"none": "no drums", "drums": "with drums"},
}


def caption(asked: dict[str, str]) -> str:
    return ", ".join(
        WAYS.get(name, {}).get(value, f"{value} melody" if name == "lead" else value) for name, value in asked.items()
    )


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [caption(asked) for asked in ASKED for _ in range(2)]


@pytest.fixture(scope="module")
def clips(texts: list[str]) -> Tensor:
    seeds = [torch.Generator().manual_seed(100 + i) for i in range(len(texts))]
    (made,) = load_pipeline()(texts, 8, 2.0, seeds, output_type="pt", return_dict=False)
    assert isinstance(made, Tensor)
    return made


def test_weights_are_at_most_25_megabytes() -> None:
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) <= 25_000_000


def test_clips_are_sound(clips: Tensor) -> None:
    level = clips.square().mean(1).sqrt()
    assert bool(clips.isfinite().all()) and float(level.min()) > 0.01 and float(level.max()) < 0.5


def test_readers_hear_what_the_caption_asks(texts: list[str], clips: Tensor) -> None:
    """Seen: 14, 14, 16 and 16 of 16, two clips a caption (chance: style .08, lead .1, tempo .33, drums .5)."""
    heard = load_readers().read(clips)
    for name, least in {"tempo": 12, "drums": 12, "style": 14, "lead": 14}.items():
        right = sum(heard[name][2 * i + j] == asked[name] for i, asked in enumerate(ASKED) for j in range(2))
        assert right >= least, (name, heard[name])


@pytest.mark.parametrize("load", [load_encoder, load_judge])
def test_a_clip_is_nearer_to_its_own_caption(load, texts: list[str], clips: Tensor) -> None:
    encoder = load()
    similarity = encoder.embed_audio(clips) @ encoder.embed_text(texts).T
    own = similarity.diagonal()
    assert float((own - similarity.mean(1)).mean()) > 0.2


def test_codec_keeps_what_the_readers_hear(clips: Tensor) -> None:
    codec, readers = load_pipeline().codec, load_readers()
    first, again = readers.read(clips), readers.read(codec.decode(codec.encode(clips)))
    for name in ("tempo", "drums", "style", "lead"):
        assert sum(a == b for a, b in zip(first[name], again[name], strict=True)) >= 13, name


def test_the_card_quotes_the_measured_figures() -> None:
    card, quality = (Path(WEIGHTS / name).read_text(encoding="utf-8") for name in ("README.md", "quality.json"))
    read = json.loads(quality)["adherence"]
    for name, value in read["generated"].items():
        assert f"| {name} | {value:.2f} | {read['real'][name]:.2f} |" in card


def test_every_prompt_is_made_of_known_words() -> None:
    pipeline = load_pipeline()
    assert not [p for name in ("train", "dev", "test") for p in prompts(name) if pipeline.unknown_words(p)]
    assert len(vocabulary()) > 80
