"""What every pipeline shares: recognised, refused, offloaded, scheduled and recorded in the same way.

What holds for a family's own network is in test_pipeline_contract.py.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from dragon.diffusion import Flow
from dragon.errors import ConfigError, MissingExtra, PluginError
from dragon.media import Cond
from dragon.policy import base, pipeline
from dragon.policy.base import DiffusionPolicy
from dragon.policy.levels import flow_levels
from dragon.policy.pipeline import (
    OWN_MODEL,
    PEAK,
    PipelineBackbone,
    PipelinePolicy,
    Stored,
    at_peak,
    classifier_free,
    load,
    scheduled,
    stored,
)
from dragon.policy.tuning import FullTuning
from dragon.registry import available
from tiny_pipelines import PROMPTS, stable_audio, tiny_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("stable_audio")
    tiny_pipeline("stable_audio", path)
    return str(path)


def policy(folder: Any, **changes: Any) -> PipelinePolicy:
    return PipelinePolicy(folder, **{"rank": 2, **stable_audio.OPTIONS, **changes})


def index(folder: Path, content: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(content)
    return str(folder)


# ---- found, or refused with what to do


def test_an_unknown_family_is_refused_with_the_list_and_the_page_for_adapters(tmp_path, root):
    with pytest.raises(ConfigError) as error:
        PipelinePolicy(index(tmp_path, '{"_class_name": "WanPipeline"}'))
    message = str(error.value)
    assert "'WanPipeline'" in message and OWN_MODEL in message and "did you mean" not in message
    assert all(name in message for name in available("family"))
    assert (root / OWN_MODEL).is_file()


def test_a_similar_family_is_named(tmp_path):
    near = index(tmp_path, '{"_class_name": "StableAudioPipline"}')
    with pytest.raises(ConfigError, match="did you mean 'StableAudioPipeline'"):
        PipelinePolicy(near)
    with pytest.raises(ConfigError, match="did you mean 'AudioLDM2Pipeline'"):
        PipelinePolicy(near, family="AudioLDM2Pipline")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"holds no model_index.json; expected the folder of a pipeline.*" + OWN_MODEL),
        ("{", r"model_index.json cannot be read.*save or download the pipeline again"),
        ("[1, 2]", r"names no _class_name"),
        ("{}", r"names no _class_name"),
        ('{"_class_name": 3}', r"names no _class_name"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_refused(tmp_path, content, said):
    if content is not None:
        index(tmp_path, content)
    with pytest.raises(ConfigError, match=said):
        PipelinePolicy(str(tmp_path))


def test_a_checkpoint_file_is_no_folder(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80")
    with pytest.raises(ConfigError, match=f"is a file; expected the folder of a pipeline.*{OWN_MODEL}"):
        PipelinePolicy(str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "a/b/c", "", "C:\\models"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _must_not_be_called)
    with pytest.raises(ConfigError, match="no such folder"):
        stored(name)


def _must_not_be_called(*args: object, **kwargs: object) -> None:
    raise AssertionError("called")


def test_a_hub_name_without_a_network_is_one_clear_error_at_once():
    """The suite runs with HF_HUB_OFFLINE."""
    began = time.process_time()
    for ask in (stored, PipelinePolicy):
        with pytest.raises(ConfigError) as error:
            ask("stabilityai/no-such-model")
        message = str(error.value)
        assert "neither a folder here nor in the hub's cache" in message and "HF_HUB_OFFLINE" in message
        assert "path of a folder" in message and "\n" not in message
    assert time.process_time() - began < 20  # of which the first import of the hub's client is nearly all


@pytest.mark.parametrize("reachable", [False, True])
def test_the_hub_is_asked_once_and_what_is_loaded_is_the_commit_that_was_looked_at(reachable, monkeypatch):
    """A download tries again for half a minute; being asked first costs one short wait. main may move on meanwhile."""
    import diffusers

    asked: list[dict[str, Any]] = []
    read: list[tuple[str, bool]] = []

    def answer(self: object, name: str, **given: Any) -> Any:
        asked.append(given)
        if not reachable:
            raise ConnectionError("no route to host")
        return SimpleNamespace(sha="c0ffee")

    def found(*args: object, revision: str, local_files_only: bool) -> dict[str, str]:
        read.append((revision, local_files_only))
        return {"_class_name": "StableAudioPipeline"}

    def loaded(*args: object, revision: str, local_files_only: bool, **kwargs: object) -> Any:
        read.append((revision, local_files_only))
        return SimpleNamespace(set_progress_bar_config=lambda disable: None)

    def kept(name: str, file: str, revision: str | None = None) -> str:
        return f"/cache/models--owner--name/snapshots/c0ffee/{file}"

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", answer)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", kept)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", found)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", loaded)
    source = stored("owner/name", "v1")
    load(source)
    assert (source.kind, source.commit) == ("StableAudioPipeline", "c0ffee")
    assert read == [("c0ffee", not reachable)] * 2
    assert [(a["revision"], a["timeout"] <= 10) for a in asked] == [("v1", True)]


def test_a_name_that_the_hub_does_not_know_is_told_from_a_missing_network_and_from_a_licence(monkeypatch):
    import diffusers
    from huggingface_hub.errors import GatedRepoError

    def unknown(*args: object, **kwargs: object) -> None:
        raise OSError("owner/nme is not a valid model identifier\nlong story")

    def gated(*args: object, **kwargs: object) -> None:
        try:
            raise GatedRepoError.__new__(GatedRepoError, "403")  # made from an answer of whichever HTTP library
        except GatedRepoError:
            raise OSError("owner/nme is not a valid model identifier")  # noqa: B904  as diffusers does

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", unknown)
    with pytest.raises(ConfigError, match="not a valid model identifier; check the name and") as error:
        stored("owner/nme")
    assert "long story" not in str(error.value)
    licence = "accept the licence at https://huggingface.co/owner/nme, then log in: hf auth login"
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", gated)
    with pytest.raises(ConfigError, match=licence):
        stored("owner/nme")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", gated)
    with pytest.raises(ConfigError, match=licence):
        load(Stored("owner/nme", {"_class_name": "StableAudioPipeline"}))


def test_damaged_or_missing_weights_are_refused_by_name(folder, tmp_path):
    for number, harm in enumerate((_cut, _remove)):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        harm(next((copy / "transformer").glob("*.safetensors")))
        with pytest.raises(ConfigError, match="StableAudioPipeline .* cannot be loaded.*save or download") as error:
            policy(str(copy))
        assert str(copy) in str(error.value)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _remove(file: Path) -> None:
    file.unlink()


def test_a_missing_package_is_told_from_damage(folder, monkeypatch):
    import diffusers

    def needs(*args: object, **kwargs: object) -> None:
        raise ImportError("CosineDPMSolverMultistepScheduler requires the torchsde library\n")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", needs)
    with pytest.raises(MissingExtra, match="needs a package that is not installed: .*torchsde"):
        policy(folder)


def test_options_are_checked_before_anything_is_loaded_and_all_at_once(folder, monkeypatch):
    import diffusers

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", _must_not_be_called)
    with pytest.raises(ConfigError) as error:
        policy(folder, secods=3.0, frames=2.5, lora=3)
    message = str(error.value)
    assert "'secods' is unknown to StableAudioPipeline; did you mean 'seconds'" in message
    assert "'frames' of StableAudioPipeline: 2.5 does not fit int | None" in message
    assert "'lora' is unknown" in message and "of this family: seconds, frames" in message and "rank" in message
    with pytest.raises(ConfigError, match="'seconds' of StableAudioPipeline: 'ten' does not fit float"):
        policy(folder, seconds="ten")


def test_numbers_as_yaml_reads_them_are_taken(folder):
    """YAML 1.1 reads 1e-1 as text."""
    assert policy(folder, seconds="1e-1").event_shape == policy(folder, seconds=0.1).event_shape


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "bfloat16", "precision": "bfloat16", "tuning": "full"}, "round away.*weights float32"),
        ({"weights": "bfloat16"}, "precision float32; use precision bfloat16, or weights float32"),
        ({"weights": "half"}, "expected one of .*bfloat16"),
        ({"precision": "half"}, "expected one of .*bfloat16"),
        ({"tuning": "lorra"}, "'lora' or 'full'"),
        ({"sampler": "ddim"}, "expected one of .*pipeline.*euler"),
        ({"t_min": 0.5, "t_max": 0.5}, "0 <= t_min < t_max <= 1"),
        ({"t_max": 1.5}, "0 <= t_min < t_max <= 1"),
        ({"sampler_times": -1}, "sampler_times >= 0"),
        ({"sampler_times": 4, "t_min": 0.5}, "no range of times beside it"),
        ({"decode_rows": 0}, "at least 1 clip"),
        ({"loudness": "loud"}, "expected one of .*pipeline.*decoded.*peak"),
        ({"device": "gpu"}, "expected cpu, cuda"),
        ({"rank": 0}, "rank >= 1"),
        ({"targets": ("to_z",)}, "ends no linear layer's name"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder, changes, said):
    with pytest.raises(ConfigError, match=said):
        policy(folder, **changes)


# ---- a family of one's own


OWN = """
from dragon.policy.stable_audio import StableAudio

class Louder(StableAudio):
    name, loudness = "louder", "three times as loud"

    def __init__(self, pipe, *, gain: float = 3.0, seconds: float | None = None):
        super().__init__(pipe, seconds=seconds)
        self._gain = gain

    def finish(self, clips):
        return self._gain * clips
"""


def test_a_family_of_ones_own_is_named_by_its_file(folder, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    own = policy(folder, family=f"{tmp_path}/mine.py:Louder", gain=2)
    assert own.name == "louder"
    known = policy(folder)
    made = known.generate(PROMPTS[:1], [1], steps=2, guidance=1.0)
    assert torch.equal(own.generate(PROMPTS[:1], [1], steps=2, guidance=1.0).latents, made.latents)
    torch.testing.assert_close(own.decode(made).tensor, 2 * known.decode(made).tensor)
    with pytest.raises(ConfigError, match="options of this family: gain, seconds;"):
        policy(folder, family=f"{tmp_path}/mine.py:Louder", frames=4)
    with pytest.raises(PluginError, match="holds no 'Loud'; did you mean 'Louder'"):
        policy(folder, family=f"{tmp_path}/mine.py:Loud")


# ---- what is loaded, and where it is


def test_a_loaded_pipeline_and_a_path_are_taken_too(folder):
    from diffusers import DiffusionPipeline

    made = [
        policy(given).generate(PROMPTS[:1], [1], steps=1, guidance=1.0).latents
        for given in (folder, Path(folder), DiffusionPipeline.from_pretrained(folder))
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", os.path.dirname(folder))
    assert policy("~/" + os.path.basename(folder)).name == "stable_audio"


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_only_what_is_trained_asks_for_gradients_and_nothing_is_in_train_mode(folder, tuning):
    made = policy(folder, tuning=tuning)
    parts = [part for part in made._backbone._pipe.components.values() if isinstance(part, nn.Module)]
    asking = {id(p) for part in parts for p in part.parameters() if p.requires_grad}
    assert asking and asking == {id(p) for p in made.trainable().values()}
    assert not any(module.training for part in parts for module in part.modules())


@pytest.mark.filterwarnings("ignore:precision is")
def test_text_encoders_are_read_in_the_format_they_are_held_in(folder, monkeypatch):
    import diffusers

    read: list[Any] = []
    own = diffusers.StableAudioPipeline.from_pretrained.__func__

    def noted(cls: Any, *args: Any, dtype: Any, **kwargs: Any) -> Any:
        read.append(own(cls, *args, dtype=dtype, **kwargs))
        return read[-1]

    monkeypatch.setattr(diffusers.StableAudioPipeline, "from_pretrained", classmethod(noted))
    monkeypatch.setattr(pipeline, "_set_format", lambda part, wanted: None)
    policy(folder, weights="bfloat16", precision="bfloat16")
    formats = {name: part.dtype for name, part in read[0].components.items() if isinstance(part, nn.Module)}
    others = {"vae": torch.float32, "transformer": torch.float32, "projection_model": torch.float32}
    assert formats == {"text_encoder": torch.bfloat16, **others}


@pytest.mark.filterwarnings("ignore:precision is")
def test_layers_that_overflow_in_float16_stay_float32(folder):
    made = policy(folder, weights="float16", precision="float16")
    pipe = made._backbone._pipe
    formats = {name: p.dtype for name, p in pipe.text_encoder.named_parameters()}
    assert {dtype for name, dtype in formats.items() if ".wo." in name} == {torch.float32}
    assert {dtype for name, dtype in formats.items() if ".wo." not in name} == {torch.float16}
    assert {p.dtype for p in pipe.vae.parameters()} == {torch.float32}
    assert made.generate(PROMPTS[:1], [1], steps=1, guidance=2.0).latents.isfinite().all()
    wanted = policy(folder)._backbone._pipe.text_encoder
    assert all(
        torch.equal(p, wanted.get_parameter(name)) for name, p in pipe.text_encoder.named_parameters() if ".wo." in name
    )


@pytest.mark.filterwarnings("ignore:precision is", "ignore:training a distilled")
def test_half_precision_spoils_no_frequency_or_position(tmp_path):
    """Position 300 has no place in bfloat16, and a duration's frequencies reach thousands."""
    tiny_pipeline("stable_audio_3", tmp_path)
    made, wanted = (
        PipelinePolicy(tmp_path, rank=2, seconds=3.7, weights=weights, precision=weights)
        for weights in ("bfloat16", "float32")
    )
    assert made.event_shape[1] > 256
    for name in ("transformer", "text_encoder", "duration_embedder"):
        ours, theirs = (getattr(one._backbone._pipe, name) for one in (made, wanted))
        assert {p.dtype for n, p in ours.named_parameters() if "lora_" not in n} == {torch.bfloat16}
        buffers = dict(theirs.named_buffers())
        assert all(torch.equal(buffer, buffers[n]) for n, buffer in ours.named_buffers())
    latents = torch.randn(2, *made.event_shape, generator=Generator().manual_seed(0))
    noising, prompts = made.draw_noising(latents, Generator().manual_seed(1)), PROMPTS[:2]
    with torch.no_grad():
        ours, theirs = (one.predict(latents, noising, one.encode(prompts)) for one in (made, wanted))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_prompts_are_encoded_once_and_remembered_on_the_cpu(folder, monkeypatch):
    made, asked = policy(folder), []
    encode = type(made._backbone._family).encode

    def noted(self: Any, prompt: str, device: torch.device) -> Cond:
        asked.append(prompt)
        return encode(self, prompt, device)

    monkeypatch.setattr(type(made._backbone._family), "encode", noted)
    for guidance in (1.0, 3.0):
        made.generate([PROMPTS[0], PROMPTS[1], PROMPTS[0]], [1, 2, 3], steps=1, guidance=guidance)
    again = made.encode(PROMPTS[1::-1])
    assert sorted(asked) == sorted([PROMPTS[0], PROMPTS[1], ""])
    assert all(value.device == CPU for cond in made._encoded.values() for value in cond.tensors.values())
    assert torch.equal(again.rows([1]).tensors["text"], made.encode(PROMPTS[:1]).tensors["text"])


def test_prompts_of_a_call_are_encoded_together_and_a_repeated_one_is_sent_once(folder, monkeypatch):
    made, calls, sent = policy(folder), [], []
    encode_prompts, to = made._backbone.encode_prompts, Cond.to

    def noted(prompts: Sequence[str]) -> list[Cond]:
        calls.append(list(prompts))
        return encode_prompts(prompts)

    def counted(self: Cond, device: torch.device) -> Cond:
        sent.append(len(self.tensors["text"]))
        return to(self, device)

    monkeypatch.setattr(made._backbone, "encode_prompts", noted)
    made.generate(PROMPTS[:1], [1], steps=1, guidance=2.0)
    assert calls == [[PROMPTS[0], ""]]
    monkeypatch.setattr(Cond, "to", counted)
    many = made.encode([PROMPTS[0]] * 5)
    assert sent == [1] and len(many.tensors["text"]) == 5


def test_prompts_used_last_are_remembered_within_a_number_of_bytes(folder, monkeypatch):
    made = policy(folder)
    size = made.encode(PROMPTS[:1]).nbytes
    monkeypatch.setattr(base, "_REMEMBERED", 2 * size + size // 2)
    made.encode(PROMPTS[1:2])
    made.encode(PROMPTS[:1])
    made.encode(PROMPTS[2:])
    assert list(made._encoded) == [PROMPTS[0], PROMPTS[2]]
    assert len(made.encode(PROMPTS).tensors["text"]) == 3 and len(made._encoded) == 2


def test_what_is_remembered_lies_on_the_cpu_and_is_sent_to_the_device_at_each_use(folder, monkeypatch):
    """A GPU would fill up with the conditions of thousands of prompts."""
    made, sent = policy(folder, device="cpu:0"), []
    to = Cond.to

    def noted(self: Cond, device: torch.device) -> Cond:
        sent.append(str(device))
        return to(self, device)

    monkeypatch.setattr(Cond, "to", noted)
    made.encode(PROMPTS[:2])
    assert sent == ["cpu", "cpu", "cpu:0"]
    made.encode(PROMPTS[:1])
    assert sent[3:] == ["cpu:0"]


# ---- the backbone on a stand-in for a family


class Part(nn.Module):
    """Notes where it is sent, and that it was at work."""

    def __init__(self, diary: list[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.diary = diary

    def to(self, device: Any) -> Part:  # type: ignore[override]
        self.diary.append(str(device))
        return super().to("meta")  # another device, from which nothing can be copied back

    def forward(self, prompt: str) -> Tensor:
        self.diary.append(f"{prompt} {self.weight.device}")
        if prompt == "broken":
            raise ValueError(prompt)
        return torch.full((1, 2), float(len(prompt)))


class Straight:
    """A family whose network's velocity is its condition, and whose decoder is a factor."""

    name, part, text_parts, targets = "straight", "net", ("text",), ()
    event_shape, rate, loudness, scaling = (2,), 100, "halved", Flow()

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def encode(self, prompt: str, device: torch.device) -> Cond:
        return Cond({"text": self._pipe.text(prompt)})

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return cond.tensors["text"].expand_as(z)

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Any:
        return classifier_free(self.network, empty, guidance)

    def schedule(self, steps: int) -> Any:
        return Noted(torch.linspace(1, 0, steps + 1)[:-1])

    def sigmas(self, steps: int) -> Tensor:
        return flow_levels(torch.linspace(1, 0, steps + 1))

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        return torch.full((count,), t_min + t_max)

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded = [*getattr(self, "decoded", []), len(latents)]
        return latents[:, None].double() * 4

    def finish(self, clips: Tensor) -> Tensor:
        return clips / 2


class Noted:
    """A scheduler of the flow that notes its generators, and whether autocast reaches it."""

    init_noise_sigma = 3.0

    def __init__(self, timesteps: Tensor) -> None:
        self.timesteps = timesteps
        self.generators: list[list[Generator]] = []
        self.autocast: list[bool] = []

    def step(
        self, output: Tensor, t: Tensor, z: Tensor, generator: Any = None, return_dict: bool = True
    ) -> tuple[Tensor, ...]:
        assert not return_dict
        self.generators.append(list(generator))
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        noise = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generator])
        return (z - output / len(self.timesteps) + noise,)


def backbone(diary: list[str] | None = None, **changes: Any) -> PipelineBackbone:
    diary = [] if diary is None else diary
    pipe: Any = SimpleNamespace(text=Part(diary))
    settings: dict[str, Any] = {
        "sampler": "pipeline", "times": (0.0, 1.0), "sampler_times": 0, "negative": "", "offload": True,
        "decode_rows": 4, "loudness": "pipeline",
    }  # fmt: skip
    return PipelineBackbone(pipe, Straight(pipe), torch.device("cpu", 0), **settings | changes)


def test_what_only_encodes_prompts_is_on_the_device_while_at_work_only():
    diary: list[str] = []
    made = backbone(diary)
    weight, place = made._pipe.text.weight, made._pipe.text.weight.data_ptr()
    made.encode_prompts(["a", "bc"])
    with pytest.raises(ValueError, match="broken"):
        made.encode_prompts(["broken"])
    assert diary == ["cpu:0", "a meta", "bc meta", "cpu:0", "broken meta"]
    assert made._pipe.text.weight is weight and (weight.device, weight.data_ptr()) == (CPU, place)
    diary.clear()
    backbone(diary, offload=False).encode_prompts(["a"])
    assert diary == ["a cpu"]


def test_text_parts_start_off_the_device_and_the_others_on_it(folder, monkeypatch):
    sent: dict[str, list[str]] = {}
    to = nn.Module.to

    def noted(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if args and isinstance(args[0], torch.device):
            sent.setdefault(type(self).__name__, []).append(str(args[0]))
        return to(self, *args, **kwargs)

    from diffusers import DiffusionPipeline

    for offload, place in ((True, "cpu"), (False, "cpu:0")):
        pipe = DiffusionPipeline.from_pretrained(folder)
        sent.clear()
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "to", noted)
            policy(pipe, device="cpu:0", offload=offload)
        assert sent["StableAudioDiTModel"][-1] == sent["AutoencoderOobleck"][-1] == "cpu:0"
        assert sent["StableAudioProjectionModel"][-1] == place


def conditions(*numbers: float) -> Cond:
    return Cond({"text": torch.tensor([[float(n)] * 2 for n in numbers])})


def test_a_rollout_has_one_generator_a_sample_and_its_noise_goes_on_where_the_first_ended():
    scheduler, seeds = Noted(torch.tensor([1.0, 0.5])), [7, 8, 7]
    found = scheduled(scheduler, Straight(None).network, conditions(1, 2, 1), seeds, (2,), CPU)
    for given in scheduler.generators:
        assert len(given) == 3 and len({id(g) for g in given}) == 3
        assert [g.initial_seed() for g in given] == seeds
    for row, (seed, number) in enumerate(zip(seeds, (1.0, 2.0, 1.0), strict=True)):
        generator = Generator().manual_seed(seed)
        z = 3 * torch.randn(2, generator=generator)
        for _ in range(2):
            z = z - number / 2 + torch.randn(2, generator=generator)
        torch.testing.assert_close(found[row], z)


def test_a_scheduler_that_scales_its_input_and_draws_nothing_is_driven_too():
    class Plain:
        """Euler in x = x0 + sigma * noise, its network in the variance-preserving scale."""

        timesteps, init_noise_sigma = torch.tensor([10.0, 5.0]), 4.0

        def scale_model_input(self, z: Tensor, t: Tensor) -> Tensor:
            return z / t

        def step(self, output: Tensor, t: Tensor, z: Tensor, return_dict: bool = True) -> tuple[Tensor]:
            return (z - output * t,)

    seen: list[tuple[Tensor, Tensor]] = []

    def network(z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append((z, time))
        return 0.1 * z

    found = scheduled(Plain(), network, conditions(1), [3], (2,), CPU)
    z = 4 * torch.randn(1, 2, generator=Generator().manual_seed(3))
    torch.testing.assert_close(seen[0][0], z / 10)
    assert seen[0][1].tolist() == [10]
    torch.testing.assert_close(found, 0.9 * 0.9 * z)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_noise_beside_the_seeds_is_drawn_by_no_scheduler(folder):
    from diffusers import DiffusionPipeline, DPMSolverSDEScheduler, TCDScheduler

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = DPMSolverSDEScheduler()
    with pytest.raises(ConfigError, match="DPMSolverSDEScheduler, whose noise .* set sampler to dpmpp_2m"):
        policy(pipe)
    consistent = TCDScheduler()  # of itself it would draw noise at eta 0.3; pipelines give 0
    consistent.set_timesteps(3)
    found = scheduled(consistent, Straight(None).network, conditions(1), [3], (2,), CPU)
    z = torch.randn(1, 2, generator=Generator().manual_seed(3))
    again = TCDScheduler()
    again.set_timesteps(3)
    for t in again.timesteps:
        z = again.step(torch.ones(1, 2), t, z, eta=0.0).prev_sample
    torch.testing.assert_close(found, z)


@pytest.mark.filterwarnings("ignore:precision is")
def test_the_scheduler_is_never_under_autocast(monkeypatch):
    made, seen = backbone(), []

    def network(z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return z

    scheduler = Noted(torch.tensor([1.0, 0.5]))
    monkeypatch.setattr(made._family, "guided", lambda *_: network)
    monkeypatch.setattr(made._family, "schedule", lambda _: scheduler)
    tuning = FullTuning(nn.Linear(2, 2), config="")
    DiffusionPolicy(made, tuning, precision="bfloat16").generate(["a"], [1], steps=2, guidance=1.0)
    assert seen == [True, True] and scheduler.autocast == [False, False]


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_between_the_prompts_and_the_empty_condition(guidance):
    network = Straight(None).guided(conditions(3, 5), conditions(1, 1), guidance)
    z = torch.zeros(2, 2)
    expected = torch.tensor([[1.0 + guidance * 2] * 2, [1.0 + guidance * 4] * 2])
    torch.testing.assert_close(network(z, torch.tensor(0.5), conditions(3, 5)), expected)


# ---- times, loudness, chunks


def test_times_come_from_the_family_within_its_range_or_from_the_samplers_alone():
    assert torch.equal(backbone(times=(0.25, 0.5)).draw_sigmas(3, Generator()), torch.full((3,), 0.75))
    found = backbone(sampler_times=4).draw_sigmas(4000, Generator().manual_seed(0))
    levels = flow_levels(torch.linspace(1, 0, 5))[:-1]
    assert set(found.tolist()) == set(levels.tolist())
    # each a quarter: a standard deviation is 27 of 1000
    assert all(abs(int((found == level).sum()) - 1000) < 5 * 27 for level in levels)


def test_clips_are_decoded_a_few_at_a_time():
    latents = torch.randn(5, 2)
    made = backbone(decode_rows=2)
    clips = made.decode_latents(latents)
    assert made._family.decoded == [2, 2, 1]
    assert torch.equal(clips, backbone(decode_rows=100).decode_latents(latents)) and clips.dtype == torch.float32


def test_loudness_is_the_pipelines_the_decoders_or_one_peak():
    latents = torch.tensor([[0.1, -0.2], [3.0, 1.0]])
    found = {kind: backbone(loudness=kind).decode_latents(latents) for kind in ("pipeline", "decoded", "peak")}
    torch.testing.assert_close(found["decoded"], 4 * latents[:, None])
    torch.testing.assert_close(found["pipeline"], 2 * latents[:, None])
    torch.testing.assert_close(found["peak"].abs().amax((1, 2)), torch.full((2,), PEAK))
    assert 20 * torch.tensor(PEAK).log10() == pytest.approx(-1)


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 1, 4, 4)])
def test_a_silent_clip_stays_silent_and_every_other_has_one_peak(shape: Sequence[int]):
    clips = torch.randn(*shape, generator=Generator().manual_seed(0))
    clips[1], clips[2] = 0.0, clips[2] * 1e-30
    found = at_peak(clips)
    assert torch.equal(found[1], clips[1]) and found.isfinite().all()
    torch.testing.assert_close(found[[0, 2]].abs().flatten(1).amax(1), torch.full((2,), PEAK))
    torch.testing.assert_close(found[0] / found[0].abs().max(), clips[0] / clips[0].abs().max())
    assert torch.equal(at_peak(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


# ---- recorded and stored


def test_settings_say_what_samples_depend_on(folder):
    own = policy(folder).settings
    assert own == {
        "pipeline": folder,
        "commit": None,
        "family": "stable_audio",
        "sampler": "CosineDPMSolverMultistepScheduler",
        "weights": "float32",
        "negative": "",
        "loudness": "as decoded, not clipped",
        "rate": 800,
        "latent": [4, 16],
    }
    assert json.loads(json.dumps(dict(own))) == own
    changed = policy(folder, sampler="heun", loudness="peak").settings
    assert changed["sampler"] == "heun" and changed["loudness"] == "each clip at a peak of -1 dBFS"


def test_an_adapter_saved_twice_is_the_same_to_the_byte(folder, tmp_path):
    first, second = policy(folder), policy(folder)
    first.save(str(tmp_path / "a"))
    second.save(str(tmp_path / "b"))
    first.save(str(tmp_path / "b again"))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "adapter_model.safetensors" in files
    for name in files:
        wanted = (tmp_path / "a" / name).read_bytes()
        assert all((tmp_path / other / name).read_bytes() == wanted for other in ("b", "b again"))
    # in a set, as PEFT holds them, the order would change from process to process
    targets = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets) and len(targets) == 6


def test_equal_blocks_are_compiled_one_by_one_and_unequal_ones_together(folder, tmp_path):
    """Nothing is compiled before the first call."""

    def compiled(made: Any) -> list[str]:
        module = getattr(made._backbone._pipe, made._backbone._family.part)
        return [name for name, part in module.named_modules() if part._compiled_call_impl is not None]

    torch._dynamo.config.recompile_limit = 8  # torch's own
    assert compiled(policy(folder, compile=True)) == ["transformer_blocks.0", "transformer_blocks.1"]
    assert torch._dynamo.config.recompile_limit >= 32  # one for every number of rows, with and without gradient
    assert compiled(policy(folder)) == []
    tiny_pipeline("stable_diffusion", tmp_path)
    assert compiled(PipelinePolicy(tmp_path, rank=2, compile=True)) == [""]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_network_gives_the_same_samples_and_gradients(folder):
    """Half a CPU minute of compiling."""
    pytest.importorskip("torch._inductor")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    plain, compiled = policy(folder), policy(folder, compile=True)
    for rows in (2, 3):
        seeds = list(range(rows))
        wanted = plain.generate(PROMPTS[:rows], seeds, steps=3, guidance=3.0).latents
        found = compiled.generate(PROMPTS[:rows], seeds, steps=3, guidance=3.0).latents
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
        with compiled.reference(), plain.reference():
            found = compiled.generate(PROMPTS[:rows], seeds, steps=1, guidance=1.0).latents
            wanted = plain.generate(PROMPTS[:rows], seeds, steps=1, guidance=1.0).latents
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    latents = torch.randn(2, *plain.event_shape, generator=Generator().manual_seed(1))
    noising = plain.draw_noising(latents, Generator().manual_seed(2))
    gradients = []
    for made in (plain, compiled):
        made.predict(latents, noising, made.encode(PROMPTS[:2])).square().mean().backward()
        gradients.append({name: p.grad for name, p in made.trainable().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)
