"""The fitted model: more transitions, with guidance, from part of a row, and how likely a given one is.

Knows the layout of columns and the diffusion core. Rows are drawn in blocks of 1,024, each from its own seed, so that
row i of a seed is the same however many rows are asked for and whatever the batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.diffusion import (
    EDM,
    Denoiser,
    Guided,
    SeededNoise,
    churn,
    dpmpp_2m,
    euler,
    heun,
    karras_sigmas,
    last,
)
from dragon.errors import ConfigError, NotFinite
from dragon.files import writing
from dragon.synther.columns import Layout, TransitionSpec, fit_layout
from dragon.synther.network import ResidualMLP
from dragon.synther.training import Fit, FitConfig
from dragon.synther.transitions import Array, Transitions
from dragon.weights import check_weights, read_weights

BLOCK = 1024
WEIGHTS, CONFIG = "model.safetensors", "config.json"
VERSION = 1
Progress = Callable[[int, int, float], None]
"""(step, of how many, loss)."""


@dataclass(frozen=True)
class SampleConfig:
    """How rows are drawn.

    sampler: "churn" is the paper's stochastic Heun; the others solve without fresh noise. steps: `heun` and `churn`
    call the network 2 steps - 1 times. clamp: keeps every estimate of a row inside the data's bounds on the way.
    """

    sampler: Literal["heun", "dpmpp_2m", "euler", "churn"] = "heun"
    steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    s_churn: float = 80.0
    s_tmin: float = 0.05
    s_tmax: float = 50.0
    s_noise: float = 1.003
    clamp: bool = True
    batch_size: int = 8 * BLOCK


DETERMINISTIC = SampleConfig()
PAPER_SAMPLING = SampleConfig(sampler="churn", steps=128, clamp=False)


class Upsampler:
    """A fitted model of transitions.

    denoise: (x (b, d), sigma (b,), condition) -> clean rows. flag_rows: (m, c) flags as the data has them, in rows.
    score: mean, standard deviation and sorted sample of the data's scores, where the model was fitted with some.
    """

    def __init__(
        self, net: ResidualMLP, layout: Layout, config: FitConfig, flag_rows: Tensor, score_rows: Tensor | None
    ) -> None:
        self.net, self.layout, self.config = net.eval(), layout, config
        self.flag_rows, self.score_rows = flag_rows, score_rows
        self.denoiser = Denoiser(net, EDM(config.sigma_data))

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        score: float | None = None,
        guidance: float = 1.0,
        flags: Array | None = None,
        sampling: SampleConfig = DETERMINISTIC,
        progress: Callable[[int], None] | None = None,
    ) -> Transitions:
        """n new transitions.

        score: the score that rows are drawn for, in the data's unit; None: none in particular. guidance above 1
        exaggerates it. flags: (n, c) of each row; None: as often as in the data. progress: told the rows so far.

        Raises:
            ConfigError: n below 1; a score for a model without one; guidance without a score. NotFinite: a row is.
        """
        if n < 1:
            raise ConfigError(f"n is {n}; expected at least 1 transition")
        parts = []
        for rows, chosen in self.draw(n, seed, score=score, guidance=guidance, flags=flags, sampling=sampling):
            parts.append(self.layout.decode(rows, chosen))
            if progress:
                progress(sum(map(len, parts)))
        return Transitions.cat(parts)

    @torch.no_grad()
    def draw(
        self,
        n: int,
        seed: int = 0,
        *,
        score: float | None = None,
        guidance: float = 1.0,
        flags: Array | None = None,
        sampling: SampleConfig = DETERMINISTIC,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same before it is decoded: rows (b, d) and flags (b, c), batch by batch."""
        given = None if flags is None else torch.as_tensor(np.asarray(flags), dtype=torch.float32).reshape(n, -1)
        size = max(BLOCK, sampling.batch_size // BLOCK * BLOCK)
        for start in range(0, n, size):
            count = min(size, n - start)
            noise = BlockNoise(seed, start, count)
            chosen = self._flags(seed, start, count) if given is None else given[start : start + count]
            denoise = self._guided(chosen.to(self.device), score, guidance, sampling)
            x = solve(denoise, noise, self.layout.d, sampling, self.device)
            if not bool(x.isfinite().all()):
                row = start + int((~x.isfinite().all(1)).nonzero()[0])
                raise NotFinite(f"row {row} of seed {seed} is not finite; the model has diverged: fit it again")
            yield x, chosen

    @torch.no_grad()
    def predict(
        self,
        observations: Array,
        actions: Array,
        seed: int = 0,
        *,
        sampling: SampleConfig = DETERMINISTIC,
    ) -> Transitions:
        """Rewards, next observations and flags for given observations and actions: the model as a world model.

        The known columns are put back at each level with their own noise, and the rest is drawn to fit them.

        Source: Lugmayr et al. (2022), RePaint, eq. 8 without resampling; Song et al. (2021), appendix I.2.
        """
        raise NotImplementedError  # filled in by the next change

    def _guided(
        self, flags: Tensor, score: float | None, guidance: float, sampling: SampleConfig
    ) -> Callable[[Tensor, Tensor, Any], Tensor]:
        if score is not None and self.score_rows is None:
            raise ConfigError(
                f"score is {score} and the model was fitted without scores; fit it with scores, or leave it out"
            )
        if guidance != 1 and score is None:
            raise ConfigError(
                f"guidance is {guidance} without a score; give the score to draw for, or leave guidance 1"
            )
        cond = self._condition(flags, score)
        base: Callable[[Tensor, Tensor, Any], Tensor] = self.denoiser
        if score is not None and guidance != 1:
            base = Guided(self.denoiser, self._condition(flags, None), guidance, cat=torch.cat)

        def denoise(x: Tensor, sigma: Tensor, _: Any) -> Tensor:
            clean = base(x, sigma, cond)
            return self.layout.clamp(clean) if sampling.clamp else clean

        return denoise

    def _condition(self, flags: Tensor, score: float | None) -> Tensor | None:
        if self.net.settings["cond"] == 0:
            return None
        if self.score_rows is None:
            return flags
        known = 0.0 if score is None else 1.0
        mean, std = float(self.score_rows.mean()), float(self.score_rows.std()) + 1e-5
        value = 0.0 if score is None else (score - mean) / std
        extra = torch.tensor([[value, known]], dtype=flags.dtype, device=flags.device).expand(len(flags), 2)
        return torch.cat([flags, extra], 1)

    def _flags(self, seed: int, start: int, count: int) -> Tensor:
        """Rows of flags of the data, each block an even share of them: rates are those of the data."""
        if not self.layout.c:
            return torch.zeros(count, 0)
        m, found = len(self.flag_rows), []
        for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
            generator = torch.Generator().manual_seed(_block_seed(seed, block, "flags"))
            # sorted flags, taken at even distances from a random start: systematic sampling
            place = (torch.arange(BLOCK) + torch.rand(1, generator=generator)) / BLOCK
            index = (place * m).long().clamp(max=m - 1)
            found.append(self.flag_rows[index[torch.randperm(BLOCK, generator=generator)]])
        return torch.cat(found)[:count]

    # ---- storing

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights (safetensors) and configuration (JSON) into `folder`.

        Raises:
            Unwritable: a full disk or the like.
        """
        from safetensors.torch import save_file

        place = Path(folder)
        tensors = {f"net.{name}": value.contiguous().cpu() for name, value in self.net.state_dict().items()}
        tensors["flag_rows"] = self.flag_rows.contiguous()
        if self.layout.line is not None:
            tensors["line"] = torch.from_numpy(np.ascontiguousarray(self.layout.line))
        if self.score_rows is not None:
            tensors["score_rows"] = self.score_rows.contiguous()
        stored = {
            "version": VERSION,
            "network": self.net.settings,
            "layout": self.layout.to_json(),
            "fit": asdict(self.config),
        }
        with writing("the model", place, "make room, or choose another folder"):
            place.mkdir(parents=True, exist_ok=True)
            save_file(tensors, place / f".{WEIGHTS}.partial", metadata={"format": "pt"})
            os.replace(place / f".{WEIGHTS}.partial", place / WEIGHTS)
            (place / CONFIG).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | os.PathLike[str], device: str = "cpu") -> Upsampler:
        """Reads what `save` wrote.

        Raises:
            ConfigError: no model there, a damaged one, or one of another version.
        """
        place = Path(folder)
        try:
            stored = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"no model in {str(place)!r} ({error}); expected {CONFIG} and {WEIGHTS}") from error
        if stored.get("version") != VERSION:
            raise ConfigError(f"{place / CONFIG} is of version {stored.get('version')}; this program reads {VERSION}")
        tensors = read_weights(place / WEIGHTS, "the model")
        settings = stored["network"]
        net = ResidualMLP(**settings)
        weights = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
        check_weights(net, weights, place / WEIGHTS)
        net.load_state_dict(weights)
        layout = Layout.from_json(stored["layout"], tensors.get("line"))
        config = FitConfig(**(stored["fit"] | {"device": device}))
        return Upsampler(net.to(device), layout, config, tensors["flag_rows"], tensors.get("score_rows"))


def fit(
    transitions: Transitions,
    spec: TransitionSpec | None = None,
    config: FitConfig | None = None,
    *,
    scores: NDArray[np.floating[Any]] | None = None,
    start: Upsampler | None = None,
    progress: Progress | None = None,
) -> Upsampler:
    """A model of `transitions`; spec and config: None for their defaults.

    scores: (n,) one number a row that samples can be asked for (return, curiosity, TD error). start: a model to begin
    from, with whose layout these transitions are coded: data that has grown.

    Raises:
        ConfigError, ShapeError, NotFinite: see `Transitions`, `fit_layout` and `Fit.steps`.
    """
    training, layout, score_rows = prepare(
        transitions, spec or TransitionSpec(), config or FitConfig(), scores=scores, start=start
    )
    for loss in training.steps():
        if progress:
            progress(training.step, training.config.max_steps, loss)
    return finished(training, layout, score_rows)


def prepare(
    transitions: Transitions,
    spec: TransitionSpec,
    config: FitConfig,
    *,
    scores: NDArray[np.floating[Any]] | None = None,
    start: Upsampler | None = None,
) -> tuple[Fit, Layout, Tensor | None]:
    """The fit at step 0, the layout and the scores: for those who run the loop themselves."""
    layout = fit_layout(transitions, spec) if start is None else start.layout
    rows, flags = layout.encode(transitions)
    score_rows = None if scores is None else _scores(scores, len(transitions))
    standard = None if score_rows is None else (score_rows - score_rows.mean()) / (score_rows.std() + 1e-5)
    training = Fit(rows, flags, standard, config)
    if start is not None:
        training.warm_start(start.net.state_dict())
    return training, layout, score_rows


def finished(training: Fit, layout: Layout, score_rows: Tensor | None) -> Upsampler:
    """The model with the averaged weights."""
    net = ResidualMLP(**training.net.settings).to(training.rows.device)
    net.load_state_dict(training.net.state_dict() | training.ema.state_dict())
    flags = training.flags.cpu()
    ordered = flags[torch.from_numpy(np.lexsort(flags.T.numpy()[::-1]))] if flags.shape[1] else flags
    thinned = ordered[torch.linspace(0, len(ordered) - 1, min(len(ordered), 65536)).round().long()]
    return Upsampler(net, layout, training.config, thinned.contiguous(), score_rows)


def solve(
    denoise: Callable[[Tensor, Tensor, Any], Tensor],
    noise: BlockNoise,
    d: int,
    sampling: SampleConfig,
    device: torch.device,
) -> Tensor:
    """(b, d) rows from noise."""
    if sampling.steps < 1:
        raise ConfigError(f"steps is {sampling.steps}; expected at least 1")
    sigmas = karras_sigmas(sampling.steps, sampling.sigma_min, sampling.sigma_max, sampling.rho).to(device)
    x = sigmas[0] * noise.draw((d,)).to(device)
    if sampling.sampler == "churn":
        steps = churn(
            denoise,
            x,
            sigmas,
            noise_source=noise,
            s_churn=sampling.s_churn,
            s_tmin=sampling.s_tmin,
            s_tmax=sampling.s_tmax,
            s_noise=sampling.s_noise,
        )
        return last(steps)
    samplers = {"heun": heun, "dpmpp_2m": dpmpp_2m, "euler": euler}
    if sampling.sampler not in samplers:
        raise ConfigError(f"sampler is {sampling.sampler!r}; expected one of {[*samplers, 'churn']}")
    return last(samplers[sampling.sampler](denoise, x, sigmas))


class BlockNoise:
    """Unit noise of rows start ... start + count - 1 of a seed; start is a multiple of `BLOCK`."""

    def __init__(self, seed: int, start: int, count: int) -> None:
        first, end = start // BLOCK, -(-(start + count) // BLOCK)
        self._count = count
        self._blocks = SeededNoise([_block_seed(seed, block, "noise") for block in range(first, end)])

    def draw(self, event_shape: Sequence[int]) -> Tensor:
        """(count, *event_shape) float32 on the CPU, new at each call."""
        return self._blocks.draw((BLOCK, *event_shape)).flatten(0, 1)[: self._count]


def _block_seed(seed: int, block: int, what: str) -> int:
    words = np.random.SeedSequence([seed, block, {"noise": 0, "flags": 1}[what]]).generate_state(2, np.uint32)
    return int(words[0]) << 31 ^ int(words[1])


def _scores(scores: NDArray[np.floating[Any]], n: int) -> Tensor:
    found = torch.as_tensor(np.asarray(scores, dtype=np.float32))
    if found.shape != (n,):
        raise ConfigError(f"scores have shape {tuple(found.shape)}; expected ({n},), one a transition")
    if not bool(found.isfinite().all()):
        raise NotFinite(f"scores hold NaN or infinity in row {int((~found.isfinite()).nonzero()[0])}")
    return found
