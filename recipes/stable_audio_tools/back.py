"""What was trained, merged into the trainer's checkpoint, so that your own stable-audio-tools code runs it.

    python recipes/stable_audio_tools/back.py model_config.json model.ckpt --tuned runs/mine/final --out new.safetensors

--tuned is a run's final/ (a LoRA adapter, or full weights). The file holds the whole model, unwrapped, by the trainer's
names: `model.load_state_dict(load_ckpt_state_dict("new.safetensors"))`. Weights that training left alone are those of
the checkpoint to the bit; changed ones are float32, since half precision would round small changes away.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from convert import transformer
from torch import Tensor
from trainer_files import Which, read_checkpoint
from trainer_names import to_theirs, transformer_pairs
from trainer_settings import read_settings

from dragon.errors import ConfigError, DragonError
from dragon.weights import check_weights, read_weights

_ADAPTER, _FULL = "adapter_config.json", "diffusion_pytorch_model.safetensors"


def merged(
    config: str | Path, checkpoint: str | Path, tuned: str | Path, which: Which = "auto"
) -> tuple[dict[str, Tensor], list[str]]:
    """The whole model by the trainer's names, and the names of the tensors that training changed.

    Raises:
        ConfigError: as in `convert`; or `tuned` holds nothing of this model, or what changes nothing.
    """
    settings, state = read_settings(config), read_checkpoint(checkpoint, which)
    pairs = transformer_pairs(settings.transformer["num_layers"])
    before = transformer(settings, state)
    start = {name: value.clone() for name, value in before.state_dict().items()}
    after = {name: value.detach() for name, value in _tuned(before, Path(tuned)).state_dict().items()}
    changed = [pair for pair in pairs if any(not torch.equal(start[name], after[name]) for name in pair.ours)]
    if not changed:
        raise ConfigError(f"{tuned} changes no weight of the network; expected the final/ of a run that trained it")
    new = to_theirs(after, changed, state)
    # cloned: tied weights share their memory, which a safetensors file cannot say
    return {name: new.get(name, value).clone().contiguous() for name, value in state.items()}, sorted(new)


def _tuned(network: Any, folder: Path) -> Any:
    if (folder / _ADAPTER).is_file():
        from peft import PeftModel

        try:
            return PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise ConfigError(f"the adapter in {folder} does not fit this model: {error}") from error
    if (folder / _FULL).is_file():
        weights = read_weights(folder / _FULL, "tuned weights")
        check_weights(network, weights, folder / _FULL)
        network.load_state_dict(weights)
        return network
    raise ConfigError(f"{folder} holds neither {_ADAPTER} nor {_FULL}; expected a run's final/")


if __name__ == "__main__":
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="model_config.json")
    parser.add_argument("checkpoint", type=Path, help="the file that convert.py read")
    parser.add_argument("--tuned", type=Path, required=True, help="a run's final/")
    parser.add_argument("--out", type=Path, required=True, help="new .safetensors")
    parser.add_argument("--weights", choices=("auto", "ema", "model"), default="auto", help="as in convert.py")
    given = parser.parse_args()
    if given.out.exists():
        parser.exit(2, f"back: {given.out} exists; choose another --out\n")
    try:
        whole, names = merged(given.config, given.checkpoint, given.tuned, given.weights)
    except DragonError as error:
        parser.exit(2, f"back: {error}\n")
    save_file(whole, given.out, metadata={"format": "pt"})
    print(f"{given.out}: {len(names)} of {len(whole)} tensors changed")
