"""LongCat-AudioDiT: padding that changes nothing, lengths of clips and prompts.

What holds for every family is in test_pipeline_contract.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dragon.errors import ConfigError
from dragon.policy.pipeline import PipelinePolicy
from tiny_pipelines import PROMPTS, WORDS, longcat, tiny_pipeline

SECONDS = longcat.OPTIONS["seconds"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("longcat")
    tiny_pipeline("longcat", path)
    return str(path)


def pipeline(folder: str) -> Any:
    from diffusers import LongCatAudioDiTPipeline

    pipe = LongCatAudioDiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_padding_changes_nothing_though_the_network_itself_minds_it(folder):
    policy = PipelinePolicy(folder, rank=2, seconds=SECONDS)
    family, cond = policy._backbone._family, policy.encode(PROMPTS[:1])
    length = int(cond.tensors["length"])
    text = cond.tensors["text"]
    assert length < text.shape[1]
    z, time = torch.randn(1, 6, 4, generator=Generator().manual_seed(0)), torch.tensor([500.0])

    def plain(tokens: int) -> Tensor:
        present = torch.arange(tokens)[None] < length
        return family._pipe.transformer(z, text[:, :tokens], present, time / 1000, latent_cond=0 * z).sample

    with torch.no_grad():
        alone, padded, ours = plain(length), plain(text.shape[1]), family.network(z, time, cond)
    assert relative(padded, alone) > 1e-3
    assert relative(ours, alone) < 1e-5


def test_the_number_of_tokens_does_not_change_the_samples(folder):
    few, many = (PipelinePolicy(folder, rank=2, seconds=SECONDS, text_tokens=n) for n in (5, 8))
    assert [p.encode(PROMPTS[:1]).tensors["text"].shape[1] for p in (few, many)] == [5, 8]
    few, many = (p.generate(PROMPTS[:1], [3], steps=2, guidance=3.0).latents for p in (few, many))
    assert relative(few, many) < 1e-5


def test_the_pipelines_own_call_is_left_as_it_was(folder):
    pipe = pipeline(folder)
    before = longcat.call(pipe, PROMPTS, Generator().manual_seed(1), 2, 4.0, "latent")
    policy = PipelinePolicy(pipe, rank=2, seconds=SECONDS)
    policy.generate(PROMPTS, [1, 2, 3], steps=1, guidance=4.0)
    after = longcat.call(pipe, PROMPTS, Generator().manual_seed(1), 2, 4.0, "latent")
    assert relative(after, before) < 1e-5


def test_prompts_are_normalised_as_in_the_pipelines_own_call(folder):
    policy = PipelinePolicy(folder, rank=2, seconds=SECONDS)
    one, other = (policy.encode([prompt]).tensors for prompt in ("slow piano", ' Slow  "PIANO"'))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_prompt_of_too_many_tokens_is_refused(folder):
    policy = PipelinePolicy(folder, rank=2, seconds=SECONDS, text_tokens=4)
    assert policy.encode(["a slow piano"]).tensors["length"] == 4
    with pytest.raises(ConfigError, match="has 5 tokens and text_tokens is 4; raise text_tokens .at most 8."):
        policy.encode(["a slow loud piano"])
    with pytest.raises(ConfigError, match="text_tokens is 8; "):
        PipelinePolicy(folder, rank=2, seconds=SECONDS).encode([" ".join(WORDS)])


@pytest.mark.parametrize("tokens", [0, 9])
def test_numbers_of_tokens_that_the_pipeline_does_not_read_are_refused(folder, tokens):
    with pytest.raises(ConfigError, match=f"text_tokens is {tokens}; expected 1 to 8"):
        PipelinePolicy(folder, rank=2, text_tokens=tokens)


def test_length_is_whole_latents_of_seconds_and_30_seconds_by_default(folder):
    """Latents of 4 samples at 800 Hz."""
    for seconds, latents in [(0.005, 1), (0.0349, 6), (0.035, 7), (None, 6000)]:
        policy = PipelinePolicy(folder, rank=2, seconds=seconds)
        assert policy.event_shape == (latents, 4)
        if latents < 10:
            made = policy.generate(PROMPTS[:1], [1], steps=1, guidance=1.0)
            assert policy.decode(made).tensor.shape == (1, 1, 4 * latents)


@pytest.mark.parametrize("seconds", [0.0, 0.004, 30.1, float("nan")])
def test_lengths_that_the_pipeline_does_not_make_are_refused(folder, seconds):
    with pytest.raises(ConfigError, match=f"seconds is {seconds}; expected a number from 0.005 to 30"):
        PipelinePolicy(folder, rank=2, seconds=seconds)
