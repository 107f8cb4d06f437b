"""Weight files that are damaged, foreign or hostile: one message, and never a line of their code."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dragon import mini
from dragon.encoders.laion import ClapPt
from dragon.encoders.shared import SharedSpace
from dragon.encoders.vggish import VGGish
from dragon.errors import ConfigError
from dragon.exemplars import sets
from dragon.policy.toy import ToyPolicy
from dragon.rewards.aesthetics import load_head
from dragon.weights import check_weights, read_weights


class Owned:
    """Unpickled, it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


@pytest.fixture(params=["pickle", "torch.save", "torch.save of old"])
def hostile(request, tmp_path: Path) -> Callable[[Path], None]:
    """Writes a pickle to a place, in one of the three forms that people meet."""

    def write(place: Path) -> None:
        content = {"state_dict": {"weight": Owned(tmp_path / "owned")}}
        if request.param == "pickle":
            place.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, place, _use_new_zipfile_serialization=request.param == "torch.save")

    return write


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path):
    yield
    assert not (tmp_path / "owned").exists()


def test_the_pickles_of_these_tests_would_run(tmp_path, hostile):
    """Else that nothing ran would mean nothing."""
    hostile(tmp_path / "a.pt")
    if (tmp_path / "a.pt").read_bytes()[:2] == b"PK":
        torch.load(tmp_path / "a.pt", weights_only=False)
    else:
        with (tmp_path / "a.pt").open("rb") as file:
            while not (tmp_path / "owned").exists():  # an old torch.save holds several pickles, one after the other
                pickle.load(file)
    assert (tmp_path / "owned").exists()
    (tmp_path / "owned").unlink()


def _adapter(folder: Path) -> None:
    policy = ToyPolicy()
    policy.save(str(folder))
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes((folder / "hostile").read_bytes())
    policy.load(str(folder))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("a.safetensors", read_weights),
    "exemplar set": ("a.safetensors", lambda place: sets.load(str(place))),
    "shared space": ("a.safetensors", SharedSpace.load),
    "aesthetics head": ("a.safetensors", load_head),
    "vggish .pth": ("a.pth", lambda place: VGGish(str(place))),
    "vggish .safetensors": ("a.safetensors", lambda place: VGGish(str(place))),
    "clap .pt": ("a.pt", lambda place: ClapPt(str(place))),
    "mini encoder": ("model.safetensors", lambda place: mini.load_encoder(place.parent)),
    "tuned weights": ("hostile", lambda place: _adapter(place.parent)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, before it refuses the file
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_is_refused_wherever_a_weight_path_is_taken(tmp_path, hostile, reader):
    name, read = READERS[reader]
    hostile(tmp_path / name)
    with pytest.raises(ConfigError, match="a.s|a.pt|a.pth|model|safetensors"):
        read(tmp_path / name)


def test_a_pickle_is_called_one(tmp_path, hostile):
    hostile(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is a pickle, which can run any code"):
        read_weights(tmp_path / "a.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    mini.random_pipeline().save_pretrained(folder / "pipeline")
    mini.save_module(mini.random_encoder(), folder / "encoder")
    return folder


@pytest.mark.parametrize("part", ["denoiser", "text_encoder", "codec"])
def test_a_pipeline_never_falls_back_to_a_pickle(saved, tmp_path, hostile, part):
    """diffusers and transformers open the .bin file where there is no safetensors file."""
    shutil.copytree(saved / "pipeline", tmp_path / "p")
    weights = next((tmp_path / "p" / part).glob("*.safetensors"))
    weights.unlink()
    hostile(weights.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"))
    with pytest.raises(ConfigError, match=f"{part}: no file .*safetensors"):
        mini.load_pipeline(tmp_path / "p")


def test_code_beside_the_weights_does_not_run(saved, tmp_path):
    shutil.copytree(saved / "pipeline", tmp_path / "p")
    index = tmp_path / "p" / "model_index.json"
    index.write_text(
        index.read_text().replace('"_class_name": "MiniPipeline"', '"_class_name": ["evil", "MiniPipeline"]')
    )
    (tmp_path / "p" / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ConfigError, match="cannot be loaded as a MiniPipeline"):
        mini.load_pipeline(tmp_path / "p")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_model_of_the_hub_with_a_pickle_is_refused(tmp_path, hostile):
    """Models that have no safetensors file are read with tensors alone allowed."""
    from transformers import T5Config, T5EncoderModel

    from dragon.encoders.pretrained import load_model

    mini.text_config(50, width=16, layers=1).save_pretrained(tmp_path / "t5")
    hostile(tmp_path / "t5" / "pytorch_model.bin")
    assert isinstance(T5Config.from_pretrained(tmp_path / "t5"), T5Config)
    with pytest.raises(ConfigError, match="cannot be read from"):
        load_model(T5EncoderModel, str(tmp_path / "t5"), "t5", "cpu")


def _change(name: str, place: Path) -> None:
    """The fault of that name, put into a file of weights."""
    content = bytearray(place.read_bytes())
    head = int.from_bytes(content[:8], "little")
    tensors = {key: value.clone() for key, value in load_file(place).items()}
    first = sorted(tensors)[0]
    if name == "empty":
        content = bytearray()
    elif name == "truncated":
        del content[len(content) // 2 :]
    elif name == "no header":
        content[:8] = b"\xff" * 8
    elif name == "flipped in the header":
        content[8 + head // 2] ^= 0x80
    elif name == "longer":
        content += b"\0" * 100
    elif name == "NaN":
        tensors[first].view(-1)[:1] = torch.nan
    elif name == "another shape":
        tensors[first] = torch.zeros(3, 5, 7)
    elif name == "missing":
        del tensors[first]
    elif name == "unknown":
        tensors["more"] = torch.zeros(3)
    elif name == "whole numbers":
        tensors = {key: value.to(torch.int32) for key, value in tensors.items()}
    if name in ("NaN", "another shape", "missing", "unknown", "whole numbers"):
        save_file(tensors, place, metadata={"format": "pt"})
    else:
        place.write_bytes(content)


DAMAGED = ("empty", "truncated", "no header", "flipped in the header", "longer", "NaN")
FOREIGN = ("another shape", "missing", "unknown", "whole numbers")


@pytest.mark.parametrize("fault", [*DAMAGED, *FOREIGN])
@pytest.mark.parametrize("part", ["encoder", "pipeline/denoiser", "pipeline/text_encoder", "pipeline/codec"])
def test_a_damaged_or_foreign_file_of_the_built_in_model_is_told(saved, tmp_path, part, fault):
    """diffusers alone fills missing weights with random numbers and says so in a log line."""
    whole = part.split("/")[0]
    shutil.copytree(saved / whole, tmp_path / whole)
    _change(fault, next((tmp_path / part).glob("*.safetensors")))
    with pytest.raises(ConfigError) as error:
        (mini.load_encoder if whole == "encoder" else mini.load_pipeline)(tmp_path / whole)
    assert part.split("/")[0][-6:] in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', "\ud800", "[" * 10_000])
@pytest.mark.parametrize("file", ["encoder/config.json", "pipeline/model_index.json"])
def test_a_damaged_description_is_told(saved, tmp_path, file, text):
    whole = file.split("/")[0]
    shutil.copytree(saved / whole, tmp_path / whole)
    (tmp_path / file).write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError, match="cannot be loaded as"):
        (mini.load_encoder if whole == "encoder" else mini.load_pipeline)(tmp_path / whole)


def test_what_was_not_changed_still_loads(saved):
    assert mini.load_pipeline(saved / "pipeline").codec.rate > 0
    assert mini.load_encoder(saved / "encoder").fingerprint


def test_tied_weights_need_one_name_alone():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    check_weights(module, {"0.weight": torch.zeros(2, 2)}, "here")
    with pytest.raises(ConfigError, match=r"1 missing \(0.weight\)"):
        check_weights(module, {"1.weight": torch.zeros(2, 2)}, "here")


@pytest.mark.parametrize("place", ["missing", "x" * 5000, "a\0b", "."])
def test_a_place_without_a_file_is_told(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for read in (read_weights, mini.load_encoder, mini.load_pipeline, sets.load, SharedSpace.load, load_head):
        with pytest.raises(ConfigError):
            read(f"{place}/a.safetensors")
