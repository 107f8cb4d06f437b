"""Prompt files: what is read, and what each kind of broken file says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dragon.errors import ConfigError, MissingExtra
from dragon.prompts import load_prompts


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


ROWS = '{"prompt": "slow piano", "tempo": 60}', '{"prompt": "fast, loud drums", "tempo": 160}'


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    text = load_prompts(write(tmp_path, "a.txt", "slow piano\n fast, loud drums\n\n"))
    table = load_prompts(write(tmp_path, "a.csv", 'tempo,prompt\n60,slow piano\n160,"fast, loud drums"\n'))
    lines = load_prompts(write(tmp_path, "a.jsonl", "\n\n".join(ROWS)))
    objects = load_prompts(write(tmp_path, "a.json", f"[{','.join(ROWS)}]"))
    texts = load_prompts(write(tmp_path, "b.json", '["slow piano",\n"fast, loud drums"]'))
    for found in (text, table, lines, objects, texts):
        assert found.prompts == ("slow piano", "fast, loud drums")
    assert text.columns == texts.columns == {}
    assert table.columns == {"tempo": ("60", "160")}
    assert lines.columns == objects.columns == {"tempo": (60, 160)}
    assert lines.first(1).columns == {"tempo": (60,)} and len(lines.first(1)) == 1


def test_a_prompt_may_hold_any_character_but_a_line_feed(tmp_path: Path) -> None:
    """Others that Python takes for the end of a line are part of the prompt, and a byte-order mark is not."""
    odd = "a\u2028b\x0bc\x85d \N{MUSICAL SYMBOL G CLEF} ../e"
    assert load_prompts(write(tmp_path, "a.txt", "\ufeff" + odd + "\nnext\n")).prompts == (odd, "next")
    assert load_prompts(write(tmp_path, "a.jsonl", f'{{"prompt": "{odd.replace(chr(11), "")}"}}')).prompts == (
        odd.replace(chr(11), ""),
    )


def test_a_saved_dataset_gives_prompts_and_columns_undecoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [datasets]")
    rows = {"prompt": ["a", "b", "c"], "tempo": [60, 80, 160], "tags": [["x"], [], ["y", "z"]]}
    whole = datasets.Dataset.from_dict(rows)
    whole.select([2, 0]).save_to_disk(tmp_path / "one")
    found = load_prompts(str(tmp_path / "one"))
    assert found.prompts == ("c", "a")
    assert found.columns == {"tempo": (160, 60), "tags": (["y", "z"], ["x"])}
    sound = whole.add_column("sound", [{"bytes": b"no audio", "path": None}] * 3)
    sound.cast_column("sound", datasets.Audio()).save_to_disk(tmp_path / "sound")
    assert load_prompts(str(tmp_path / "sound")).columns["sound"][0] == {"bytes": b"no audio", "path": None}
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(tmp_path / "two")
    with pytest.raises(ConfigError, match="holds the splits train, test; give one"):
        load_prompts(str(tmp_path / "two"))
    assert len(load_prompts(str(tmp_path / "two" / "test"))) == 3
    whole.remove_columns("prompt").save_to_disk(tmp_path / "three")
    with pytest.raises(ConfigError, match="row 1: no column 'prompt' among tempo, tags"):
        load_prompts(str(tmp_path / "three"))


def test_a_saved_dataset_names_the_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path, "dataset_info.json", "{}")
    with pytest.raises(MissingExtra, match=r"pip install 'dragon-media\[datasets\]'"):
        load_prompts(str(tmp_path))


@pytest.mark.parametrize("split", ["train", "dev", "test", "open_train", "open_test"])
def test_the_built_in_lists_hold_prompts(split: str) -> None:
    prompts = load_prompts(f"mini:{split}").prompts
    assert len(prompts) >= 128 and all(p.strip() for p in prompts)


def test_built_in_training_and_test_prompts_do_not_overlap() -> None:
    assert not set(load_prompts("mini:train").prompts) & set(load_prompts("mini:test").prompts)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "there is no prompt in it"),
        ("a.txt", "\n \n", "there is no prompt in it"),
        ("a.txt", "one\n\nthree\n", "line 2: the prompt is ''"),
        ("a.csv", "", "no column 'prompt' among none"),
        ("a.csv", "prompt,tempo\n", "there is no prompt in it"),
        ("a.csv", "caption,tempo\na,1\n", "no column 'prompt' among caption, tempo"),
        ("a.csv", "prompt,tempo\na\n", "line 2: expected 2 columns"),
        ("a.csv", "prompt\na,b\n", "line 2: expected 1 columns"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "line 2: the prompt is 3"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b", "x": 1}', "line 2: the keys differ from the first prompt's: x"),
        ("a.jsonl", "{prompt}", "line 1: not JSON"),
        ("a.jsonl", '["a"]', "line 1: expected an object"),
        ("a.jsonl", '{"caption": "a"}', "line 1: no column 'prompt' among caption"),
        ("a.jsonl", '{"prompt": ' + "9" * 5000 + "}", "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "line 1: the prompt '\\ud800' holds a NUL or half of a character"),
        ("a.csv", "prompt,x,x\na,1,2\n", "two columns of one name among prompt, x, x"),
        ("a.csv", "prompt\n" + "a" * 200_000, "line 2: field larger than field limit"),
        ("a.json", "[]", "there is no prompt in it"),
        ("a.json", '{"prompt": "a"}', "expected a list of texts, or of objects"),
        ("a.json", '["a", 3]', "row 2: the prompt is 3; expected text"),
        ("a.json", '["a", {"prompt": "b", "x": 1}]', "row 2: the keys differ from the first prompt's: x"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", '["a"', "not JSON"),
        ("a.yaml", "- a", "expected a .txt, .csv, .jsonl or .json file, a folder saved by `datasets`, mini:train"),
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
    with pytest.raises(ConfigError, match="is a folder that `datasets` did not save"):
        load_prompts(str(tmp_path))
    for impossible in ("a\0b.txt", "a" * 5000 + ".txt"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_prompts(impossible)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_prompts(str(tmp_path / "latin.txt"))


def test_numbered_prompts_need_no_file() -> None:
    assert load_prompts("rows:8-11").prompts == ("row 8", "row 9", "row 10", "row 11")
    for wrong in ("rows:3-2", "rows:5", "rows:-1-4", "rows:0-999999999"):
        with pytest.raises(ConfigError, match=r"expected rows:FIRST-LAST, such as rows:0-1023"):
            load_prompts(wrong)
