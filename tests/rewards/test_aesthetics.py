"""A head from ratings to a reward: the same score as in fitting, in the ratings' units, with no other encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dragon import audio
from dragon.cli import main
from dragon.encoders.spectral import Spectral
from dragon.encoders.vectors import clip_vectors
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.media import Media
from dragon.protocols import InstanceReward
from dragon.rewards.aesthetics import Aesthetics, AestheticsHead, load_head
from dragon.testing import check_reward

RATE = 8000
CLIPS = 40
ENCODER = "{name: spectral, options: {bands: 6, rate: 8000}}"


def head(**changes: object) -> AestheticsHead:
    ears = Spectral(bands=6, rate=RATE)
    values: dict[str, object] = {
        "weight": torch.linspace(-1, 1, 6, dtype=torch.float64),
        "mean": torch.arange(6, dtype=torch.float64),
        "scale": torch.linspace(1, 2, 6, dtype=torch.float64),
        "bias": 3.5,
        "unit": "rating",
        "encoder": "spectral",
        "encoder_hash": ears.fingerprint,
        "encoder_options": {"bands": 6, "rate": RATE},
        "figures": {"srcc": 0.5},
        "licence": "CC0",
    }
    return AestheticsHead(**(values | changes))  # type: ignore[arg-type]


def clips(count: int = 3) -> Media:
    waves = 0.3 * torch.randn(count, 2, RATE, generator=torch.Generator().manual_seed(0))
    return Media(waves * torch.linspace(0.2, 1, count)[:, None, None], ("a piano",) * count, RATE)


class Pairs:
    """A joint encoder whose clip embedding is not the mean of its frames."""

    name, fingerprint, features = "pairs", "pairs", 2

    def embed_media(self, media: Media) -> torch.Tensor:
        return torch.zeros(len(media), 3, 2)

    def embed_clips(self, media: Media) -> torch.Tensor:
        return torch.nn.functional.normalize(media.tensor[:, 0, :2], dim=-1)

    def embed_text(self, prompts: list[str]) -> torch.Tensor:
        return torch.ones(len(prompts), 2)


def test_the_score_is_a_weighted_sum_of_standardised_features():
    """weight (1, 2), mean (0, 1), scale (1, 4), bias 3: vector (5, 9) scores 3 + 5 + 2 * 8 / 4 = 12."""
    two = head(
        weight=torch.tensor([1.0, 2.0]).double(),
        mean=torch.tensor([0.0, 1.0]).double(),
        scale=torch.tensor([1.0, 4.0]).double(),
        bias=3.0,
    )
    assert two.scores(torch.tensor([[5.0, 9.0], [0.0, 1.0]])).tolist() == [12.0, 3.0]
    with pytest.raises(ShapeError, match=r"\(1, 3\); expected \(clips, 2\)"):
        two.scores(torch.ones(1, 3))


def test_it_keeps_the_contract_of_a_reward():
    reward = Aesthetics(head())
    assert isinstance(reward, InstanceReward) and reward.name == "aesthetics"
    check_reward(reward, clips(4))


def test_a_joint_encoders_clip_embedding_counts_and_not_its_frames():
    vectors = clip_vectors(Pairs(), clips())
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(clip_vectors(Spectral(bands=6), clips()), Spectral(bands=6).embed_media(clips()).mean(1))


def test_a_file_holds_all_that_scoring_needs(tmp_path: Path):
    path = head().save(tmp_path / "head.safetensors")
    found = load_head(path)
    assert found.figures == {"srcc": 0.5} and found.licence == "CC0" and found.unit == "rating"
    assert torch.equal(Aesthetics(str(path)).score(clips()), Aesthetics(head()).score(clips()))  # encoder made anew


def test_another_encoder_is_refused_with_the_next_step(tmp_path: Path):
    path = head().save(tmp_path / "head.safetensors")
    with pytest.raises(ConfigError, match=r"fitted with encoder 'spectral'.*dragon aesthetics fit RATINGS.csv"):
        Aesthetics(path, encoder={"name": "spectral", "options": {"bands": 6, "rate": 16_000}})


def test_files_that_are_no_heads_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no aesthetics head.*dragon aesthetics fit"):
        load_head(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="ends in .safetensors"):
        head().save(tmp_path / "head.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ConfigError, match="is no aesthetics head"):
        load_head(tmp_path / "text.safetensors")
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="its header does not say"):
        load_head(tmp_path / "other.safetensors")
    head(version=9).save(tmp_path / "new.safetensors")
    with pytest.raises(ConfigError, match="version 9; this program reads version 1"):
        load_head(tmp_path / "new.safetensors")
    head(bias=float("nan")).save(tmp_path / "nan.safetensors")
    with pytest.raises(NotFinite, match=r"aesthetics: clip 0 \(prompt 'a piano'\) scores nan"):
        Aesthetics(tmp_path / "nan.safetensors").score(clips())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ratings by two raters of tones whose level falls from 5 (loud) to 1; ten prompts; one file of each rate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dragon.cli.COMMANDS", {"aesthetics": ""})
    rng = np.random.default_rng(0)
    lines = ["file,rating,rater,prompt"]
    for i in range(CLIPS):
        loud = rng.uniform(1, 5)
        wave = 10 ** ((loud - 6) / 2) * rng.standard_normal((1, RATE)).clip(-1, 1)
        audio.save(f"{i}.wav", audio.Audio(wave.astype(np.float32), RATE))
        lines += [f"{i}.wav,{loud + 0.3 * rng.standard_normal():.3f},{rater},prompt {i % 10}" for rater in "ab"]
    Path("ratings.csv").write_text("\n".join(lines))
    return tmp_path


def test_from_ratings_to_a_reward_by_the_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["aesthetics", "fit", "ratings.csv", "--encoder", ENCODER, "--cache", "none", "--licence", "CC0"]) == 0
    said = capsys.readouterr().out
    assert "40 clips, 80 ratings; held out by prompt (10)" in said and "raters split in halves" in said
    assert "wrote ratings.safetensors" in said
    found = load_head("ratings.safetensors")
    assert found.figures["figures"]["plcc"]["value"] > 0.9 and found.licence == "CC0"  # type: ignore[index]
    reward = Aesthetics("ratings.safetensors")
    waves = [audio.load(f"{i}.wav").samples for i in range(CLIPS)]
    scores = reward.score(Media(torch.from_numpy(np.stack(waves)), ("",) * CLIPS, RATE)).numpy()
    rated = np.loadtxt("ratings.csv", delimiter=",", skiprows=1, usecols=1).reshape(CLIPS, 2).mean(1)
    assert np.corrcoef(scores, rated)[0, 1] > 0.95 and abs(scores.mean() - rated.mean()) < 1e-3  # in their units
    assert main(["aesthetics", "show", "ratings.safetensors"]) == 0
    assert "unit             rating" in capsys.readouterr().out
    assert main(["aesthetics", "fit", "ratings.csv"]) == 2
    assert "exists already; give another --out, or --replace" in capsys.readouterr().err


def test_bad_audio_is_listed_by_line_or_left_out(folder: Path, capsys: pytest.CaptureFixture[str]):
    audio.save("3.wav", audio.Audio(np.zeros((1, RATE), np.float32), RATE))
    Path("7.wav").write_text("no audio")
    command = ["aesthetics", "fit", "ratings.csv", "--encoder", ENCODER, "--cache", "none"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "2 lines cannot be used" in said and "--skip_bad" in said
    assert "line 8: 3.wav: silent" in said and "line 16: 7.wav: cannot be read" in said
    assert not Path("ratings.safetensors").exists()
    assert main([*command, "--skip_bad"]) == 0
    said = capsys.readouterr().out
    assert "38 clips, 76 ratings" in said and "left out: 3.wav: silent" in said
    assert len(load_head("ratings.safetensors").settings["notes"]) == 2  # type: ignore[arg-type]


def test_slips_of_the_command_line_say_what_is_expected(folder: Path, capsys: pytest.CaptureFixture[str]):
    for arguments, telling in (
        ([], "expected: dragon aesthetics fit RATINGS.csv"),
        (["fit"], "no file of ratings given"),
        (["fit", "none.csv"], "no ratings file 'none.csv'"),
        (["fit", "ratings.csv", "--audio", "elsewhere"], "line 2: no file 'elsewhere/0.wav'"),
        (["fit", "ratings.csv", "--out", "head.pt"], "ends in .safetensors"),
        (["fit", "ratings.csv", "--encoder", "spectrall", "--cache", "none"], "did you mean 'spectral'"),
    ):
        assert main(["aesthetics", *arguments]) == 2
        assert telling in capsys.readouterr().err
