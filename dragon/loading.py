"""YAML and plain values -> frozen dataclasses, with every problem at once. Knows no key of any configuration.

pydantic checks types (in its lax mode, since YAML 1.1 reads 2e-5 as text); this file adds what it does not say:
repeated keys, the nearest known key, and what is left of a configuration once its broken keys are taken out, so that
further checks can speak in the same message.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from dragon.errors import ConfigError
from dragon.registry import nearest

T = TypeVar("T")
Location = tuple[int | str, ...]


class Problem(NamedTuple):
    """One thing that is wrong: the dotted path of the key, and the value, expectation and next step in words."""

    path: str
    text: str


def read_yaml(path: str | Path) -> dict[str, object]:
    """The mapping in a YAML file; {} for an empty one.

    Raises:
        ConfigError: no such file, no YAML, a repeated key (with its line), or something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file {str(path)!r} (looked for {path.resolve()})")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML that can be read: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected keys such as max_steps: 40")
    return values


def parse(schema: type[T], values: Mapping[str, object]) -> tuple[T | None, list[Problem]]:
    """An instance of the dataclass `schema`, and what could not be read of `values`.

    Keys that could not be read keep their defaults in the instance; None if there is no instance to be had.
    """
    adapter = TypeAdapter(schema)
    problems: list[Problem] = []
    rest = plain(values)
    for _ in range(4):  # what is under a broken key shows only when that is mended
        try:
            return adapter.validate_python(rest), problems
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                location = tuple(detail["loc"])
                problem = Problem(".".join(map(str, location)), _explain(schema, detail["type"], detail, location))
                if not any(related(problem.path, other.path) for other in problems):
                    problems.append(problem)
                _mend(rest, location, missing=detail["type"] == "missing")
    return None, problems


def plain(value: object) -> typing.Any:
    """Nested dataclasses, mappings and sequences as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted path, value) of everything that holds no keys itself; lists of keys are numbered."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}")
    else:
        yield path, value


def put(values: dict[str, object], path: str, value: object) -> None:
    """Sets the key at a dotted path, making the mappings on the way."""
    *parents, last = path.split(".")
    place = values
    for key in parents:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"cannot set {path}: {key} holds {inner!r}; expected keys")
        place = inner
    place[last] = value


def related(a: str, b: str) -> bool:
    """Whether one dotted path is, or lies under, the other."""
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a repeated key is an error; plain YAML keeps the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[typing.Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _explain(schema: type, kind: str, detail: Mapping[str, typing.Any], location: Location) -> str:
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        names = _fields_at(schema, location[:-1])
        near = nearest(str(location[-1]), names)
        return f"unknown key; did you mean {near}?" if near else f"unknown key; known here: {', '.join(names)}"
    if kind == "missing":
        return "is missing and has no default"
    return f"{detail['input']!r} does not fit: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _fields_at(schema: type, location: Location) -> list[str]:
    """The keys that the schema knows at a path."""
    kind: object = schema
    for part in location:
        if isinstance(part, int):
            kind = typing.get_args(kind)[0]
        elif dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind)[part]
            options = [a for a in typing.get_args(kind) if dataclasses.is_dataclass(a)]
            kind = options[0] if options and typing.get_origin(kind) is not tuple else kind  # `Spec | None`
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _mend(values: object, location: Location, missing: bool) -> None:
    """Takes out the key at `location`, so that its default holds; a required key gets a placeholder instead.

    An item of a list cannot go without renumbering the others: the whole list goes.
    """
    while not missing and location and isinstance(location[-1], int):
        location = location[:-1]
    place: typing.Any = values
    for part in location[:-1]:
        try:
            place = place[part]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(place, dict):
        if missing:
            place[location[-1]] = ""
        else:
            place.pop(location[-1], None)
