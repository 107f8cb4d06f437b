"""Rewards one defines in one mixture: from a file and an installed package, each in units of its own spread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dragon.build import build
from dragon.config import RewardSpec
from dragon.contrast import best_worst
from dragon.media import Media
from dragon.scoring import Scoring, WeightedReward

MINE = """
import numpy as np

def level(audio, prompts, unit=1.0):
    return [unit * float(np.sqrt(np.square(clip.samples).mean())) for clip in audio]

class Changes:
    name, abstains = "changes", False
    def score(self, media):
        return media.tensor.double().diff(dim=2).abs().mean((1, 2))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mixed_of_test.py").write_text(MINE)
    info = tmp_path / "mixed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mixed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dragon.reward]\nmixed_changes = mixed_of_test:Changes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clips(m: int = 3, k: int = 4) -> Media:
    waves = torch.randn(m * k, 1, 400, generator=torch.Generator().manual_seed(0))
    return Media(waves * torch.linspace(0.1, 0.5, m * k)[:, None, None], ("p",) * (m * k), 16_000)


def mixed(unit: float, weight: float) -> torch.Tensor:
    specs = RewardSpec("mine.py:level", {"unit": unit}), RewardSpec("mixed_changes", {}, weight)
    rewards = [WeightedReward(build("reward", spec), spec.weight) for spec in specs]
    scoring = Scoring(rewards, best_worst())
    scored = scoring.scored(scoring.judge(clips(), range(12)), (3, 4))
    return scoring.split(scored, torch.Generator()).scores


def test_a_part_counts_by_its_spread_within_prompts_and_its_weight(place: Path):
    """Each part divided by its standard deviation within prompts, by hand: squares over m (k - 1) = 9."""
    level = clips().tensor.double().square().mean((1, 2)).sqrt().view(3, 4)
    changes = clips().tensor.double().diff(dim=2).abs().mean((1, 2)).view(3, 4)

    def spread(table: torch.Tensor) -> torch.Tensor:
        return ((table - table.mean(1, keepdim=True)).square().sum() / 9).sqrt()

    expected = level / spread(level) + 0.5 * changes / spread(changes)
    torch.testing.assert_close(mixed(1.0, 0.5), expected, rtol=1e-5, atol=1e-6)


def test_the_unit_of_a_part_changes_nothing_and_its_weight_does(place: Path):
    torch.testing.assert_close(mixed(1000.0, 0.5), mixed(1.0, 0.5), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed(1.0, 2.0), mixed(1.0, 0.5))
