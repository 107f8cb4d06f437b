"""The latents of a diffusers pipeline's autoencoder as frames: the space in which the pipeline's model generates.

Per-song Frechet distance in the generator's own latents needs no further network (Bai et al. 2025, arXiv
2504.15217). For autoencoders of waveforms (Stable Audio, ACE-Step, Stable Audio 3, LongCat); those of spectrograms
(AudioLDM) need a front end that their pipelines do not hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dragon.encoders.channels import WholeFrames, frames_of_channels
from dragon.encoders.latents import LatentEncoder
from dragon.encoders.pretrained import load_model, reading
from dragon.errors import ConfigError


class VaeEncoder(LatentEncoder):
    """(b, s, f): the mean of the posterior, one frame every `hop` samples of the autoencoder (Stable Audio: 2048).

    model: hub id or folder of a pipeline (its part `vae` is loaded, nothing else), or the folder of an autoencoder.
    Rate and channels are the autoencoder's: a mono clip is heard on both channels of a stereo one. Windows of
    `seconds`; the last one is filled with zeros, whose frames are left out. No draw from the posterior: the same clip
    gives the same frames.

    Raises:
        ConfigError: it cannot be loaded, or does not encode waveforms.
    """

    def __init__(self, model: str, *, seconds: float = 10.0, device: str = "cpu") -> None:
        folder = Path(model).expanduser()
        if folder.is_dir() and not (folder / "vae").is_dir() and (folder / "model_index.json").is_file():
            raise ConfigError(
                f"encoder 'vae': the pipeline {model!r} has no part 'vae'; give the folder of its autoencoder"
                " (a pipeline of dragon.mini: use encoder 'mini-codec' with option folder)"
            )
        part: dict[str, Any] = {} if folder.is_dir() and not (folder / "vae").is_dir() else {"subfolder": "vae"}
        source = str(folder) if folder.is_dir() else model
        kind = reading(lambda: _kind(source, part), source, "vae", "an autoencoder")
        loaded = load_model(kind, source, "vae", device, **part)
        rate, count, hop = _hearing(loaded, model)

        def frames(wave: Tensor) -> Tensor:
            return _mean(loaded, wave.contiguous()).transpose(1, 2)

        probe = frames_of_channels(torch.zeros(1, count, hop, device=device), WholeFrames(1, hop), frames)
        super().__init__(
            "vae",
            {k: v for k, v in loaded.state_dict().items() if not k.startswith("decoder.")},
            loaded.config,
            rate=rate,
            channels=count,
            rule=WholeFrames.of(seconds, rate, hop, "vae"),
            features=probe.shape[-1],
            frames=frames,
            device=device,
        )


def _kind(source: str, part: dict[str, Any]) -> Any:
    """The class that the configuration names. (diffusers' AutoModel cannot tell which weights were missing.)"""
    import diffusers

    name = diffusers.AutoencoderOobleck.load_config(source, **part)["_class_name"]
    return getattr(diffusers, name)


def _hearing(vae: Any, source: str) -> tuple[int, int, int]:
    """Rate, channels and samples a frame, as the autoencoder's configuration says them."""
    config = vae.config
    rate = config.get("sampling_rate") or config.get("sample_rate")
    count = config.get("audio_channels") or config.get("in_channels")
    # some say it in the configuration, some as an attribute of their own
    hop = config.get("downsampling_ratio") or vars(vae).get("hop_length") or vars(vae).get("downsampling_ratio")
    if not (rate and count and hop):
        raise ConfigError(
            f"encoder 'vae': {type(vae).__name__} of {source!r} does not say rate, channels and samples a frame, so it "
            "does not encode waveforms; expected an autoencoder such as AutoencoderOobleck (Stable Audio, ACE-Step)"
        )
    return int(rate), int(count), int(hop)


def _mean(vae: Any, wave: Tensor) -> Tensor:
    """(n, f, s): the posterior's mean. Autoencoders of diffusers tell it in three ways."""
    import inspect

    if "sample_posterior" in inspect.signature(type(vae).encode).parameters:
        return vae.encode(wave, sample_posterior=False).latents
    found = vae.encode(wave)
    return found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
