"""Words -> numbers: the vocabulary of the built-in model's captions.

One word, one token; punctuation and case are ignored. A word that is not known becomes [UNK];
`unknown_words` lets callers say so, since such a word changes nothing in the music.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_WORDS = 48
SPECIAL = ("[PAD]", "[UNK]", "[EOS]")
_WORD = re.compile(r"[^\W_]+")


class Words:
    """A fixed vocabulary. Row: words, then [EOS], then [PAD] up to 48."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._index = {word: i for i, word in enumerate((*SPECIAL, *self.vocabulary))}

    def __len__(self) -> int:
        return len(self._index)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(b, 48) int64."""
        rows = torch.zeros(len(texts), MAX_WORDS, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self._index.get(word, 1) for word in split(text)][: MAX_WORDS - 1] + [2]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that the model has never seen, in order."""
        return [word for word in split(text) if word not in self._index]

    def tokenizer(self) -> Any:
        """The same mapping as a transformers tokenizer, which a diffusers pipeline can save."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        core = Tokenizer(models.WordLevel(dict(self._index), unk_token="[UNK]"))
        core.normalizer = normalizers.Lowercase()
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\W_]+"), behavior="removed", invert=True)
        core.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
        return PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=MAX_WORDS
        )


def split(text: str) -> list[str]:
    """Lower-case words of a text."""
    return _WORD.findall(text.lower())
