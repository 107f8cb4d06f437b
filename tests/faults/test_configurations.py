"""A configuration may hold anything: what comes back is a configuration or one message, soon, without a traceback."""

from __future__ import annotations

import copy
import dataclasses
import time
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dragon.build import build_run, plugin_problems
from dragon.cli import main
from dragon.config import TrainConfig, from_dict, load, to_dict
from dragon.errors import ConfigError, DragonError
from dragon.loading import MOST_BYTES, MOST_LEVELS, parse_yaml, read_yaml

BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


def write(folder: Path, text: str | bytes) -> Path:
    place = folder / "run.yaml"
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return place


@pytest.fixture
def least(tmp_path: Path, monkeypatch) -> dict[str, object]:
    """A run of the toy that could start here."""
    (tmp_path / "some.txt").write_text("left\nright\n")
    monkeypatch.chdir(tmp_path)
    return {
        "output_dir": "out",
        "prompts": "some.txt",
        "eval_prompts": "some.txt",
        "policy": {"name": "toy"},
        "rewards": [{"name": "random"}],
        "report_to": "none",
    }


def test_ten_megabytes_are_refused_unread(tmp_path, capsys):
    place = write(tmp_path, "output_dir: out\n" * 700_000)
    start = time.perf_counter()
    assert main(["train", str(place)]) == 2
    assert time.perf_counter() - start < 5
    said = capsys.readouterr().err
    assert "11,200,000 bytes" in said and f"at most {MOST_BYTES:,}" in said and said.count("\n") == 1


def test_aliases_of_aliases_are_counted_before_they_are_written_out(tmp_path):
    """Ten to the tenth values in 500 letters."""
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="aliases counted"):
        read_yaml(write(tmp_path, BILLION))
    assert time.perf_counter() - start < 1


def test_an_alias_used_as_people_use_it_still_works(tmp_path):
    found = read_yaml(write(tmp_path, "rollout: &r {steps: 4}\nevaluation: {<<: *r, prompts: 8}\nother: *r\n"))
    assert found == {"rollout": {"steps": 4}, "evaluation": {"steps": 4, "prompts": 8}, "other": {"steps": 4}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [*a]", "contains itself"),
        ("policy: &p {name: toy, options: *p}", "contains itself"),
        ("a: " + "[" * 50_000, f"deeper than {MOST_LEVELS} levels"),
        ("a: " + "{b: " * 1000, f"deeper than {MOST_LEVELS} levels"),
        ("? [a]\n: b", r"the key \['a'\] is no text"),
        ("? {a: b}\n: c", "is no text"),
        ("1: 2", "the key 1 is no text; put it in quotes"),
        ("on: 2", "the key True is no text"),
        ("max_steps: " + "1" * 5000, "date or number"),
        ("max_steps: 2020-13-45", "date or number"),
        ("a: !!python/object/apply:os.system [touch owned]", "could not determine a constructor"),
        ("a: \x01", "not YAML"),
        (b"a: \xff\xfe", "not YAML"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("- a", "holds a list"),
        ("<<: 3", "not YAML"),
    ],
)
def test_what_is_no_configuration_is_told_in_one_message(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told) as error:
        read_yaml(write(tmp_path, text))
    assert len(str(error.value)) < 1000
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["x" * 5000, "x\0y", "\ud800"])
def test_a_name_that_no_file_has_is_no_file(name):
    with pytest.raises(ConfigError, match="no configuration file"):
        read_yaml(name)


def test_a_folder_is_no_file():
    with pytest.raises(ConfigError, match="'.' is a folder; expected a configuration file, such as its config.yaml"):
        read_yaml(".")


def test_messages_stay_short_whatever_the_values(least):
    with pytest.raises(ConfigError) as error:
        from_dict({**least, "max_steps": "x" * 100_000, "learning_rate": 10**400, "device": "y" * 100_000})
    assert len(str(error.value)) < 2000 and "100,002 characters" in str(error.value)
    with pytest.raises(ConfigError) as error:
        from_dict({f"key{i}": i for i in range(10_000)})
    assert len(str(error.value)) < 30_000
    with pytest.raises(ConfigError, match=r"has 500 problems:\n(.*\n)*  and 460 more$"):
        from_dict({**least, "rewards": [{"name": "random", "weight": -1}] * 500})


def test_numbers_beyond_64_bits_are_out_of_range(least):
    for path in ("max_steps", "seed", "num_generations"):
        with pytest.raises(ConfigError, match=f"{path}: .* out of range"):
            from_dict({**least, path: 10**400})


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_that_no_file_can_hold_is_refused_before_the_run(least, text):
    """It would be found when config.yaml is written."""
    with pytest.raises(ConfigError, match="output_dir: .* holds a NUL or half a character"):
        from_dict({**least, "output_dir": text})


def _values() -> st.SearchStrategy[object]:
    names = ["random", "toy", "swap", "nft", "lora", "full", "true", "latest", "best", "cpu", "cuda:9", "..", "/", "~"]
    odd = [
        "x" * 4000 + ".txt",
        "x" * 4000 + ".py:f",
        "\0.py:f",
        "..:x",
        ":",
        "a:",
        "os:path",
        "mini:..",
        "mini:\0",
        ".txt",
    ]
    numbers = [0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf"), -0.0, 5e-324]
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 50),
        st.sampled_from(numbers),
        st.floats(),
        st.sampled_from([*names, *odd]),
        st.text(max_size=8),
        st.dates(),
        st.binary(max_size=4),
    )
    keys = st.one_of(st.sampled_from(["name", "options", "weight", "steps"]), st.text(max_size=3), st.integers(0, 2))
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
    )


def _paths(schema: type = TrainConfig, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, hint in typing.get_type_hints(schema).items():
        found.append((*before, name))
        if dataclasses.is_dataclass(hint):
            found += _paths(typing.cast(type, hint), (*before, name))
    return found


CHANGES = st.lists(st.tuples(st.sampled_from(_paths()), _values()), min_size=1, max_size=4)


def changed(values: dict[str, object], changes: list[tuple[tuple[str, ...], object]]) -> dict[str, object]:
    values = copy.deepcopy(values)
    for (*parents, last), value in changes:
        place: typing.Any = values
        for key in parents:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[last] = value
    return values


FIXED = HealthCheck.function_scoped_fixture  # the folder is only read


@settings(max_examples=100, deadline=None, suppress_health_check=[FIXED])
@given(changes=CHANGES)
def test_any_values_make_a_configuration_or_one_message(least, changes):
    try:
        config = from_dict(changed(least, changes), [plugin_problems])
    except DragonError as error:
        assert str(error).startswith("configuration has ")
        return
    assert from_dict(to_dict(config)) == config


@settings(max_examples=20, deadline=None, suppress_health_check=[FIXED])
@given(changes=CHANGES)
def test_any_file_ends_the_command_with_status_0_or_2(least, capsys, changes):
    """--dry_run builds everything and writes nothing."""
    values = changed(least, changes)
    Path("run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8", errors="replace")
    before = sorted(str(path) for path in Path().rglob("*"))
    status = main(["train", "run.yaml", "--dry_run"])
    said = capsys.readouterr().err
    assert (status, bool(said)) in ((0, False), (0, True), (2, True))
    assert "Traceback" not in said
    assert sorted(str(path) for path in Path().rglob("*")) == before


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=" \n\t-:?,[]{}#&*!|>'\"%@`<=a1.~\\x\u2028\ud800", max_size=60))
def test_any_letters_are_yaml_or_one_message(text):
    try:
        parse_yaml(text, "text")
    except DragonError as error:
        assert str(error).startswith("text ")


@pytest.mark.parametrize(
    "flags",
    [
        ["--rewards", "[["],
        ["--rewards", "&a [*a]"],
        ["--rewards", "{a: 2020-13-45}"],
        ["--policy.options", BILLION],
        ["--policy.options", "[" * 100_000],
        ["--output_dir", "x" * 5000, "--resume_from_checkpoint", "latest"],
        ["--prompts", "x" * 5000 + ".txt"],
        ["--evaluation.diversity", "{name: 1}"],
        ["--max_steps", "9" * 5000],
    ],
)
def test_any_flag_ends_the_command_with_status_2(least, capsys, flags):
    Path("run.yaml").write_text(yaml.safe_dump(least))
    try:
        status = main(["train", "run.yaml", *flags])
    except SystemExit as stop:  # tyro's own message
        status = int(stop.code or 0)
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_plugin_that_ends_python_is_told_of(least):
    Path("leaves.py").write_text("raise SystemExit('bye')")
    with pytest.raises(ConfigError, match="leaves.py' cannot be imported: SystemExit: bye"):
        build_run(from_dict({**least, "rewards": [{"name": "leaves.py:Reward"}]}))


def test_the_untouched_configuration_is_one(least, tmp_path):
    """Else all the claims above would hold of nothing."""
    assert build_run(load(write(tmp_path, yaml.safe_dump(least)), checks=[plugin_problems])).config.policy.name == "toy"
