"""Fitting the denoiser of rows: the published recipe, without a data loader, resumable to the bit.

Knows rows, flags and scores as tensors, the network and the diffusion core; not what the columns mean.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dragon.diffusion import EDM, Denoiser, Ema, denoising_error, lognormal_sigmas
from dragon.errors import ConfigError, NotFinite
from dragon.synther.network import ResidualMLP
from dragon.texts import first_line
from dragon.weights import check_weights


@dataclass(frozen=True)
class FitConfig:
    """Network and training. Defaults are the paper's; `PRESETS` has smaller ones.

    width, inner, depth: of `ResidualMLP`. batch_size: 0 is 256, and 1,024 from 800,000 rows. sigma_data, sigma_mean,
    sigma_std: of the EDM loss. ema_every: steps between updates of the average, whose decay rises to ema_decay as
    1 - (1 + updates)^(-2/3), so that a short fit is not an average with its random start. score_dropout: share of rows
    trained without their score, where rows have one. predict_share: share of each batch whose observations and actions
    are given without noise, and of which half must guess the flags: the same network is then a model of the world, too.
    seed: of weights, batches and noise.

    Source: Lu et al. (2023), appendix C; Karras et al. (2022), Table 1; the rise of the decay: Crowson, k-diffusion.
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
    score_dropout: float = 0.25
    predict_share: float = 0.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        positive = ("width", "inner", "depth", "max_steps", "learning_rate", "max_grad_norm", "ema_every", "sigma_std")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("score_dropout", "predict_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a share of at least 0 and below 1")
        if self.batch_size < 0:
            raise ConfigError(f"batch_size is {self.batch_size}; expected 0 (by the number of rows) or more")


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

    rows: (n, d). flags: (n, c). scores: (n,) standardised, or None. known, open_flags: (d,) columns that are given and
    (c,) flags that are guessed where rows are predicted; needed with a `predict_share`. Batches are drawn with
    replacement.
    """

    def __init__(
        self,
        rows: Tensor,
        flags: Tensor,
        scores: Tensor | None,
        config: FitConfig,
        *,
        known: Tensor | None = None,
        open_flags: Tensor | None = None,
    ) -> None:
        device = find_device(config.device)
        self.config, self.step = config, 0
        self.rows, self.flags = rows.to(device), flags.to(device)
        self.scores = None if scores is None else scores.to(device)
        self._generator = torch.Generator(device).manual_seed(config.seed)
        predicts = config.predict_share > 0
        if predicts and (known is None or open_flags is None):
            raise ConfigError(f"predict_share is {config.predict_share}; expected to be told which columns are given")
        self._known = None if known is None else known.to(device)
        self._open = None if open_flags is None else open_flags.to(device)
        cond = flags.shape[1] + (0 if scores is None else 2) + (2 if predicts else 0)
        guessed = flags.shape[1] if predicts else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = ResidualMLP(
                rows.shape[1], width=config.width, inner=config.inner, depth=config.depth, cond=cond, flags=guessed
            )
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
            if self.step % 100 == 0 or self.step == last or math.isnan(loss):
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
        cond = self._condition(index)
        if config.predict_share:
            loss = self._predicting(x0, self.flags[index], sigma, noise, cond)
        else:
            loss = denoising_error(self.denoiser, x0, sigma, noise, cond).mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._named.values(), config.max_grad_norm)
        self._optimiser.step()
        self.step += 1
        if self.step % config.ema_every == 0:
            self.ema.decay = min(config.ema_decay, 1 - (1 + self.step // config.ema_every) ** (-2 / 3))
            self.ema.update(self._named)
        return loss.detach()

    def _condition(self, index: Tensor) -> Tensor | None:
        if not self.net.settings["cond"]:
            return None
        parts = [self.flags[index]]
        if self.scores is not None:
            share = torch.rand(len(index), 1, generator=self._generator, device=index.device)
            known = (share >= self.config.score_dropout).float()
            parts += [self.scores[index, None] * known, known]
        if self.config.predict_share:
            parts += [torch.zeros(len(index), 2, device=index.device)]  # nothing is given, no flag is hidden
        return torch.cat(parts, 1)

    def _predicting(self, x0: Tensor, flags: Tensor, sigma: Tensor, noise: Tensor, cond: Tensor | None) -> Tensor:
        """() the loss of a batch whose first rows are predicted from their known columns.

        Those rows' error is that of their other columns; every second one's flags are hidden, and their cross-entropy
        is added.
        """
        assert self._known is not None and self._open is not None and cond is not None
        scaling, count = self.denoiser.scaling, max(2, round(self.config.predict_share * len(x0)))
        place = torch.arange(len(x0), device=x0.device)[:, None]
        given = (place < count) & self._known
        hidden = (place < count) & (place % 2 == 0)
        c = flags.shape[1]
        cond = torch.cat([cond[:, :-2], (place < count).float(), hidden.float()], 1)
        cond[:, :c] = cond[:, :c].masked_fill(hidden & self._open, 0.0)
        level = sigma[:, None]
        seen = torch.where(given, x0, scaling.c_in(level) * (x0 + level * noise))
        raw, logits = self.net.both(seen, scaling.c_noise(sigma), cond)
        error = (raw - scaling.target(x0, sigma, noise)).square().masked_fill(given, 0.0)
        loss = (error.sum(1) / (~given).sum(1)).mean()
        if not bool(self._open.any()):
            return loss
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, flags, reduction="none")
        return loss + (entropy * (hidden & self._open)).sum() / len(x0)

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that the next step depends on, besides the data and the configuration."""
        return {
            "step": self.step,
            "net": {name: value.clone() for name, value in self.net.state_dict().items()},
            "ema": self.ema.state_dict(),
            "optimiser": copy.deepcopy(self._optimiser.state_dict()),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, to the bit."""
        self.step = int(state["step"])
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # torch keeps the tensors it is given
        self._generator.set_state(state["generator"])

    def warm_start(self, net: Mapping[str, Tensor]) -> None:
        """Starts from other weights of the same shapes; optimiser, average and step are new.

        Raises:
            ConfigError: weights of another network.
        """
        check_weights(self.net, net, "the model to start from")
        self.net.load_state_dict(dict(net))
        self.ema = Ema(self._named, self.config.ema_decay)


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device is {name!r}: {first_line(error)}; expected cpu, or one of this machine") from error
    return device


def loss_of(fit: Fit, sigma: Tensor, noise: Tensor, index: Tensor) -> Tensor:
    """() the loss that a step with this batch, these levels and this noise would have; for tests and probes."""
    return denoising_error(fit.denoiser, fit.rows[index], sigma, noise, fit._condition(index)).mean()
