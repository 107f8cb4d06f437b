"""dragon score: from folders to a table and files; every mistake is one message."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dragon import audio
from dragon.audio import Audio
from dragon.commands import score as command
from dragon.errors import AudioError, ConfigError

SPECTRAL = "{name: spectral, options: {bands: 16}}"


def write(folder: Path, count: int, seed: int, pitch: float = 300.0) -> Path:
    """Tones with noise, 1.2 s at 16 kHz."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    turns = 2 * np.pi * pitch * np.arange(19_200) / 16_000
    for number in range(count):
        clip = 0.3 * np.sin(generator.uniform(0.7, 1.4) * turns) + 0.03 * generator.standard_normal(19_200)
        audio.save(folder / f"{number:02d}.wav", Audio(clip[None].astype(np.float32), 16_000))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("command")
    write(root / "reference", 8, 0)
    write(root / "near", 6, 1, 330.0)
    write(root / "far", 6, 2, 2000.0)
    (root / "captions.csv").write_text("file,caption\n" + "".join(f"{i:02d}.wav,slow jazz\n" for i in range(8)))
    return root


@pytest.fixture
def inside(folders, monkeypatch) -> Path:
    monkeypatch.chdir(folders)
    monkeypatch.setenv("DRAGON_CACHE", str(folders / "cache"))
    return folders


def test_folders_become_a_table_and_three_files(inside, capsys):
    command.run(
        [
            *("near", "far", "--exemplars", "reference", "--metrics", "fad", "kad", "{name: prdc, options: {k: 2}}"),
            *("--encoder", SPECTRAL, "--out", "s.json", "--songs", "s.csv", "--picture", "s.png"),
        ]
    )
    out = capsys.readouterr().out
    for text in ("spectral, 16 features", "against reference", "precision", "best", "wrote s.json", "wrote s.png"):
        assert text in out
    saved = json.loads(Path("s.json").read_text())
    assert {value["metric"] for value in saved["values"]} == {
        *("fad", "kad", "precision", "recall", "density", "coverage")
    }
    assert next(v for v in saved["values"] if v["metric"] == "recall")["facts"]["k"] == 2
    with open("s.csv") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert Path("s.png").stat().st_size > 10_000
    assert list((inside / "cache" / "embeddings").iterdir())


def test_without_flags_it_says_what_it_took(inside, capsys):
    command.run(["near", "--encoder", "spectral"])
    out = capsys.readouterr().out
    assert "vendi" in out and "fad" not in out


def test_several_encoders_and_captions(inside, capsys):
    command.run(["near", "--metrics", "clap", "vendi", "--encoder", "mini", "spectral", "--captions", "captions.csv"])
    out = capsys.readouterr().out
    assert "clap is not computed by spectral, which embed no text" in out and out.count("vendi") == 2


def test_no_cache_keeps_nothing(inside, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DRAGON_CACHE", str(tmp_path / "none"))
    command.run(["near", "--encoder", SPECTRAL, "--cache", "none"])
    assert not (tmp_path / "none").exists()


def test_an_interruption_says_that_the_same_command_goes_on(inside, monkeypatch):
    import dragon.measure

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(dragon.measure, "score", interrupted)
    with pytest.raises(KeyboardInterrupt, match="what is embedded is kept, and the same command goes on"):
        command.run(["near"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no folder given before the flags; expected: dragon score FOLDER"),
        (["--metrics", "fad"], "no folder given before the flags"),
        (["near", "--out", "s.txt"], "--out s.txt: expected a name that ends in .json"),
        (["near", "--out", "near/00.wav/s.json"], "--out: folder 'near/00.wav': 'near/00.wav' is a file"),
        (["near", "--metrics", "{name: fad"], "is not YAML"),
        (["near", "--metrics", "{fad}"], "expected a name, or {name: NAME"),
        (["near", "--metrics", "fad"], "metric 'fad' needs exemplars; give --exemplars"),
        (["near", "--metrics", "vendy"], "no metric is called 'vendy'; did you mean 'vendi'"),
        (["near", "--encoder", "spectrl"], "no encoder is called 'spectrl'; did you mean 'spectral'"),
        (["near", "--captions", "nowhere.csv"], "captions nowhere.csv cannot be read"),
        (["near", "--groups", "1"], "groups is 1"),
        (["near", "near"], "near is given twice"),
    ],
)
def test_mistakes_are_one_message(inside, arguments, part):
    with pytest.raises(ConfigError) as error:
        command.run([*arguments, *(["--encoder", "spectral"] if arguments and "--encoder" not in arguments else [])])
    assert part in str(error.value)


def test_bad_files_stop_it_unless_they_may_be_skipped(inside, tmp_path, capsys):
    write(tmp_path / "some", 3, 0)
    (tmp_path / "some" / "broken.wav").write_text("text")
    with pytest.raises(AudioError, match="broken.wav: cannot be read"):
        command.run([str(tmp_path / "some"), "--encoder", SPECTRAL])
    command.run([str(tmp_path / "some"), "--encoder", SPECTRAL, "--skip_bad"])
    assert "warning: some: 1 of 4 files left out: broken.wav" in capsys.readouterr().out


def test_help_needs_no_folder(capsys):
    with pytest.raises(SystemExit) as status:
        command.run(["--help"])
    assert status.value.code == 0 and "--exemplars" in capsys.readouterr().out


def test_a_flag_without_a_value_is_not_taken_for_the_default(inside):
    for flag in ("--exemplars", "--metrics", "--encoder"):
        with pytest.raises(ConfigError, match=f"{flag} is given without a value"):
            command.run(["near", flag])


def test_a_file_whose_name_starts_with_a_dash(inside):
    (inside / "-a.wav").write_bytes((inside / "near" / "00.wav").read_bytes())
    with pytest.raises(ConfigError, match=r"is written ./-a.wav"):
        command.run(["-a.wav"])
    command.run(["./-a.wav", "--encoder", SPECTRAL])
