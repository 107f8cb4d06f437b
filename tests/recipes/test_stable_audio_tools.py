"""A checkpoint of stable-audio-tools becomes a pipeline that computes the same, and comes back.

The second implementation is the trainer's own code: stable_audio_tools.json holds names, shapes and outputs that
`recipes/stable_audio_tools/compare.py --record` took from stable-audio-tools 0.0.19 for weights drawn from their names.
"""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dragon.errors import ConfigError
from dragon.policy.pipeline import PipelinePolicy

RECIPE = Path(__file__).parents[2] / "recipes" / "stable_audio_tools"
RECORDED = json.loads(Path(__file__).with_name("stable_audio_tools.json").read_text())
ROTARY = "model.model.transformer.rotary_pos_emb.inv_freq"
QKV = "model.model.transformer.layers.0.self_attn.to_qkv.weight"


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(RECIPE))  # its scripts import each other as top-level modules
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPE))


compare, recipe, back = _module("compare"), _module("convert"), _module("back")
files, settings = _module("trainer_files"), _module("trainer_settings")


class Home(NamedTuple):
    """What a user of the trainer has."""

    config: Path
    checkpoint: Path
    t5: str

    def convert(self, out: Path, **options: Any) -> Any:
        from diffusers import StableAudioPipeline

        recipe.convert(self.config, self.checkpoint, out, t5=self.t5, **options)
        return StableAudioPipeline.from_pretrained(out)


def state() -> dict[str, Tensor]:
    """The weights of the trainer's tiny model, unwrapped, as compare.py drew them."""
    found = {name: compare.drawn(name, tuple(shape)) for name, shape in RECORDED["names"].items()}
    return found | {ROTARY: 10_000.0 ** -(torch.arange(0, 32, 2) / 32)}


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("t5")
    compare.tiny_t5(folder)
    return str(folder)


@pytest.fixture
def home(tmp_path: Path, t5: str) -> Home:
    found = Home(tmp_path / "model_config.json", tmp_path / "model.ckpt", t5)
    found.config.write_text(json.dumps(compare.tiny_config()))
    torch.save({"state_dict": compare.as_while_training(state()), "global_step": 3}, found.checkpoint)
    return found


def outputs() -> dict[str, Tensor]:
    return {name: torch.tensor(values) for name, values in RECORDED["outputs"].items()}


def close(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> None:
    difference = float((found.flatten() - wanted.flatten()).abs().max() / wanted.abs().max())
    assert difference <= relative, f"differs by {difference:.2g} of the largest number"


def test_the_pipeline_computes_what_the_trainers_own_code_computed(home: Home, tmp_path: Path):
    found = compare.of_pipeline(home.convert(tmp_path / "pipeline"))
    assert found.keys() == outputs().keys()
    for name, wanted in outputs().items():
        close(found[name], wanted)


def test_wrapped_unwrapped_averaged_and_safetensors_are_one_model(home: Home, tmp_path: Path):
    from safetensors.torch import save_file

    averaged = files.read_checkpoint(home.checkpoint)
    assert all(torch.equal(averaged[name], value) for name, value in state().items())
    assert not any(files.read_checkpoint(home.checkpoint, "model")[QKV].flatten())
    save_file(state(), tmp_path / "model.safetensors")
    unwrapped = files.read_checkpoint(tmp_path / "model.safetensors")
    assert all(torch.equal(unwrapped[name], value) for name, value in state().items())
    with pytest.raises(ConfigError, match="no averaged weights"):
        files.read_checkpoint(tmp_path / "model.safetensors", "ema")


def test_an_adapter_comes_back_into_the_trainers_weights(home: Home, tmp_path: Path):
    pipe = home.convert(tmp_path / "pipeline")
    policy = PipelinePolicy(str(tmp_path / "pipeline"), rank=2, seconds=0.1)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    policy.save(str(tmp_path / "final"))
    weights, changed = back.merged(home.config, home.checkpoint, tmp_path / "final")
    assert weights.keys() == state().keys() and QKV in changed
    for name, value in state().items():
        assert torch.equal(weights[name], value) == (name not in changed), name
    pipe.transformer.load_state_dict(recipe.transformer(settings.read_settings(home.config), weights).state_dict())
    tuned: Any = policy._backbone
    wanted = compare.of_pipeline(tuned._pipe)["network"]
    close(compare.of_pipeline(pipe)["network"], wanted)
    assert float((wanted.flatten() - outputs()["network"]).abs().max()) > 1e-3


def test_full_weights_come_back_too_and_what_changes_nothing_is_said(home: Home, tmp_path: Path):
    home.convert(tmp_path / "pipeline")
    policy = PipelinePolicy(str(tmp_path / "pipeline"), tuning="full", seconds=0.1)
    policy.save(str(tmp_path / "same"))
    with pytest.raises(ConfigError, match="changes no weight"):
        back.merged(home.config, home.checkpoint, tmp_path / "same")
    with torch.no_grad():
        policy.trainable()["transformer_blocks.0.attn1.to_k.weight"].add_(1)
    policy.save(str(tmp_path / "final"))
    weights, changed = back.merged(home.config, home.checkpoint, tmp_path / "final")
    assert changed == [QKV]
    moved = (weights[QKV] - state()[QKV]).unflatten(0, (3, 128)).flatten(1).mean(1)
    assert moved.tolist() == pytest.approx([0, 1, 0], abs=1e-6)  # keys stand between queries and values
    with pytest.raises(ConfigError, match="holds neither"):
        back.merged(home.config, home.checkpoint, tmp_path)


def test_the_pipeline_is_trained_like_any_other(home: Home, tmp_path: Path):
    home.convert(tmp_path / "pipeline")
    policy = PipelinePolicy(str(tmp_path / "pipeline"), rank=2, seconds=0.1)
    assert (policy.name, policy.event_shape, policy.settings["rate"]) == ("stable_audio", (4, 16), 800)
    made = policy.generate(["slow piano", "loud drums"], [1, 2], steps=2, guidance=3.0)
    assert policy.decode(made).tensor.shape == (2, 2, 80)


def test_half_precision_checkpoints_keep_the_change(home: Home, tmp_path: Path):
    torch.save({n: v if n == ROTARY else v.half() for n, v in state().items()}, home.checkpoint)
    home.convert(tmp_path / "pipeline")
    policy = PipelinePolicy(str(tmp_path / "pipeline"), tuning="full", seconds=0.1)
    with torch.no_grad():
        policy.trainable()["proj_out.weight"].add_(1e-6)  # far below the spacing of half precision
    policy.save(str(tmp_path / "final"))
    weights, changed = back.merged(home.config, home.checkpoint, tmp_path / "final")
    assert changed == ["model.model.transformer.project_out.weight"]
    assert weights[changed[0]].dtype == torch.float32 and weights[QKV].dtype == torch.float16


# ---- what is refused


def test_missing_unknown_and_misshapen_weights_are_named(home: Home, tmp_path: Path):
    given = state()
    del given[QKV]
    torch.save(given, home.checkpoint)
    with pytest.raises(ConfigError, match=f"{QKV} is missing"):
        home.convert(tmp_path / "out")
    torch.save(state() | {"model.model.to_prepend_embed.0.weight": torch.ones(2)}, home.checkpoint)
    with pytest.raises(ConfigError, match="model.model.to_prepend_embed.0.weight is unknown"):
        home.convert(tmp_path / "out")
    torch.save(state() | {QKV: torch.ones(128, 384)}, home.checkpoint)
    with pytest.raises(ConfigError, match=r"has shape \(128, 384\); the settings say \(384, 128\)"):
        home.convert(tmp_path / "out")
    torch.save(state() | {ROTARY: 500.0 ** -(torch.arange(0, 32, 2) / 32)}, home.checkpoint)
    with pytest.raises(ConfigError, match="16 frequencies from 1 to 0.00295; the pipeline computes 16 from 1"):
        home.convert(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_code_of_a_file_is_run(home: Home):
    class Trap:
        def __reduce__(self):
            return (open, (str(home.checkpoint.with_name("sprung")), "w"))

    with home.checkpoint.open("wb") as file:
        pickle.dump({"state_dict": {}, "callbacks": Trap()}, file)
    with pytest.raises(ConfigError, match="cannot be read without running code of the file"):
        files.read_checkpoint(home.checkpoint)
    torch.save({"state_dict": {}, "callbacks": Trap()}, home.checkpoint)
    with pytest.raises(ConfigError, match="cannot be read without running code of the file"):
        files.read_checkpoint(home.checkpoint)
    assert not home.checkpoint.with_name("sprung").exists()
    torch.save(state() | {QKV: torch.full((384, 128), float("nan"))}, home.checkpoint)
    with pytest.raises(ConfigError, match="holds NaN or infinity"):
        files.read_checkpoint(home.checkpoint)
    torch.save({"encoder.weight": torch.ones(2)}, home.checkpoint)
    with pytest.raises(ConfigError, match=r"holds no model\.model\."):
        files.read_checkpoint(home.checkpoint)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "diffusion_cond_inpaint", "model_type is 'diffusion_cond_inpaint'; expected 'diffusion_cond'"),
        ("model.diffusion.diffusion_objective", "rectified_flow", "expected 'v'"),
        ("model.diffusion.config.global_cond_type", "adaLN", "expected 'prepend'"),
        ("model.diffusion.config.attn_kwargs", {"qk_norm": "ln"}, "attn_kwargs.qk_norm is 'ln'; expected 'none'"),
        ("model.diffusion.config.brand_new", 3, "brand_new is 3; this setting is unknown here"),
        ("model.diffusion.config.num_heads", 4, "expected heads of 64 numbers or more"),
        ("model.diffusion.config.global_cond_dim", 64, "expected 128 (start and end second, 2 * cond_dim)"),
        ("model.diffusion.global_cond_ids", ["seconds_total"], "global_cond_ids are ['seconds_total']; expected"),
        ("model.pretransform.scale", 0.5, "model.pretransform.scale is 0.5; expected 1.0"),
        ("model.pretransform.config.decoder.config.final_tanh", None, "final_tanh is None; expected False"),
        ("model.pretransform.config.encoder.config.channels", 16, "encoder.config.channels is 16; expected 8"),
        ("model.pretransform.config.latent_dim", 6, "latent_dim is 6; expected 4 (model.io_channels)"),
        ("sample_rate", None, "sample_rate is missing"),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_name(path: str, value: object, message: str):
    config = copy.deepcopy(compare.tiny_config())
    *parents, last = path.split(".")
    place = config
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ConfigError) as raised:
        settings.settings_of(config)
    assert message in str(raised.value) and "no counterpart" in str(raised.value)


def test_conditioners_that_the_pipeline_cannot_fill_are_refused():
    def refused(change: Any, message: str) -> None:
        config = copy.deepcopy(compare.tiny_config())
        change(config["model"]["conditioning"]["configs"])
        with pytest.raises(ConfigError, match=message):
            settings.settings_of(config)

    refused(lambda c: c.pop(1), "expected one of type 't5', and")
    refused(lambda c: c[0].update(type="clap_text"), "expected one of type 't5', and")
    refused(lambda c: c[1].update(id="bpm"), "expected one of type 't5', and")
    refused(lambda c: c[1].update(config={"min_val": 0, "max_val": 1}), "expected one range for both")
    refused(lambda c: c[0]["config"].update(t5_model_name="byt5"), "its width is unknown here")
    refused(lambda c: c[0]["config"].update(lora=True), "lora is True; this setting is unknown here")


def test_settings_of_stable_audio_open_are_those_of_its_pipeline():
    """The sizes in its published settings and in the pipeline that was published beside them."""
    config = copy.deepcopy(compare.tiny_config(768))
    oobleck = {"channels": 128, "c_mults": [1, 2, 4, 8, 16], "strides": [2, 4, 4, 8, 8], "use_snake": True}
    config |= {"sample_size": 2_097_152, "sample_rate": 44_100}
    model = config["model"]
    model["io_channels"] = 64
    model["diffusion"]["config"] |= {"io_channels": 64, "embed_dim": 1536, "depth": 24, "num_heads": 24}
    model["pretransform"]["config"] |= {"latent_dim": 64, "downsampling_ratio": 2048}
    model["pretransform"]["config"]["encoder"]["config"] |= {**oobleck, "latent_dim": 128}
    model["pretransform"]["config"]["decoder"]["config"] |= {**oobleck, "latent_dim": 64}
    found = settings.settings_of(config)
    from diffusers import AutoencoderOobleck, StableAudioDiTModel

    for kind, given in ((StableAudioDiTModel, found.transformer), (AutoencoderOobleck, found.autoencoder)):
        with torch.device("meta"):
            defaults = dict(kind().config)
        assert given == {key: defaults[key] for key in given}


def test_a_text_encoder_that_is_not_there_or_too_narrow_is_refused(home: Home, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no text encoder '/nowhere/t5'.*give --t5 a folder that holds t5-base"):
        home._replace(t5="/nowhere/t5").convert(tmp_path / "out")
    from transformers import T5EncoderModel

    narrow = json.loads((Path(home.t5) / "config.json").read_text()) | {"d_model": 32}
    kind = type(T5EncoderModel.from_pretrained(home.t5).config)
    T5EncoderModel(kind(**narrow)).save_pretrained(tmp_path / "narrow")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "narrow" / name).write_text((Path(home.t5) / name).read_text())
    with pytest.raises(ConfigError, match="has width 32; t5-base has 768"):
        home._replace(t5=str(tmp_path / "narrow")).convert(tmp_path / "out")
