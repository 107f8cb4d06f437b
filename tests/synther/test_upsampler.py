"""The fitted model: reproducible, inside the box, of the data's rates; scores, prediction, storing, growing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.synther import PAPER_SAMPLING, SampleConfig, Transitions, TransitionSpec, Upsampler, fit
from dragon.synther.fitting import prepare
from dragon.synther.sampling import BLOCK, sampling_of
from tests.synther.linear_system import QUICK, after, fitted, scores, system

FAST = SampleConfig(steps=12, batch_size=BLOCK)
SHORT = replace(QUICK, max_steps=5)


def close(one: Transitions, other: Transitions) -> None:
    for name, value in one.arrays().items():
        np.testing.assert_allclose(value.astype(float), other.arrays()[name].astype(float), atol=1e-4, err_msg=name)


def test_a_row_depends_on_its_seed_and_number_alone() -> None:
    """Not on how many are asked for, nor on the batch (to rounding); another seed gives other rows."""
    model = fitted()
    for sampling in (FAST, replace(FAST, sampler="heun")):
        many = model.sample(2100, 3, sampling=sampling)
        close(many.rows(slice(0, 1500)), model.sample(1500, 3, sampling=sampling))
        close(many, model.sample(2100, 3, sampling=replace(sampling, batch_size=3 * BLOCK)))
    assert np.abs(many.observations - model.sample(2100, 4, sampling=FAST).observations).max() > 1


def test_rates_recall_box_and_dynamics() -> None:
    """What the release lacks: terminals as often as in the data and where they belong, actions inside the box."""
    data, made = system(), fitted().sample(4000, 0)
    assert made.terminals.mean() == pytest.approx(data.terminals.mean(), rel=0.02)
    true = after(made.observations, made.actions)
    assert made.terminals[true[:, 0] > 1].mean() >= 0.8
    assert np.abs(made.actions).max() <= 1 and (np.abs(made.actions) > 0.99).mean() > 0.02
    low, high = data.next_observations.min(0), data.next_observations.max(0)
    inside = ((made.next_observations > low) & (made.next_observations < high)).all(1)
    error = np.square(made.next_observations - true)[inside].mean()
    assert error < 1e-8 and inside.mean() > 0.99, "the residual coding knows the line"
    reward = made.observations[:, 0] * made.actions[:, 0]
    assert np.square(made.rewards - reward).mean() < 0.05 * reward.var()
    assert np.abs(made.observations.mean(0)).max() < 0.08 and np.abs(made.observations.std(0) - 1).max() < 0.08


def test_a_higher_score_gives_rows_of_a_higher_score() -> None:
    """The score is the observation's second number and as much noise, so that a row's own is half of what is asked for.

    Guidance exaggerates; flags are those of rows of such scores.
    """
    model, data = fitted(scored=True), system()
    means = [model.sample(1000, 0, score=s, sampling=FAST).observations[:, 1].mean() for s in (-1.5, 0.0, 1.5)]
    assert np.diff(means) == pytest.approx([0.75, 0.75], abs=0.25)
    guided = model.sample(1000, 0, score=1.5, guidance=2.0, sampling=FAST).observations[:, 1].mean()
    assert guided > means[2] + 0.2
    near = np.abs(scores(data) - 1.5) < 0.3
    rate = model.sample(4000, 0, score=1.5, sampling=FAST).terminals.mean()
    assert abs(rate - data.terminals[near].mean()) < 0.05
    wanted = np.linspace(-3, 3, 1000, dtype=np.float32)
    each = model.sample(1000, 0, score=wanted, sampling=FAST).observations[:, 1]
    assert np.corrcoef(wanted, each)[0, 1] > 0.6


def test_the_score_that_is_asked_for_is_in_the_datas_unit() -> None:
    data = system()
    far = fit(data, None, SHORT, scores=1e4 + 100 * data.observations[:, 1])
    assert far.score_unit == pytest.approx((1e4, 100), rel=0.1)
    near = fit(data, None, SHORT, scores=data.observations[:, 1])
    close(far.sample(50, score=1e4 + 150, sampling=FAST), near.sample(50, score=1.5, sampling=FAST))


def test_a_model_of_the_world() -> None:
    """Rewards s0 a of new rows, which no straight line knows; with the share, terminals too."""
    new = system(500, seed=9)
    data = system()
    taught = fit(data, None, replace(QUICK, predict_share=0.5, max_steps=800))
    got = taught.predict(new.observations, new.actions)
    np.testing.assert_array_equal(got.observations, new.observations)
    np.testing.assert_allclose(got.next_observations, new.next_observations, atol=1e-4)
    assert np.square(got.rewards - new.rewards).mean() < 0.1 * new.rewards.var()
    assert got.terminals[new.terminals].mean() >= 0.75 and (got.terminals == new.terminals).mean() > 0.9
    close(got.rows(slice(0, 100)), taught.predict(new.observations[:100], new.actions[:100]))
    known = taught.predict(new.observations, new.actions, flags=new.terminals)
    np.testing.assert_array_equal(known.terminals, new.terminals)
    with pytest.raises(ConfigError, match="predict_share 0 and predicts nothing"):
        fitted().predict(new.observations, new.actions)
    with pytest.raises(ShapeError, match="expected"):
        taught.predict(new.observations[:, :1], new.actions)


def test_a_stored_model_gives_the_same_rows(tmp_path) -> None:
    model = fitted(scored=True)
    model.save(tmp_path / "m")
    again = Upsampler.load(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    for name, value in model.sample(100, 5, score=1.0, sampling=FAST).arrays().items():
        np.testing.assert_array_equal(again.sample(100, 5, score=1.0, sampling=FAST).arrays()[name], value)
    (tmp_path / "m" / "config.json").write_text('{"version": 1}')
    with pytest.raises(ConfigError, match="is damaged"):
        Upsampler.load(tmp_path / "m")
    with pytest.raises(ConfigError, match="no model in"):
        Upsampler.load(tmp_path / "none")


def test_a_model_grows_with_its_data() -> None:
    """The layout stays, but for bounds; the weights are where the fit begins."""
    first, data = fitted(scored=True), system(5000, seed=2)
    rated = scores(data)
    training, layout, _ = prepare(data, TransitionSpec(), SHORT, scores=rated, start=first)
    assert torch.equal(training.net.end.weight, first.net.end.weight)
    assert layout.groups[0].mean == first.layout.groups[0].mean
    assert layout.groups[0].high[0] >= data.observations[:, 0].max()
    warm = fit(data, None, SHORT, scores=rated, start=first).sample(1000, sampling=FAST)
    true = after(warm.observations, warm.actions)
    assert warm.terminals[true[:, 0] > 1].mean() > 0.7, "five steps of a new fit know nothing of terminals"
    for changes, message in (
        ({"start": first}, "fitted with scores and the new data comes without"),
        ({"start": first, "scores": rated, "spec": TransitionSpec()}, "both spec and start"),
        ({"start": first, "scores": rated, "config": replace(SHORT, width=32)}, "width is 32; expected 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(data, **({"config": SHORT} | changes))


@pytest.mark.parametrize("kind", ["plain column", "discrete", "one row twice", "no terminals", "many columns"])
def test_data_of_every_kind_is_fitted_and_drawn(kind: str) -> None:
    data, spec = system(64), TransitionSpec()
    if kind == "plain column":
        spec = TransitionSpec(flags="column", coding="plain")
    elif kind == "discrete":
        data = replace(data, actions=np.arange(64, dtype=np.int32) % 3, action_low=None, action_high=None)
    elif kind == "one row twice":
        data = replace(data.rows([0, 0, 1]), blocks={"ones": np.ones(3, dtype=np.int8)})
    elif kind == "no terminals":
        data = replace(data, terminals=np.zeros(64, dtype=np.uint8))
    else:
        data = replace(data, blocks={"latents": np.random.default_rng(0).standard_normal((64, 100)).astype(np.float16)})
    made = fit(data, spec, SHORT).sample(70, sampling=FAST)
    assert {n: (v.dtype, v.shape[1:]) for n, v in made.arrays().items()} == {
        n: (v.dtype, v.shape[1:]) for n, v in data.arrays().items()
    }
    if kind == "no terminals":
        assert not made.terminals.any()


def test_the_published_sampling_runs_and_has_a_name() -> None:
    assert sampling_of("paper") == PAPER_SAMPLING and sampling_of("churn") == SampleConfig()
    assert sampling_of("paper", steps=4) == replace(PAPER_SAMPLING, steps=4)
    assert len(fitted().sample(3, sampling=replace(PAPER_SAMPLING, steps=4))) == 3


def test_refusals() -> None:
    model, data = fitted(scored=True), system(100)
    for arguments, kind, message in (
        ({"n": 0}, ConfigError, "n is 0"),
        ({"n": 1, "seed": -1}, ConfigError, "seed is -1"),
        ({"n": 1, "guidance": 2.0}, ConfigError, "without a score"),
        ({"n": 3, "score": np.zeros(2)}, ShapeError, r"score has shape \(2,\)"),
        ({"n": 3, "flags": np.zeros((3, 2))}, ShapeError, r"expected \(3, 1\): terminals.0"),
        ({"n": 3, "flags": np.full((3, 1), 0.5)}, ConfigError, "flags hold other numbers"),
    ):
        with pytest.raises(kind, match=message):
            model.sample(**arguments)
    with pytest.raises(ConfigError, match="fitted without"):
        fit(data, None, SHORT).sample(1, score=1.0)
    with pytest.raises(ConfigError, match="scores are 1 in every row"):
        fit(data, None, SHORT, scores=np.ones(100))
    with pytest.raises(NotFinite, match="row 3"):
        fit(data, None, SHORT, scores=np.where(np.arange(100) == 3, np.nan, 1.0))
    with pytest.raises(ConfigError, match="sampler is 'magic'"):
        SampleConfig(sampler="magic")  # type: ignore[arg-type]
    broken = fit(data, None, SHORT)
    with torch.no_grad():
        broken.net.end.bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="row 0 of seed 7"):
        broken.sample(3, 7, sampling=replace(FAST, clamp=False))
