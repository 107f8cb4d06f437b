"""Rows <-> transitions: what goes in comes out; what comes out could have gone in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dragon.errors import ConfigError, ShapeError
from dragon.synther.columns import Layout, TransitionSpec, fit_layout
from dragon.synther.ridge import ridge
from dragon.synther.transitions import Transitions
from tests.synther.linear_system import system

N = 200
SPECS = [
    TransitionSpec(kinds={"latents": "one_hot"}, flags=flags, coding=coding)
    for flags in ("condition", "column")
    for coding in ("residual", "plain")
]


def mixed(n: int = N, seed: int = 0, discrete: bool = False) -> Transitions:
    """A real, a constant, a whole and a 0/1 observation; rewards of two values; a block of two one-hot groups."""
    random = np.random.default_rng(seed)

    def observed() -> np.ndarray:
        return np.stack(
            [
                1000 + random.standard_normal(n),
                np.full(n, 0.1),
                random.integers(0, 9, n).astype(float),
                random.integers(0, 2, n).astype(float),
            ],
            1,
        ).astype(np.float32)

    actions = random.integers(0, 3, n) if discrete else random.uniform(-1, 1, (n, 2)).astype(np.float32)
    return Transitions(
        observed(),
        actions,
        random.choice([-1.0, 0.0], n),
        observed(),
        np.arange(n) % 10 == 0,
        blocks={
            "latents": np.concatenate([np.eye(3)[random.integers(0, 3, n)], np.eye(3)[random.integers(0, 2, n)]], 1),
            "steps": np.arange(n, dtype=np.int16),
            "seen": np.ones((n, 2), dtype=bool),
        },
        **({} if discrete else {"action_low": np.full(2, -1.0), "action_high": np.full(2, 2.0)}),
    )


def same(got: Transitions, wanted: Transitions) -> None:
    for name, value in wanted.arrays().items():
        found = got.arrays()[name]
        assert found.dtype == value.dtype and found.shape == value.shape, name
        if value.dtype.kind == "f":  # rows are float32
            np.testing.assert_allclose(found, value, atol=2e-6 * np.abs(value).max(initial=1), rtol=0, err_msg=name)
        else:
            np.testing.assert_array_equal(found, value, err_msg=name)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.flags}-{s.coding}")
def test_what_is_coded_comes_back(spec: TransitionSpec, discrete: bool) -> None:
    data = mixed(discrete=discrete)
    layout = fit_layout(data, spec)
    again = Layout.from_json(
        json.loads(json.dumps(layout.to_json())),
        None if layout.line is None else torch.from_numpy(layout.line),
    )
    x, flags = again.encode(data)
    assert x.shape == (N, layout.d) and flags.shape == (N, layout.c)
    same(again.decode(x, flags), data)
    np.testing.assert_array_equal(again.decode(x, flags).observations[:, 1], data.observations[:, 1])


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.flags}-{s.coding}")
def test_noise_decodes_to_numbers_that_the_data_could_hold(spec: TransitionSpec) -> None:
    """Whole numbers, flags, one-hot groups, constants and the action box, whatever the model invents."""
    layout = fit_layout(mixed(), spec)
    generator = torch.Generator().manual_seed(0)
    flags = torch.randint(0, 2, (500, layout.c), generator=generator).float()
    wild = layout.decode(10 * torch.randn(500, layout.d, generator=generator), flags)
    layout.encode(wild)  # refuses rows that are not of the kinds
    assert np.abs(wild.actions - 0.5).max() <= 1.5 and (wild.actions == 2).any() and (wild.actions == -1).any()
    assert set(np.unique(wild.rewards)) == {-1.0, 0.0}
    assert (wild.observations[:, 2] <= 8).all() and (wild.observations[:, 2] >= 0).all()
    latents = wild.blocks["latents"]
    assert (latents.reshape(500, 2, 3).sum(2) == 1).all()
    assert not latents[:, 5].any(), "a class that the data never held is not given back"


def test_modelled_columns_are_standardised() -> None:
    layout = fit_layout(mixed(), TransitionSpec(kinds={"latents": "one_hot"}))
    x, _ = layout.encode(mixed())
    standard = torch.tensor([name not in ("latents",) for name, _ in layout.columns])
    torch.testing.assert_close(x[:, standard].mean(0), torch.zeros(int(standard.sum())), atol=2e-3, rtol=0)
    torch.testing.assert_close(x[:, standard].std(0, correction=0), torch.ones(int(standard.sum())), atol=1e-3, rtol=0)


def test_plain_coding_is_that_of_the_release() -> None:
    """(x - mean) / (std + 1e-5), the terminal raw and last."""
    data = mixed(discrete=False)
    data = replace(
        data, blocks={}, observations=data.observations[:, :1], next_observations=data.next_observations[:, :1]
    )
    layout = fit_layout(data, TransitionSpec(flags="column", coding="plain", kinds={"rewards": "real"}))
    x, flags = layout.encode(data)
    columns = [data.observations, data.actions, data.rewards[:, None], data.next_observations]
    raw = np.concatenate([c.astype(np.float64) for c in columns], 1)
    expected = np.concatenate([(raw - raw.mean(0)) / (raw.std(0) + 1e-5), data.terminals[:, None]], 1)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
    assert flags.shape == (N, 0)


def test_units_do_not_matter() -> None:
    """Rows of the same transitions in other units (1e-6 and 1e6 of the first) are the same."""
    data = mixed()
    data = replace(data, blocks={})
    factors = np.array([1e6, 1, 1, 1])
    other = replace(
        data,
        observations=data.observations.astype(np.float64) * factors,
        next_observations=data.next_observations.astype(np.float64) / factors,
        action_low=None,
        action_high=None,
        actions=data.actions.astype(np.float64) * 1e-6,
    )
    torch.testing.assert_close(
        fit_layout(data, TransitionSpec()).encode(data)[0],
        fit_layout(other, TransitionSpec()).encode(other)[0],
        atol=1e-3,
        rtol=0,
    )


def test_the_residual_of_a_linear_system_is_rounding() -> None:
    data = system()
    layout = fit_layout(data, TransitionSpec())
    of_next = next(g for g in layout.groups if g.name == "next_observations")
    assert max(of_next.scale) < 3e-6
    assert next(g for g in layout.groups if g.name == "rewards").scale[0] > 0.3, "s0 a is no line"


def test_terminals_that_never_come_are_flags_all_the_same() -> None:
    data = replace(mixed(), terminals=np.zeros(N, dtype=np.float32))
    layout = fit_layout(data, TransitionSpec(kinds={"latents": "one_hot"}))
    assert ("terminals", 0) in layout.conditions
    x, flags = layout.encode(data)
    same(layout.decode(x, flags), data)
    grown = replace(mixed(), terminals=mixed().terminals.astype(np.float32))
    wider = layout.widened(grown)
    same(wider.decode(*wider.encode(grown)), grown)


def test_a_widened_layout_codes_alike_and_gives_back_what_is_new() -> None:
    data, spec = mixed(), TransitionSpec(kinds={"latents": "one_hot"})
    layout = fit_layout(data, spec)
    far = data.observations.copy()
    far[:, 0] += 5
    grown = replace(data, observations=far)
    wider = layout.widened(grown)
    torch.testing.assert_close(wider.encode(data)[0], layout.encode(data)[0])
    same(wider.decode(*wider.encode(grown)), grown)
    clipped = layout.decode(*layout.encode(grown)).observations[:, 0]
    assert clipped.max() == data.observations[:, 0].max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": 2.0}, r"observations column 1 is 2 in row 7; expected 0.1"),
        ({"actions": 3.0}, "actions column 0 is 3 in row 7"),
        ({"rewards": 5.0}, "rewards column 0 is 5 in row 7; expected -1 or 0"),
    ],
)
def test_rows_of_another_kind_are_refused_with_their_row(changes: dict[str, float], message: str) -> None:
    data = mixed()
    layout = fit_layout(data, TransitionSpec(kinds={"latents": "one_hot"}))
    ((name, value),) = changes.items()
    wrong = data.arrays()[name].copy()
    wrong[7] = value
    other = replace(data, **dict[str, Any]({name: wrong}))
    if name == "actions":
        with pytest.raises(ConfigError, match=r"action 0 is 3 in row 7, outside its box \[-1, 2\]"):
            layout.widened(other)
    else:
        with pytest.raises(ConfigError, match=message):
            layout.encode(other)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kinds": {"reward": "real"}}, "no column 'reward'"),
        ({"kinds": {"rewards": "number"}}, "rewards is 'number'"),
        ({"kinds": {"observations": "one_hot"}}, "said to be one_hot and sum to"),
        ({"kinds": {"observations.0": "integer"}}, "observations column 0 is .* expected a whole number"),
        ({"kinds": {"observations.0": "flag"}}, "observations column 0 is .* in row"),
        ({"action_low": (0.0, 0.0)}, r"outside its box \[0, 2\]"),
        ({"flags": "raw"}, "flags is 'raw'"),
    ],
)
def test_specs_that_do_not_fit(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_layout(mixed(), TransitionSpec(**spec))


def test_too_few_rows_other_arrays_and_actions_that_are_none() -> None:
    with pytest.raises(ConfigError, match="1 transitions; expected at least 2"):
        fit_layout(mixed().rows([0]), TransitionSpec())
    layout = fit_layout(mixed(), TransitionSpec())
    with pytest.raises(ShapeError, match="transitions hold observations.*expected"):
        layout.encode(replace(mixed(), blocks={}))
    discrete = fit_layout(mixed(discrete=True), TransitionSpec(discrete_actions=5))
    assert sum(name == "actions" for name, _ in discrete.columns) == 5
    with pytest.raises(ConfigError, match="action 2 in row .* expected a number from 0 to 1"):
        fit_layout(mixed(discrete=True), TransitionSpec(discrete_actions=2))


def test_ridge_is_least_squares_where_rows_are_many() -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((500, 4)) * [1, 1e3, 1e-4, 0] + [0, 1e4, 0, 3]
    outputs = inputs @ (random.standard_normal((4, 2)) / [[1], [1e3], [1e-4], [1]]) + random.standard_normal((500, 2))
    line = ridge(inputs, np.asarray(outputs, dtype=np.float64))
    design = np.concatenate([np.ones((500, 1)), inputs[:, :3]], 1)
    expected = design @ np.linalg.lstsq(design, outputs, rcond=None)[0]
    np.testing.assert_allclose(line[0] + inputs @ line[1:], expected, atol=1e-3)
    np.testing.assert_array_equal(line[4], 0)


def test_ridge_of_few_rows_does_not_pass_through_all_of_them() -> None:
    """60 rows, 50 inputs, outputs of pure noise: least squares would leave a sixth of the variance."""
    random = np.random.default_rng(0)
    inputs, outputs = random.standard_normal((60, 50)), random.standard_normal((60, 8))
    line = ridge(inputs, outputs)
    new = random.standard_normal((500, 50))
    assert np.square(line[0] + new @ line[1:]).mean() < 0.6
