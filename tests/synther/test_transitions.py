"""Transitions as arrays: refusals name array and row; npz files."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dragon.errors import ConfigError, DragonError, NotFinite, ShapeError
from dragon.synther import Transitions, read_npz, write_npz


def made(n: int = 4, **changes: Any) -> Transitions:
    random = np.random.default_rng(0)
    values: dict[str, Any] = {
        "observations": random.standard_normal((n, 3)).astype(np.float32),
        "actions": random.uniform(-1, 1, (n, 2)),
        "rewards": random.standard_normal(n),
        "next_observations": random.standard_normal((n, 3)).astype(np.float32),
        "terminals": np.arange(n) % 3 == 2,
    }
    return Transitions(**(values | changes))


def test_an_npz_gives_back_arrays_dtypes_box_and_blocks(tmp_path) -> None:
    box: dict[str, Any] = {"action_low": np.array([-1.0, -2.0]), "action_high": np.array([1.0, 2.0])}
    wrote = made(blocks={"latents": np.arange(8, dtype=np.int16).reshape(4, 2)}, **box)
    write_npz(wrote, tmp_path / "new" / "t.npz")
    read = read_npz(tmp_path / "new" / "t.npz")
    assert list(read.arrays()) == list(wrote.arrays())
    for name, value in wrote.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], value, strict=True)
    np.testing.assert_array_equal(read.action_high, box["action_high"], strict=True)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.npz"]


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
def test_a_nan_is_refused_with_its_array_and_row(name: str) -> None:
    values = made().arrays()[name].copy()
    values[2] = np.nan
    with pytest.raises(NotFinite, match=f"{name} holds NaN or infinity in row 2"):
        made(**dict[str, Any]({name: values}))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"rewards": np.zeros(3)}, ShapeError, "rewards has 3 rows and observations 4"),
        ({"rewards": np.zeros((4, 1))}, ShapeError, r"rewards has shape \(4, 1\); expected \(n,\)"),
        ({"actions": np.zeros(4)}, ShapeError, "whole numbers of shape"),
        ({"next_observations": np.zeros((4, 2))}, ShapeError, "expected the same"),
        ({"terminals": np.array([0, 1, 2, 0])}, ConfigError, "terminals holds 2 in row 2"),
        ({"rewards": np.array(list("abcd"))}, ShapeError, "rewards is of type <U1"),
        ({"blocks": {"latents": np.zeros((4, 2, 2))}}, ShapeError, r"latents has shape \(4, 2, 2\)"),
        ({"blocks": {"rewards": np.zeros(4)}}, ConfigError, "blocks are called rewards"),
        ({"action_low": np.zeros(3)}, ShapeError, "action_low has shape"),
        ({"action_low": np.array([0, np.nan])}, NotFinite, "action_low holds NaN for action 1"),
    ],
)
def test_refusals(changes: dict[str, Any], kind: type[DragonError], message: str) -> None:
    with pytest.raises(kind, match=message):
        made(**changes)


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "part.npz", observations=np.zeros((2, 1)))
    with pytest.raises(ConfigError, match="cannot be read as npz"):
        read_npz(tmp_path / "text.npz")
    with pytest.raises(ConfigError, match="cannot be read as npz"):
        read_npz(tmp_path / "one.npy")
    with pytest.raises(ConfigError, match="lacks actions, rewards"):
        read_npz(tmp_path / "part.npz")


def test_rows_and_cat_are_inverse() -> None:
    whole = made(6, blocks={"latents": np.arange(6)})
    again = Transitions.cat([whole.rows(slice(0, 2)), whole.rows([2, 3, 4, 5])])
    for name, value in whole.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], value)
    assert len(dataclasses.replace(whole, action_low=np.zeros(2)).rows([5])) == 1
