"""Tiny randomly initialised pipelines of the real classes, one module a family, and what all of them are made with.

Knows diffusers' and transformers' classes, and none of dragon's. Each module has the pipeline's class by name (`KIND`),
a guidance above 1, the options of the family that describe what `call` does, and two functions: `tiny()` builds the
pipeline, `call` is the pipeline's own `__call__` for one prompt.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

WORDS = ["slow", "fast", "piano", "drums", "music", "strings", "a", "the", "loud", "quiet", "choir", "of"]
PROMPTS = ["slow piano", "a loud choir of strings", "fast drums"]  # of different lengths


def families() -> list[str]:
    """Names of the modules here."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def family(name: str) -> ModuleType:
    """The module of that name."""
    return importlib.import_module(f"tiny_pipelines.{name}")


def words_tokenizer(max_length: int, **special: str) -> Any:
    """A tokenizer of whole words that ends every text with </s>; `special` adds or replaces special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    given = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    names = list(dict.fromkeys(given.values()))
    vocabulary = {word: i for i, word in enumerate([*names, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=given["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    end = given["eos_token"]
    made.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, vocabulary[end])])
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=max_length, **given)


VOCABULARY = 32
"""Rows of a text encoder's table, more than the words and special tokens."""


@torch.no_grad()
def randomise(*modules: nn.Module, seed: int = 0) -> None:
    """Draws anew every constant matrix and vector: from zeros or ones no fault in what feeds them would show."""
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        for p in module.parameters():
            if p.numel() > 1 and torch.all(p == p.flatten()[0]):
                centre = float(p.flatten()[0])
                p.copy_(centre + 0.2 * torch.randn(p.shape, generator=generator))
        module.eval()


def tiny_pipeline(name: str, folder: str | Path) -> ModuleType:
    """Builds the family's pipeline, its constant weights randomised, and saves it in `folder`."""
    module = family(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = module.tiny()
    randomise(*(part for part in pipe.components.values() if isinstance(part, nn.Module)))
    pipe.save_pretrained(str(folder))
    return module


def latents_of(output: Any) -> Tensor:
    """The tensor in a pipeline's output, whatever its field is called."""
    found: Tensor = torch.as_tensor(output[0])
    return found
