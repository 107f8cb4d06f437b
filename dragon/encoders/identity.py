"""What an encoder is, as a short text: equal fingerprints, equal features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(**settings: object) -> str:
    """16 hexadecimal digits that identify settings (anything JSON holds)."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits that identify the float32 values, names and shapes of a state dict, in any order."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(state.items()):
        value = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
