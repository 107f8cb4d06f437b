"""A reward takes its encoder by name or ready-made; this is the one place that turns either into an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dragon import registry
from dragon.errors import ConfigError, PluginError
from dragon.protocols import Encoder, JointEncoder

EncoderSpec = str | Mapping[str, object] | Encoder
"""A registered name or module:Name; {"name": ..., "options": {...}}, as in a configuration; or an encoder."""


def get_encoder(encoder: EncoderSpec, *, device: str = "cpu") -> Encoder:
    """The encoder itself, or a new one of that name with those options, on `device`.

    Raises:
        PluginError: no such encoder, unknown options, or the object is none.
    """
    if isinstance(encoder, str):
        encoder = {"name": encoder}
    if isinstance(encoder, Mapping):
        name, options = _named(encoder)
        made = registry.resolve("encoder", name)
        if not callable(made):
            raise PluginError(f"encoder {name!r} is {made!r}; expected a class or a function")
        if _takes_device(made):
            options = {"device": device} | options
        _check_options(made, name, options)
        encoder = made(**options)
    if not isinstance(encoder, Encoder):
        raise PluginError(
            f"{encoder!r} is not an encoder; expected name, fingerprint, features and embed_media (dragon.protocols)"
        )
    return encoder


def get_joint_encoder(encoder: EncoderSpec, *, device: str = "cpu") -> JointEncoder:
    """The same, for an encoder that embeds text as well."""
    found = get_encoder(encoder, device=device)
    if not isinstance(found, JointEncoder):
        raise PluginError(
            f"encoder {found.name!r} embeds no text; expected one with embed_clips and embed_text, such as 'mini'"
        )
    return found


def kept_spec(spec: EncoderSpec) -> tuple[str, dict[str, object]]:
    """Name and options as a file keeps them; where an encoder runs is no part of what it is. An object: "" and none.

    Raises:
        ConfigError: options that no file can keep.
    """
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping):
        return "", {}
    name, given = _named(spec)
    options = {key: value for key, value in given.items() if key != "device"}
    try:
        return name, json.loads(json.dumps(options))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"encoder options {options!r} cannot be kept in a file ({error}); expected texts and numbers"
        ) from error


def _named(spec: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """Name and options of a mapping."""
    name, options = spec.get("name"), spec.get("options", {})
    if set(spec) - {"name", "options"} or not isinstance(name, str) or not isinstance(options, Mapping):
        raise PluginError(f"encoder {dict(spec)!r}; expected a name, or {{name: NAME, options: {{KEY: VALUE}}}}")
    return name, {str(key): value for key, value in options.items()}


def _check_options(made: object, name: str, options: Mapping[str, object]) -> None:
    """Before anything loads."""
    import inspect

    assert callable(made)
    parameters = inspect.signature(made).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [key for key in options if key not in parameters]
    if unknown:
        near = registry.nearest(unknown[0], parameters)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(parameters)}"
        raise PluginError(f"encoder {name!r} has no option {unknown[0]!r}; {hint}")
    lacking = [k for k, p in parameters.items() if p.default is p.empty and k not in options]
    if lacking:
        raise PluginError(
            f"encoder {name!r} needs option {lacking[0]!r}; give {{name: {name}, options: {{{lacking[0]}: ...}}}}"
        )


def _takes_device(made: object) -> bool:
    import inspect

    assert callable(made)
    parameters = inspect.signature(made).parameters.values()
    return any(p.name == "device" or p.kind is p.VAR_KEYWORD for p in parameters)
