"""Text that others chose, in prompts and in names: it is kept and shown as it is, and leads nowhere else."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dragon import audio
from dragon.cli import main
from dragon.commands.progress import print_evaluation
from dragon.errors import ConfigError, DragonError
from dragon.exemplars.gathered import check_name
from dragon.measure.picture import Projection, draw
from dragon.media import Media
from dragon.report import Page, write_evaluation, write_report
from dragon.report.files import read_samples, read_scores
from dragon.samples import SampleRequest, write_samples
from dragon.tables import csv_rows, csv_text
from dragon.texts import literal, short, shown, writable

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../../etc/passwd",
    "/etc/passwd",
    "a\rb\nc\x0bd\x85e\u2028f",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe",
    "🎵 音楽 👩‍🎤",
    "$x_{ \\frac $",
    "$" * 99,
    "[bold]x[/] [/link] [link=http://x]",
    '=1+1,\'"""',
    "_hidden",
    "long " * 20_000,
)
NAMES = (HOSTILE[0], HOSTILE[4], HOSTILE[5], "$x_{ \\frac $", "[bold]x[/] [/link] [link=http://x]", "_hidden")
"""Of rewards."""
RATE = 8000


@dataclass
class Side:
    prompts: tuple[str, ...]
    shift: float
    seeds: list[list[int]] = field(init=False)
    scores: dict[str, np.ndarray] = field(init=False)
    kept: Media = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.prompts)
        self.seeds = [[i, i + 100] for i in range(count)]
        self.scores = {name: np.arange(2.0 * count).reshape(count, 2) + self.shift for name in NAMES}
        wave = 0.3 * torch.sin(torch.arange(RATE // 4) * 0.3).expand(count, 1, -1)
        self.kept = Media(wave, self.prompts, RATE)

    @property
    def kept_prompts(self) -> range:
        return range(len(self.prompts))


class Finished:
    """An evaluation whose prompts and reward names are hostile."""

    prompts, samples_per_prompt, diversity = len(HOSTILE), 2, None

    def __init__(self) -> None:
        self.sides = {"base": Side(HOSTILE, 0.0), "tuned": Side(HOSTILE, 1.0)}
        figures = {"base": 0.0, "tuned": 1.0, "win_rate": 0.5, "low": 0.4, "high": 0.6, "same_seed_win_rate": None}
        self.json = {name: {**figures, "trained_on": True, "gain_sd": 1.0} for name in NAMES}

    @property
    def rewards(self) -> dict[str, SimpleNamespace]:
        return {name: SimpleNamespace(**figures) for name, figures in self.json.items()}

    def to_json(self) -> dict[str, object]:
        return {"version": 1, "prompts": self.prompts, "rewards": self.json, "diversity": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outer") / "run"
    write_evaluation(Finished(), folder)
    write_report(folder)
    return folder


class TestRunFolder:
    def test_every_prompt_and_name_reads_back(self, run):
        assert [sample.prompt for sample in read_samples(run)] == [*HOSTILE, *HOSTILE]
        scores = read_scores(run)
        assert list(dict.fromkeys(score.reward for score in scores)) == list(NAMES)
        assert list(dict.fromkeys(score.prompt for score in scores)) == list(HOSTILE)

    def test_nothing_lies_outside_and_no_name_was_chosen_by_a_prompt(self, run):
        assert [path.name for path in run.parent.iterdir()] == ["run"]
        names = sorted(path.name for path in (run / "samples" / "base").iterdir())
        assert names == [f"{i:04d}.wav" for i in range(len(HOSTILE))]

    def test_the_page_holds_the_text_and_none_of_its_markup(self, run):
        tags: list[tuple[str, dict[str, str | None]]] = []
        texts: list[str] = []

        class Reader(HTMLParser):
            def handle_starttag(self, tag, attributes):
                tags.append((tag, dict(attributes)))

            def handle_data(self, data):
                texts.append(data)

        page = (run / "listen.html").read_text(encoding="utf-8")
        Reader().feed(page)
        assert sum(tag == "script" for tag, _ in tags) == 1  # the page's own
        assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
        assert all((a["src"] or "").startswith(("data:", "samples/")) for t, a in tags if t in ("img", "audio"))
        assert HOSTILE[0] in texts and "\x1b" not in page and "\u202e" not in page
        assert "long " * 200 not in page  # cut, else one prompt buries the others

    def test_pictures_are_drawn(self, run):
        assert {path.name for path in (run / "pictures").iterdir()} == {
            "win_rates.png",
            "scores.png",
            "spectrograms.png",
        }

    def test_the_table_on_the_terminal_interprets_nothing(self, run, capsys):
        print_evaluation(Finished(), run)
        said = capsys.readouterr().out
        assert "[bold]x[/]" in said and "\x1b]0;" not in said and "\x07" not in said

    def test_clips_outside_the_folder_are_never_read(self, tmp_path):
        """A run folder from elsewhere could put any sound of this machine into a page that is sent around."""
        (tmp_path / "run" / "samples").mkdir(parents=True)
        audio.save(tmp_path / "secret.wav", audio.Audio(np.zeros((1, 9), np.float32), RATE))
        (tmp_path / "run" / "samples" / "link.wav").symlink_to(tmp_path / "secret.wav")
        for file in ("../../secret.wav", str(tmp_path / "secret.wav"), "link.wav"):
            lines = [(file, "a", 0, RATE, 1.0)]
            (tmp_path / "run/samples/samples.csv").write_text(
                csv_text(("file", "prompt", "seed", "rate", "seconds"), lines)
            )
            with pytest.raises(ConfigError, match="lies outside"):
                read_samples(tmp_path / "run")

    def test_links_lead_no_deletion_or_writing_out_of_the_folder(self, tmp_path):
        precious = tmp_path / "precious"
        (precious / "base").mkdir(parents=True)
        (precious / "base" / "a.wav").touch()
        run = tmp_path / "run"
        run.mkdir()
        (run / "samples").symlink_to(precious)
        with pytest.raises(ConfigError, match="samples is a link to .*precious"):
            write_evaluation(Finished(), run)
        (run / "samples").unlink()
        (run / "samples").mkdir()
        (run / "samples" / "base").symlink_to(precious / "base")
        (run / "evaluation.json").symlink_to(precious / "evaluation.json")
        (run / "evaluation.json.tmp").symlink_to(precious / "tmp")
        write_evaluation(Finished(), run)
        assert sorted(path.name for path in precious.rglob("*")) == ["a.wav", "base"]
        assert not (run / "samples" / "base").is_symlink() and (run / "evaluation.json").is_file()
        (run / "pictures").symlink_to(precious)
        with pytest.raises(ConfigError, match="pictures is a link"):
            write_report(run)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 2}', "\0", "[" * 9999])
    def test_a_damaged_evaluation_is_told(self, run, tmp_path, content):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(ConfigError, match="damaged|version"):
            write_report(tmp_path)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.integers(0, 3000), new=st.sampled_from(["", ",", '"', "\n", "x", "\0", "-"]))
    def test_a_damaged_table_is_read_or_told(self, run, tmp_path, place, new):
        text = (run / "samples" / "samples.csv").read_text()
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / "samples" / "samples.csv").write_text(text[:place] + new + text[place + 1 :])
        try:
            read_samples(tmp_path)
        except DragonError as error:
            assert "samples.csv" in str(error)


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.isdir("/proc"), reason="nothing here that root may not write")
@pytest.mark.parametrize("place", ["/proc/dragon", "file/inside", "x" * 300])
def test_a_place_that_cannot_be_written_is_one_message(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DragonError, match="cannot be written"):
        write_evaluation(Finished(), place)
    with pytest.raises(DragonError, match="cannot be written|holds something"):
        list(write_samples("toy", SampleRequest(prompt=("left",), output_dir=place)))


class TestTables:
    @settings(max_examples=200, deadline=None)
    @given(cells=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
    @example(cells=["a\rb", "c\0", '"', ",\n"])
    def test_any_cells_read_back(self, tmp_path_factory, cells):
        place = tmp_path_factory.mktemp("t") / "t.csv"
        columns = [str(i) for i in range(len(cells))]
        place.write_bytes(csv_text(columns, [cells]).encode())
        assert [list(row.values()) for row in csv_rows(place, columns)] == [cells]
        rows = list(csv.reader(io.StringIO(csv_text(columns, [cells]), newline="")))
        assert rows[1:] == [cells]  # and so they do for others

    def test_a_cell_may_be_longer_than_csv_likes_and_its_limit_stays(self, tmp_path):
        limit = csv.field_size_limit()
        (tmp_path / "t.csv").write_text(csv_text(["a"], [["x" * (limit + 1)]]))
        assert len(csv_rows(tmp_path / "t.csv", ["a"])[0]["a"]) == limit + 1
        assert csv.field_size_limit() == limit

    @pytest.mark.parametrize("content", [b"", b"b\n", b"a,b\n", b"a\n1,2\n", b"\xff"])
    def test_other_tables_are_told(self, tmp_path, content):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(ConfigError, match="t.csv"):
            csv_rows(tmp_path / "t.csv", ["a"])


class TestShown:
    @given(text=st.text())
    def test_what_is_shown_acts_on_no_terminal_and_can_be_written(self, text):
        seen = shown(text)
        seen.encode()
        assert not any(ord(c) < 32 and c not in "\t\n" or 0x7F <= ord(c) < 0xA0 for c in seen)
        assert shown(seen) == seen

    @given(text=st.text(st.characters(categories=["L", "N", "P", "Zs"])))
    def test_ordinary_text_stays_as_it_is(self, text):
        assert shown(text) == text and writable(text)

    @given(value=st.recursive(st.text() | st.integers(), st.lists), length=st.integers(20, 200))
    def test_what_is_short_is_short(self, value, length):
        assert len(short(value, length)) <= length + 30

    def test_numbers_of_any_length_have_a_text(self):
        assert "very many digits" in short(10**5000)

    @settings(max_examples=4, deadline=None)
    @given(text=st.text(st.sampled_from("$\\{}_^ab\n\x1b%#&~\ud800\U0001f3b5"), min_size=1, max_size=20))
    @example(text="$x_{ \\frac $")
    @example(text="_old")
    def test_any_set_name_is_drawn(self, text):
        points = np.array([[0.0, 1.0], [1.0, 0.0]])
        picture = Projection(text, "clips", (0.6, 0.3), {text: points}, points, text)
        song = SimpleNamespace(set=text, scores={text: 1.0})
        assert draw(picture, [song], {text: text}).startswith(b"\x89PNG")

    def test_no_name_is_left_out_of_a_legend(self):
        """matplotlib leaves out labels that begin with an underscore."""
        assert not literal("_old").startswith("_") and literal("_old").strip() == "_old"

    def test_pages_hold_halves_of_characters_as_escapes(self, tmp_path):
        page = Page("a\ud800")
        page.note("b\x1b\0")
        assert "a\\ud800" in page.write(tmp_path / "p.html").read_text() and "b\\x1b\\x00" in str(page)


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["", "..", "../up", "/abs", "a/b", "a\\b", "a b", "a\nb", "a\tb", "a\0b", "a\x1b[2J", "-flag", ".hidden"]
        + ["a\u202e", "x" * 201, "é" * 101, "\ud800"],
    )  # fmt: skip
    def test_an_exemplar_set_is_called_one_plain_word(self, name):
        with pytest.raises(ConfigError, match="exemplar set name"):
            check_name(name)

    @pytest.mark.parametrize("name", ["jazz", "jazz_train", "90s.v2", "müsik", "音楽", "x" * 200])
    def test_words_of_any_language_are_names(self, name):
        check_name(name)

    def test_files_are_told_by_their_names_without_acting_on_the_terminal(self, tmp_path, capsys):
        """Escapes, reordering, and bytes that are no text: of a folder of audio that someone sent."""
        for name in (b"\x1b[2Jred.wav", b"\xff\xfe.wav", "\u202egnp.wav".encode(), b"$x_{.wav", b"new\nline.wav"):
            with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
                file.write(b"no sound")
        assert main(["score", str(tmp_path), "--metrics", "vendi", "--cache", "none"]) == 2
        said = capsys.readouterr().err
        assert "5 of 5 audio files" in said
        assert "\x1b" not in said and "\u202e" not in said and "\\x1b[2Jred.wav" in said

    def test_a_set_of_such_files_is_scored_and_written(self, tmp_path, capsys):
        (tmp_path / "_$x_{ \x1b").mkdir()
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 1, RATE)).astype(np.float32)
        names = (b"\x1b[2Jred.wav", b"\xff.wav", "\u202egnp.wav".encode(), b"re\rturn.wav")
        for name, samples in zip(names, noise, strict=True):
            audio.save(tmp_path / "a.wav", audio.Audio(samples, RATE))
            os.rename(tmp_path / "a.wav", os.path.join(os.fsencode(tmp_path / "_$x_{ \x1b"), name))
        place = str(tmp_path / "_$x_{ \x1b")
        out = {
            flag: str(tmp_path / f"out.{end}")
            for flag, end in (("--out", "json"), ("--songs", "csv"), ("--picture", "png"))
        }
        flags = [word for pair in out.items() for word in pair]
        assert main(["score", place, "--metrics", "vendi", "--cache", "none", *flags]) == 0
        assert "\x1b" not in capsys.readouterr().out
        assert json.loads(Path(out["--out"]).read_text())["values"]
        with open(out["--songs"], newline="", encoding="utf-8") as file:
            assert sorted(row["file"] for row in csv.DictReader(file))[-1] == "\u202egnp.wav"


def test_samples_of_hostile_prompts_have_numbers_for_names(tmp_path, monkeypatch):
    from dragon.policy.toy import ToyPolicy

    prompts = HOSTILE[:-1]
    toy = ToyPolicy(components={prompt: ((0.0, 0.0, 0.1, 1.0),) for prompt in prompts})
    monkeypatch.setattr("dragon.samples.build_policy", lambda config: toy)
    wanted = SampleRequest(prompt=prompts, output_dir=str(tmp_path / "out"), steps=2)
    files = list(write_samples("toy", wanted))
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        f"out/{i:04d}.npy" for i in range(len(prompts))
    ]
    rows = csv_rows(tmp_path / "out" / "samples.csv", ("file", "prompt", "seed", "rate", "seconds"))
    assert tuple(row["prompt"] for row in rows) == prompts
    with pytest.raises(ConfigError, match="holds a NUL or half a character"):
        list(write_samples("toy", replace(wanted, prompt=("a\udcff",), output_dir=str(tmp_path / "other"))))
    assert not (tmp_path / "other").exists()
