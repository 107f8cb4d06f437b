"""Prompt files -> prompts and the columns that rewards may ask for. Knows no model.

`.txt`: one prompt a line. `.csv`, `.jsonl`, `.json` (a list of objects, or of texts) and a folder that the package
`datasets` saved: a column `prompt`; every other column goes to rewards as a list.
"rows:0-1023" are numbered prompts, "row 0" to "row 1023", for a model that takes no text.
"mini:train", "mini:dev", "mini:test" are the lists that come with the built-in model; "mini:open_train" and
"mini:open_test" those of captions that name no style.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dragon.errors import ConfigError, MissingExtra
from dragon.texts import short, writable

KINDS = (
    "a .txt, .csv, .jsonl or .json file, a folder saved by `datasets`, mini:train, mini:dev, mini:test, or rows:0-99"
)
"""What `load_prompts` reads, for messages."""
_MOST_NUMBERED = 10_000_000


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
    """Reads a prompt file, a `datasets` folder, or a built-in list.

    Raises:
        ConfigError: no such file or list, nothing in it, an empty prompt (with its line), no column `prompt`,
            or rows whose columns differ.
        MissingExtra: a `datasets` folder without that package.
    """
    if source.startswith("mini:"):
        return PromptSet(_built_in(source))
    if source.startswith("rows:"):
        return PromptSet(_numbered(source))
    path = Path(source)
    readers = {".txt": _read_text, ".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json}
    try:
        reader = _read_dataset if path.is_dir() else readers.get(path.suffix)
        if reader is None:
            raise ConfigError(f"prompts {source!r}: expected {KINDS}")
        if not path.exists():
            raise ConfigError(f"prompts {source!r}: no such file (looked for {path.resolve()})")
        rows = reader(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts {source!r} are not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, ValueError, RecursionError) as error:  # not readable, an impossible name, nested beyond reading
        raise ConfigError(f"prompts {source!r} cannot be read ({error}); expected {KINDS}") from error
    if not rows:
        raise ConfigError(f"prompts {source!r}: there is no prompt in it; write one a line")
    for place, row in rows:
        _check(f"prompts {source!r}, {place}", row, rows[0][1])
    names = [name for name in rows[0][1] if name != "prompt"]
    return PromptSet(
        tuple(str(row["prompt"]).strip() for _, row in rows),
        {name: tuple(row[name] for _, row in rows) for name in names},
    )


Rows = list[tuple[str, dict[str, object]]]
"""Of each prompt its place ("line 3") and its columns."""


def _check(place: str, row: Mapping[str, object], first: Mapping[str, object]) -> None:
    if "prompt" not in row:
        raise ConfigError(f"{place}: no column 'prompt' among {', '.join(row) or 'none'}")
    if row.keys() != first.keys():
        differing = ", ".join(sorted(row.keys() ^ first.keys()))
        raise ConfigError(f"{place}: the keys differ from the first prompt's: {differing}")
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"{place}: the prompt is {short(prompt)}; expected text")
    if not writable(prompt):
        raise ConfigError(f"{place}: the prompt {short(prompt)} holds a NUL or half of a character; mend the file")


def _built_in(source: str) -> tuple[str, ...]:
    from dragon import mini

    return tuple(mini.prompts(source.removeprefix("mini:")))


def _numbered(source: str) -> tuple[str, ...]:
    found = re.fullmatch(r"rows:(\d{1,9})-(\d{1,9})", source)
    first, last = (int(number) for number in found.groups()) if found else (1, 0)
    if last < first or last - first >= _MOST_NUMBERED:
        raise ConfigError(
            f"prompts {source!r}: expected rows:FIRST-LAST, such as rows:0-1023, of at most {_MOST_NUMBERED:,} prompts"
        )
    return tuple(f"row {number}" for number in range(first, last + 1))


def _lines(path: Path) -> list[str]:
    """Lines end at line feeds alone: `str.splitlines` would cut prompts at rare characters, too."""
    return path.read_text(encoding="utf-8-sig").split("\n")


def _read_text(path: Path) -> Rows:
    lines = _lines(path)
    while lines and not lines[-1].strip():  # a file may end in blank lines; one in the middle is a slip
        lines.pop()
    return [(f"line {number}", {"prompt": line}) for number, line in enumerate(lines, 1)]


def _read_csv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            names = list(reader.fieldnames or [])
            if "prompt" not in names:
                raise ConfigError(f"prompts {str(path)!r}: no column 'prompt' among {', '.join(names) or 'none'}")
            if len(set(names)) < len(names):
                raise ConfigError(f"prompts {str(path)!r}: two columns of one name among {', '.join(names)}")
            rows: Rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"prompts {str(path)!r}, line {reader.line_num}: expected {len(names)} columns, as in line 1"
                    )
                rows.append((f"line {reader.line_num}", dict(row)))
        except csv.Error as error:
            raise ConfigError(f"prompts {str(path)!r}, line {reader.line_num + 1}: {error}") from error
    return rows


def _read_jsonl(path: Path) -> Rows:
    rows: Rows = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            row = _parsed(line, f"prompts {str(path)!r}, line {number}")
            if not isinstance(row, dict):
                raise ConfigError(
                    f"prompts {str(path)!r}, line {number}: expected an object with the key prompt, got {short(row)}"
                )
            rows.append((f"line {number}", row))
    return rows


def _read_json(path: Path) -> Rows:
    found = _parsed("\n".join(_lines(path)), f"prompts {str(path)!r}")
    if not isinstance(found, list):
        raise ConfigError(f"prompts {str(path)!r}: expected a list of texts, or of objects with the key prompt")
    # a number or a list among them is told like a prompt that is no text
    return [(f"row {n}", row if isinstance(row, dict) else {"prompt": row}) for n, row in enumerate(found, 1)]


def _read_dataset(path: Path) -> Rows:
    """A `Dataset` that `save_to_disk` wrote. Values are those of the table: sound and pictures are not decoded."""
    if (path / "dataset_dict.json").is_file():
        splits = _parsed((path / "dataset_dict.json").read_text(encoding="utf-8"), f"prompts {str(path)!r}")
        names = splits.get("splits", []) if isinstance(splits, dict) else []
        raise ConfigError(
            f"prompts {str(path)!r} holds the splits {', '.join(map(str, names))}; give one: {path / 'SPLIT'}"
        )
    if not (path / "dataset_info.json").is_file():
        raise ConfigError(f"prompts {str(path)!r} is a folder that `datasets` did not save; expected {KINDS}")
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise MissingExtra(
            f"prompts {str(path)!r} are a folder saved by `datasets`, which is not installed ({error}): "
            "pip install 'dragon-media[datasets]'"
        ) from error
    table = load_from_disk(str(path)).with_format("arrow")[:]
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]


def _parsed(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place}: not JSON ({error})") from error
