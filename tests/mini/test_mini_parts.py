"""The parts of the built-in model, on tiny random weights: laws that training does not change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dragon.errors import ConfigError
from dragon.mini import (
    load_encoder,
    load_pipeline,
    random_encoder,
    random_judge,
    random_pipeline,
    save_module,
    vocabulary,
)
from dragon.mini.analysis import BANDS, FRAMES, HOP, RATE, SAMPLES, Bands, fit_length
from dragon.mini.codec import stacked_bands
from dragon.mini.words import MAX_WORDS, Words


def sine(hz: float, samples: int = SAMPLES, level: float = 0.5) -> torch.Tensor:
    return level * torch.sin(2 * torch.pi * hz * torch.arange(samples) / RATE)[None]


@pytest.mark.parametrize("key", [48, 57, 60, 69, 76, 83])
def test_a_note_sounds_in_its_own_semitone_band(key: int) -> None:
    bands = Bands()(sine(440.0 * 2 ** ((key - 69) / 12)))[0, FRAMES // 2]
    assert int(bands.argmax()) == key - 36


def test_half_the_level_reads_half_and_full_scale_reads_the_lobe_of_the_window() -> None:
    """A band sums a Hann lobe, 1/2 + 1 + 1/2 = 2, on a grid twice as fine: 4, less what the triangle's slopes take."""
    full, half = (float(Bands()(sine(440.0, level=level))[0, FRAMES // 2].max()) for level in (1.0, 0.5))
    assert full - half == pytest.approx(0.6931, abs=1e-3)
    assert 3.0 < math.exp(full) < 4.0


def test_silence_reads_the_floor() -> None:
    assert torch.allclose(Bands()(torch.zeros(1, SAMPLES)), torch.tensor(1e-3).log())


def test_a_shift_by_whole_hops_shifts_the_bands() -> None:
    torch.manual_seed(0)
    wave = torch.randn(1, SAMPLES) * 0.1
    bands, later = Bands()(wave), Bands()(torch.roll(wave, 8 * HOP, dims=1))
    assert torch.allclose(bands[:, 20:-30], later[:, 28:-22], atol=1e-4)


def test_fit_length_pads_with_silence_and_cuts_the_end() -> None:
    wave = torch.ones(1, 100)
    assert fit_length(wave, 120)[0, 99:].tolist() == [1.0] + [0.0] * 20
    assert fit_length(wave, 80).shape == (1, 80)


def test_the_transform_is_affine_and_its_own_inverse_on_the_components() -> None:
    """The random codec's components are orthonormal: project, give back, project again changes nothing."""
    codec = random_pipeline().codec
    torch.manual_seed(1)
    latents = torch.randn(2, 80, 64)
    stacked = (latents * codec.scale) @ codec.components.T + codec.mean
    assert torch.allclose(codec.transform(stacked), latents, atol=1e-5)
    assert stacked_bands(torch.zeros(2, FRAMES, BANDS)).shape == (2, 80, 4 * BANDS)


def test_decoding_gives_a_clip_of_the_right_length_within_range() -> None:
    codec = random_pipeline().codec
    clip = codec.decode(torch.randn(2, 80, 64))
    assert clip.shape == (2, SAMPLES) and float(clip.detach().abs().max()) <= 1.0


def test_words_and_tokenizer_agree() -> None:
    words = Words(vocabulary())
    texts = ["Slow jazz, piano lead!", "", "a zorkmid waltz", "slow " * 100]
    ids = words.tokenizer()(texts, padding="max_length", truncation=True, max_length=MAX_WORDS).input_ids
    assert words(texts).tolist() == ids
    assert words.unknown_words("a zorkmid waltz") == ["zorkmid"]


def test_prompt_time_and_noise_each_change_the_prediction() -> None:
    pipeline = random_pipeline()
    text, mask = pipeline.encode_prompt(["slow jazz", "fast rock"])
    x, time = torch.randn(1, 80, 64).expand(2, -1, -1), torch.tensor([0.5, 0.5])
    first, second = pipeline.denoiser(x, time, text, mask)
    assert float((first - second).detach().abs().max()) > 1e-4
    other = pipeline.denoiser(x, time - 0.3, text, mask)[0]
    assert float((first - other).detach().abs().max()) > 1e-4


def test_padding_does_not_change_a_prediction() -> None:
    """Words beyond the caption are masked in text encoder, cross-attention and mean alike."""
    pipeline = random_pipeline()
    text, mask = pipeline.encode_prompt(["slow jazz"])
    x, time = torch.randn(1, 80, 64), torch.tensor([0.4])
    spoilt = torch.where(mask[..., None], text, 100.0)
    assert torch.allclose(pipeline.denoiser(x, time, text, mask), pipeline.denoiser(x, time, spoilt, mask), atol=1e-5)


def test_a_clip_does_not_depend_on_its_batch() -> None:
    pipeline = random_pipeline()
    prompts = ["slow jazz", "fast rock", "a waltz"]
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    together = pipeline(prompts, 3, 2.0, seeds, output_type="latent", return_dict=False)[0]
    alone = pipeline(prompts[1], 3, 2.0, torch.Generator().manual_seed(1), output_type="latent", return_dict=False)[0]
    assert float((together[1] - alone[0]).abs().max() / alone.abs().max()) <= 1e-5


def test_a_saved_pipeline_comes_back_equal(tmp_path: Path) -> None:
    pipeline = random_pipeline()
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    again, first = (
        p("slow jazz", 2, generator=torch.Generator().manual_seed(3), return_dict=False)[0] for p in (loaded, pipeline)
    )
    assert again.shape == (1, SAMPLES) and abs(again - first).max() < 1e-6


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model_index.json"):
        load_pipeline(tmp_path)
    with pytest.raises(ConfigError, match="no model.safetensors"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("make", [random_encoder, random_judge])
def test_encoders_give_unit_vectors_that_do_not_depend_on_the_batch(make) -> None:
    encoder = make()
    torch.manual_seed(2)
    waves = torch.randn(3, SAMPLES) * 0.1
    together, alone = encoder.embed_audio(waves), encoder.embed_audio(waves[1:2])
    assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)
    assert float((together[1] - alone[0]).abs().max()) <= 1e-5
    text = encoder.embed_text(["slow jazz", "a much longer caption with fast rock drums"])
    assert torch.allclose(text[0], encoder.embed_text(["slow jazz"])[0], atol=1e-5)


def test_encoder_has_frames_enough_for_a_covariance() -> None:
    assert random_encoder().frames(torch.randn(1, SAMPLES)).shape[1] >= 16


def test_saved_encoder_comes_back_in_half_precision_with_a_fingerprint(tmp_path: Path) -> None:
    encoder = random_encoder()
    save_module(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    wave = torch.randn(1, SAMPLES) * 0.1
    assert torch.allclose(loaded.embed_audio(wave), encoder.embed_audio(wave), atol=5e-3)
    assert loaded.fingerprint == load_encoder(tmp_path).fingerprint != "untrained"


def test_unknown_words_are_said() -> None:
    from dragon.policy import MiniPolicy

    policy = MiniPolicy(random_pipeline())
    with pytest.warns(UserWarning, match="'zorkmid'"):
        policy.encode(["a zorkmid waltz"])
