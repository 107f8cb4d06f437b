"""A reward takes its encoder by name or ready-made; this is the one place that turns either into an encoder."""

from __future__ import annotations

from dragon import registry
from dragon.errors import PluginError
from dragon.protocols import Encoder, JointEncoder


def get_encoder(encoder: str | Encoder, *, device: str = "cpu") -> Encoder:
    """The encoder itself, or a new one of that registered name (or module:Name), on `device`.

    Raises:
        PluginError: no such encoder, or the object is none.
    """
    if isinstance(encoder, str):
        made = registry.resolve("encoder", encoder)
        encoder = made(device=device) if _takes_device(made) else made()
    if not isinstance(encoder, Encoder):
        raise PluginError(
            f"{encoder!r} is not an encoder; expected name, fingerprint, features and embed_media (dragon.protocols)"
        )
    return encoder


def get_joint_encoder(encoder: str | Encoder, *, device: str = "cpu") -> JointEncoder:
    """The same, for an encoder that embeds text as well."""
    found = get_encoder(encoder, device=device)
    if not isinstance(found, JointEncoder):
        raise PluginError(
            f"encoder {found.name!r} embeds no text; expected one with embed_clips and embed_text, such as 'mini'"
        )
    return found


def _takes_device(made: object) -> bool:
    import inspect

    assert callable(made)
    parameters = inspect.signature(made).parameters.values()
    return any(p.name == "device" or p.kind is p.VAR_KEYWORD for p in parameters)
