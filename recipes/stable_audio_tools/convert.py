"""A checkpoint of stable-audio-tools -> the folder of a diffusers StableAudioPipeline.

    python recipes/stable_audio_tools/convert.py model_config.json model.ckpt --t5 t5-base --out my_model

The folder is then trained like any other: policy: {name: pipeline, options: {folder: my_model}}. `back.py` brings the
result home. The text encoder is not in such a checkpoint: --t5 is its folder or hub name. The trainer runs it in half
precision and the pipeline in float32: conditions differ by about 1e-3 for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trainer_files import Which, check_rotary, read_checkpoint
from trainer_names import (
    CONDITIONERS,
    ROTARY,
    Pair,
    autoencoder_pairs,
    check_unknown,
    projection_pairs,
    to_ours,
    transformer_pairs,
)
from trainer_settings import Settings, read_settings

from dragon.errors import ConfigError, DragonError


def convert(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    t5: str = "",
    which: Which = "auto",
    sigma_min: float = 0.3,
    sigma_max: float = 500.0,
) -> Settings:
    """Writes the pipeline's folder; t5: folder or hub name, empty: the name in the settings.

    Raises:
        ConfigError: settings without a counterpart, weights that do not fit them, or no such text encoder.
    """
    settings, state = read_settings(config), read_checkpoint(checkpoint, which)
    pipe = pipeline(settings, state, t5 or settings.t5, sigma_min, sigma_max)
    pipe.save_pretrained(str(out))
    return settings


def pipeline(
    settings: Settings, state: Mapping[str, Tensor], t5: str, sigma_min: float = 0.3, sigma_max: float = 500.0
) -> Any:
    """The pipeline of these weights, with all names accounted for. sigma_min, sigma_max: noise levels of its scheduler;
    the defaults are those that Stable Audio Open is sampled with.
    """
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    projected = settings.projection["text_encoder_dim"] != settings.projection["conditioning_dim"]
    autoencoder = autoencoder_pairs(len(settings.autoencoder["downsampling_ratios"]))
    projection = projection_pairs(settings.text, settings.start, settings.end, projected)
    of_text = f"{CONDITIONERS}{settings.text}.model."
    network = transformer_pairs(settings.transformer["num_layers"])
    names = [pair.theirs for pair in (*network, *autoencoder, *projection)] + [ROTARY]
    check_unknown(state, names + [name for name in state if settings.text_is_trained and name.startswith(of_text)])
    text, tokenizer = _text(settings, t5, {n.removeprefix(of_text): v for n, v in state.items() if of_text in n})
    return StableAudioPipeline(
        vae=_filled(AutoencoderOobleck, settings.autoencoder, state, autoencoder),
        text_encoder=text,
        projection_model=_filled(StableAudioProjectionModel, settings.projection, state, projection),
        tokenizer=tokenizer,
        transformer=transformer(settings, state),
        scheduler=CosineDPMSolverMultistepScheduler(
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
            solver_order=2,
        ),
    )


def transformer(settings: Settings, state: Mapping[str, Tensor]) -> Any:
    """The network alone, float32."""
    from diffusers import StableAudioDiTModel

    check_rotary(state, settings.transformer["attention_head_dim"])
    pairs = transformer_pairs(settings.transformer["num_layers"])
    return _filled(StableAudioDiTModel, settings.transformer, state, pairs)


def _filled(kind: type[Any], settings: Mapping[str, Any], state: Mapping[str, Tensor], pairs: list[Pair]) -> nn.Module:
    with torch.device("meta"):  # no weights are drawn only to be replaced
        module: nn.Module = kind(**settings)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict(to_ours(state, pairs, shapes), assign=True)
    return module.eval()


def _text(settings: Settings, t5: str, trained: Mapping[str, Tensor]) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, T5EncoderModel

    try:
        model = T5EncoderModel.from_pretrained(t5, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(t5, model_max_length=settings.tokens)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no text encoder {t5!r} ({str(error).splitlines()[0]}); give --t5 a folder that holds {settings.t5} "
            "(config.json, weights, tokenizer), or its hub name"
        ) from error
    wanted = settings.projection["text_encoder_dim"]
    if model.config.d_model != wanted:
        raise ConfigError(f"text encoder {t5!r} has width {model.config.d_model}; {settings.t5} has {wanted}")
    if trained:
        lacking, unknown = model.load_state_dict({name: v.float() for name, v in trained.items()}, strict=False)
        lacking = [name for name in lacking if name != "encoder.embed_tokens.weight"]  # tied to `shared`
        if lacking or unknown:
            raise ConfigError(f"trained text encoder: missing {lacking[:3]}, unknown {unknown[:3]}; is it a {t5}?")
    return model, tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="model_config.json")
    parser.add_argument("checkpoint", type=Path, help="model.safetensors or .ckpt, wrapped or not")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--t5", default="", help="folder or hub name of the text encoder; default: the settings' own")
    parser.add_argument("--weights", choices=("auto", "ema", "model"), default="auto", help="auto: averaged if there")
    parser.add_argument("--sigma_min", type=float, default=0.3)
    parser.add_argument("--sigma_max", type=float, default=500.0)
    given = parser.parse_args()
    try:
        convert(
            given.config, given.checkpoint, given.out, t5=given.t5, which=given.weights,
            sigma_min=given.sigma_min, sigma_max=given.sigma_max,
        )  # fmt: skip
    except DragonError as error:
        parser.exit(2, f"convert: {error}\n")
    print(f"{given.out}: train it with policy: {{name: pipeline, options: {{folder: {given.out}}}}}")
