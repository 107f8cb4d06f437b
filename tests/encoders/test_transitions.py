"""Rows of transitions as features: units, whitening, columns by name, and sets of exemplars made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dragon.commands.exemplars import run as exemplars_command
from dragon.encoders.transitions import TerminalEncoder, TransitionEncoder
from dragon.errors import ConfigError, ShapeError
from dragon.exemplars import gather_transitions, load
from dragon.media import Media
from dragon.policy.transitions import media_of
from dragon.rewards import SetFrechet, SetMean
from dragon.synther import TransitionSpec, write_npz
from dragon.synther.columns import fit_layout
from tests.synther.linear_system import system


def clips() -> Media:
    return media_of(system(), fit_layout(system(), TransitionSpec(coding="plain")))


def test_columns_have_the_datas_mean_0_and_deviation_1():
    found = TransitionEncoder(system()).embed_media(clips())
    assert found.shape == (4000, 1, 7) and found.dtype == torch.float32
    torch.testing.assert_close(found.mean((0, 1)), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 0].std(0, correction=0), torch.ones(7), atol=1e-4, rtol=0)


def test_whitened_columns_have_unit_covariance_and_hear_a_broken_law_more():
    plain, white = TransitionEncoder(system()), TransitionEncoder(system(), whiten=True)
    rows = clips()
    # s' is exactly linear in s and a here: those two directions have no variance and are left out
    found = white.embed_media(rows)[:, 0]
    assert white.features == 5
    torch.testing.assert_close(torch.cov(found.T, correction=0), torch.eye(5), atol=1e-3, rtol=0)
    assert plain.fingerprint != white.fingerprint


def test_columns_are_chosen_by_the_name_of_one_or_of_an_array():
    some = TransitionEncoder(system(), columns=("terminals", "observations"))
    assert some.settings["columns"] == ["terminals", "observations.0", "observations.1"]
    flags = some.embed_media(clips())[:, 0, 0]
    rate = float(system().terminals.mean())
    low, high = -((rate / (1 - rate)) ** 0.5), ((1 - rate) / rate) ** 0.5
    torch.testing.assert_close(flags.unique(), torch.tensor([low, high]))


def test_ends_are_learnt_from_the_data_at_the_datas_rate():
    """The likelihood's derivative by the constant is 0: ends are on average as likely as rows are flagged."""
    found = TerminalEncoder(system()).embed_media(clips())
    assert found.shape == (4000, 1, 3) and found.dtype == torch.float32
    flagged, ends, both = found[:, 0].double().T
    assert float(ends.mean()) == pytest.approx(float(flagged.mean()), rel=1e-3)
    torch.testing.assert_close(both, flagged * ends, atol=1e-6, rtol=0)
    said = ends > 0.5
    assert (said & (flagged > 0)).sum() > 0.95 * flagged.sum()
    assert (said & (flagged == 0)).sum() < 0.05 * flagged.sum()


def test_flags_of_other_rows_are_told_from_right_ones_of_the_same_rate():
    """Flags dealt out at random leave the rate as it is: one reward cannot see that, the other does."""
    data = system()
    dealt = replace(data, terminals=np.random.default_rng(0).permutation(data.terminals))
    layout = fit_layout(data, TransitionSpec(coding="plain"))
    found = {}
    for encoder in (TransitionEncoder(data, columns=("terminals",)), TerminalEncoder(data)):
        reward = SetMean(gather_transitions(data, encoder).as_set("all"), encoder)
        everyone = torch.arange(len(data))[None]
        found[encoder.name] = [
            float(reward.score_sets(encoder.embed_media(media_of(rows, layout)), everyone)) for rows in (data, dealt)
        ]
    assert found["transitions"] == pytest.approx([0, 0], abs=1e-9)
    assert found["terminals"][0] == pytest.approx(0, abs=1e-9) and found["terminals"][1] < -0.01


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="no column 'done'; there are observations.0, "):
        TransitionEncoder(system(), columns=("done",))
    alive = system().rows(np.flatnonzero(~system().terminals))
    with pytest.raises(ConfigError, match="'terminals' never changes"):
        TransitionEncoder(alive, columns=("terminals",))
    with pytest.raises(ConfigError, match="0% of the data's rows are terminal"):
        TerminalEncoder(alive)
    with pytest.raises(ConfigError, match="strength is 0"):
        TerminalEncoder(system(), strength=0)
    with pytest.raises(ShapeError, match="expected .b, 1, 7., rows of transitions"):
        TerminalEncoder(system()).embed_media(Media(torch.zeros(2, 1, 6), ("", "")))
    with pytest.raises(ShapeError, match="expected .b, 1, 7., rows of transitions"):
        TransitionEncoder(system()).embed_media(Media(torch.zeros(2, 2, 100), ("", "")))


def test_the_command_makes_exemplars_of_a_file_and_a_reward_finds_their_encoder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_npz(system(), "data.npz")
    exemplars_command(["build", "data", "data.npz", "--source", "made"])
    assert "wrote data.safetensors: 16 blocks of rows, 4000 frames of transitions" in capsys.readouterr().out
    reward = SetFrechet("data.safetensors")
    rows = clips()
    same = float(reward.score_sets(reward.embed(rows), torch.arange(4000)[None]))
    moved = Media(rows.tensor + 1.0, rows.prompts)
    assert (
        same == pytest.approx(0, abs=1e-3)
        and float(reward.score_sets(reward.embed(moved), torch.arange(4000)[None])) < -1
    )
    found = load("data.safetensors")
    assert found.modality == "transitions" and found.frames == 4000 and found.self_distance < 0.1


def test_rows_in_memory_make_the_same_set():
    there = gather_transitions(system()).as_set("a")
    torch.testing.assert_close(
        there.cov.diagonal(), torch.full((7,), 4000 / 3999, dtype=torch.float64), rtol=1e-4, atol=0
    )
