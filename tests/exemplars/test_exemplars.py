"""Exemplar sets: what they hold, their file, the encoder they refuse, every bad file by name, and sets of captions."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dragon import audio
from dragon.audio import Audio
from dragon.encoders.spectral import Spectral
from dragon.errors import AudioError, ConfigError, NotFinite, ShapeError
from dragon.exemplars import (
    ExemplarSet,
    available,
    build_from_captions,
    build_from_folder,
    build_from_media,
    gather_audio,
    load,
    read_files,
)
from dragon.exemplars import sets as sets_module
from dragon.exemplars.collect import content_hash
from dragon.exemplars.sets import headers, load_with_encoder
from dragon.media import Media
from dragon.rewards import SongFrechet, frechet_distance, per_song_frechet
from dragon.rewards.kernel import median_distance

RATE = 16_000
ENCODER = Spectral(bands=8)


def clip(seconds: float, seed: int = 0) -> Audio:
    samples = 0.1 * np.random.default_rng(seed).standard_normal((1, round(seconds * RATE)))
    return Audio(samples.astype(np.float32), RATE)


def media(clips: int, seconds: float = 1.0) -> Media:
    tensor = torch.from_numpy(np.stack([clip(seconds, i).samples for i in range(clips)]))
    return Media(tensor, tuple(f"p{i}" for i in range(clips)), RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "music" / "more").mkdir(parents=True)
    for i, name in enumerate(["b.wav", "a.flac", "more/c.wav"]):
        audio.save(tmp_path / "music" / name, clip(1.5, i))
    return tmp_path / "music"


# ---- what a set holds


def test_statistics_are_mean_and_covariance_of_all_frames():
    found = build_from_media(media(5), ENCODER, "noise")
    frames = ENCODER.embed_media(media(5)).flatten(0, 1).double().numpy()
    np.testing.assert_allclose(found.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(frames.T), rtol=1e-9, atol=1e-12)
    assert (found.frames, found.count, found.size) == (len(frames), 5, 8)
    assert found.mean.dtype == found.cov.dtype == torch.float64
    assert found.bandwidth == pytest.approx(median_distance(frames), rel=1e-12)


def test_many_batches_give_the_set_of_one():
    whole = build_from_media(media(20), ENCODER, "noise")
    parts = build_from_media((media(20).rows([i]) for i in range(20)), ENCODER, "noise")
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.cov, whole.cov, rtol=1e-5, atol=1e-9)
    assert [i.content_hash for i in parts.items] == [i.content_hash for i in whole.items]
    assert len({i.content_hash for i in whole.items}) == 20


def test_self_distance_is_the_distance_between_two_halves():
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
    frames = ENCODER.embed_media(media(6)).double()
    halves = [frames[order[part::2]].flatten(0, 1) for part in (0, 1)]
    found = build_from_media(media(6), ENCODER, "noise")
    assert found.self_distance == pytest.approx(float(frechet_distance(*halves)), rel=1e-9)
    assert build_from_media(media(1), ENCODER, "noise").self_distance is None


def test_every_item_keeps_its_distance_to_the_set():
    found = build_from_media(media(5), ENCODER, "noise")
    expected = per_song_frechet(list(ENCODER.embed_media(media(5))), found)
    np.testing.assert_allclose([i.distance for i in found.items], expected, rtol=1e-9)
    captions = build_from_captions(CAPTIONS, CentredLetters(), "letters")  # one frame each: a point
    points = per_song_frechet(list(Letters().embed_text(CAPTIONS)[:, None]), captions)
    np.testing.assert_allclose([i.distance for i in captions.items], points, rtol=1e-9)


def test_the_spread_is_the_root_mean_square_distance_to_the_mean():
    found = build_from_media(media(5), ENCODER, "noise")
    frames = ENCODER.embed_media(media(5)).flatten(0, 1).double()
    squares = (frames - frames.mean(dim=0)).square().sum(dim=1)
    assert found.spread == pytest.approx(float(squares.sum() / (len(frames) - 1)) ** 0.5, rel=1e-9)


def test_two_sets_of_one_source_are_half_a_self_distance_apart():
    """The excess of an estimated covariance falls as 1 / n: halves of n clips have 2 (2 / n), two sets 2 / n."""
    ratios = []
    for seed in range(5):
        frames = torch.randn(800, 1, 8, generator=torch.Generator().manual_seed(seed)).abs()
        clips = [Media(half, ("",) * 400, RATE) for half in frames.split(400)]
        a, b = (build_from_media(half, Plain(), "x") for half in clips)
        assert a.self_distance is not None and b.self_distance is not None
        assert a.distance(b) == pytest.approx(b.distance(a), rel=1e-9)
        ratios.append(2 * a.distance(b) / (a.self_distance + b.self_distance))
    assert np.mean(ratios) == pytest.approx(0.5, abs=0.1)  # each has a relative sd of about 0.15


def test_content_hashes_depend_on_samples_and_rate_only():
    one = clip(0.1)
    assert content_hash(one.samples, RATE) == content_hash(one.samples.copy(), RATE)
    assert content_hash(one.samples, RATE) != content_hash(one.samples, 8000)
    assert content_hash(one.samples, RATE) != content_hash(one.samples * 2, RATE)


def test_frames_are_kept_in_their_order_and_at_most_so_many():
    frames = ENCODER.embed_media(media(5)).flatten(0, 1)
    whole = build_from_media(media(5), ENCODER, "noise", keep_frames=10_000).features
    assert whole is not None and torch.equal(whole, frames)
    some = build_from_media(media(5), ENCODER, "noise", keep_frames=20).features
    assert some is not None and some.shape == (20, 8) and some.dtype == torch.float32
    rows = [int((frames == row).all(dim=1).nonzero()[0, 0]) for row in some]
    assert rows == sorted(set(rows))
    # from all clips: evenly spaced frames of clips of one length would often be the same few of each clip
    assert {row // (len(frames) // 5) for row in rows} == set(range(5))
    again = build_from_media(media(5), ENCODER, "noise", keep_frames=20).features
    assert again is not None and torch.equal(again, some)
    assert build_from_media(media(5), ENCODER, "noise", keep_frames=0).features is None
    with pytest.raises(ConfigError, match="keep_frames -1"):
        build_from_media(media(5), ENCODER, "noise", keep_frames=-1)


# ---- the file


def test_a_saved_set_loads_as_it_was(tmp_path: Path):
    made = build_from_media(media(4), ENCODER, "noise", source="a test", licence="CC0", names=["a", "b", "c", "ü"])
    path = made.save(tmp_path / "deep" / "noise.safetensors")
    back = load(path)
    assert torch.equal(back.mean, made.mean) and torch.equal(back.cov, made.cov)
    assert back.features is not None and made.features is not None and torch.equal(back.features, made.features)
    for key in (
        "modality",
        "name",
        "encoder",
        "encoder_hash",
        "frames",
        "items",
        "source",
        "licence",
        "bandwidth",
        "self_distance",
    ):
        assert getattr(back, key) == getattr(made, key), key
    assert dict(back.settings) == dict(made.settings)
    assert sorted(p.name for p in path.parent.iterdir()) == ["noise.safetensors"]  # nothing left beside it


def test_the_header_says_what_the_contract_asks(tmp_path: Path):
    path = build_from_media(media(4), ENCODER, "noise", licence="CC0").save(tmp_path / "noise.safetensors")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert (header["name"], header["encoder"], header["encoder_hash"]) == ("noise", "spectral", ENCODER.fingerprint)
    assert (json.loads(header["version"]), json.loads(header["count"]), header["licence"]) == (1, 4, "CC0")
    assert all(len(item["content_hash"]) == 32 for item in json.loads(header["items"]))
    assert json.loads(header["settings"])["ddof"] == 1
    assert float(header["bandwidth"]) > 0 and float(header["self_distance"]) > 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = build_from_media(media(4), ENCODER, "old").save(tmp_path / "x.safetensors")

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(sets_module.os, "fsync", fail)
    with pytest.raises(ConfigError, match="disk full"):
        build_from_media(media(5), ENCODER, "new").save(path)
    assert load(path).name == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_files_that_are_no_sets_are_refused(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match="a.safetensors is not an exemplar set"):
        load(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="no exemplar file .*dragon exemplars build"):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(ConfigError, match="ends in .safetensors"):
        build_from_media(media(2), ENCODER, "x").save(tmp_path / "x.pt")
    broken = build_from_media(media(2), ENCODER, "x")
    broken.cov[0, 0] = math.nan
    with pytest.raises(NotFinite, match="exemplars 'x': covariance, row 0"):
        load(broken.save(tmp_path / "nan.safetensors"))


def test_a_newer_version_is_refused(tmp_path: Path, monkeypatch):
    made = build_from_media(media(2), ENCODER, "x")
    newer = ExemplarSet(**{k: getattr(made, k) for k in made.__dataclass_fields__} | {"version": 2})
    with pytest.raises(ConfigError, match="version 2; this program reads version 1"):
        load(newer.save(tmp_path / "x.safetensors"))


def test_a_file_from_before_frames_and_modality_loads_and_new_files_serve_old_readers(tmp_path: Path):
    made = build_from_media(media(4), ENCODER, "noise")
    path = made.save(tmp_path / "noise.safetensors")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        assert {"mean", "cov"} <= set(file.keys()) and json.loads(header["version"]) == 1
    for key in ("modality", "encoder_plugin", "encoder_options", "item_distances", "command"):
        del header[key]
    # older programs make an Item of each of these as it stands
    assert all(set(item) == {"name", "content_hash", "frames"} for item in json.loads(header["items"]))
    old = {"mean": made.mean, "cov": made.cov}
    save_file(old, tmp_path / "old.safetensors", metadata=header)
    back = load(tmp_path / "old.safetensors")
    assert back.features is None and back.modality == "audio" and torch.equal(back.mean, made.mean)
    assert [i.distance for i in back.items] == [None] * 4 and back.encoder_spec == {"name": "spectral", "options": {}}
    assert load("mini_disco").features is None  # a shipped file of that kind


def test_kept_frames_that_do_not_fit_are_refused(tmp_path: Path):
    made = build_from_media(media(4), ENCODER, "noise")
    assert made.features is not None
    made.features[2, 0] = math.nan
    with pytest.raises(NotFinite, match="exemplars 'noise': features: row 2"):
        load(made.save(tmp_path / "nan.safetensors"))
    narrow = ExemplarSet(**{k: getattr(made, k) for k in made.__dataclass_fields__} | {"features": torch.zeros(3, 7)})
    with pytest.raises(ShapeError, match="rows of 7 features; expected 8"):
        load(narrow.save(tmp_path / "narrow.safetensors"))


def test_shipped_sets_are_found_by_name(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sets_module, "DATA", tmp_path)
    build_from_media(media(2), ENCODER, "waltz").save(tmp_path / "waltz.safetensors")
    assert available() == ["waltz"]
    assert load("waltz").name == "waltz"
    with pytest.raises(ConfigError, match="no exemplar set 'walz'; shipped: waltz;.*build walz FOLDER_OF_AUDIO"):
        load("walz")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    Path("walz.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"named by its path: ./walz.safetensors; that file is here"):
        load("walz")


def test_sets_in_a_folder_are_told_from_other_files(tmp_path: Path):
    build_from_media(media(2), ENCODER, "waltz").save(tmp_path / "b.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    found = headers(tmp_path)
    assert [path.name for path in found] == ["b.safetensors"]
    assert next(iter(found.values()))["encoder"] == "spectral"
    assert {path.stem for path in headers()} == set(available())


@pytest.mark.parametrize("name", available())
def test_every_shipped_set_is_whole(name: str):
    found = load(name)
    assert found.name == name and found.licence and found.source and found.count > 1
    assert found.gaussian().trace > 0


def test_shipped_sets_serve_the_encoders_they_name():
    for name, encoder in (("mini_disco", "mini-codec"), ("mini_disco_text", "mini-shared"), ("mini_music_clap", None)):
        found, ears = load_with_encoder(name, encoder, "cpu")
        assert ears.fingerprint == found.encoder_hash


# ---- the encoder


def test_only_the_encoder_that_made_a_set_is_accepted():
    made = build_from_media(media(2), ENCODER, "noise")
    made.check_encoder(Spectral(bands=8, device="cuda"))  # where it runs does not matter
    with pytest.raises(ConfigError) as caught:
        made.check_encoder(Spectral(bands=8, hop=512))
    message = str(caught.value)
    assert "'noise'" in message and ENCODER.fingerprint in message and Spectral(bands=8, hop=512).fingerprint in message
    assert "rebuild with: dragon exemplars build noise FOLDER_OF_AUDIO --encoder spectral --replace" in message
    assert ": hop 1024 in the set, 512 now; with your options, as --encoder '{name: spectral, options:" in message


def test_a_set_makes_its_encoder_again_with_its_options(tmp_path: Path, monkeypatch):
    spec = {"name": "spectral", "options": {"bands": 8, "hop": 512, "device": "cpu"}}
    made = build_from_media(media(2), spec, "noise")
    assert made.encoder_spec == {"name": "spectral", "options": {"bands": 8, "hop": 512}}  # wherever it runs
    found = load(made.save(tmp_path / "noise.safetensors"))
    for encoder in (None, "spectral", spec, Spectral(bands=8, hop=512)):
        assert load_with_encoder(found, encoder, "cpu")[1] == Spectral(bands=8, hop=512)
    assert SongFrechet(found).encoder == Spectral(bands=8, hop=512)

    (tmp_path / "ears.py").write_text("from dragon.encoders.spectral import Spectral\n\nclass Ears(Spectral): pass\n")
    monkeypatch.chdir(tmp_path)
    own = build_from_media(media(2), "ears.py:Ears", "own")
    assert (own.encoder, own.encoder_plugin) == ("spectral", "ears.py:Ears")
    assert type(load_with_encoder(own, None, "cpu")[1]).__name__ == "Ears"
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ConfigError, match="exemplars 'own': their encoder ears.py:Ears cannot be made again"):
        load_with_encoder(own, None, "cpu")


def test_another_rate_is_refused_with_the_command_that_rebuilds_the_set():
    made = build_from_media(media(2), {"name": "spectral", "options": {"bands": 8}}, "noise")
    other = {"name": "spectral", "options": {"bands": 8, "rate": 8000}}
    with pytest.raises(ConfigError, match="rate 16000 in the set, 8000 now; rebuild with") as caught:
        load_with_encoder(made, other, "cpu")
    assert str(caught.value).endswith(
        "build noise FOLDER_OF_AUDIO --encoder '{name: spectral, options: {bands: 8, rate: 8000}}' --replace"
    )


def test_encoder_options_that_no_file_can_keep_are_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "ears2.py").write_text(
        "from dragon.encoders.spectral import Spectral\n\ndef ears(thing):\n    return Spectral()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be kept in a file"):
        build_from_media(media(2), {"name": "ears2.py:ears", "options": {"thing": object()}}, "noise")


def test_captions_are_not_asked_to_be_rebuilt_for_an_encoder_of_clips() -> None:
    clips, captions = load("mini_disco"), load("mini_disco_text")
    for pair in ((clips, captions), (captions, clips)):
        with pytest.raises(ConfigError, match="build my_mini_disco FOLDER_OF_AUDIO --encoder mini-shared --replace"):
            pair[0].distance(pair[1])


def test_sets_of_different_encoders_have_no_distance():
    a = build_from_media(media(2), {"name": "spectral", "options": {"bands": 8}}, "a")
    b = build_from_media(media(2), {"name": "spectral", "options": {"bands": 9}}, "b")
    with pytest.raises(ConfigError, match=r"'a' were embedded .* 'b' with .* build b .*\{bands: 8\}.* --replace"):
        a.distance(b)


def test_an_encoder_that_makes_nan_stops_the_build():
    class Broken(Spectral):
        def embed_media(self, media: Media) -> torch.Tensor:
            return torch.full((len(media), 3, self.features), math.nan)

    with pytest.raises(NotFinite, match="encoder 'spectral' made NaN or infinity of clip 'p0'"):
        build_from_media(media(2), Broken(bands=8), "noise")


# ---- a folder


def test_a_folder_gives_the_statistics_of_its_files(folder: Path):
    found = build_from_folder(folder, ENCODER, "music")
    assert [item.name for item in found.items] == ["a.flac", "b.wav", "more/c.wav"]
    assert found.source == "music"
    clips = [audio.load(folder / item.name) for item in found.items]
    frames = torch.cat([ENCODER.embed_media(Media(torch.from_numpy(c.samples)[None], ("x",), RATE))[0] for c in clips])
    torch.testing.assert_close(found.mean, frames.double().mean(dim=0), rtol=1e-6, atol=0)
    assert found.frames == len(frames)


def test_a_long_file_is_cut_into_windows(tmp_path: Path):
    audio.save(tmp_path / "long.wav", clip(2.6), "FLOAT")
    found = build_from_folder(tmp_path, ENCODER, "long", seconds=1.0)
    samples = torch.from_numpy(audio.load(tmp_path / "long.wav").samples)
    cut = torch.stack([samples[:, start : start + RATE] for start in (0, RATE, round(1.6 * RATE))])
    expected = ENCODER.embed_media(Media(cut, ("a", "b", "c"), RATE)).flatten(0, 1).double()
    assert found.frames == len(expected) and found.count == 1
    torch.testing.assert_close(found.mean, expected.mean(dim=0), rtol=1e-6, atol=0)


def test_clips_below_the_encoders_rate_are_warned_of(folder: Path):
    audio.save(folder / "low.wav", Audio(clip(2).samples, 8000))
    with pytest.warns(UserWarning, match=r"hears 16000 Hz .*1 of 4 at 8000 Hz.* same rate"):
        found = build_from_folder(folder, ENCODER, "music")
    assert found.settings["rates"] == [8000, 16000]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_from_folder(folder, Spectral(bands=8, rate=8000), "music")


def test_files_are_named_below_their_root_and_by_their_own_name_elsewhere(folder: Path):
    audio.save(folder.parent / "out.wav", clip(1.5, 9))
    paths = [folder / "b.wav", folder / ".." / "out.wav", folder.parent / "out.wav", folder / "gone.wav"]
    heard: list[int] = []
    with pytest.raises(AudioError, match="1 of 4 audio files in here .*\\n  gone.wav: .*no such file"):
        gather_audio(read_files(paths, folder), ENCODER, where="here", progress=heard.append)
    assert heard == [1, 2, 3, 4]
    found = gather_audio(read_files(paths[:3], folder), ENCODER, where="here")
    assert [item.name for item in found.items] == ["b.wav", "out.wav", "out.wav"]


def test_every_bad_file_is_listed_with_its_reason_and_nothing_is_built(folder: Path):
    (folder / "broken.wav").write_bytes(b"RIFFnothing")
    audio.save(folder / "silent.wav", Audio(np.zeros((1, 2 * RATE), np.float32), RATE))
    audio.save(folder / "short.wav", clip(0.2))
    import soundfile

    soundfile.write(folder / "nan.wav", np.array([0.5, np.nan] * RATE, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(AudioError) as caught:
        build_from_folder(folder, ENCODER, "music")
    message = str(caught.value)
    assert "4 of 7 audio files" in message and "--skip_bad" in message
    reasons = {"broken.wav": "cannot be read", "silent.wav": "silent", "short.wav": "too short", "nan.wav": "NaN"}
    for name, reason in reasons.items():
        assert any(name in line and reason in line for line in message.splitlines()), name

    kept = build_from_folder(folder, ENCODER, "music", skip_bad=True)
    assert kept.count == 3
    assert len(kept.settings["skipped"]) == 4  # type: ignore[arg-type]


def test_skipping_everything_is_still_an_error(tmp_path: Path):
    audio.save(tmp_path / "silent.wav", Audio(np.zeros((1, 2 * RATE), np.float32), RATE))
    with pytest.raises(AudioError, match="nothing is left"):
        build_from_folder(tmp_path, ENCODER, "music", skip_bad=True)


def test_names_and_clips_that_cannot_be_a_set_are_refused():
    with pytest.raises(ConfigError, match="name 'a b'"):
        build_from_media(media(2), ENCODER, "a b")
    with pytest.raises(ConfigError, match="fewer than two frames in 0 clips"):
        build_from_media([], ENCODER, "none")
    with pytest.raises(ConfigError, match="1 names for 2 clips"):
        build_from_media(media(2), ENCODER, "x", names=["only"])


# ---- captions


@dataclass(frozen=True)
class Letters:
    """A joint encoder for tests: a caption's embedding counts the letters a to d; it hears nothing."""

    name: str = "letters"
    fingerprint: str = "0123"
    features: int = 4

    def embed_media(self, media: Media) -> torch.Tensor:
        return torch.zeros(len(media), 1, 4)

    def embed_clips(self, media: Media) -> torch.Tensor:
        return torch.zeros(len(media), 4)

    def embed_text(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[float(prompt.count(letter)) for letter in "abcd"] for prompt in prompts])


class Plain(Letters):
    """Hears what it is given: (b, 1, t) -> one frame."""

    def embed_media(self, media: Media) -> torch.Tensor:
        return media.tensor

    features = 8


class CentredLetters(Letters):
    gap = torch.tensor([1.0, 0.0, 0.0, 0.0])


CAPTIONS = ["a bad cab", "add", "dab", "a fade", "cad"]


def test_captions_give_the_statistics_of_their_embeddings(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # this encoder says where its gap is: nothing to warn of
        made = build_from_captions(CAPTIONS, CentredLetters(), "letters", source="a test", licence="CC0")
    rows = Letters().embed_text(CAPTIONS).double()
    torch.testing.assert_close(made.mean, rows.mean(dim=0))
    torch.testing.assert_close(made.cov, torch.cov(rows.T))
    assert (made.modality, made.frames, made.count, made.encoder) == ("text", 5, 5, "letters")
    assert made.features is not None and torch.equal(made.features, rows.float())
    back = load(made.save(tmp_path / "letters.safetensors"))
    assert back.modality == "text" and back.items == made.items
    with pytest.raises(ConfigError, match="dragon exemplars build letters CAPTIONS.txt"):
        made.check_encoder(ENCODER)


def test_a_captions_item_is_its_text_cut_and_its_hash():
    long = "a slow waltz,\nwith piano " * 10
    made = build_from_captions([long, "b", "b"], CentredLetters(), "letters")
    assert made.items[0].name == "a slow waltz, with piano a slow waltz, with piano a slow ..."
    assert made.items[1].name == "b" and made.items[1] == made.items[2]
    cut = build_from_captions([long[:99], "b"], CentredLetters(), "letters")
    assert made.items[0].name == cut.items[0].name and made.items[0].content_hash != cut.items[0].content_hash
    assert all(len(item.content_hash) == 32 and item.frames == 1 for item in made.items)


def test_an_encoder_that_does_not_centre_is_warned_of():
    with pytest.warns(UserWarning, match=r"'letters' does not centre.*modality gap.*'mini-shared'.*SharedEncoder"):
        build_from_captions(CAPTIONS, Letters(), "letters")


def test_captions_that_cannot_be_a_set_are_refused():
    with pytest.raises(ConfigError, match="'spectral' embeds no text.*'mini-shared'"):
        build_from_captions(CAPTIONS, ENCODER, "x")
    with pytest.raises(ConfigError, match="0 captions; give at least two"):
        build_from_captions([], CentredLetters(), "x")
    with pytest.raises(ConfigError, match="1 captions"):
        build_from_captions(["one"], CentredLetters(), "x")
    with pytest.raises(ConfigError, match="caption 2, 4 of 4 is blank"):
        build_from_captions(["one", " ", "three", "\n"], CentredLetters(), "x")

    class Broken(CentredLetters):
        def embed_text(self, prompts: Sequence[str]) -> torch.Tensor:
            return torch.where(Letters().embed_text(prompts) > 1, math.nan, 0.0)

    with pytest.raises(NotFinite, match="NaN or infinity of caption 'a bad cab'"):
        build_from_captions(CAPTIONS, Broken(), "x")
