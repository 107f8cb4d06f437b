"""Fitting the denoiser of rows: the published recipe, without a data loader, resumable to the bit.

Knows rows, flags and scores as tensors, the network and the diffusion core; not what the columns mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dragon.diffusion import EDM, Denoiser, Ema, denoising_error, lognormal_sigmas
from dragon.errors import ConfigError, NotFinite
from dragon.synther.network import ResidualMLP


@dataclass(frozen=True)
class FitConfig:
    """Network and training. Defaults are the paper's; `PRESETS` has smaller ones.

    width, inner, depth: of `ResidualMLP`. batch_size: 0 is 256, and 1,024 from 800,000 rows. sigma_data, sigma_mean,
    sigma_std: of the EDM loss. ema_every: steps between updates of the average. score_dropout: share of rows trained
    without their score, where rows have one. seed: of weights, batches and noise.

    Source: Lu et al. (2023), appendix C; Karras et al. (2022), Table 1.
    """

    width: int = 2048
    inner: int = 128
    depth: int = 6
    max_steps: int = 100_000
    batch_size: int = 0
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.995
    ema_every: int = 10
    sigma_data: float = 1.0
    sigma_mean: float = -1.2
    sigma_std: float = 1.2
    score_dropout: float = 0.1
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        positive = ("width", "inner", "depth", "max_steps", "learning_rate", "max_grad_norm", "ema_every", "sigma_std")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.batch_size < 0 or not 0 <= self.score_dropout < 1:
            raise ConfigError(
                f"batch_size is {self.batch_size} and score_dropout {self.score_dropout}; expected batch_size >= 0 and "
                "score_dropout in [0, 1)"
            )


PRESETS = {
    "paper": FitConfig(),
    "small": FitConfig(width=1024, max_steps=50_000),
    "tiny": FitConfig(width=256, max_steps=10_000),
}


def preset(name: str, **changes: Any) -> FitConfig:
    """The preset of that name with some values changed.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset is {name!r}; expected one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)


class Fit:
    """A fit at some step: network, its average, optimiser and random states.

    rows: (n, d). flags: (n, c). scores: (n,) standardised, or None. A batch is drawn with replacement.
    """

    def __init__(self, rows: Tensor, flags: Tensor, scores: Tensor | None, config: FitConfig) -> None:
        device = torch.device(config.device)
        self.config, self.step = config, 0
        self.rows, self.flags = rows.to(device), flags.to(device)
        self.scores = None if scores is None else scores.to(device)
        self._generator = torch.Generator(device).manual_seed(config.seed)
        cond = flags.shape[1] + (0 if scores is None else 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = ResidualMLP(rows.shape[1], width=config.width, inner=config.inner, depth=config.depth, cond=cond)
        self.net = net.to(device)
        self.denoiser = Denoiser(self.net, EDM(config.sigma_data))
        self._named = dict(self.net.named_parameters())
        self.ema = Ema(self._named, config.ema_decay)
        self._optimiser = torch.optim.AdamW(
            self.net.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._batch = config.batch_size or (1024 if len(rows) >= 800_000 else 256)

    def steps(self, until: int | None = None) -> Iterator[float]:
        """Trains up to step `until` (None: the configuration's last), giving each step's loss; every hundredth is read.

        Raises:
            NotFinite: a loss is NaN or infinite.
        """
        last = self.config.max_steps if until is None else min(until, self.config.max_steps)
        loss = math.nan
        while self.step < last:
            found = self._update()
            if self.step % 100 == 0 or self.step == last:
                loss = float(found)
                if not math.isfinite(loss):
                    raise NotFinite(
                        f"the loss is {loss} at step {self.step}; lower learning_rate {self.config.learning_rate}"
                    )
            yield loss

    def _update(self) -> Tensor:
        config, generator = self.config, self._generator
        for group in self._optimiser.param_groups:
            group["lr"] = config.learning_rate * (1 + math.cos(math.pi * self.step / config.max_steps)) / 2
        index = torch.randint(len(self.rows), (self._batch,), generator=generator, device=self.rows.device)
        x0 = self.rows[index]
        sigma = lognormal_sigmas(self._batch, generator, config.sigma_mean, config.sigma_std)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        loss = denoising_error(self.denoiser, x0, sigma, noise, self._condition(index)).mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._named.values(), config.max_grad_norm)
        self._optimiser.step()
        self.step += 1
        if self.step % config.ema_every == 0:
            self.ema.update(self._named)
        return loss.detach()

    def _condition(self, index: Tensor) -> Tensor | None:
        if not self.flags.shape[1] and self.scores is None:
            return None
        flags = self.flags[index]
        if self.scores is None:
            return flags
        share = torch.rand(len(index), 1, generator=self._generator, device=index.device)
        known = (share >= self.config.score_dropout).float()
        return torch.cat([flags, self.scores[index, None] * known, known], 1)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, besides the data and the configuration."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, to the bit."""
        self.step = int(state["step"])
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"])

    def warm_start(self, net: Mapping[str, Tensor]) -> None:
        """Starts from other weights of the same shapes; optimiser, average and step are new."""
        self.net.load_state_dict(dict(net))
        self.ema = Ema(self._named, self.config.ema_decay)


def loss_of(fit: Fit, sigma: Tensor, noise: Tensor, index: Tensor) -> Tensor:
    """() the loss that a step with this batch, these levels and this noise would have; for tests and probes."""
    return denoising_error(fit.denoiser, fit.rows[index], sigma, noise, fit._condition(index)).mean()
