"""CLAP by transformers: clips and captions in one space of unit vectors (Wu et al. 2023, arXiv 2211.06687).

A clip is heard in windows of at most 10 s at 48 kHz, each a vector of its own; nothing is cropped at random, as both
published front ends do to anything longer. A window that is shorter is repeated as often as it fits, with zeros after
the copies, and turned into 64 log-mel bands from 50 to 14,000 Hz, in float64: Slaney's filters for the plain models,
HTK's for those with feature fusion. Fusion joins crops of a longer clip; a window of 10 s has none, so such a model
takes its own path for clips of 10 s, the same at every call. 16-bit rounding of the samples, which the original's
file interface adds, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from dragon.encoders import windows as window_rule
from dragon.encoders.identity import fingerprint, weights_hash
from dragon.encoders.pretrained import load_model, reading
from dragon.encoders.vectors import caption_vectors
from dragon.encoders.windows import Windows
from dragon.errors import ConfigError
from dragon.media import Media

RATE, SAMPLES = 48_000, 480_000
"""What every published CLAP of LAION hears: 10 s at 48 kHz."""

TEXT_TOKENS = 77
"""Longer captions are cut here, as in training."""

_FRONT_END = {
    "sampling_rate": RATE,
    "feature_size": 64,
    "fft_window_size": 1024,
    "hop_length": 480,
    "frequency_min": 50,
    "frequency_max": 14_000,
    "max_length_s": 10,
    "padding": "repeatpad",
}
_FLOOR = 1e-10  # of the mel power: -100 dB
_BATCH = 8  # windows; HTSAT-base holds about 100 MB a window
# whatever else a checkpoint lacks has been filled with random numbers
_COMPUTED = ("position_ids", "token_type_ids", "relative_position_index")


class ClapNetwork(Protocol):
    """What an encoder needs of a CLAP, whoever wrote its code. settings: JSON values that its features depend on."""

    @property
    def features(self) -> int: ...

    @property
    def settings(self) -> dict[str, object]: ...

    def embed_audio(self, wave: Tensor) -> Tensor:
        """(n, 480000) at 48 kHz -> (n, f) unit vectors."""
        ...

    def embed_text(self, prompts: list[str]) -> Tensor:
        """(n, f) unit vectors."""
        ...


class WindowedClap:
    """A CLAP behind a window rule: what the three encoders share.

    windows: a rule, or its fields by name, {hop: 240000, tail: pad}, in samples at 48 kHz; the rest as by default:
    480,000 samples, no overlap, tail "end", short "repeat".
    """

    def __init__(
        self, name: str, network: ClapNetwork, windows: Windows | Mapping[str, Any] | None, device: str
    ) -> None:
        self._name, self._network, self._device = name, network, device
        self._windows = _rule(name, windows)
        self.settings = network.settings | {"windows": self._windows.rule}

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return fingerprint(**self.settings)

    @property
    def features(self) -> int:
        return self._network.features

    def embed_media(self, media: Media) -> Tensor:
        """(b, s, f): one unit vector a window."""
        found = window_rule.frames_of_windows(self._wave(media), self._windows, lambda w: self._embed(w)[:, None])
        return window_rule.checked(found, media, self.name)

    def embed_clips(self, media: Media) -> Tensor:
        """(b, f): the mean direction of the windows."""
        return self.embed_both(media)[1]

    def embed_both(self, media: Media) -> tuple[Tensor, Tensor]:
        """(b, s, f) and (b, f): the same by one run of the network."""
        frames = self.embed_media(media)
        return frames, torch.nn.functional.normalize(frames.mean(dim=1), dim=-1)

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        return caption_vectors(prompts, self._network.embed_text)

    def _wave(self, media: Media) -> Tensor:
        return window_rule.mono(media, RATE, self.name).to(self._device)

    def _embed(self, cut: Tensor) -> Tensor:
        """(n, samples) windows of one length -> (n, f)."""
        whole = Windows(SAMPLES, short="repeat").cut(cut)[:, 0]
        return torch.cat([self._network.embed_audio(part) for part in whole.split(_BATCH)])


class Clap(WindowedClap):
    """A CLAP that transformers loads.

    model: hub id or folder. "laion/larger_clap_music" was trained on music, "laion/clap-htsat-unfused" on sounds.
    windows: see WindowedClap.

    Raises:
        ConfigError: it cannot be loaded, lacks weights, or states another front end than LAION's.
    """

    def __init__(
        self,
        model: str = "laion/larger_clap_music",
        *,
        windows: Windows | Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoTokenizer, ClapModel

        _check_front_end(model)
        loaded = load_model(ClapModel, model, "clap", device, computed=_COMPUTED)
        super().__init__(
            "clap",
            TransformersClap(loaded, lambda: AutoTokenizer.from_pretrained(model), model, "clap", device),
            windows,
            device,
        )


class TransformersClap:
    """A transformers.ClapModel with LAION's front end.

    tokenizer: loads it when the first caption comes, so that clips alone need none. source, encoder: for messages.
    """

    def __init__(self, model: Any, tokenizer: Callable[[], Any], source: str, encoder: str, device: str) -> None:
        audio = model.config.audio_config
        # transformers knows one fusion: AFF of 2-d maps; another would need other layers than it builds
        if audio.enable_fusion and audio.fusion_type not in (None, "None", "aff_2d"):
            raise ConfigError(
                f"encoder {encoder!r}: {source!r} was trained with fusion {audio.fusion_type!r}; "
                "expected aff_2d or none"
            )
        self._model = model.to(device, torch.float32).eval().requires_grad_(False)
        self._load_tokenizer, self._source, self._encoder, self._device = tokenizer, source, encoder, device
        self._filters = mel_filters(htk=audio.enable_fusion).to(device, _precision(device))
        self.settings: dict[str, object] = {
            "kind": "clap by transformers, version 1",
            "weights": weights_hash({k: v for k, v in model.state_dict().items() if v.is_floating_point()}),
            "architecture": _architecture(model.config),
            "mel": ("htk" if audio.enable_fusion else "slaney"),
            "text_tokens": TEXT_TOKENS,
            **{key: value for key, value in _FRONT_END.items() if key != "padding"},
        }

    @property
    def model(self) -> Any:
        return self._model

    @property
    def features(self) -> int:
        return int(self._model.config.projection_dim)

    def embed_audio(self, wave: Tensor) -> Tensor:
        mel = log_mel(wave, self._filters)
        longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        return _vectors(self._model.get_audio_features(input_features=mel, is_longer=longer))

    def embed_text(self, prompts: list[str]) -> Tensor:
        tokens = self._tokenizer(prompts, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
        return _vectors(
            self._model.get_text_features(
                input_ids=tokens["input_ids"].to(self._device), attention_mask=tokens["attention_mask"].to(self._device)
            )
        )

    @cached_property
    def _tokenizer(self) -> Any:
        found = reading(self._load_tokenizer, self._source, self._encoder, "a tokenizer")
        text = self._model.config.text_config
        if len(found) > text.vocab_size or found.pad_token_id != text.pad_token_id:
            raise ConfigError(
                f"encoder {self._encoder!r}: the tokenizer of {self._source!r} has {len(found)} tokens and pads with "
                f"{found.pad_token_id}, the text model {text.vocab_size} and {text.pad_token_id}; it is missing, and "
                "an empty one was made, or it is another's: give the tokenizer it was trained with"
            )
        return found


def log_mel(wave: Tensor, filters: Tensor) -> Tensor:
    """(n, 480000) -> (n, 1, 1001, 64) float32: ten times the decimal logarithm of the mel power, at least -100 dB.

    filters (513, 64). float64 where the filters are: in float32 the rounding of a loud band would fill the quiet ones.
    """
    size, hop = 1024, 480
    window = torch.hann_window(size, dtype=filters.dtype, device=wave.device)
    spectrum = torch.stft(wave.to(filters.dtype), size, hop, window=window, pad_mode="reflect", return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    mel = power.mT @ filters
    return (10 * mel.clamp(min=_FLOOR).log10()).float()[:, None]


def mel_filters(*, htk: bool) -> Tensor:
    """(513, 64) float64 triangles from 50 to 14,000 Hz: HTK's of height 1, or Slaney's of equal area."""
    from transformers.audio_utils import mel_filter_bank

    kind = {"norm": None, "mel_scale": "htk"} if htk else {"norm": "slaney", "mel_scale": "slaney"}
    found = mel_filter_bank(513, 64, min_frequency=50.0, max_frequency=14_000.0, sampling_rate=RATE, **kind)
    return torch.from_numpy(found).double()


def _precision(device: str) -> torch.dtype:
    return torch.float32 if device.startswith("mps") else torch.float64  # Apple's GPUs have no float64


def _vectors(found: Any) -> Tensor:
    """transformers 5 returns an object, some versions before it the vectors."""
    vectors = found if isinstance(found, Tensor) else found.pooler_output
    return torch.nn.functional.normalize(vectors, dim=-1)


def _rule(name: str, windows: Windows | Mapping[str, Any] | None) -> Windows:
    fields: dict[str, Any] = {"samples": SAMPLES, "short": "repeat"}
    if isinstance(windows, Windows):
        rule = windows
    else:
        given = dict(windows or {})
        unknown = sorted(set(given) - {"samples", "hop", "tail", "short"})
        if unknown:
            raise ConfigError(
                f"encoder {name!r}: windows has no {', '.join(unknown)}; expected samples, hop, tail, short"
            )
        rule = Windows(**(fields | given))
    if rule.samples > SAMPLES:
        raise ConfigError(f"encoder {name!r}: windows of {rule.samples} samples; CLAP hears at most {SAMPLES} (10 s)")
    return rule


def _check_front_end(model: str) -> None:
    """The preprocessor's file must state what LAION trained with; a model without such a file passes."""
    from transformers import ClapFeatureExtractor

    try:
        stated = ClapFeatureExtractor.from_pretrained(model)
    except (OSError, ValueError):
        return  # a folder of weights alone; what else is wrong, loading the weights will say
    wrong = {key: getattr(stated, key) for key, value in _FRONT_END.items() if getattr(stated, key) != value}
    if wrong:
        expected = {key: _FRONT_END[key] for key in wrong}
        raise ConfigError(
            f"encoder 'clap': the preprocessor's file of {model!r} states {wrong}, LAION's models were trained with "
            f"{expected} (the class's own defaults differ); correct that file, or remove it"
        )


def _architecture(config: Any) -> dict[str, object]:
    """What the features depend on beside the weights and cannot be read from their shapes."""
    audio, text = config.audio_config, config.text_config
    return {
        "heads": [int(n) for n in audio.num_attention_heads],
        "act": [audio.hidden_act, text.hidden_act, config.projection_hidden_act],
        "eps": [float(audio.layer_norm_eps), float(text.layer_norm_eps)],
        "fusion": bool(audio.enable_fusion),
        "spec_size": int(audio.spec_size),
        "text_heads": int(text.num_attention_heads),
    }
