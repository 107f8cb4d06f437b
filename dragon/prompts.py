"""Prompt files -> prompts and the columns that rewards may ask for. Knows no model.

`.txt`: one prompt a line. `.csv` and `.jsonl`: a column `prompt`; every other column goes to rewards as a list.
"mini:train", "mini:dev", "mini:test" are the lists that come with the built-in model; "mini:open_train" and
"mini:open_test" those of captions that name no style.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dragon.errors import ConfigError


@dataclass(frozen=True)
class PromptSet:
    """Prompts in file order, with the other columns of the file, one value a prompt."""

    prompts: tuple[str, ...]
    columns: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, count: int) -> PromptSet:
        """The first `count` prompts, or all of them if there are fewer."""
        return PromptSet(self.prompts[:count], {name: values[:count] for name, values in self.columns.items()})


def load_prompts(source: str) -> PromptSet:
    """Reads a prompt file, or a built-in list.

    Raises:
        ConfigError: no such file or list, nothing in it, an empty prompt (with its line), no column `prompt`,
            or rows whose columns differ.
    """
    if source.startswith("mini:"):
        return PromptSet(_built_in(source))
    path = Path(source)
    readers = {".txt": _read_text, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise ConfigError(
            f"prompts {source!r}: expected a .txt, .csv or .jsonl file, or mini:train, mini:dev, mini:test"
        )
    if not path.is_file():
        raise ConfigError(f"prompts {source!r}: no such file (looked for {path.resolve()})")
    try:
        rows = readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts {source!r} are not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not rows:
        raise ConfigError(f"prompts {source!r}: the file holds no prompt; write one a line")
    for line, row in rows:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise ConfigError(f"prompts {source!r}, line {line}: the prompt is {row['prompt']!r}; expected text")
    names = [name for name in rows[0][1] if name != "prompt"]
    return PromptSet(
        tuple(str(row["prompt"]).strip() for _, row in rows),
        {name: tuple(row[name] for _, row in rows) for name in names},
    )


Rows = list[tuple[int, dict[str, object]]]
"""Line number and columns of each prompt."""


def _built_in(source: str) -> tuple[str, ...]:
    from dragon import mini

    return tuple(mini.prompts(source.removeprefix("mini:")))


def _read_text(path: Path) -> Rows:
    lines = path.read_text(encoding="utf-8").splitlines()
    while lines and not lines[-1].strip():  # a file may end in blank lines; one in the middle is a slip
        lines.pop()
    return [(number, {"prompt": line}) for number, line in enumerate(lines, 1)]


def _read_csv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _need_prompt(path, list(reader.fieldnames or []))
        rows: Rows = []
        for row in reader:
            if None in row or None in row.values():
                width = len(reader.fieldnames or [])
                raise ConfigError(
                    f"prompts {str(path)!r}, line {reader.line_num}: expected {width} columns, as in line 1"
                )
            rows.append((reader.line_num, dict(row)))
    return rows


def _read_jsonl(path: Path) -> Rows:
    rows: Rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"prompts {str(path)!r}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ConfigError(
                f"prompts {str(path)!r}, line {number}: expected an object with the key prompt, got {line}"
            )
        _need_prompt(path, list(row))
        if rows and row.keys() != rows[0][1].keys():
            differing = ", ".join(sorted(row.keys() ^ rows[0][1].keys()))
            raise ConfigError(f"prompts {str(path)!r}, line {number}: keys differ from the first line's: {differing}")
        rows.append((number, row))
    return rows


def _need_prompt(path: Path, names: list[str]) -> None:
    if "prompt" not in names:
        raise ConfigError(f"prompts {str(path)!r}: no column 'prompt' among {', '.join(names) or 'none'}")
