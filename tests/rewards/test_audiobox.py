"""Audiobox-Aesthetics: the adapter hands over what the package reads, and reads what it gives.

The package is a stand-in with the interface of audiobox_aesthetics.infer 0.0.4; `test_the_real_package` runs where that
is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dragon.errors import AudioError, ConfigError, MissingExtra, NotFinite
from dragon.media import Media
from dragon.rewards.audiobox import AXES, Audiobox
from dragon.testing import check_reward

STAND_IN = '''
import torch
AXES_NAME = ["CE", "CU", "PC", "PQ"]
class AesPredictor:
    """forward(batch): dicts with "path" (channels, t) and "sample_rate" -> a dict of axes a clip."""
    def __init__(self, checkpoint_pth, precision="bf16", batch_size=1, data_col="path", sample_rate=16000):
        self.checkpoint_pth, self.data_col, self.sample_rate = checkpoint_pth, data_col, sample_rate
        self.device, self.model, self.sizes = torch.device("meta"), torch.nn.Linear(1, 1), []
    def forward(self, batch):
        assert all(item["sample_rate"] == 16000 and item[self.data_col].shape[0] == 1 for item in batch)
        self.sizes.append(len(batch))
        rows = []
        for item in batch:
            level = float(item[self.data_col].square().mean().sqrt())
            rows.append({"CE": 1 + level, "CU": 2 + level, "PC": 3 + level, "PQ": 4 + level})
        return rows
def initialize_predictor(ckpt=None):
    return AesPredictor(checkpoint_pth=ckpt, data_col="path")
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "audiobox_aesthetics"
    place.mkdir()
    (place / "__init__.py").write_text("")
    (place / "infer.py").write_text(STAND_IN)
    for name in ("audiobox_aesthetics", "audiobox_aesthetics.infer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("audiobox_aesthetics", "audiobox_aesthetics.infer"):
        sys.modules.pop(name, None)


def clips(rate: int = 16_000, channels: int = 1, count: int = 5) -> Media:
    levels = torch.arange(1, count + 1)[:, None, None] / 10
    wave = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate).expand(count, channels, rate)
    return Media(levels * wave, tuple(map(str, range(count))), rate)


def test_the_score_is_the_mean_of_its_axes(package: None):
    """A sine of amplitude a has level a / sqrt 2; CE, CU, PQ: mean of 1, 2, 4 plus the level."""
    level = torch.arange(1, 6, dtype=torch.float64) / 10 / 2**0.5
    torch.testing.assert_close(Audiobox().score(clips()), 7 / 3 + level, rtol=0, atol=1e-6)
    torch.testing.assert_close(Audiobox("PQ").score(clips()), 4 + level, rtol=0, atol=1e-6)
    assert set(Audiobox(["PC"]).ratings(clips())) == set(AXES)


def test_rate_channels_and_batch_change_nothing(package: None):
    expected = Audiobox().score(clips())
    torch.testing.assert_close(Audiobox().score(clips(44_100, 2)), expected, rtol=0, atol=1e-3)  # resampler's edges
    small = Audiobox(batch=2)
    assert torch.equal(small.score(clips()), expected)
    assert small._predictor.sizes == [2, 2, 1]


def test_it_keeps_the_contract_on_the_device_asked_for(package: None, recwarn):
    reward = Audiobox(device="cpu", name="taste")
    assert check_reward(reward).name == "taste"
    assert reward._predictor.device == torch.device("cpu")  # the package takes what it finds
    assert not recwarn


def test_a_checkpoint_that_is_not_there_is_refused_and_never_fetched(package: None, tmp_path: Path):
    with pytest.raises(ConfigError, match="no checkpoint '/nowhere.pt'; give a file"):
        Audiobox(checkpoint="/nowhere.pt")
    (tmp_path / "own.pt").write_bytes(b"")
    assert Audiobox(checkpoint=str(tmp_path / "own.pt"))._predictor.checkpoint_pth == str(tmp_path / "own.pt")


def test_bad_axes_and_clips_are_named(package: None, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"axes \['ce'\].*expected some of CE, CU, PC, PQ \(did you mean 'CE'\?\)"):
        Audiobox(["ce"])
    with pytest.raises(ConfigError, match=r"axes \[\]"):
        Audiobox([])
    with pytest.raises(AudioError, match="expected audio"):
        Audiobox().score(Media(torch.zeros(1, 3, 4, 4), ("a",)))
    reward = Audiobox()
    monkeypatch.setattr(reward._predictor, "forward", lambda batch: [dict.fromkeys(AXES, float("nan"))] * len(batch))
    with pytest.raises(NotFinite, match=r"audiobox: CE is nan for clip 0 \(prompt '0'\)"):
        reward.score(clips())


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    with pytest.raises(MissingExtra, match=r"audiobox-aesthetics .*pip install 'dragon-media\[audiobox\]'"):
        Audiobox()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("audiobox_aesthetics"), reason="needs audiobox-aesthetics")
def test_the_real_package_with_random_weights(tmp_path: Path):
    from audiobox_aesthetics.model.aes import AesMultiOutput

    config = {
        "proj_num_layer": 1,
        "proj_ln": False,
        "proj_act_fn": "gelu",
        "proj_dropout": 0,
        "nth_layer": 13,
        "use_weighted_layer_sum": True,
        "precision": "32",
        "normalize_embed": True,
        "output_dim": 1,
    }
    units = {axis: {"mean": 5.0, "std": 2.0} for axis in AXES}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AesMultiOutput(**config, target_transform=units)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    saved = {"state_dict": state, "model_cfg": config, "target_transform": units}
    torch.save(saved, tmp_path / "random.pt")
    assert check_reward(Audiobox(checkpoint=str(tmp_path / "random.pt"))).abstained == 0
