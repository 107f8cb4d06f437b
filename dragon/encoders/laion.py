"""CLAP from LAION's own files (music_audioset_epoch_15_esc_90.14.pt, 630k-audioset-best.pt, ...), by transformers.

The weights get the names that transformers gives them; the shapes tell which HTSAT it is (tiny, base or large, with
feature fusion or without). The file is read without running code of it (torch's weights_only).
dragon/encoders/laion_package.py runs the same file in the authors' own package.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dragon.encoders.clap import TransformersClap, WindowedClap, mel_filters
from dragon.encoders.windows import Windows
from dragon.errors import ConfigError


class ClapPt(WindowedClap):
    """A CLAP from an original LAION file, by transformers. Of the same weights it equals `clap`, fingerprint too.

    (A folder may state another layer_norm_eps of the text model than RoBERTa's 1e-5; it is then another encoder.)

    weights: the .pt file. tokenizer: hub id or folder of RoBERTa's, read when the first caption comes. windows: see
    dragon.encoders.clap.WindowedClap.

    Raises:
        ConfigError: it is no CLAP of HTSAT and RoBERTa, or was trained with another front end.
    """

    def __init__(
        self,
        weights: str,
        *,
        tokenizer: str = "roberta-base",
        windows: Windows | Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoTokenizer

        model = clap_model(read_checkpoint(weights), weights)
        network = TransformersClap(
            model, lambda: AutoTokenizer.from_pretrained(tokenizer), tokenizer, "clap-pt", device
        )
        super().__init__("clap-pt", network, windows, device)


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """The weights of a LAION file by name, without "module." in front; no code of the file is run.

    Raises:
        ConfigError: no such file, or it holds other things than tensors, numbers and text.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"CLAP weights {path!r}: no such file; expected LAION's .pt file")
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")}
    # LAION's files keep scores as numpy numbers beside the weights, under the module name of numpy 1 or 2
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*names, np.dtype, *kinds]):
            # the optimizer's state, two thirds of a file, is then never read
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # of torch's message the reason alone, without its advice to turn weights_only off
        found = re.search(r"(?:Trying to load u|U)nsupported [^\n]*", str(error))
        reason = (found[0] if found else " ".join(str(error).split()))[:200]
        raise ConfigError(
            f"CLAP weights {path!r} cannot be read without running code of the file ({reason}); expected a .pt file of "
            "tensors. One that you trust can be saved again with its state_dict alone"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise ConfigError(f"CLAP weights {path!r} hold no state_dict; expected LAION's .pt file")
    return state


def clap_model(state: Mapping[str, Tensor], source: str) -> Any:
    """A transformers.ClapModel with these weights of LAION's names.

    Raises:
        ConfigError: they are not those of one, or the file's own mel filters are others.
    """
    from transformers import ClapModel
    from transformers.initialization import no_init_weights

    check_kind(state, source, "clap-pt")
    _check_filters(state, source)
    try:
        config = clap_config(state)
    except (KeyError, IndexError, ValueError) as error:  # a size is read from a weight that is not there
        raise ConfigError(
            f"encoder 'clap-pt': {source!r} lacks weights that tell the sizes of a CLAP ({error}); expected HTSAT with "
            "RoBERTa, whole"
        ) from error
    with no_init_weights(), torch.random.fork_rng(devices=[]):  # torch's own layers draw all the same
        model = ClapModel(config)
    renamed = dict(_renamed(state))
    wanted = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    lacking = sorted(key for key, value in wanted.items() if key not in renamed or renamed[key].shape != value.shape)
    unknown = sorted(key for key in renamed if key not in model.state_dict())
    if lacking or unknown:
        raise ConfigError(
            f"encoder 'clap-pt': {source!r} lacks {len(lacking)} weights of a CLAP ({', '.join(lacking[:3])}) and has "
            f"{len(unknown)} of another model ({', '.join(unknown[:3])}); expected HTSAT with RoBERTa"
        )
    model.load_state_dict(renamed, strict=False)  # what is left are positions, whole numbers the model counts itself
    return model


def clap_config(state: Mapping[str, Tensor]) -> Any:
    """The transformers.ClapConfig that weights of LAION's names have, read from their shapes."""
    from transformers import ClapConfig

    stages: dict[int, int] = {}
    for key in state:
        if found := re.match(r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.", key):
            stages[int(found[1])] = max(stages.get(int(found[1]), 0), int(found[2]) + 1)
    first = "audio_branch.layers.0.blocks.0"
    tables = [state[f"audio_branch.layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in sorted(stages)]
    width, _, _, patch = state["audio_branch.patch_embed.proj.weight"].shape
    fusion = has_fusion(state)
    audio = {
        "depths": [stages[i] for i in sorted(stages)],
        "num_attention_heads": [table.shape[1] for table in tables],
        "window_size": (round(tables[0].shape[0] ** 0.5) + 1) // 2,  # (2 w - 1)^2 relative positions
        "patch_embeds_hidden_size": width,
        "patch_size": patch,
        "patch_stride": [patch, patch],
        "hidden_size": width * 2 ** (len(stages) - 1),
        "mlp_ratio": state[f"{first}.mlp.fc1.weight"].shape[0] / width,
        "num_mel_bins": state["audio_branch.bn0.weight"].shape[0],
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    words = state["text_branch.embeddings.word_embeddings.weight"]
    layers = [int(f[1]) for k in state if (f := re.match(r"text_branch\.encoder\.layer\.(\d+)\.", k))]
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": max(words.shape[1] // 64, 1),  # RoBERTa's heads are 64 wide
        "intermediate_size": state["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state["text_branch.embeddings.position_embeddings.weight"].shape[0],
        "layer_norm_eps": 1e-5,  # RoBERTa's, with which LAION trained; ClapTextConfig's own is 1e-12
    }
    return ClapConfig(text_config=text, audio_config=audio, projection_dim=state["audio_projection.2.weight"].shape[0])


_UNUSED = re.compile(
    r"audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|(audio|text)_transform\.|"
    r".*\.(attn_mask|relative_position_index|position_ids|token_type_ids)$"
)
"""The original's front end, classifier of AudioSet, further heads of training, and what a model counts itself."""

_NAMES = (
    (r"^text_branch\.", "text_model."),
    (r"^audio_branch\.bn0\.", "audio_model.audio_encoder.batch_norm."),
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^(audio|text)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(audio|text)_projection\.2\.", r"\1_projection.linear2."),
)


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """LAION's names -> transformers'; one matrix of query, key and value becomes three."""
    for key, value in state.items():
        if not _is_weight(key):
            continue
        name = key
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if ".qkv." in name:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                yield name.replace("qkv", part), rows
        else:
            yield name, value


def _is_weight(key: str) -> bool:
    return _UNUSED.match(key) is None


def has_fusion(state: Mapping[str, Tensor]) -> bool:
    return "audio_branch.patch_embed.mel_conv2d.weight" in state


def check_kind(state: Mapping[str, Tensor], source: str, encoder: str) -> None:
    """HTSAT and RoBERTa, without fusion or with AFF of 2-d maps: what LAION published and transformers has."""
    patches = state.get("audio_branch.patch_embed.proj.weight")
    positions = state.get("text_branch.embeddings.position_embeddings.weight")
    wrong = ""
    if patches is None:
        wrong = "holds no HTSAT (PANN and other audio models are not read)"
    elif positions is None or len(state.get("text_branch.embeddings.token_type_embeddings.weight", ())) != 1:
        wrong = "holds no RoBERTa (BERT, BART and CLIP's text model are not read)"
    elif patches.shape[1] != 1 or _other_fusion(state):
        wrong = "was trained with another fusion than aff_2d"
    elif "audio_projection.2.weight" not in state or "text_projection.2.weight" not in state:
        wrong = "lacks the projections to the shared space"
    if wrong:
        raise ConfigError(f"encoder {encoder!r}: {source!r} {wrong}; expected a CLAP of HTSAT with RoBERTa")


def _other_fusion(state: Mapping[str, Tensor]) -> bool:
    """1-d maps, iterated AFF, or a plain sum, which has no weights of its own."""
    if any("mel_conv1d" in key or "local_att2" in key for key in state):
        return True
    return has_fusion(state) != any(".fusion_model.local_att." in key for key in state)


def _check_filters(state: Mapping[str, Tensor], source: str) -> None:
    """The original stores its mel filters with the weights: a file that was trained with others is found out."""
    stored = state.get("audio_branch.logmel_extractor.melW")
    if stored is None:
        return
    ours = mel_filters(htk=False)
    if stored.shape != ours.shape or not torch.allclose(stored.double(), ours, rtol=1e-4, atol=1e-7):
        raise ConfigError(
            f"encoder 'clap-pt': {source!r} stores mel filters of shape {tuple(stored.shape)}, expected Slaney's from "
            f"50 to 14,000 Hz of shape {tuple(ours.shape)}; it was trained with another front end, which is not read"
        )
