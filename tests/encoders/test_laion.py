"""CLAP from LAION's own files: names, what the shapes tell, files that are refused, three routes on one file."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon.encoders import get_encoder
from dragon.encoders.clap import RATE, Clap, mel_filters
from dragon.encoders.laion import ClapPt, clap_config, clap_model, read_checkpoint
from dragon.encoders.laion_package import LaionClap
from dragon.errors import ConfigError, MissingExtra
from dragon.media import Media

PATCHES = "audio_branch.patch_embed.proj.weight"
MEL = "audio_branch.logmel_extractor.melW"


def sounds(seconds: float = 10.0) -> Media:
    """A tone that comes and goes, and decaying pulses."""
    t = torch.arange(round(seconds * RATE)) / RATE
    tone = 0.4 * torch.sin(2 * math.pi * 440 * t) * (t % 2 < 1.2)
    pulses = 0.3 * torch.sign(torch.sin(2 * math.pi * 90 * t)) * torch.exp(-8 * (t % 0.5))
    return Media(torch.stack([tone, pulses])[:, None], ("tone", "pulses"), RATE)


def stored(state: dict[str, Tensor], path: Path) -> str:
    """As a training of LAION's writes it, with a score that is a number of numpy."""
    torch.save({"epoch": 3, "name": "toy", "best": np.float64(0.5), "state_dict": state}, path)
    return str(path)


@pytest.fixture(scope="module")
def state(clap_models: ModuleType) -> dict[str, Tensor]:
    """LAION's names, without "module."."""
    return {k.removeprefix("module."): v for k, v in clap_models.laion_state(clap_models.random_clap()).items()}


# ---- the same weights are the same encoder


@pytest.mark.parametrize("fusion", [False, True])
def test_a_laion_file_is_the_encoder_that_transformers_loads(fusion, clap_models: ModuleType, tmp_path: Path):
    model = clap_models.random_clap(fusion=fusion)
    model.save_pretrained(tmp_path / "hub")
    words = str(clap_models.write_tokenizer(tmp_path / "hub"))
    file = stored(clap_models.laion_state(model), tmp_path / "laion.pt")
    state = torch.get_rng_state()
    encoder = get_encoder({"name": "clap-pt", "options": {"weights": file, "tokenizer": words}})
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(encoder, ClapPt)
    other = Clap(words)
    assert encoder.fingerprint == other.fingerprint and encoder.name == "clap-pt"
    torch.testing.assert_close(encoder.embed_media(sounds()), other.embed_media(sounds()), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.embed_text(["slow piano"]), other.embed_text(["slow piano"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("fusion", [False, True])
def test_the_configuration_is_read_from_the_shapes(size, fusion, clap_models: ModuleType):
    """Of HTSAT-tiny and -base as published: 96 and 128 wide, 2 2 6 2 and 2 2 12 2 blocks, 4 8 16 32 heads, 8 x 8."""
    from transformers import ClapModel

    expected = clap_models.config(size, fusion=fusion)
    with torch.device("meta"):
        state = clap_models.laion_state(ClapModel(expected))
    found = clap_config({key.removeprefix("module."): value for key, value in state.items()})
    for part in ("audio_config", "text_config"):
        assert getattr(found, part).to_diff_dict() == getattr(expected, part).to_diff_dict()
    assert (found.projection_dim, found.audio_config.hidden_size) == (512, {"tiny": 768, "base": 1024}[size])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_real_sizes_of_htsat(size, clap_models: ModuleType, tmp_path: Path):
    model = clap_models.random_clap(size)
    model.save_pretrained(tmp_path / "hub")
    encoder = ClapPt(stored(clap_models.laion_state(model), tmp_path / "laion.pt"))
    found = encoder.embed_media(sounds())
    torch.testing.assert_close(found, Clap(str(tmp_path / "hub")).embed_media(sounds()), rtol=0, atol=1e-5)
    assert float(found[0, 0] @ found[1, 0]) < 0.999


# ---- files


def test_names_with_module_and_positions_or_without_are_the_same(state, tmp_path: Path):
    old = {f"module.{key}": value for key, value in state.items()}
    new = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    assert len(new) < len(old)
    first = ClapPt(stored(old, tmp_path / "old.pt"))
    torch.save(new, tmp_path / "new.pt")  # the weights alone
    assert ClapPt(str(tmp_path / "new.pt")).fingerprint == first.fingerprint


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_scores_of_any_numpy_beside_the_weights_are_read(module, tmp_path: Path):
    stored({"a": torch.ones(2)}, tmp_path / "a.pt")
    here = (np.float64(0).__reduce__()[0]).__module__.encode()
    torch.save({"best": np.float64(0.5), "state_dict": {"a": torch.ones(2)}}, tmp_path / "old", pickle_protocol=2,
               _use_new_zipfile_serialization=False)  # fmt: skip
    content = (tmp_path / "old").read_bytes()
    assert here in content
    (tmp_path / "old").write_bytes(content.replace(here, module.encode()))
    assert torch.equal(read_checkpoint(str(tmp_path / "old"))["a"], torch.ones(2))


class _Runs:
    """Unpickling it would make a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "args": _Runs(tmp_path / "made")}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"cannot be read without running code of the file .*mkdir"):
        read_checkpoint(str(tmp_path / "a.pt"))
    assert not (tmp_path / "made").exists()


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such file; expected LAION's \.pt file"):
        read_checkpoint(str(tmp_path / "none.pt"))
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(ConfigError, match="cannot be read without running code"):
        read_checkpoint(str(tmp_path / "text.pt"))
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ConfigError, match="hold no state_dict"):
        read_checkpoint(str(tmp_path / "empty.pt"))


def without(state: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not re.search(pattern, key)}


def test_other_kinds_of_clap_are_refused_by_name(state):
    fused = {"audio_branch.patch_embed.mel_conv2d.weight": torch.ones(1)}
    iaff = fused | {
        f"audio_branch.patch_embed.fusion_model.{part}.0.weight": torch.ones(1) for part in ("local_att", "local_att2")
    }
    bert = {"text_branch.embeddings.token_type_embeddings.weight": torch.ones(2, 128)}
    cases: list[tuple[dict[str, Tensor], str]] = [
        (without(state, "patch_embed"), r"holds no HTSAT \(PANN"),
        (without(state, "text_branch"), r"holds no RoBERTa \(BERT, BART"),
        (state | bert, r"holds no RoBERTa \(BERT, BART"),
        (state | iaff, "another fusion than aff_2d"),
        (state | fused, "another fusion than aff_2d"),  # DAF: a convolution of the crops and nothing else
        (state | {PATCHES: state[PATCHES].expand(-1, 4, -1, -1)}, "another fusion than aff_2d"),  # channel_map
        (state | {"audio_branch.mel_conv1d.0.weight": torch.ones(1)}, "another fusion than aff_2d"),
        (without(state, "text_projection"), "lacks the projections"),
    ]  # fmt: skip
    for wrong, reason in cases:
        with pytest.raises(
            ConfigError, match=rf"'clap-pt': 'here' .*{reason}.*; expected a CLAP of HTSAT with RoBERTa"
        ):
            clap_model(wrong, "here")


def test_missing_and_unknown_weights_are_named(state):
    lacking = without(state, r"layers\.0\.blocks\.1\.attn\.qkv\.bias")
    with pytest.raises(ConfigError, match=r"lacks 3 weights of a CLAP \(.*key\.bias.*\) and has 0 of another model"):
        clap_model(lacking, "here")
    for pattern in (r"audio_branch\.layers\.", r"text_branch\.encoder\.", r"audio_branch\.bn0"):
        with pytest.raises(ConfigError, match="lacks weights that tell the sizes of a CLAP"):
            clap_model(without(state, pattern), "here")
    with pytest.raises(ConfigError, match=r"has 1 of another model \(audio_model\.audio_encoder\.extra\)"):
        clap_model(state | {"audio_branch.extra": torch.ones(1)}, "here")


def test_a_file_that_was_trained_with_other_mel_filters_is_found_out(state):
    clap_model(state | {MEL: mel_filters(htk=False).float()}, "here")
    for other in (mel_filters(htk=True).float(), torch.zeros(769, 64)):  # 769: a window of 1536 samples
        with pytest.raises(ConfigError, match=r"stores mel filters of shape .* trained with another front end"):
            clap_model(state | {MEL: other}, "here")


# ---- the authors' package


def test_without_the_package_it_says_how_to_get_it(clap_models: ModuleType, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "laion_clap", None)
    state = clap_models.laion_state(clap_models.random_clap())
    with pytest.raises(ConfigError, match=r"an HTSAT of width 16; the package knows 96 \(tiny\), 128 \(base\)"):
        LaionClap(stored(state, tmp_path / "toy.pt"))
    state[f"module.{PATCHES}"] = torch.ones(96, 1, 4, 4)
    with pytest.raises(
        MissingExtra, match=r"needs the package laion_clap .*'dragon-media\[laion\]', or use .* clap-pt"
    ):
        LaionClap(stored(state, tmp_path / "tiny.pt"))


def test_the_packages_path_is_taken_back_and_a_lacking_hub_explained(
    clap_models: ModuleType, tmp_path: Path, monkeypatch
):
    (tmp_path / "laion_clap").mkdir()
    (tmp_path / "laion_clap" / "__init__.py").write_text(
        "import sys\nsys.path.append('/the/package/itself')\n"
        "def CLAP_Module(**options):\n    raise OSError(f'no roberta-base for {options}')\n"
    )
    monkeypatch.delitem(sys.modules, "laion_clap", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.path)
    state = clap_models.laion_state(clap_models.random_clap()) | {f"module.{PATCHES}": torch.ones(128, 1, 4, 4)}
    with pytest.raises(
        ConfigError, match=r"local cache for .*failed: no roberta-base for .*'enable_fusion': False.*HTSAT-base"
    ):
        LaionClap(stored(state, tmp_path / "base.pt"))
    monkeypatch.delitem(sys.modules, "laion_clap")
    assert sys.path == before


SCRIPT = """
import sys
import torch
from dragon.encoders.laion_package import LaionClap, _path_restored
from dragon.media import Media

helper, size, fusion, folder = sys.argv[1:]
models = {}
exec(compile(open(helper).read(), helper, "exec"), models)
with _path_restored():
    import laion_clap
state = laion_clap.CLAP_Module(enable_fusion=fusion == "True", device="cpu", amodel=f"HTSAT-{size}").model.state_dict()
models["perturb"](state, 0)
state["text_branch.embeddings.position_ids"] = torch.arange(514)[None]  # as older versions of transformers stored it
torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, f"{folder}/laion.pt")
encoder = LaionClap(f"{folder}/laion.pt")
given = torch.load(f"{folder}/given.pt")
media = [Media(clips, ("",) * len(clips), 48_000) for clips in given["clips"]]
found = [encoder.embed_media(m) for m in media]
torch.save({"clips": found, "text": encoder.embed_text(given["text"])}, f"{folder}/found.pt")
"""


def hub_cache(folder: Path, clap_models: ModuleType) -> Path:
    """What laion_clap asks a hub for, tiny, where it looks for it: three tokenizers and a RoBERTa of one layer."""
    from transformers import RobertaConfig, RobertaModel

    def snapshot(name: str) -> Path:
        place = folder / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        return place / "snapshots" / ("0" * 40)

    small = {"vocab_size": 300, "num_hidden_layers": 1, "intermediate_size": 64, "max_position_embeddings": 514}
    roberta = RobertaConfig(**small, type_vocab_size=1, layer_norm_eps=1e-5)
    RobertaModel(roberta).save_pretrained(clap_models.write_tokenizer(snapshot("roberta-base")))
    clap_models.write_tokenizer(snapshot("facebook/bart-base"))
    bert = snapshot("bert-base-uncased")
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    (bert / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return folder


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("laion_clap") is None, reason="laion_clap is not here; make test-laion")
@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("fusion", [False, True])
def test_three_routes_agree_on_the_same_weights(size, fusion, clap_models: ModuleType, root: Path, tmp_path: Path):
    """Weights of the package's own model; two clips of 10 s, two that are repeated, and three captions."""
    hub = hub_cache(tmp_path / "hub", clap_models)
    clips = [sounds(10.0), sounds(2.1)]
    text = ["slow piano", "fast drum music the strings", 200 * "a "]
    torch.save({"clips": [media.tensor for media in clips], "text": text}, tmp_path / "given.pt")
    environment = os.environ | {
        "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(root),
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, str(clap_models.__file__), size, str(fusion), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = torch.load(tmp_path / "found.pt")
    words = hub / "models--roberta-base" / "snapshots" / ("0" * 40)
    second = ClapPt(str(tmp_path / "laion.pt"), tokenizer=str(words))
    clap_model(read_checkpoint(str(tmp_path / "laion.pt")), "").save_pretrained(tmp_path / "saved")
    clap_models.write_tokenizer(tmp_path / "saved")
    for encoder in (second, Clap(str(tmp_path / "saved"))):
        for media, wanted in zip(clips, expected["clips"], strict=True):
            torch.testing.assert_close(encoder.embed_media(media), wanted, rtol=0, atol=1e-5)
            assert float(wanted[0, 0] @ wanted[1, 0]) < 0.999
        torch.testing.assert_close(encoder.embed_text(text), expected["text"], rtol=0, atol=1e-5)
