"""The fitted model: more transitions, with guidance, from part of a row, and how likely a given one is.

Knows the layout of columns and the diffusion core; it comes from `fitting`, drawing is `sampling`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragon.diffusion import EDM, Denoiser, Guided, exponential_sigmas
from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.files import write_whole, writing
from dragon.synther.columns import Layout
from dragon.synther.likelihood import denoising_density, log_density
from dragon.synther.network import ResidualMLP
from dragon.synther.sampling import (
    BLOCK,
    PAPER_SAMPLING,
    SAMPLING,
    BlockNoise,
    Denoise,
    SampleConfig,
    batches,
    block_seed,
    solve,
)
from dragon.synther.training import FitConfig, find_device
from dragon.synther.transitions import KEYS, Array, Transitions
from dragon.weights import check_weights, read_weights

__all__ = ["BLOCK", "PAPER_SAMPLING", "SAMPLING", "SampleConfig", "Upsampler"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
VERSION = 1
Scores = NDArray[np.floating[Any]]

NEAR = 0.05  # share of the rows, those of the nearest scores, whose flags are drawn for a score


class Upsampler:
    """A fitted model of transitions.

    flag_rows: (m, c) flags as the data has them, in order. score_rows: (m,) scores of those rows, where the model was
    fitted with some; score_unit: mean and standard deviation of all scores.
    """

    def __init__(
        self,
        net: ResidualMLP,
        layout: Layout,
        config: FitConfig,
        flag_rows: Tensor,
        score_rows: Tensor | None = None,
        score_unit: tuple[float, float] | None = None,
    ) -> None:
        self.net, self.layout, self.config = net.eval(), layout, config
        self.flag_rows, self.score_rows = flag_rows, score_rows
        self.score_unit = score_unit or (None if score_rows is None else unit_of(score_rows))
        self.denoiser = Denoiser(net, EDM(config.sigma_data))

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        score: float | Scores | None = None,
        guidance: float = 1.0,
        flags: Array | None = None,
        sampling: SampleConfig = SAMPLING,
        progress: Callable[[int], None] | None = None,
    ) -> Transitions:
        """n new transitions.

        score: the score that rows are drawn for, or (n,) one a row, in the data's unit; None: none in particular.
        guidance above 1 exaggerates it. flags: (n, c) of each row, 0 or 1; None: as often as in the data, with a score
        as often as in rows of such scores. progress: told the rows so far.

        Raises:
            ConfigError: n below 1; a score for a model without one; guidance without a score. ShapeError: flags or
                scores of another shape. NotFinite: a row is.
        """
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
        score: float | Scores | None = None,
        guidance: float = 1.0,
        flags: Array | None = None,
        sampling: SampleConfig = SAMPLING,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same before it is decoded: rows (b, d) and flags (b, c), batch by batch."""
        if n < 1:
            raise ConfigError(f"n is {n}; expected at least 1 transition")
        given = None if flags is None else self._checked_flags(flags, n)
        wanted = self._checked_scores(score, guidance, n)
        for start, count in batches(n, sampling.batch_size):
            part = slice(start, start + count)
            scores = None if wanted is None else wanted[part]
            chosen = self._flags(seed, start, count, scores) if given is None else given[part]
            denoise = self._denoise(chosen, scores, guidance, sampling.clamp)
            x = solve(denoise, BlockNoise(seed, start, count), self.layout.d, sampling, self.device)
            yield _finite(x, start, seed), chosen

    @torch.no_grad()
    def predict(
        self,
        observations: Array,
        actions: Array,
        seed: int = 0,
        *,
        flags: Array | None = None,
        sampling: SampleConfig = SAMPLING,
    ) -> Transitions:
        """A draw of rewards, next observations and flags for given observations and actions: a model of the world.

        One draw from the conditional distribution; the mean over seeds is its expectation. The model must have been
        fitted with a `predict_share`, in whose rows the network is told the known columns. (One that was not can have
        them put back at the noise of each level, or its estimates corrected by its Jacobian: the first loses half of a
        correlation of .9 between Gaussians, the second is right there and diverges on fitted networks.) flags: (n, c)
        where they are known; None: drawn, too, among the combinations that the data holds.

        Raises:
            ConfigError: a model without a `predict_share`; a layout with blocks. ShapeError: other widths.
        """
        layout = self.layout
        if not self.config.predict_share:
            raise ConfigError(
                "the model was fitted with predict_share 0 and predicts nothing; fit it with one, say 0.25"
            )
        partial = _partial(layout, observations, actions)
        layout = layout.widened(partial)  # new observations may lie outside of the bounds of the data
        values, known_flags = layout.encode(partial)
        combinations = torch.unique(self.flag_rows[:, layout.open_flags], dim=0)
        if flags is not None:
            known_flags = self._checked_flags(flags, len(values))
        parts = []
        for start, count in batches(len(values), sampling.batch_size):
            rows, chosen = values[start : start + count], known_flags[start : start + count]
            given = (rows.to(self.device), layout.known.to(self.device))
            denoise = self._denoise(chosen, None, 1.0, sampling.clamp, given, hidden=flags is None)
            x = solve(denoise, BlockNoise(seed, start, count), layout.d, sampling, self.device, given)
            if flags is None and layout.open_flags.any():
                chosen = chosen.clone()
                chosen[:, layout.open_flags] = combinations[self._guess(x, chosen, seed, start, combinations)]
            parts.append(layout.decode(_finite(x, start, seed), chosen))
        return replace(Transitions.cat(parts), observations=partial.observations, actions=partial.actions)

    def _guess(self, x: Tensor, flags: Tensor, seed: int, start: int, combinations: Tensor) -> Tensor:
        """(b,) which combination of open flags each row x has, drawn by the network's logits at the lowest level."""
        level = x.new_full((len(x),), SAMPLING.sigma_min)
        cond = self.condition(flags.to(self.device), None, given=True, hidden=True)
        seen = torch.where(self.layout.known.to(x.device), x, self.denoiser.scaling.c_in(level)[:, None] * x)
        logits = self.net.both(seen, self.denoiser.scaling.c_noise(level), cond)[1].cpu()[:, self.layout.open_flags]
        likely = logits @ combinations.T  # their normaliser is the same for every combination
        share = torch.special.ndtr(BlockNoise(seed, start, len(x), "flags").draw((len(combinations),)).double())
        return (likely - (-share.log()).log()).argmax(1)  # the largest with Gumbel noise is a draw

    @torch.no_grad()
    def log_density(
        self, transitions: Transitions, *, seed: int = 0, probes: int | None = None, steps: int = 64
    ) -> NDArray[np.float64]:
        """(n,) nats: log density of each row's modelled numbers in data units, and log share of its flags in the data.

        By the probability flow. probes: how many random ones estimate the trace; None: exact, at d times the cost.
        Whole numbers and one-hot columns have densities of the line, too: compare rows, not models. A row of flags that
        the data does not hold is -inf.
        """
        x, flags = self.layout.encode(transitions)
        found = []
        for start, count in batches(len(x), BLOCK):
            part = slice(start, start + count)
            signs = None
            if probes is not None:
                source = BlockNoise(seed, start, count, "probes")
                signs = torch.stack([source.draw((x.shape[1],)).sign() for _ in range(probes)]).to(self.device)
            denoise = self._denoise(flags[part], None, 1.0, clamp=False)
            found.append(
                log_density(
                    denoise,
                    x[part].to(self.device),
                    probes=signs,
                    steps=steps,
                    sigma_data=self.config.sigma_data,
                ).cpu()
            )
        density: NDArray[np.float64] = torch.cat(found).numpy()
        return density - float(self.layout.scales.log().sum()) + self._log_share(flags)

    @torch.no_grad()
    def denoising_density(
        self, transitions: Transitions, *, seed: int = 0, draws: int = 2, levels: int = 16
    ) -> NDArray[np.float64]:
        """(n,) the same from denoising errors at draws x levels noises a row: cheap and rough; for ranking rows."""
        x, flags = self.layout.encode(transitions)
        found = [
            self._errors(x[start : start + count], flags[start : start + count], seed, start, draws, levels)
            for start, count in batches(len(x), 8 * BLOCK)
        ]
        density: NDArray[np.float64] = torch.cat(found).numpy()
        return density - float(self.layout.scales.log().sum()) + self._log_share(flags)

    def _errors(self, x: Tensor, flags: Tensor, seed: int, start: int, draws: int, levels: int) -> Tensor:
        """(b,) log density of rows x given their flags, from denoising errors; rows start, start + 1, ... of a seed."""
        sigmas = exponential_sigmas(levels, 0.02, 20.0)[:-1]
        source = BlockNoise(seed, start, len(x), "levels")
        denoise, x = self._denoise(flags, None, 1.0, clamp=False), x.to(self.device)
        total = torch.zeros(len(x), dtype=torch.float64)
        for _ in range(draws):
            noises = torch.stack([source.draw((x.shape[1],)) for _ in range(levels)]).to(self.device)
            total += denoising_density(denoise, x, noises, sigmas).cpu() / draws
        return total

    # ---- conditions

    def _denoise(
        self,
        flags: Tensor,
        scores: Tensor | None,
        guidance: float,
        clamp: bool,
        given: tuple[Tensor, Tensor] | None = None,
        hidden: bool = False,
    ) -> Denoise:
        """The denoiser of rows with these flags (b, c) and standardised scores (b,).

        given: rows and the mask of their columns that the network is told without noise. hidden: it must do without the
        open flags.
        """
        flags = flags.to(self.device)
        cond = self.condition(flags, scores, given is not None, hidden)
        base: Denoise = self.denoiser
        if scores is not None and guidance != 1:
            base = Guided(self.denoiser, self.condition(flags, None), guidance, cat=_join)

        def denoise(x: Tensor, sigma: Tensor, _: Any) -> Tensor:
            if given is not None:  # what the network sees is c_in times this
                x = torch.where(given[1], given[0] / self.denoiser.scaling.c_in(sigma)[:, None], x)
            clean = base(x, sigma, cond)
            clean = self.layout.clamp(clean) if clamp else clean
            return clean if given is None else torch.where(given[1], given[0], clean)

        return denoise

    def condition(self, flags: Tensor, scores: Tensor | None, given: bool = False, hidden: bool = False) -> Tensor:
        """(b, cond) what the network is told of rows with flags (b, c) and standardised scores (b,).

        Flags, score and whether there is one, whether columns are given, and whether the open flags are hidden.
        """
        parts, one = [flags], flags.new_ones(len(flags), 1)
        if hidden:
            parts = [flags.masked_fill(self.layout.open_flags.to(flags.device), 0.0)]
        if self.score_rows is not None:
            parts += [0 * one if scores is None else scores[:, None].to(one), one * (scores is not None)]
        if self.config.predict_share:
            parts += [one * given, one * hidden]
        return torch.cat(parts, 1)

    def _checked_scores(self, score: float | Scores | None, guidance: float, n: int) -> Tensor | None:
        """(n,) standardised scores."""
        if score is None:
            if guidance != 1:
                raise ConfigError(
                    f"guidance is {guidance} without a score; give the score to draw for, or leave guidance 1"
                )
            return None
        if self.score_unit is None:
            raise ConfigError("a score is given and the model was fitted without; fit it with scores, or leave it out")
        wanted = np.asarray(score, dtype=np.float32)
        if wanted.shape not in ((), (n,)):
            raise ShapeError(f"score has shape {wanted.shape}; expected one number, or ({n},), one a row")
        if not np.isfinite(wanted).all():
            raise NotFinite("score holds NaN or infinity; expected a score as the data's")
        mean, std = self.score_unit
        return (torch.from_numpy(np.broadcast_to(wanted, (n,)).copy()) - mean) / std

    def _checked_flags(self, flags: Array, n: int) -> Tensor:
        found = np.asarray(flags, dtype=np.float32)
        if found.ndim == 1 and self.layout.c == 1:
            found = found[:, None]
        if found.shape != (n, self.layout.c):
            names = ", ".join(f"{name}.{i}" for name, i in self.layout.conditions) or "none"
            raise ShapeError(f"flags have shape {found.shape}; expected ({n}, {self.layout.c}): {names}")
        if not np.isin(found, (0, 1)).all():
            raise ConfigError("flags hold other numbers than 0 and 1 (1 is the larger of a column's two values)")
        return torch.from_numpy(found)

    def _flags(self, seed: int, start: int, count: int, scores: Tensor | None) -> Tensor:
        """Rows of flags of the data, each block an even share of them: rates are those of the data."""
        if not self.layout.c:
            return torch.zeros(count, 0)
        found = []
        for place in range(0, count, BLOCK):
            generator = torch.Generator().manual_seed(block_seed(seed, (start + place) // BLOCK, "flags"))
            # rows in order, taken at even distances from a random start: systematic sampling
            share = (torch.arange(BLOCK) + torch.rand(1, generator=generator)) / BLOCK
            share = share[torch.randperm(BLOCK, generator=generator)][: count - place]
            if scores is None or self.score_rows is None:
                found.append(self.flag_rows[_place(share, len(self.flag_rows))])
            else:
                found.append(self._near(share, scores[place : place + BLOCK]))
        return torch.cat(found)

    def _near(self, share: Tensor, scores: Tensor) -> Tensor:
        """(b, c) flags of rows whose scores are among the nearest to the wanted ones, `share` of the way along them."""
        assert self.score_rows is not None and self.score_unit is not None
        mean, std = self.score_unit
        ordered, order = ((self.score_rows - mean) / std).sort(stable=True)
        size = min(len(order), max(32, round(NEAR * len(order))))
        first = (torch.searchsorted(ordered, scores.contiguous()) - size // 2).clamp(0, len(order) - size)
        return self.flag_rows[order[first + _place(share, size)]]

    def _log_share(self, flags: Tensor) -> NDArray[np.float64]:
        """(n,) log of the share of the data's rows that have these flags."""
        if not self.layout.c:
            return np.zeros(len(flags))
        known, counts = np.unique(self.flag_rows.numpy(), axis=0, return_counts=True)
        shares = {row.tobytes(): count / counts.sum() for row, count in zip(known, counts, strict=True)}
        with np.errstate(divide="ignore"):
            return np.log([shares.get(row.tobytes(), 0.0) for row in flags.numpy()])

    # ---- storing

    def save(self, folder: str | os.PathLike[str], net: Mapping[str, Tensor] | None = None) -> None:
        """Writes weights (safetensors) and configuration (JSON) into `folder`. net: other weights than its own.

        Raises:
            Unwritable: a full disk or the like.
        """
        from safetensors.torch import save

        place = Path(folder)
        weights = self.net.state_dict() if net is None else net
        tensors = {f"net.{name}": value.contiguous().cpu() for name, value in weights.items()}
        tensors["flag_rows"] = self.flag_rows.contiguous()
        if self.layout.line is not None:
            tensors["line"] = torch.from_numpy(np.ascontiguousarray(self.layout.line))
        if self.score_rows is not None:
            tensors["score_rows"] = self.score_rows.contiguous()
        stored = {
            "version": VERSION,
            "network": self.net.settings,
            "layout": self.layout.to_json(),
            "score_unit": self.score_unit,
            "fit": asdict(self.config),
        }
        with writing("the model", place, "make room, or choose another folder"):
            (place / CONFIG).unlink(missing_ok=True)  # a model is there once its configuration is
            write_whole(place / WEIGHTS, save(tensors, metadata={"format": "pt"}))
            write_whole(place / CONFIG, (json.dumps(stored, indent=1) + "\n").encode())

    @staticmethod
    def load(folder: str | os.PathLike[str], device: str = "cpu") -> Upsampler:
        """Reads what `save` wrote.

        Raises:
            ConfigError: no model there, a damaged one, or one of another version; no such device.
        """
        place = Path(folder)
        try:
            stored = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"no model in {str(place)!r} ({error}); expected {CONFIG} and {WEIGHTS}") from error
        version = stored.get("version") if isinstance(stored, dict) else None
        if version != VERSION:
            raise ConfigError(f"{place / CONFIG} is of version {version}; this program reads {VERSION}")
        tensors = read_weights(place / WEIGHTS, "the model")
        try:
            net = ResidualMLP(**stored["network"])
            layout = Layout.from_json(stored["layout"], tensors.get("line"))
            config = FitConfig(**(stored["fit"] | {"device": device}))
            flag_rows, unit = tensors["flag_rows"], stored.get("score_unit")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{place / CONFIG} is damaged ({error!r}); copy or save the model again") from error
        weights = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
        check_weights(net, weights, place / WEIGHTS)
        net.load_state_dict(weights)
        net = net.to(find_device(device))
        return Upsampler(
            net, layout, config, flag_rows, tensors.get("score_rows"), None if unit is None else tuple(unit)
        )


def _join(conditions: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(conditions))


def _partial(layout: Layout, observations: Array, actions: Array) -> Transitions:
    """Transitions with these observations and actions and numbers of the right kind everywhere else."""
    names = [g.name for g in layout.groups]
    if len(names) > len(KEYS):
        raise ConfigError(
            f"the model holds {', '.join(names[len(KEYS) :])} besides transitions; predict serves those alone"
        )
    filled: dict[str, Array] = {}
    for g in layout.groups:
        whole = [np.round(m) if kind == "integer" else m for m, kind in zip(g.mean, g.kinds, strict=True)]
        value = np.tile(np.array(whole), (len(observations), 1))
        for columns in g.hot:
            value[:, list(columns)] = np.eye(len(columns))[0]
        filled[g.name] = value[:, 0] if g.flat else value
    filled |= {"observations": np.asarray(observations), "actions": np.asarray(actions)}
    if filled["observations"].shape != filled["next_observations"].shape or len(filled["actions"]) != len(observations):
        raise ShapeError(
            f"observations have shape {np.shape(observations)} and actions {np.shape(actions)}; expected (n, "
            f"{filled['next_observations'].shape[1]}) and as many actions"
        )
    return Transitions(
        observations=filled["observations"],
        actions=filled["actions"],
        rewards=filled["rewards"],
        next_observations=filled["next_observations"],
        terminals=filled["terminals"],
    )


def _place(share: Tensor, n: int) -> Tensor:
    """Whole numbers below n that lie `share` (0 to 1) of the way along."""
    return (share * n).long().clamp(max=n - 1)


def _finite(x: Tensor, start: int, seed: int) -> Tensor:
    wrong = ~x.isfinite().all(1)
    if bool(wrong.any()):
        row = start + int(wrong.nonzero()[0])
        raise NotFinite(f"row {row} of seed {seed} is not finite; the model has diverged: fit it again")
    return x


def unit_of(scores: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of scores."""
    wide = scores.double()
    return float(wide.mean()), float(wide.std(correction=0))
