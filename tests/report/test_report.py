"""The run folder after an evaluation: files one can recompute from, pictures, and a page that needs nothing else."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from dragon import audio, image, intervals
from dragon.errors import ConfigError
from dragon.evaluate import evaluate
from dragon.policy.toy import ToyPolicy
from dragon.report import Page, listen_page, run_pictures, write_evaluation, write_report
from dragon.report.files import read_samples, read_scores
from dragon.report.page import player
from dragon.report.pictures import read_log, sample_pairs
from dragon.report.spectrogram import log_mel

PROMPTS = ("left", "right", "up", "down", "left", "right")
RATE = 8000


class TonePolicy(ToyPolicy):
    """Half a second of a tone for each point of the plane: x is the pitch, y the loudness."""

    def decode(self, generation):
        media = super().decode(generation)
        x, y = media.tensor[:, 0], media.tensor[:, 1]
        t = torch.arange(RATE // 2) / RATE
        tone = (0.5 + 0.4 * y.clamp(-1, 1)) * torch.sin(2 * torch.pi * 880 * 2**x * t)
        return replace(media, tensor=tone[:, None].float(), rate=RATE)


class ColourPolicy(ToyPolicy):
    """A picture of one colour for each point of the plane: x is red, y green."""

    def decode(self, generation):
        media = super().decode(generation)
        x, y = media.tensor[:, 0].clamp(-1, 1), media.tensor[:, 1].clamp(-1, 1)
        return replace(media, tensor=torch.stack([x, y, -torch.ones_like(x)], 1)[..., None].expand(-1, -1, 6, 8))


@dataclass(frozen=True)
class Redness:
    name: str = "redness"
    abstains: bool = False

    def score(self, media):
        return media.tensor[:, 0].double().mean((1, 2))


@dataclass(frozen=True)
class Loudness:
    name: str = "loudness"
    abstains: bool = True

    def score(self, media):
        power = media.tensor.double().square().mean((1, 2))
        return torch.where(power > 0.055, power, torch.nan)


def measured(policy, rewards=None, **options):
    weights = {name: p.detach().clone() for name, p in policy.trainable().items()}
    list(weights.values())[-1].add_(torch.tensor([0.0, -1.0]))
    options = {"steps": 8, "guidance": 1.0, "keep": 4, **options}
    return evaluate(policy, rewards or {"loudness": Loudness()}, set(), PROMPTS, tuned_weights=weights, **options)


@pytest.fixture(scope="module")
def evaluation():
    return measured(TonePolicy())


@pytest.fixture
def folder(tmp_path, evaluation):
    write_evaluation(evaluation, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def coloured():
    return measured(ColourPolicy(), {"redness": Redness()})


@pytest.fixture
def pictured(tmp_path, coloured):
    write_evaluation(coloured, tmp_path)
    return tmp_path


class TestFiles:
    def test_json_is_the_evaluation(self, folder, evaluation):
        found = json.loads((folder / "evaluation.json").read_text())
        assert found == json.loads(json.dumps(evaluation.to_json()))

    def test_win_rate_can_be_recomputed_from_the_scores(self, folder, evaluation):
        tables = {}
        for side in ("base", "tuned"):
            tables[side] = np.full((6, 2), np.nan)
            for line in read_scores(folder):
                if line.side == side:
                    tables[side][line.prompt_index, line.sample] = line.score
                    assert line.prompt == PROMPTS[line.prompt_index]
                    assert line.seed == evaluation.sides[side].seeds[line.prompt_index][line.sample]
            np.testing.assert_array_equal(tables[side], evaluation.sides[side].scores["loudness"])
        assert np.isnan(tables["base"]).any()  # abstentions survive the file
        shares = intervals.win_shares(tables["base"], tables["tuned"])
        assert np.nanmean(shares) == pytest.approx(evaluation.rewards["loudness"].win_rate)

    def test_samples_are_the_kept_clips(self, folder, evaluation):
        with open(folder / "samples" / "samples.csv", newline="") as stream:
            lines = list(csv.DictReader(stream))
        assert list(lines[0]) == ["file", "prompt", "seed", "rate", "seconds"]
        assert [line["file"] for line in lines] == [
            f"{side}/{row:04d}.wav" for side in ("base", "tuned") for row in (0, 1, 3, 5)
        ]
        for side in ("base", "tuned"):
            kept = [sample for sample in read_samples(folder) if sample.side == side]
            for row, sample in enumerate(kept):
                clip = audio.load(folder / "samples" / sample.file)
                assert (clip.rate, clip.seconds, sample.seconds) == (RATE, 0.5, 0.5)
                # 16 bits: half a step is 1.5e-5
                np.testing.assert_allclose(clip.samples, evaluation.sides[side].kept.tensor[row], atol=4e-5)

    def test_writing_again_replaces_the_samples(self, folder):
        write_evaluation(measured(TonePolicy(), keep=2), folder)
        assert len(list((folder / "samples").glob("*/*.wav"))) == 4
        assert len(read_samples(folder)) == 4

    def test_keeping_no_clips_leaves_no_stale_ones(self, folder):
        write_evaluation(measured(TonePolicy(), keep=0), folder)
        assert read_samples(folder) == []
        assert list((folder / "samples").glob("*/*.wav")) == []
        assert {path.name for path in write_report(folder)} == {"win_rates.png", "scores.png"}

    def test_media_without_a_rate_is_kept_as_arrays(self, tmp_path):
        found = measured(ToyPolicy(), {"loudness": replace(Loudness())})
        write_evaluation(found, tmp_path)
        sample = read_samples(tmp_path)[0]
        assert (sample.file, sample.rate, sample.seconds) == ("base/0000.npy", None, None)
        np.testing.assert_array_equal(np.load(tmp_path / "samples" / sample.file), found.sides["base"].kept.tensor[0])
        assert sample_pairs(tmp_path) == []
        assert listen_page(tmp_path) is None

    def test_images_are_kept_as_pictures(self, pictured, coloured):
        found = read_samples(pictured)
        assert [sample.file for sample in found] == [
            f"{side}/{row:04d}.png" for side in ("base", "tuned") for row in (0, 1, 3, 5)
        ]
        assert {(sample.rate, sample.seconds, sample.is_picture) for sample in found} == {(None, None, True)}
        for side in ("base", "tuned"):
            kept = coloured.sides[side].kept.tensor
            for row, sample in enumerate(sample for sample in found if sample.side == side):
                pixels = image.load(pictured / "samples" / sample.file)
                assert float((pixels - kept[row]).abs().max()) <= 1 / 255 + 1e-6

    def test_a_folder_without_an_evaluation_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="evaluation_scores.csv: no such file"):
            read_scores(tmp_path)

    def test_a_table_with_other_columns_is_refused(self, folder):
        (folder / "samples" / "samples.csv").write_text("file,caption\n")
        with pytest.raises(ConfigError, match=r"columns \['file', 'caption'\]"):
            read_samples(folder)


class TestPictures:
    def test_one_picture_for_each_thing_the_run_left(self, folder):
        assert {path.name for path in run_pictures(folder)} == {"win_rates.png", "scores.png", "spectrograms.png"}
        log = [{"step": s, "rewards": {"loudness": 0.1 * s}, "gap": 1.0, "implicit_accuracy": 0.5} for s in (1, 2, 3)]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        written = run_pictures(folder)
        assert {path.name for path in written} == {"win_rates.png", "scores.png", "spectrograms.png", "training.png"}
        for path in written:
            assert path.read_bytes().startswith(b"\x89PNG")
            assert path.stat().st_size > 5000

    def test_images_are_drawn_beside_each_other(self, pictured):
        from PIL import Image

        written = {path.name: path for path in run_pictures(pictured)}
        assert set(written) == {"win_rates.png", "scores.png", "images.png"}
        drawn = np.array(Image.open(written["images.png"]).convert("RGB")).reshape(-1, 3)
        for sample in read_samples(pictured):
            colour = np.array(Image.open(pictured / "samples" / sample.file))[0, 0]
            assert (drawn == colour).all(1).sum() > 5000

    def test_an_empty_folder_gives_none(self, tmp_path):
        assert run_pictures(tmp_path) == []

    def test_a_step_logged_twice_counts_once_the_later_one(self, tmp_path):
        lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 3.0}]
        (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert [record["loss"] for record in read_log(tmp_path / "log.jsonl")] == [1.0, 3.0]

    def test_a_damaged_log_is_named_by_its_line(self, tmp_path):
        (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step"')
        with pytest.raises(ConfigError, match="log.jsonl, line 2"):
            run_pictures(tmp_path)

    def test_an_evaluation_of_another_version_is_refused(self, folder):
        (folder / "evaluation.json").write_text('{"version": 2}')
        with pytest.raises(ConfigError, match="version 2; this release reads version 1"):
            run_pictures(folder)


class TestSpectrogram:
    @pytest.mark.parametrize("hz", [200, 1000, 3000])
    def test_a_tone_is_brightest_at_its_own_band(self, hz):
        t = np.arange(16_000) / 16_000
        picture = log_mel(np.sin(2 * np.pi * hz * t), 16_000)
        assert picture.max() == 0
        assert picture.min() >= -80
        # band b of 96 is centred at (b + 1) / 97 of the mel range
        expected = 97 * np.log10(1 + hz / 700) / np.log10(1 + 8000 / 700) - 1
        assert picture.mean(1).argmax() == pytest.approx(expected, abs=1)

    def test_level_does_not_matter_and_silence_is_drawn(self):
        noise = np.random.default_rng(0).normal(size=4000)
        np.testing.assert_allclose(log_mel(noise, 8000), log_mel(0.01 * noise, 8000), atol=1e-6)
        assert np.isfinite(log_mel(np.zeros(100), 8000)).all()


class Links(HTMLParser):
    """Sources of a page's parts, and whether its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open = {"audio": [], "img": [], "script": [], "link": []}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in self.sources:
            self.sources[tag].append(dict(attrs).get("src"))
        if tag not in ("img", "meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class TestListenPage:
    def test_players_stand_in_pairs_and_their_files_exist(self, folder):
        links = Links(listen_page(folder).read_text())
        assert links.open == []
        assert len(links.sources["audio"]) == len(links.sources["img"]) == 8
        for base, tuned in zip(links.sources["audio"][::2], links.sources["audio"][1::2], strict=True):
            assert base.replace("/base/", "/tuned/") == tuned
            assert (folder / base).is_file()
            assert (folder / tuned).is_file()

    def test_nothing_from_outside(self, folder):
        text = listen_page(folder).read_text()
        assert "http" not in text
        assert "@import" not in text
        assert Links(text).sources["link"] == []
        assert all(source.startswith("data:image/png;base64,") for source in Links(text).sources["img"])

    def test_embedding_needs_no_files_at_all(self, folder):
        sources = Links(listen_page(folder, embed=True).read_text()).sources["audio"]
        assert all(source.startswith("data:audio/wav;base64,") for source in sources)

    def test_scores_of_the_clips_and_the_table_are_shown(self, folder, evaluation):
        text = listen_page(folder).read_text()
        shown = re.findall(r"loudness ([\d.e-]+|no opinion)<", text)
        base, tuned = (evaluation.sides[side].scores["loudness"][[0, 1, 3, 5], 0] for side in ("base", "tuned"))
        expected = [v for pair in zip(base, tuned, strict=True) for v in pair]
        assert shown == ["no opinion" if np.isnan(v) else f"{v:.4g}" for v in expected]
        assert f"<td>{100 * evaluation.rewards['loudness'].win_rate:.1f} %</td>" in text

    def test_images_stand_in_pairs_and_their_files_exist(self, pictured):
        text = listen_page(pictured).read_text()
        links = Links(text)
        assert links.open == [] and links.sources["audio"] == [] and len(links.sources["img"]) == 8
        for base, tuned in zip(links.sources["img"][::2], links.sources["img"][1::2], strict=True):
            assert base.replace("/base/", "/tuned/") == tuned
            assert (pictured / base).is_file() and (pictured / tuned).is_file()
        assert re.search(r"seed \d+<", text) and len(re.findall(r"redness -?[\d.e-]+<", text)) == 8

    def test_embedded_images_need_no_files_at_all(self, pictured):
        sources = Links(listen_page(pictured, embed=True).read_text()).sources["img"]
        assert len(sources) == 8 and all(source.startswith("data:image/png;base64,") for source in sources)

    def test_write_report_makes_pictures_and_page(self, folder):
        assert [path.name for path in write_report(folder)][-1] == "listen.html"


class TestPage:
    def test_text_is_escaped_everywhere(self):
        page = Page("<b>&")
        page.heading("<script>")
        page.note('"quotes"')
        page.table(["<th>"], [["<td>"]])
        page.columns([("<h3>", [])])
        text = str(page)
        for raw in ("<b>&", "<h2><script>", "<th><th>", "<td><td>", "<h3><h3>"):
            assert raw not in text
        assert Links(text).open == []

    def test_a_path_with_odd_characters_is_a_valid_address(self, tmp_path):
        part = player(tmp_path / 'a b#"1.wav', page_folder=tmp_path, embed=False, label="x")
        assert 'src="a%20b%23%221.wav"' in part
