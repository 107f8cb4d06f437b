"""CLAP from LAION's own files by the authors' package, laion_clap (`pip install 'dragon-media[laion]'`).

A second opinion on dragon/encoders/laion.py: both agree to 1e-5 on the same file. Importing the package asks a hub or
its local cache for three tokenizers and reaches into sys.path; that happens here, and only when the encoder is made.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from dragon.encoders.clap import RATE, SAMPLES, TEXT_TOKENS, WindowedClap
from dragon.encoders.identity import weights_hash
from dragon.encoders.laion import check_kind, has_fusion, read_checkpoint
from dragon.encoders.windows import Windows
from dragon.errors import ConfigError, MissingExtra

_SIZES = {96: "tiny", 128: "base", 256: "large"}


class LaionClap(WindowedClap):
    """A CLAP from an original LAION file, by the laion_clap package.

    The package asks a hub (or its local cache) for roberta-base, and for two tokenizers it does not use. windows: see
    dragon.encoders.clap.WindowedClap.

    Raises:
        MissingExtra: the package cannot be imported. ConfigError: it is no CLAP of HTSAT and RoBERTa.
    """

    def __init__(
        self, weights: str, *, windows: Windows | Mapping[str, Any] | None = None, device: str = "cpu"
    ) -> None:
        super().__init__("laion-clap", _PackageClap(weights, device), windows, device)


class _PackageClap:
    """laion_clap.CLAP_Module as a network."""

    def __init__(self, weights: str, device: str) -> None:
        state = read_checkpoint(weights)
        check_kind(state, weights, "laion-clap")
        width, fusion = state["audio_branch.patch_embed.proj.weight"].shape[0], has_fusion(state)
        if width not in _SIZES:
            raise ConfigError(
                f"encoder 'laion-clap': {weights!r} has an HTSAT of width {width}; the package knows "
                f"{', '.join(f'{w} ({name})' for w, name in _SIZES.items())}; use the encoder clap-pt"
            )
        with torch.random.fork_rng(devices=[]):  # its layers are drawn before they are loaded
            self._module = _laion_clap(enable_fusion=fusion, device=device, amodel=f"HTSAT-{_SIZES[width]}")
        # not the package's own loader, which runs whatever code a file holds. Positions, which newer versions of
        # transformers do not store, are counted and not learnt
        known = self._module.model.state_dict()
        kept = {key: value for key, value in state.items() if key in known or not key.endswith("position_ids")}
        try:
            self._module.model.load_state_dict(kept)
        except RuntimeError as error:
            raise ConfigError(f"encoder 'laion-clap': {weights!r} does not fit its model: {error}") from error
        self._module.to(device).eval().requires_grad_(False)
        self._features = int(state["audio_projection.2.weight"].shape[0])
        self.settings: dict[str, object] = {
            "kind": "clap by laion_clap, version 1",
            "package": version("laion-clap"),
            "weights": weights_hash({key: value for key, value in kept.items() if value.is_floating_point()}),
            "fusion": fusion,
            "sampling_rate": RATE,
            "samples": SAMPLES,
            "text_tokens": TEXT_TOKENS,
        }

    @property
    def features(self) -> int:
        return self._features

    def embed_audio(self, wave: Tensor) -> Tensor:
        found = self._module.get_audio_embedding_from_data(x=wave, use_tensor=True)  # arrays it would round to 16 bits
        return torch.nn.functional.normalize(found, dim=-1)

    def embed_text(self, prompts: list[str]) -> Tensor:
        return torch.nn.functional.normalize(self._module.get_text_embedding(prompts, use_tensor=True), dim=-1)


def _laion_clap(**options: object) -> Any:
    """A laion_clap.CLAP_Module; importing it leaves nothing behind on the path."""
    try:
        with _path_restored():
            package = importlib.import_module("laion_clap")
        return package.CLAP_Module(**options)
    except ImportError as error:
        raise MissingExtra(
            f"encoder 'laion-clap' needs the package laion_clap ({error}); install it with "
            "pip install 'dragon-media[laion]', or use the encoder clap-pt, which reads the same file without it"
        ) from error
    except OSError as error:
        raise ConfigError(
            "encoder 'laion-clap': the package asks a hub or the local cache for roberta-base and for the tokenizers "
            f"of bert-base-uncased and facebook/bart-base, and failed: {' '.join(str(error).split())[:200]}; go online "
            "once, or use the encoder clap-pt"
        ) from error


@contextmanager
def _path_restored() -> Iterator[None]:
    """laion_clap appends its own folder, with modules called training and evaluate, to sys.path."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
