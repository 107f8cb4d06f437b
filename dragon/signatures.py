"""Options as a plug-in's signature wants them. Knows annotations, not what any option means."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from dragon.errors import ConfigError


def converted(plugin: Callable[..., Any], parameter: inspect.Parameter, value: object) -> object:
    """`value` as the parameter's annotation wants it; unchanged where the annotation says nothing to a checker.

    Raises:
        ConfigError: it does not fit; says the value, the annotation and why.
    """
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            hint = eval(hint, vars(sys.modules[plugin.__module__]))  # noqa: S307  the plug-in's own annotation
        except (NameError, AttributeError, TypeError):  # imported for type checkers only
            return value
    if hint is parameter.empty:
        return value
    try:
        adapter: TypeAdapter[object] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    # a class with its own checks, one pydantic has no schema for, or a protocol that no isinstance knows
    except (PydanticUserError, SchemaError):
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reasons = "; ".join(dict.fromkeys(detail["msg"] for detail in error.errors(include_url=False)))
        raise ConfigError(f"{value!r} does not fit {type_of(parameter)}: {reasons}") from error


def type_of(parameter: inspect.Parameter) -> str:
    """The annotation as it is written."""
    hint = parameter.annotation
    return hint if isinstance(hint, str) else inspect.formatannotation(hint)
