"""Arguments of a command -> its one place and a dataclass of settings, by tyro."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from dragon.errors import ConfigError
from dragon.texts import short

if TYPE_CHECKING:
    from dragon.config import TrainConfig


def positional(arguments: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """The one argument without a flag, which stands first or (for a YAML file) last, and the others."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if len(arguments) > 1 and arguments[-1].endswith((".yaml", ".yml")):
        return arguments[-1], arguments[:-1]
    if any(flag in ("-h", "--help") for flag in arguments):
        return "", arguments
    raise ConfigError(f"no {what} given; expected: {usage}")


def with_flags(config: TrainConfig, flags: list[str], program: str) -> TrainConfig:
    """The configuration with flags winning over it; lists and options are given as YAML."""
    return parsed(type(config), flags, program, default=config)


def parsed(schema: type[Any], arguments: list[str], program: str, default: Any = None) -> Any:
    """An instance of a dataclass from flags, by tyro; its own message and exit status 2 for a wrong flag."""
    import tyro
    import yaml

    from dragon.config import RewardSpec, Spec
    from dragon.loading import parse_yaml, plain

    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def as_yaml(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        """Options and lists of plug-ins have no flags of their own: they are written as in the file."""
        # tyro hands over typing.Tuple[...] for some defaults, which does not equal tuple[...]
        of_specs = get_origin(info.type) is tuple and get_args(info.type) in ((RewardSpec, ...), (Spec, ...))
        if not of_specs and info.type not in (dict[str, object], Spec | None):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="YAML",
            instance_from_str=lambda words: parse_yaml(words[0], short(words[0])),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [yaml.safe_dump(plain(value), default_flow_style=True).strip()],
        )

    keywords = {} if default is None else {"default": default}
    with rules:
        return tyro.cli(schema, args=_flags_of_bools(arguments, schema), prog=program, use_underscores=True, **keywords)


def _flags_of_bools(flags: list[str], schema: type[Any]) -> list[str]:
    """`--a.b true` (or `--a.b=true`) as `--a.b`, and with false as `--a.no_b`: the only forms that tyro takes."""
    known = {f"--{path}": path for path in _bools(schema)}
    found: list[str] = []
    waiting = list(flags)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        flag = f"--{name[2:].replace('-', '_')}"
        if not word.startswith("--") or flag not in known:
            found.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and waiting[0].lower() in ("true", "false") else "true"
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"{flag} is {value!r}; expected true or false")
        parent, dot, last = known[flag].rpartition(".")
        found.append(flag if value.lower() == "true" else f"--{parent}{dot}no_{last}")
    return found


def _bools(schema: type[Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields of a dataclass, and of those in it, that are true or false."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if hints[field.name] is bool:
            yield prefix + field.name
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from _bools(hints[field.name], f"{prefix}{field.name}.")


def plugin_spec(text: str) -> str | Mapping[str, object]:
    """A plug-in's name as it is; what starts with a brace is YAML of a name with options."""
    if not text.lstrip().startswith("{"):
        return text
    from dragon.loading import parse_yaml

    expected = "expected a name, or '{name: NAME, options: {KEY: VALUE}}'"
    try:
        found = parse_yaml(text, short(text))
    except ConfigError as error:
        raise ConfigError(f"{' '.join(str(error).split())}; {expected}") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"{short(text)}; {expected}")
    return found
