"""The configuration: one schema, strict at every depth, and all problems in one message."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dragon.config import TrainConfig, from_dict, load, range_problems, to_dict, to_yaml, trackers
from dragon.errors import ConfigError
from dragon.texts import writable

LEAST: dict[str, object] = {"rewards": [{"name": "random"}]}


def write(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def nested(schema: type, path: tuple[object, ...] = ()) -> list[tuple[tuple[object, ...], type]]:
    """(path, dataclass) of every dataclass the schema reaches."""
    found = [(path, schema)]
    for name, hint in typing.get_type_hints(schema).items():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                inside = (*path, name, 0) if typing.get_origin(hint) is tuple else (*path, name)
                found += nested(part, inside)  # type: ignore[arg-type]
    return found


def test_the_walk_reaches_every_class_of_the_schema() -> None:
    names = {schema.__name__ for _, schema in nested(TrainConfig)}
    assert names == {
        "TrainConfig",
        "Spec",
        "RewardSpec",
        "TuningConfig",
        "RolloutConfig",
        "UpdateConfig",
        "EvaluationConfig",
        "ResumeConfig",
    }


@pytest.mark.parametrize(("path", "schema"), nested(TrainConfig), ids=lambda value: str(value))
def test_an_unknown_key_is_refused_at_every_depth(path: tuple[object, ...], schema: type) -> None:
    field = dataclasses.fields(schema)[0].name
    slip = field + "x"
    filled = {"name": "random"} if "name" in {f.name for f in dataclasses.fields(schema)} else {}
    values: object = filled | {slip: 1}
    for part in reversed(path):
        values = [values] if isinstance(part, int) else {part: values}
    with pytest.raises(ConfigError) as error:
        from_dict(LEAST | typing.cast("dict[str, object]", values))
    dotted = ".".join(str(part) for part in (*path, slip))
    assert f"  {dotted}: unknown key; did you mean '{field}'" in str(error.value)


def test_every_problem_stands_in_one_message(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
max_stepz: 3
num_generations: 1
rollout: {stpes: 4, guidance: hello}
rewards:
  - {name: clap_score, wieght: 2}
  - {name: random, weight: -1}
  - {options: {}}
evaluation:
  diversity: {nme: mini}
tuning: 3
""",
    )
    with pytest.raises(ConfigError) as error:
        load(file)
    text = str(error.value)
    for line in (
        "max_stepz: unknown key; did you mean 'max_steps'",
        "num_generations: 1 is out of range; expected at least 2",
        "rollout.stpes: unknown key; did you mean 'steps'",
        "rollout.guidance: 'hello' does not fit",
        "rewards.0.wieght: unknown key; did you mean 'weight'",
        "rewards.1.weight: -1.0 is out of range",
        "rewards.2.name: is missing",
        "evaluation.diversity.nme: unknown key; did you mean 'name'",
        "tuning: 3 does not fit",
    ):
        assert f"  {line}" in text
    assert "run.yaml has 10 problems" in text  # those nine, and evaluation.diversity.name is missing


def test_further_checks_speak_in_the_same_message() -> None:
    from dragon.loading import Problem

    with pytest.raises(ConfigError) as error:
        from_dict({**LEAST, "max_stepz": 1}, [lambda config: [Problem("rewards.0.name", "is not to my liking")]])
    assert "max_stepz" in str(error.value) and "not to my liking" in str(error.value)


def test_what_a_broken_key_leaves_behind_is_not_complained_of() -> None:
    with pytest.raises(ConfigError) as error:
        from_dict({"rewards": "clap_score"})
    assert "1 problem:" in str(error.value) and "none given" not in str(error.value)


@pytest.mark.parametrize("path", ["a: 1\na: 2\n", "rollout:\n  steps: 1\n  steps: 2\n"])
def test_a_repeated_key_is_refused_with_its_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"given twice(.|\n)*line [23]"):
        load(write(tmp_path, path))


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n", "holds a list"), ("a: [1\n", "not YAML"), ("", "rewards: none given")]
)
def test_files_that_hold_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, text))
    with pytest.raises(ConfigError, match="no configuration file"):
        load(tmp_path / "none.yaml")


def test_yaml_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    config = load(write(tmp_path, "learning_rate: 2e-5\nrewards: [{name: random}]\n"))
    assert config.learning_rate == 2e-5


def test_overrides_win_and_keep_their_neighbours(tmp_path: Path) -> None:
    file = write(tmp_path, "rollout: {steps: 4, guidance: 3}\nrewards: [{name: random}]\n")
    config = load(file, {"rollout.steps": 2, "max_steps": 7, "objective.name": "dpo"})
    assert (config.rollout.steps, config.rollout.guidance, config.max_steps) == (2, 3.0, 7)
    assert config.objective.name == "dpo"
    with pytest.raises(ConfigError, match="cannot set seed.x"):
        load(write(tmp_path, "seed: 1\n"), {"seed.x": 2})


def test_the_filled_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = from_dict(
        {
            "rewards": [{"name": "a", "options": {"x": [1, {"y": 2.5}], "z": None}}, {"name": "b", "weight": 0.1}],
            "evaluation": {"diversity": {"name": "mini"}, "watch": [{"name": "c"}]},
            "tuning": {"targets": ["to_q", "to_v"]},
        }
    )
    assert load(write(tmp_path, to_yaml(config))) == config


@settings(max_examples=50, deadline=None)
@given(
    rate=st.floats(min_value=1e-12, max_value=1e3),
    prompt=st.text(min_size=1).filter(str.strip).filter(writable),
    seed=st.integers(0, 2**40),
)
@example(rate=1.0, prompt="0\x85", seed=0)
@example(rate=1.0, prompt="a\u2028b\u2029", seed=0)
def test_any_value_survives_the_file(rate: float, prompt: str, seed: int) -> None:
    config = from_dict({**LEAST, "learning_rate": rate, "prompts": prompt, "seed": seed})
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_every_number_has_a_range(root: Path) -> None:
    """A number that nothing bounds would be found out hours into a run."""
    values = to_dict(from_dict(LEAST))
    for section in (values, values["rollout"], values["update"], values["evaluation"], values["tuning"]):
        assert isinstance(section, dict)
        for key, value in section.items():
            if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
                broken = {**section, key: -1}
                path = next((k for k in values if values[k] is section), None)
                config = from_dict_unchecked({**values, path: broken} if path else broken)
                assert [p.path for p in range_problems(config)] == [f"{path}.{key}" if path else key]


def from_dict_unchecked(values: dict[str, object]) -> TrainConfig:
    from dragon.loading import parse

    config, problems = parse(TrainConfig, values)
    assert config is not None and not problems
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", float("nan")), ("learning_rate", float("inf")), ("device", "gpu"), ("report_to", "wnadb")],
)
def test_values_that_cannot_work(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        from_dict({**LEAST, key: value})


def test_resume_may_be_a_yaml_boolean() -> None:
    assert from_dict({**LEAST, "resume_from_checkpoint": True}).resume_from_checkpoint == "true"
    assert from_dict({**LEAST, "resume_from_checkpoint": False}).resume_from_checkpoint == ""


@pytest.mark.parametrize(
    ("report_to", "names"),
    [
        ("none", ()),
        ("wandb", ("wandb",)),
        ("tensorboard, wandb,tensorboard", ("tensorboard", "wandb")),
    ],
)
def test_report_to_names_one_tracker_or_several(report_to: str, names: tuple[str, ...]) -> None:
    assert trackers(from_dict(LEAST | {"report_to": report_to})) == names


def test_an_unknown_tracker_among_others_is_named() -> None:
    for report_to, name in (("tensorboard,wnadb", "wnadb"), ("wandb,", ""), ("wandb,none", "none")):
        with pytest.raises(ConfigError, match=f"report_to: '{name}' is unknown; expected 'tensorboard', 'wandb'"):
            from_dict(LEAST | {"report_to": report_to})
