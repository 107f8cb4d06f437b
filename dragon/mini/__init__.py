"""The built-in small text-to-music model, its audio-text encoder and its judge, with their weights.

Weights lie in `weights/` (made by recipes/mini, described in weights/README.md). Loading imports
diffusers and transformers for the pipeline only; the encoders need torch alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dragon.errors import ConfigError
from dragon.texts import short
from dragon.weights import check_weights, read_weights

if TYPE_CHECKING:
    from torch import nn

    from dragon.mini.encoder import MiniAudioTextEncoder
    from dragon.mini.judge import MiniJudge
    from dragon.mini.pipeline import MiniPipeline
    from dragon.mini.readers import MiniReaders

    Module = TypeVar("Module", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights"
_PARTS = {
    "text_encoder": "model.safetensors",
    "denoiser": "diffusion_pytorch_model.safetensors",
    "codec": "diffusion_pytorch_model.safetensors",
}
"""Where a pipeline's folder keeps the weights of its parts."""


def load_pipeline(folder: str | Path | None = None) -> MiniPipeline:
    """The text-to-music pipeline of a folder; None: the shipped one.

    Raises:
        ConfigError: there is none, a file of it is damaged, or its weights are not those of its parts. diffusers would
            fill what is missing with random numbers, and open a pickle where there is no safetensors file.
    """
    from dragon.mini.pipeline import MiniPipeline

    where = _existing(Path(folder) if folder else WEIGHTS / "pipeline", "model_index.json", "a MiniPipeline")
    files = {part: where / part / name for part, name in _PARTS.items()}
    stored = {part: read_weights(file, f"MiniPipeline, {part}") for part, file in files.items()}
    with _without_progress_bars(), _refused(where, "a MiniPipeline"):
        pipeline = MiniPipeline.from_pretrained(str(where), local_files_only=True, use_safetensors=True)
    for name, file in files.items():
        part = getattr(pipeline, name)
        check_weights(part, stored[name], file)
        part.float()  # stored in half precision, computed in single
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_encoder(folder: str | Path | None = None) -> MiniAudioTextEncoder:
    """The audio-text encoder (rewards); None: the shipped one. In evaluation mode, without gradients."""
    from dragon.mini.encoder import MiniAudioTextEncoder

    return _load(MiniAudioTextEncoder, Path(folder) if folder else WEIGHTS / "encoder")


def load_judge(folder: str | Path | None = None) -> MiniJudge:
    """The judge (never a reward); None: the shipped one. In evaluation mode, without gradients."""
    from dragon.mini.judge import MiniJudge

    return _load(MiniJudge, Path(folder) if folder else WEIGHTS / "judge")


def load_readers(folder: str | Path | None = None) -> MiniReaders:
    """The attribute readers (measurement only); None: the shipped ones."""
    from dragon.mini.readers import MiniReaders

    return _load(MiniReaders, Path(folder) if folder else WEIGHTS / "readers")


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """The words the shipped model knows, sorted."""
    return tuple((WEIGHTS / "vocabulary.txt").read_text(encoding="utf-8").split())


def prompts(split: str) -> list[str]:
    """The bundled prompts of a split: train, dev, test, or open_train, open_test, which name no style.

    No work behind a dev or test prompt was trained on.
    """
    path = WEIGHTS / f"prompts_{split}.txt"
    if not os.path.isfile(path) or path.parent != WEIGHTS:
        known = ", ".join(sorted(p.stem.replace("prompts_", "mini:") for p in WEIGHTS.glob("prompts_*.txt")))
        raise ConfigError(f"no built-in prompts {short(f'mini:{split}')}; there are: {known}")
    return path.read_text(encoding="utf-8").splitlines()


def save_module(module: nn.Module, folder: Path) -> None:
    """Writes config.json and model.safetensors (half precision) for `load_encoder` and its like."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(module.config, indent=1), encoding="utf-8")
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors")


def random_pipeline(seed: int = 0, width: int = 32, layers: int = 1) -> MiniPipeline:
    """A tiny untrained pipeline with the shipped one's interface, for tests. No zero weights: every input matters."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import T5Config, T5EncoderModel

    from dragon.mini.codec import MiniCodec
    from dragon.mini.denoiser import MiniDenoiser
    from dragon.mini.pipeline import MiniPipeline
    from dragon.mini.words import Words

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = Words(vocabulary())
        text = T5EncoderModel(text_config(len(words), width=16, layers=1)).eval()
        assert isinstance(text.config, T5Config)
        denoiser = MiniDenoiser(width=width, layers=layers, heads=2, text_width=16).eval()
        for parameter in denoiser.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        codec = MiniCodec(coarse_width=16, coarse_layers=1, width=16, layers=1).eval()
        basis, _ = torch.linalg.qr(torch.randn(codec.components.shape))
        codec.fit(torch.full_like(codec.mean, -4.0), basis, torch.ones_like(codec.scale))
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    pipeline = MiniPipeline(words.tokenizer(), text, denoiser, codec, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_encoder(seed: int = 0) -> MiniAudioTextEncoder:
    """A tiny untrained audio-text encoder, for tests."""
    from dragon.mini.encoder import MiniAudioTextEncoder

    return _random(MiniAudioTextEncoder, seed, width=8, features=16)


def random_judge(seed: int = 0) -> MiniJudge:
    """A tiny untrained judge, for tests."""
    from dragon.mini.judge import MiniJudge

    return _random(MiniJudge, seed, width=16, features=16)


def text_config(words: int, width: int = 128, layers: int = 2) -> Any:
    """The T5 configuration of the text encoder."""
    from transformers import T5Config

    return T5Config(
        vocab_size=words,
        d_model=width,
        d_kv=width // 4,
        d_ff=3 * width,
        num_layers=layers,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=2,
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A small model loads in a moment: diffusers and transformers draw no bars for it."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [part for part in (diffusers_logging, transformers_logging) if part.is_progress_bar_enabled()]
    for part in shown:
        part.disable_progress_bar()
    try:
        yield
    finally:
        for part in shown:
            part.enable_progress_bar()


@contextmanager
def _refused(folder: Path, what: str) -> Iterator[None]:
    """Whatever a loader raises of a folder's files becomes a ConfigError."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, KeyError, TypeError and more, with long advice
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"{folder} cannot be loaded as {what} ({type(error).__name__}: {reason[:200]}); copy or save it again"
        ) from error


def _existing(folder: Path, marker: str, what: str) -> Path:
    if not os.path.isfile(folder / marker):  # pathlib would raise for a name that is too long
        raise ConfigError(
            f"{short(str(folder))} does not hold {what} (no {marker}); "
            "expected a folder made by recipes/mini or save_pretrained"
        )
    return folder


def _load(kind: type[Module], folder: Path) -> Module:
    stored = read_weights(_existing(folder, "model.safetensors", kind.__name__) / "model.safetensors", kind.__name__)
    with _refused(folder, kind.__name__):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        module = kind(**config)
    check_weights(module, stored, folder)
    module.load_state_dict({k: v.float() for k, v in stored.items()})
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes() + json.dumps(config, sort_keys=True).encode())
    module.fingerprint = digest.hexdigest()[:16]  # type: ignore[assignment]
    return module.eval().requires_grad_(False)


def _random(kind: type[Module], seed: int, **options: int) -> Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind(vocabulary(), **options)
    module.fingerprint = f"random-{seed}"  # type: ignore[assignment]
    return module.eval().requires_grad_(False)
