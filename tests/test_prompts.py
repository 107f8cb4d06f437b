"""Prompt files: what is read, and what each kind of broken file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dragon.errors import ConfigError
from dragon.prompts import load_prompts


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_the_three_kinds_of_file_give_the_same_prompts(tmp_path: Path) -> None:
    text = load_prompts(write(tmp_path, "a.txt", "slow piano\n fast, loud drums\n\n"))
    table = load_prompts(write(tmp_path, "a.csv", 'tempo,prompt\n60,slow piano\n160,"fast, loud drums"\n'))
    lines = load_prompts(
        write(
            tmp_path, "a.jsonl", '{"prompt": "slow piano", "tempo": 60}\n\n{"prompt": "fast, loud drums", "tempo": 160}'
        )
    )
    assert text.prompts == table.prompts == lines.prompts == ("slow piano", "fast, loud drums")
    assert text.columns == {}
    assert table.columns == {"tempo": ("60", "160")}
    assert lines.columns == {"tempo": (60, 160)}
    assert lines.first(1).columns == {"tempo": (60,)} and len(lines.first(1)) == 1


@pytest.mark.parametrize("split", ["train", "dev", "test", "open_train", "open_test"])
def test_the_built_in_lists_hold_prompts(split: str) -> None:
    prompts = load_prompts(f"mini:{split}").prompts
    assert len(prompts) >= 128 and all(p.strip() for p in prompts)


def test_built_in_training_and_test_prompts_do_not_overlap() -> None:
    assert not set(load_prompts("mini:train").prompts) & set(load_prompts("mini:test").prompts)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "holds no prompt"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.txt", "one\n\nthree\n", "line 2: the prompt is ''"),
        ("a.csv", "", "no column 'prompt' among none"),
        ("a.csv", "prompt,tempo\n", "holds no prompt"),
        ("a.csv", "caption,tempo\na,1\n", "no column 'prompt' among caption, tempo"),
        ("a.csv", "prompt,tempo\na\n", "line 2: expected 2 columns"),
        ("a.csv", "prompt\na,b\n", "line 2: expected 1 columns"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "line 2: the prompt is 3"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b", "x": 1}', "line 2: keys differ from the first line's: x"),
        ("a.jsonl", "{prompt}", "line 1: not JSON"),
        ("a.jsonl", '["a"]', "line 1: expected an object"),
        ("a.json", "[]", "expected a .txt, .csv or .jsonl file"),
    ],
)
def test_a_broken_file_says_what_is_wrong_and_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_prompts(write(tmp_path, name, text))
    assert message in str(error.value) and name in str(error.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="mini:dev, mini:open_test"):
        load_prompts("mini:tset")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_prompts(str(tmp_path / "latin.txt"))
