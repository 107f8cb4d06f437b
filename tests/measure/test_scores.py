"""Scores of folders: one pass feeds all metrics, the record is complete, what cannot be is said before it starts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragon import audio
from dragon.audio import Audio
from dragon.encoders.spectral import Spectral
from dragon.errors import AudioError, ConfigError, NotFinite, PluginError, ShapeError
from dragon.exemplars import build_from_folder
from dragon.measure import score
from dragon.media import Media
from dragon.rewards import SetVendi, frechet_distance, kernel_distance, per_song_frechet, vendi_score

SPECTRAL = {"name": "spectral", "options": {"bands": 16}}


def write(folder: Path, count: int, seed: int, pitch: float = 300.0) -> Path:
    """Decaying tones with noise, 1.2 s in stereo at 16 kHz."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    t = np.arange(19_200) / 16_000
    for number in range(count):
        tone = np.sin(2 * np.pi * pitch * generator.uniform(0.7, 1.4) * t) * np.exp(-3 * (2 * t % 1))
        both = 0.3 * tone + 0.03 * generator.standard_normal((2, len(t)))
        audio.save(folder / f"{number:02d}.wav", Audio(both.astype(np.float32), 16_000))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folders near (of the reference's pitch), far, and reference; a cache that all tests share; captions."""
    root = tmp_path_factory.mktemp("score")
    write(root / "reference", 14, 0)
    write(root / "near", 12, 1, 330.0)
    write(root / "far", 12, 2, 2000.0)
    rows = "".join(f"{number:02d}.wav,slow jazz number {number},{number}\n" for number in range(14))
    (root / "captions.csv").write_text("file,caption,length\n" + rows)
    return root


def scored(place: Path, generated=("near", "far"), exemplars="reference", metrics=("fad", "kad"), **options):
    names = [generated] if isinstance(generated, str) else generated
    wanted: dict[str, Any] = {"encoder": SPECTRAL, "cache": place / "cache"} | options
    given = None if exemplars is None else place / exemplars if isinstance(exemplars, str) else exemplars
    return score([place / name for name in names], given, metrics, **wanted)


def frames_of(folder: Path) -> list[torch.Tensor]:
    encoder = Spectral(bands=16)
    clips = [audio.load(path) for path in audio.list_audio(folder)]
    return [encoder.embed_media(Media(torch.from_numpy(c.samples)[None], ("",), c.rate))[0] for c in clips]


def test_values_are_those_of_the_metric_functions_on_the_files(place):
    found = scored(place, "near", metrics=("fad", "kad", "vendi", "song_fad"))
    generated, reference = frames_of(place / "near"), torch.cat(frames_of(place / "reference"))
    assert float(found["fad"]) == pytest.approx(frechet_distance(torch.cat(generated), reference).value)
    assert float(found["kad"]) == pytest.approx(kernel_distance(torch.cat(generated), reference).value)
    assert float(found["song_fad"]) == pytest.approx(per_song_frechet(generated, reference).mean())
    assert float(found["vendi"]) == pytest.approx(vendi_score(torch.stack([f.mean(0) for f in generated])).value)


def test_one_set_named_twice_gives_equal_values_and_no_difference(place):
    found = score(
        {"one": place / "near", "two": place / "near"},
        place / "reference",
        ["fad", "kad", "song_fad", "vendi", "prdc"],
        encoder=SPECTRAL,
        cache=place / "cache",
    )
    assert found.pairs and all(p.difference.value == 0 and not p.difference.significant for p in found.pairs)
    assert all(p.difference.paired for p in found.pairs)  # the files have the same names


def test_the_better_folder_wins_and_the_table_says_so(place):
    found = scored(place, metrics=("fad", "kad", "song_fad", "random"))
    for metric in ("fad", "kad", "song_fad"):
        near, far = (found.value(metric, set=name) for name in ("near", "far"))
        assert near.better == "lower" and near.low is not None and near.low <= near.value <= near.high
        assert near.value < far.value and far.interval
    text = str(found)
    lines = [line.split() for line in text.splitlines()]
    assert any(line[:3] == ["fad", "lower", "near"] and line[-1] == "best" for line in lines)
    assert any(line[:1] == ["far"] and line[-1] == "worse" for line in lines)
    assert "not certainly worse" in text and "random: near - far" in text  # noise is no difference
    assert "the reference is held fixed" in text and "(file by file)" in text


def test_everything_is_written(place, tmp_path):
    found = scored(place, metrics=("fad", "random"), captions=place / "captions.csv")
    saved = json.loads(found.save(tmp_path / "deep" / "scores.json").read_text())
    assert saved["version"] == 1 and len(saved["values"]) == 4 and len(saved["differences"]) == 2
    fad = next(v for v in saved["values"] if v["metric"] == "fad" and v["set"] == "near")
    assert fad["low"] <= fad["value"] <= fad["high"] and fad["interval"].startswith("jack-knife")
    assert {"n", "reference_n", "d", "ddof", "jackknife_bias"} <= set(fad["facts"])
    record = saved["provenance"]
    encoder = record["encoders"][0]
    assert encoder["fingerprint"] == Spectral(bands=16).fingerprint and encoder["settings"]["bands"] == 16
    assert (record["resampler"], record["mono"], record["seed"], record["groups"]) == (
        "soxr HQ",
        "mean of the channels",
        0,
        20,
    )
    assert record["packages"]["torch"] and record["captions"]["file"] == "captions.csv"
    assert record["metrics"] == [{"name": "fad", "options": {}}] and record["rewards"][0]["name"] == "random"
    near, far = record["sets"]
    assert near["clips"] == 12 and near["rates"] == {"16000": 12} and near["channels"] == {"2": 12}
    assert len({f["hash"] for f in near["files"] + far["files"]}) == 24 and near["skipped"] == []
    assert record["references"][0]["kind"] == "folder" and record["references"][0]["clips"] == 14

    with found.save_songs(tmp_path / "songs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["set", "file", "hash", "seconds", "song_fad", "random"]
    assert [row["file"] for row in rows if row["set"] == "far"] == [f"{i:02d}.wav" for i in range(12)]
    expected = per_song_frechet(frames_of(place / "near"), torch.cat(frames_of(place / "reference")))
    np.testing.assert_allclose([float(row["song_fad"]) for row in rows if row["set"] == "near"], expected)
    assert found.save_picture(tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_gives_the_same_numbers(place):
    first, second = (scored(place, metrics=("fad", "kad", "prdc", "random")).to_dict() for _ in range(2))
    assert first["values"] == second["values"] and first["differences"] == second["differences"]


def test_several_encoders_are_heard_in_one_decoding(place, monkeypatch):
    decoded = []
    load = audio.load
    monkeypatch.setattr(audio, "load", lambda path: (decoded.append(Path(path).name), load(path))[1])
    other = {"name": "spectral", "options": {"bands": 8}}
    found = scored(place, "near", metrics=("fad", "vendi"), encoder=[SPECTRAL, other], cache=None)
    assert len(decoded) == 12 + 14
    labels = {value.encoder for value in found.values}
    assert len(labels) == 2 and all(label.startswith("spectral-") for label in labels)
    assert {value.facts["d"] for value in found.values if value.metric == "fad"} == {16, 8}
    assert len(found.songs[0].scores) == 2  # a distance a song and encoder
    with pytest.raises(ConfigError, match="2 values have metric 'fad'; say also which encoder"):
        found["fad"]


def test_a_second_score_decodes_nothing(place, monkeypatch):
    scored(place)
    monkeypatch.setattr(audio, "load", lambda path: pytest.fail(f"{path} was decoded again"))
    scored(place, metrics=("fad", "vendi", "prdc"))


def test_rewards_hear_the_clips_with_captions_and_columns(place):
    seen = []

    def told(clips, prompts, length):
        seen.extend(zip(prompts, length, strict=True))
        return [None if n == "3" else float(n) for n in length]

    found = scored(place, "near", metrics=["fad", told], captions=place / "captions.csv")
    assert seen == [(f"slow jazz number {i}", str(i)) for i in range(12)]
    assert float(found["told"]) == pytest.approx(np.mean([i for i in range(12) if i != 3]))
    assert found["told"].facts["abstained"] == 1 and found["told"].better == "higher"
    assert [song.scores["told"] for song in found.songs][2:5] == [2.0, None, 4.0]


def test_rewards_are_handed_no_more_at_once_than_fits(place, monkeypatch):
    sizes = []

    def told(clips, prompts):
        sizes.append(len(clips))
        return [float(clip.samples[0, 0]) for clip in clips]

    whole = scored(place, "near", metrics=["fad", told])
    assert sizes == [8, 4]
    monkeypatch.setattr("dragon.measure.judged.BATCH_SAMPLES", 3 * 2 * 19_200)
    few = scored(place, "near", metrics=["fad", told])
    assert sizes[2:] == [3, 3, 3, 3] and float(few["told"]) == float(whole["told"])


def test_a_reward_of_sets_is_a_metric_of_the_set(place):
    found = scored(place, ["near", "far"], metrics=[SetVendi(Spectral(bands=16))])
    value = found.values[0]
    assert np.isfinite(value.value) and value.interval.startswith("jack-knife") and len(found.pairs) == 1


def test_clap_needs_nothing_but_captions(place):
    found = score(
        place / "near", None, ["clap"], encoder="mini", captions=place / "captions.csv", cache=place / "cache"
    )
    assert -1 <= float(found["clap"]) <= 1 and len(found.values) == 1
    same = score(
        place / "near", metrics=["clap_score"], captions=place / "captions.csv", cache=place / "cache", encoder=SPECTRAL
    )
    assert float(same["clap_score"]) == pytest.approx(float(found["clap"]), abs=1e-6)  # the same cosine as a reward


def test_an_exemplar_set_brings_its_encoder_and_its_limits(place, tmp_path):
    made = build_from_folder(place / "reference", Spectral(bands=16), "tones", min_seconds=0.5)
    found = scored(place, "near", made, metrics=("fad",))
    assert float(found["fad"]) > 0 and found.provenance["references"][0]["kind"] == "exemplar set"
    assert found.provenance["references"][0]["encoder_hash"] == Spectral(bands=16).fingerprint
    other = {"name": "spectral", "options": {"bands": 8}}
    both = scored(place, "near", made, metrics=("fad",), encoder=[SPECTRAL, other])
    assert len(both.values) == 1 and any("fad is not computed by spectral" in note for note in both.notes)
    with pytest.raises(ConfigError, match="exemplars 'tones' were embedded with 'spectral'"):
        scored(place, "near", made, metrics=("fad",), encoder=other)
    with pytest.raises(ConfigError, match="compares one vector a clip, which exemplar set 'tones' does not keep"):
        scored(place, "near", made, metrics=("prdc",))
    path = made.save(tmp_path / "tones.safetensors")
    assert float(scored(place, "near", path, metrics=("fad",))["fad"]) == pytest.approx(float(found["fad"]))


def test_two_references_are_two_columns(place):
    found = scored(place, "near", [place / "reference", place / "far"], metrics=("fad", "vendi"))
    assert {(v.metric, v.reference) for v in found.values} == {("fad", "reference"), ("fad", "far"), ("vendi", "")}
    assert list(found.songs[0].scores) == ["song_fad:reference", "song_fad:far"]


def test_defaults_say_what_they_are(place):
    found = score(place / "near", place / "reference", cache=place / "cache")
    assert [value.metric for value in found.values] == ["fad", "kad", "vendi"]
    assert {value.encoder for value in found.values} == {"mini"} and any("encoder 'mini'" in n for n in found.notes)
    alone = scored(place, "near", None, metrics=None)
    assert [value.metric for value in alone.values] == ["vendi"]


def test_files_given_one_by_one_are_one_set(place):
    files = sorted((place / "near").iterdir())
    found = score(files, place / "reference", ["fad"], encoder=SPECTRAL, cache=place / "cache")
    assert found["fad"].set == "near"
    assert float(found["fad"]) == pytest.approx(float(scored(place, "near", metrics=("fad",))["fad"]))


class TestWarnings:
    def test_files_that_are_in_the_reference_too(self, place):
        found = score({"copy": place / "reference"}, place / "reference", ["fad"], encoder=SPECTRAL, cache=None)
        assert any("14 of its files are also in the reference" in text for text in found.warnings)

    def test_sets_of_different_sizes_for_metrics_that_grow(self, place, tmp_path):
        write(tmp_path / "few", 6, 5)
        generated = {"few": tmp_path / "few", "near": place / "near"}
        found = score(generated, place / "reference", ["fad", "kad"], encoder=SPECTRAL, cache=place / "cache")
        assert any("fad depends on the number of clips" in t and "few 6, near 12" in t for t in found.warnings)
        assert not any(text.startswith("kad depends") for text in found.warnings)
        assert not any(pair.difference.paired for pair in found.pairs)  # other names: independent sets

    def test_exemplars_that_were_cut_before_their_encoder_heard_them(self, place):
        for seconds in (None, 0.5):
            made = build_from_folder(place / "reference", Spectral(bands=16), "tones", seconds=seconds)
            found = scored(place, "near", made, metrics=("fad",))
            told = [text for text in found.warnings if "'tones' was cut into pieces of 0.5 s" in text]
            assert len(told) == (seconds is not None)

    def test_few_frames(self, place):
        found = scored(place, "near", encoder={"name": "spectral", "options": {"bands": 64, "hop": 16_000}})
        assert any("singular" in text and "kad" in text for text in found.warnings)


class TestErrors:
    def test_everything_wrong_is_said_at_once(self, place):
        with pytest.raises(ConfigError) as error:
            score(
                place / "nowhere",
                "mini_discoo",
                ["fda", {"name": "prdc", "options": {"kk": 3}}, "clap", "clap_score"],
                encoder={"name": "spectral", "options": {"band": 3}},
            )
        text = str(error.value)
        assert text.startswith("7 problems")
        for part in (
            "nowhere: no such folder or file",
            "exemplars 'mini_discoo': neither a folder nor an exemplar set; did you mean 'mini_disco'",
            "no metric is called 'fda'; did you mean 'fad'",
            "metric 'prdc': kk: unknown key; did you mean 'k'",
            "metric 'clap' needs captions",
            "metric 'clap_score' compares clips with captions",
            "encoder 'spectral' has no option 'band'; did you mean 'bands'",
        ):
            assert part in text

    def test_a_distance_needs_exemplars(self, place):
        with pytest.raises(ConfigError, match="metric 'kad' needs exemplars; give --exemplars"):
            scored(place, exemplars=None, metrics=("vendi", "kad"))

    def test_a_set_of_ones_own_is_found_by_its_path_and_a_folder_by_its_nearest_name(self, place, monkeypatch):
        monkeypatch.chdir(place)
        Path("mine.safetensors").write_bytes(b"")
        for given, hint in (("mine", "that file is here: mine.safetensors"), ("referenc", "did you mean 'reference'?")):
            with pytest.raises(ConfigError) as error:
                score("near", given, ["fad"], encoder="spectral")
            assert hint in str(error.value) and "needs exemplars" not in str(error.value)
        Path("mine.safetensors").unlink()

    def test_clap_needs_ears_for_text(self, place):
        with pytest.raises(ConfigError, match="needs an encoder that embeds text, and 'spectral' does not"):
            scored(place, metrics=("clap",), captions=place / "captions.csv")

    def test_bad_files_of_all_folders_are_listed(self, place, tmp_path):
        for name in ("a", "b"):
            write(tmp_path / name, 5, 3)
            audio.save(tmp_path / name / "quiet.wav", Audio(np.zeros((1, 20_000), np.float32), 16_000))
        (tmp_path / "b" / "text.wav").write_text("no audio")
        with pytest.raises(AudioError) as error:
            score([tmp_path / "a", tmp_path / "b"], place / "reference", ["fad"], encoder=SPECTRAL, cache=None)
        assert str(error.value).count("quiet.wav: silent") == 2 and "text.wav: cannot be read" in str(error.value)
        folders = [tmp_path / "a", tmp_path / "b"]
        found = score(folders, place / "reference", ["fad"], encoder=SPECTRAL, cache=None, skip_bad=True)
        assert found.value("fad", set="b").facts["n"] == found.value("fad", set="a").facts["n"]
        assert any("b: 2 of 7 files left out: quiet.wav: silent" in text for text in found.warnings)
        assert [one["file"] for one in found.provenance["sets"][1]["skipped"]] == ["quiet.wav", "text.wav"]

    def test_clips_without_a_caption_are_named_before_anything_is_embedded(self, place, tmp_path, monkeypatch):
        (tmp_path / "c.csv").write_text("file,caption\n00.wav,one\n")
        monkeypatch.setattr(audio, "load", lambda path: pytest.fail("something was decoded"))
        with pytest.raises(ConfigError, match="no caption for 11 of 12 clips of 'near': 01.wav, .* and 3 more"):
            scored(place, "near", metrics=("vendi",), captions=tmp_path / "c.csv", cache=None)

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("name,caption\na,b\n", "columns name, caption; expected file,caption"),
            ("file,caption\n", "no rows"),
            ("file,caption\na.wav,\na.wav,x\na.wav,y\nb\n", "line 2: the caption is blank"),
            ("file,caption\na.wav,x\na.wav,y\n", "line 3: a.wav has a row already"),
            ("file,caption\na.wav\n", "line 2: expected 2 columns"),
        ],
    )
    def test_caption_files_that_cannot_be(self, place, tmp_path, text, part):
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(ConfigError, match=part):
            scored(place, "near", metrics=("vendi",), captions=tmp_path / "c.csv")

    def test_a_runs_samples_csv_serves_as_captions(self, place, tmp_path):
        write(tmp_path / "samples" / "base", 3, 4)
        rows = "".join(f"base/{i:02d}.wav,jazz {i},0,16000,1.2\n" for i in range(3))
        (tmp_path / "samples" / "samples.csv").write_text("file,prompt,seed,rate,seconds\n" + rows)
        seen = []

        def told(clips, prompts):
            seen.extend(prompts)
            return [0.0] * len(clips)

        captions = tmp_path / "samples" / "samples.csv"
        score(tmp_path / "samples" / "base", None, [told], encoder=SPECTRAL, captions=captions, cache=None)
        assert seen == ["jazz 0", "jazz 1", "jazz 2"]

    def test_a_metric_that_fails_is_named_with_its_set(self, place):
        with pytest.raises(ConfigError, match="metric prdc of 'near' by 'spectral': k is 12; expected 1 to 11"):
            scored(place, "near", metrics=[{"name": "prdc", "options": {"k": 12}}])

    def test_rewards_that_break_their_contract(self, place):
        class Broken:
            name, abstains = "broken", False

            def __init__(self, answer):
                self.answer = answer

            def score(self, media):
                return self.answer(len(media))

        for answer, error, part in (
            (lambda n: torch.full((n,), torch.nan), NotFinite, "'broken' gave nan for 00.wav"),
            (lambda n: torch.zeros(n, 2), PluginError, "'broken' gave shape"),
        ):
            with pytest.raises(error, match=part):
                scored(place, "near", metrics=[Broken(answer)])
        with pytest.raises(NotFinite, match="has no opinion on any clip"):
            scored(place, "near", metrics=[lambda clips, prompts: [None] * len(clips)])

    def test_a_set_reward_of_clips_of_many_lengths(self, place, tmp_path):
        class Frames:
            name = "frames"

            def embed(self, media):
                return Spectral(bands=16).embed_media(media)

            def score_sets(self, features, members):
                return features[members].double().mean(dim=(1, 2, 3))

        write(tmp_path / "mixed", 2, 3)
        assert np.isfinite(score(tmp_path / "mixed", None, [Frames()], encoder=SPECTRAL, cache=None)["frames"].value)
        audio.save(tmp_path / "mixed" / "long.wav", Audio(np.full((1, 48_000), 0.1, np.float32), 16_000))
        with pytest.raises(ShapeError, match="as many frames of every clip"):
            score(tmp_path / "mixed", None, [Frames()], encoder=SPECTRAL, cache=None)

    def test_a_metric_given_twice(self, place):
        with pytest.raises(ConfigError, match="metric 'fad' is given twice"):
            scored(place, metrics=("fad", "fad"))

    def test_a_value_that_is_not_there(self, place):
        with pytest.raises(ConfigError, match="no value has metric 'kda'; did you mean 'kad'"):
            scored(place, "near")["kda"]


def test_scoring_imports_no_trainers_packages(place, root):
    """Three lines of Python, in a fresh interpreter."""
    code = f"""
import sys
from dragon.measure import score
result = score({str(place / "near")!r}, exemplars={str(place / "reference")!r}, metrics=["fad", "kad"],
               encoder=["mini", "spectral"], cache={str(place / "cache")!r})
print(result)
print("loaded:", *[name for name in ("diffusers", "peft", "accelerate", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "mini, 128" in done.stdout and "spectral, 64" in done.stdout and done.stdout.splitlines()[-1] == "loaded:"


def test_every_metric_that_cannot_be_computed_is_told_at_once(place):
    with pytest.raises(ConfigError, match=r"(?s)no score:.*metric fad_inf of 'near'.*metric prdc of 'near'.*k is 50"):
        scored(place, "near", metrics=({"name": "prdc", "options": {"k": 50}}, "fad_inf")[::-1], encoder="mini")
    with pytest.raises(ShapeError, match="^metric fad_inf of 'near'"):
        scored(place, "near", metrics=("fad_inf",), encoder="mini")


def test_a_fault_of_a_reward_names_the_clip(place):
    class Broken:
        name, abstains = "broken", False

        def score(self, media):
            return self.found(media)

        def found(self, media):
            return None

    with pytest.raises(PluginError, match="metric 'broken' gave NoneType; expected a torch.Tensor"):
        scored(place, "near", None, metrics=[Broken()])
    broken = Broken()
    broken.found = lambda media: torch.full((len(media),), torch.nan, dtype=torch.float64)
    with pytest.raises(NotFinite, match=r"gave nan for 00.wav; expected a finite score, or NaN"):
        scored(place, "near", None, metrics=[broken])
    broken.found = lambda media: media.nothing
    with pytest.raises(
        PluginError, match=r"'broken' raised AttributeError: .* \(test_scores.py, line \d+\) for clip 0"
    ):
        scored(place, "near", None, metrics=[broken])


def test_equal_values_are_called_equal_and_zero_has_no_sign(place):
    def zero(audio, prompts):
        return [-0.0 for _ in audio]

    text = str(scored(place, exemplars=None, metrics=[zero]))
    assert "equal" in text and "not certainly" not in text and "-0" not in text
    assert "clips that do not differ" in text


def test_captions_that_nothing_reads_are_told_of(place):
    captions = place / "captions.csv"
    assert "read by no metric" in str(scored(place, "near", metrics=("fad",), captions=captions))
    assert "read by no metric" not in str(scored(place, "near", None, ("clap",), captions=captions, encoder="mini"))


@pytest.mark.parametrize(("option", "text"), [("seed", "seed is -1"), ("device", "'cuda:77' is not there")])
def test_wrong_numbers_and_devices_are_known_before_anything_is_embedded(place, option, text):
    with pytest.raises(ConfigError, match=text):
        scored(place, "near", cache=place / "never", **{option: {"seed": -1, "device": "cuda:77"}[option]})
    assert not (place / "never").exists()
