"""Pipelines without their weights: from published sizes, or from the config.json files of a folder.

Knows diffusers' and transformers' classes and how pipelines are put together; no family, no policy. Two uses: `hollow`
parts have shapes and no data (for torch's FakeTensorMode), `flat` ones hold zeros that take no memory, so that prompts
can be encoded for real, to see the shapes of conditions.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dragon.errors import ConfigError
from dragon.policy.sizes import PUBLISHED, Part, Sizes

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


def sizes(folder: str) -> Sizes:
    """Of a folder with model_index.json and the components' config.json files, or of a published checkpoint.

    Raises:
        ConfigError: neither, with the checkpoints that are known.
    """
    if os.path.isdir(folder):
        return _read(folder)
    if folder in PUBLISHED:
        return PUBLISHED[folder]
    raise ConfigError(
        f"no sizes are known of {folder!r}, and it is no folder here; known: {', '.join(sorted(PUBLISHED))}. For "
        "another checkpoint give a folder with its model_index.json and config.json files; no weights are needed"
    )


def hollow(wanted: Sizes, folder: str, fake: FakeTensorMode, dtype: Callable[[str], torch.dtype]) -> Any:
    """The pipeline with parts of shapes only, and a scheduler as it is. dtype: of a component's weights."""

    def filled(name: str, old: Tensor) -> Tensor:
        with fake:
            low = old.is_floating_point() and isinstance(old, nn.Parameter)
            return torch.empty(old.shape, dtype=dtype(name) if low else old.dtype)

    return _pipeline(wanted, folder, filled)


def flat(wanted: Sizes, folder: str) -> Any:
    """The pipeline with zeros for weights."""
    return _pipeline(wanted, folder, lambda _, old: torch.zeros((), dtype=old.dtype).expand(old.shape))


def cut(module: nn.Module) -> None:
    """Leaves the first of every list of equal layers: what comes out keeps its shape, and comes soon."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(layer) for layer in child}) == 1:
                setattr(part, name, child[:1])


def modules(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    """The pipeline's networks by name."""
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            yield name, part


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


@contextmanager
def moved_by_replacement() -> Iterator[None]:
    """Inside it `Module.to` puts new tensors in the place of the old ones.

    torch would rather exchange the contents of the two, which tensors without data do not allow.
    """

    def apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in self.children() if recurse else ():
            apply(child, function)
        _replace(self, function, recurse=False)
        return self

    own = nn.Module._apply
    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = own  # type: ignore[method-assign]


def _pipeline(wanted: Sizes, folder: str, filled: Callable[[str, Tensor], Tensor]) -> Any:
    import diffusers

    made: dict[str, Any] = dict.fromkeys(wanted.nothing)
    for name, part in wanted.parts.items():
        made[name] = _component(part)
        if isinstance(made[name], nn.Module):
            _replace(made[name], functools.partial(filled, name))
            made[name].eval()
    for name, longest in wanted.tokens.items():
        made[name] = _tokenizer(folder, name, longest)
    try:
        return getattr(diffusers, wanted.kind)(**made)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{wanted.kind} cannot be put together from {folder!r}: {error}") from error


def _component(part: Part) -> Any:
    place, _, name = part.made_by.partition(":")
    try:
        made_by = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"a component is a {name} of {place}, which is not installed here: {error}") from error
    arguments = dict(part.arguments)
    if not issubclass(made_by, nn.Module):
        return made_by(**arguments)
    with torch.device("meta"):
        if place.split(".")[0] == "transformers":
            return made_by(made_by.config_class(**arguments))
        return made_by(**arguments)


def _replace(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> None:
    """Every parameter and buffer by what `function` makes of it; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for part in module.modules() if recurse else (module,):
        for table in (part._parameters, part._buffers):
            for name, old in table.items():
                if old is None:
                    continue
                if id(old) not in made:
                    with torch.no_grad():
                        new = function(old)
                    parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if parameter and new is not old else new
                table[name] = made[id(old)]  # type: ignore[assignment]


def _read(folder: str) -> Sizes:
    index = _json(os.path.join(folder, "model_index.json"))
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise ConfigError(f"model_index.json of {folder!r} names no _class_name; save the pipeline again")
    parts, tokens, nothing = {}, {}, []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        library, made_by = value
        place = os.path.join(folder, name)
        left_out = made_by is None or not os.path.isdir(place)  # pipelines make some schedulers for themselves
        if left_out or "SafetyChecker" in made_by or "FeatureExtractor" in made_by or "Processor" in made_by:
            nothing.append(name)
        elif "Tokenizer" in made_by:
            tokens[name] = 0
        else:
            scheduler = os.path.join(place, "scheduler_config.json")
            found = _json(scheduler if os.path.isfile(scheduler) else os.path.join(place, "config.json"))
            parts[name] = Part(f"{_library(library, made_by)}:{made_by}", _arguments(library, made_by, found))
    return Sizes(kind, parts, tokens, f"config.json files of {folder}", tuple(nothing))


def _library(library: str, made_by: str) -> str:
    """Where a class named in model_index.json lies: components of one pipeline alone name only its folder."""
    if library in ("diffusers", "transformers"):
        return library
    import diffusers

    return "diffusers" if hasattr(diffusers, made_by) else f"diffusers.pipelines.{library}"


def _arguments(library: str, made_by: str, found: Mapping[str, object]) -> dict[str, object]:
    import inspect

    values = {key: value for key, value in found.items() if not key.startswith("_")}
    if library == "transformers":
        return {k: v for k, v in values.items() if k not in ("architectures", "transformers_version", "model_type")}
    taken = inspect.signature(getattr(importlib.import_module(_library(library, made_by)), made_by)).parameters
    return {key: value for key, value in values.items() if key in taken}


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download the config.json files again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; expected an object of settings")
    return found


def _tokenizer(folder: str, name: str, longest: int) -> Any:
    """The folder's own; for a published checkpoint one that knows no word, which is enough for padded shapes."""
    if not longest:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(os.path.join(folder, name))
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=longest, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
