"""YAML and plain values -> frozen dataclasses, with every problem at once. Knows no key of any configuration.

pydantic checks types (in its lax mode, since YAML 1.1 reads 2e-5 as text); this file adds what it does not say:
repeated keys, the nearest known key, and what is left of a configuration once its broken keys are taken out, so that
further checks can speak in the same message.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from dragon.errors import ConfigError
from dragon.registry import nearest
from dragon.texts import short

T = TypeVar("T")
Location = tuple[int | str, ...]

MOST_BYTES = 1 << 18
"""Of a YAML file: a hundred long configurations. Reading takes seconds from there on."""
MOST_VALUES = 50_000
"""In a YAML text, where one that is repeated by an alias counts each time."""
MOST_LEVELS = 32
"""Of keys and lists within each other."""
_AT_ONCE = (
    25  # problems explained before the rest is looked at again: a file of 10,000 wrong keys is not a configuration
)


class Problem(NamedTuple):
    """One thing that is wrong: the dotted path of the key, and the value, expectation and next step in words."""

    path: str
    text: str


def read_yaml(path: str | Path) -> dict[str, object]:
    """The mapping in a YAML file; {} for an empty one.

    Raises:
        ConfigError: no such file, one that is too large, what `parse_yaml` refuses, or something else than a mapping.
    """
    place = os.fspath(path)
    if not os.path.isfile(place):  # pathlib would raise for a name that is too long
        if os.path.isdir(place):
            raise ConfigError(f"{short(place)} is a folder; expected a configuration file, such as its config.yaml")
        raise ConfigError(f"no configuration file {short(place)} (looked in {os.getcwd()})")
    try:
        with open(place, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            size = os.path.getsize(place)
            raise ConfigError(f"{place} has {size:,} bytes; expected a configuration of at most {MOST_BYTES:,}")
        values = parse_yaml(content.decode("utf-8"), place)
    except OSError as error:
        raise ConfigError(f"{place} cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is not YAML that can be read: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{place} holds a {type(values).__name__}; expected keys such as max_steps: 40")
    return values


def parse_yaml(text: str, source: str) -> object:
    """What a YAML text holds; source: what an error calls it.

    Raises:
        ConfigError: no YAML; a repeated key, or one that is no text; too many values or levels, as aliases of aliases
            make them; a value that contains itself.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{source} has {len(text):,} characters; expected at most {MOST_BYTES:,}")
    try:
        return yaml.load(text, Loader=_Bounded)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML that can be read: {error}") from error
    except ValueError as error:  # PyYAML's own readers of dates, numbers and binary values
        raise ConfigError(f"{source} holds a date or number that cannot be one: {error}") from error


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
            for detail in error.errors(include_url=False)[:_AT_ONCE]:
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


class _Bounded(yaml.SafeLoader):
    """YAML whose keys are text and given once, and whose aliases make nothing endless or huge of a few lines."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._sizes: dict[yaml.Node, int] = {}  # values in each finished node, its aliases written out

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._level += 1
        event = self.peek_event()
        mark = event.start_mark
        if self._level > MOST_LEVELS:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MOST_LEVELS} levels", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise yaml.MarkedYAMLError(None, None, "a value that contains itself", mark)
            return node
        self._sizes[node] = 1 + sum(self._sizes[inner] for inner in _inner(node))
        if self._sizes[node] > MOST_VALUES:
            raise yaml.MarkedYAMLError(None, None, f"more than {MOST_VALUES:,} values, aliases counted", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[typing.Hashable, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *other`, which super() takes apart
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                text = f"the key {short(key)} is no text; put it in quotes"
                raise yaml.MarkedYAMLError(None, None, text, key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {short(key)} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _explain(schema: type, kind: str, detail: Mapping[str, typing.Any], location: Location) -> str:
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        names = _fields_at(schema, location[:-1])
        near = nearest(str(location[-1]), names)
        return f"unknown key; did you mean {near}?" if near else f"unknown key; known here: {', '.join(names)}"
    if kind == "missing":
        return "is missing and has no default"
    if kind == "dataclass_type":
        hint = f", for example {{name: {detail['input']}}}" if isinstance(detail["input"], str) else ""
        names = _fields_at(schema, location)
        return f"{short(detail['input'])} does not fit: expected keys{hint}; known here: {', '.join(names)}"
    return f"{short(detail['input'])} does not fit: {detail['msg'][0].lower()}{detail['msg'][1:]}"


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
    places: list[typing.Any] = [values]
    for part in location[:-1]:
        try:
            places.append(places[-1][part])
        except (KeyError, IndexError, TypeError):
            return
    while places and not isinstance(places[-1], dict):
        places.pop()
    place, location = places[-1], location[: len(places)]
    if location:
        if missing:
            place[location[-1]] = ""
        else:
            place.pop(location[-1], None)
