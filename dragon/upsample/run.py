"""One whole upsampling run, from a file of transitions to new ones and a report: what `dragon upsample` does.

    rows read and held out -> folder checked -> fit, logged and saved -> model/ -> OUT -> quality.json, report.html

Knows the order of things; each thing itself is done by its own module.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dragon.errors import ConfigError, DragonError, MissingExtra, NotFinite
from dragon.files import readable, room, writing
from dragon.interrupts import Interrupts, one_interrupt
from dragon.report.transitions import write_quality
from dragon.synther.columns import Layout, TransitionSpec
from dragon.synther.dynamics import simulate
from dragon.synther.fitting import finished, prepare
from dragon.synther.quality import ROWS, Quality, quality
from dragon.synther.sampling import SampleConfig, sampling_of
from dragon.synther.streaming import NpzWriter
from dragon.synther.training import Fit, FitConfig, find_device, preset
from dragon.synther.transitions import Array, Transitions
from dragon.synther.upsampler import WEIGHTS, Upsampler
from dragon.upsample.data import Data, read_data
from dragon.upsample.folder import VERSION, check_folder, load_checkpoint, open_folder, save_checkpoint
from dragon.upsample.settings import UpsampleSettings

LOGGED = 100  # the loss is read from the device every so many steps
Say = Callable[[str], None]
Progress = Callable[[str, int, int, float, str], None]
"""(stage, done, of how many, a second, what else there is to say)."""


def upsample(
    source: str, settings: UpsampleSettings, *, say: Say = print, progress: Progress | None = None
) -> Quality | None:
    """Fits a model to the transitions in `source`, writes `settings.samples` new ones to `settings.out`, and measures.

    Raises:
        ConfigError, ShapeError, NotFinite: anything wrong with file, settings or folder; nothing was written then.
        NotFinite: the fit diverged; the last checkpoint stays. Unwritable: a full disk or the like.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the last whole step was saved.
    """
    _check_out(source, settings)
    find_device(settings.device)
    with one_interrupt() as interrupts:
        data = read_data(
            source,
            environment=settings.env,
            held_out=settings.held_out,
            seed=settings.seed,
            score=settings.score,
        )
        _check_room(settings, data.train)
        environment = _simulated(settings.env, data.train, say) if settings.report else None
        begun = Upsampler.load(_model_folder(settings.start), settings.device) if settings.start else None
        config = _fit_config(settings, begun)
        spec = TransitionSpec(discrete_actions=data.discrete, flags=settings.flags, coding=settings.coding)
        sampling = sampling_of(settings.sampler, steps=settings.steps)
        described = _described(settings, data, spec, config)
        start = check_folder(settings.folder, described, settings.resume_from_checkpoint, say)
        if start.finished:
            model = Upsampler.load(start.folder / "model", settings.device)
            open_folder(start, described)
        else:
            training, layout, scores = prepare(data.train, spec, config, scores=data.scores, start=begun)
            if start.checkpoint is not None:
                load_checkpoint(start.checkpoint, training)
            open_folder(start, described)
            say(_fitted_to(data, layout, config))
            _learn(training, settings, described, interrupts, say, progress)
            model = finished(training, layout, scores)
            with interrupts.held():
                model.save(start.folder / "model")
        new = _sample(model, data, settings, sampling, start.folder, progress)
        say(f"wrote {settings.samples:,} transitions to {settings.out}")
        return _report(new, data, model.layout, settings, environment, say) if settings.report else None


# ---- before anything is written


def _check_out(source: str, settings: UpsampleSettings) -> None:
    if not settings.out.endswith(".npz"):
        raise ConfigError(f"out is {settings.out!r}; expected a name that ends in .npz")
    if settings.samples < 1:
        raise ConfigError("samples is 0; give the number of transitions to draw, for example --samples 500000")
    out = Path(settings.out)
    if out.is_dir():
        raise ConfigError(f"out {settings.out!r} is a folder; expected a file to write")
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ConfigError(f"out {settings.out!r} is the file that is read; choose another name")
    if out.exists() and not settings.replace:
        raise ConfigError(f"{settings.out!r} exists already; give another --out, or --replace")


def _check_room(settings: UpsampleSettings, like: Transitions) -> None:
    """The new rows are as large as those of the data."""
    each = sum(array.nbytes for array in like.arrays().values()) / len(like)
    needed, free = int(each * settings.samples), room(Path(settings.out))
    if needed > free:
        raise ConfigError(
            f"{settings.samples:,} transitions need {readable(needed)} and {readable(free)} are free where "
            f"{settings.out!r} is; draw fewer --samples, or give an --out with more room"
        )


def _simulated(environment: str, transitions: Transitions, say: Say) -> str | None:
    """The environment, if its simulator can be put into rows of these transitions; else says why not."""
    if not environment:
        return None
    try:
        if transitions.actions.ndim == 1:
            raise ConfigError("its actions are discrete")
        simulate(environment, transitions.observations[:1], transitions.actions[:1])
    except MissingExtra:
        raise
    except DragonError as error:
        say(f"note: no errors of the dynamics in the report: {error}")
        return None
    return environment


def _model_folder(start: str) -> Path:
    """The model of a run's folder, or that folder itself."""
    return Path(start, "model") if Path(start, "model").is_dir() else Path(start)


def _fit_config(settings: UpsampleSettings, begun: Upsampler | None) -> FitConfig:
    changes: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("max_steps", "learning_rate", "batch_size")
        if getattr(settings, name) != 0
    }
    config = preset(settings.preset, seed=settings.seed, device=settings.device, **changes)
    if begun is not None:  # its network is the one that goes on
        config = replace(config, **{name: getattr(begun.config, name) for name in ("width", "inner", "depth")})
    return config


def _described(settings: UpsampleSettings, data: Data, spec: TransitionSpec, config: FitConfig) -> dict[str, object]:
    """All that the fitted model depends on: a run that goes on has the same."""
    found = {
        "version": VERSION,
        "data": {"sha256": data.digest, "rows": len(data.train), "held_out": len(data.held_out)},
        "spec": asdict(spec),
        "fit": asdict(config),
        "score": settings.score,
        "start": _file_digest(_model_folder(settings.start) / WEIGHTS) if settings.start else "",
    }
    plain: dict[str, object] = json.loads(json.dumps(found))
    return plain


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fitted_to(data: Data, layout: Layout, config: FitConfig) -> str:
    flags = f" and {layout.c} flags as conditions" if layout.c else ""
    return (
        f"fitting {layout.d} numbers{flags} of {len(data.train):,} transitions, {len(data.held_out):,} held out; width "
        f"{config.width}, {config.max_steps:,} steps, on {config.device}"
    )


# ---- fitting


def _learn(
    training: Fit,
    settings: UpsampleSettings,
    described: Mapping[str, object],
    interrupts: Interrupts,
    say: Say,
    progress: Progress | None,
) -> None:
    """Trains to the last step; saves on the way, and when it is interrupted."""
    last, folder = training.config.max_steps, settings.folder
    every = settings.save_steps or max(1, last // 10)
    steps, first, began = training.steps(), training.step, time.perf_counter()
    saved = training.step

    def save() -> None:
        nonlocal saved
        if training.step != saved:
            _check_finite(training)
            save_checkpoint(folder, training, described, settings.save_total_limit)
            saved = training.step

    try:
        with _opened(folder / "log.jsonl") as log:
            while training.step < last:
                with interrupts.held():  # half a step could not be gone on from
                    loss = next(steps)
                    if training.step % LOGGED == 0 or training.step == last:
                        rate = (training.step - first) / (time.perf_counter() - began)
                        line = {"step": training.step, "loss": loss, "steps_per_second": rate}
                        with writing("the log", folder, "make room, then go on with --resume_from_checkpoint latest"):
                            log.write(json.dumps(line) + "\n")
                            log.flush()
                        if progress:
                            progress("fitting", training.step, last, rate, f"loss {loss:.4f}")
                    if training.step % every == 0 or training.step == last:
                        save()
    except KeyboardInterrupt:
        save()
        raise KeyboardInterrupt(
            f"interrupted; step {training.step} of {last} is saved in {folder / 'checkpoints'}; go on with the same "
            "command and --resume_from_checkpoint latest"
        ) from None
    finally:
        steps.close()  # type: ignore[attr-defined]


def _opened(path: Path) -> Any:
    with writing("the log", path, "choose another --output_dir, or make room"):
        return path.open("a", encoding="utf-8")


def _check_finite(training: Fit) -> None:
    """A checkpoint that has diverged would replace a good one: the loss is only read now and then."""
    for name, value in training.net.named_parameters():
        if not bool(value.isfinite().all()):
            raise NotFinite(
                f"{name} is NaN or infinite at step {training.step}; lower learning_rate "
                f"{training.config.learning_rate}"
            )


# ---- drawing and measuring


def _sample(
    model: Upsampler,
    data: Data,
    settings: UpsampleSettings,
    sampling: SampleConfig,
    folder: Path,
    progress: Progress | None,
) -> Transitions:
    """Writes the new rows batch by batch; those that the report looks at are given back."""
    score = None if data.scores is None else float(np.quantile(data.scores, settings.score_quantile))
    seed = settings.seed if settings.sample_seed is None else settings.sample_seed
    kept: list[Transitions] = []
    began = time.perf_counter()
    try:
        with NpzWriter(settings.out, settings.samples) as writer:
            for part in _batches(model, settings.samples, seed, score, settings.guidance, sampling):
                writer.add(part.arrays())
                if sum(map(len, kept)) < ROWS:
                    kept.append(part)
                if progress:
                    rate = writer.done / (time.perf_counter() - began)
                    progress("sampling", writer.done, settings.samples, rate, "")
            writer.finish(_written_box(model.layout, data.box))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; no rows were kept, the model is in {folder / 'model'}; sample with the same command and "
            "--resume_from_checkpoint latest"
        ) from None
    return Transitions.cat(kept)


def _batches(
    model: Upsampler, n: int, seed: int, score: float | None, guidance: float, sampling: SampleConfig
) -> Iterator[Transitions]:
    drawn: Iterator[tuple[Tensor, Tensor]] = model.draw(n, seed, score=score, guidance=guidance, sampling=sampling)
    for rows, flags in drawn:
        yield model.layout.decode(rows, flags)


def _written_box(layout: Layout, box: Mapping[str, Array]) -> dict[str, Array]:
    """The box of the new actions under the keys, and of the types, that the file has."""
    actions = next(g for g in layout.groups if g.name == "actions")
    ends = {"action_low": actions.low, "action_high": actions.high}
    return {name: np.asarray(ends[name], dtype=value.dtype) for name, value in box.items()}


def _report(
    new: Transitions,
    data: Data,
    layout: Layout,
    settings: UpsampleSettings,
    environment: str | None,
    say: Say,
) -> Quality:
    say("measuring the new rows")
    try:
        found = quality(new, data.train, data.held_out, layout, environment=environment, seed=settings.seed)
        notes = [*found.notes]
        if settings.score:
            notes.append(
                f"the rows were drawn for {settings.score} at quantile {settings.score_quantile} of the data with "
                f"guidance {settings.guidance}: their distribution is meant to differ from the data's"
            )
        if settings.start:
            notes.append("the model that the fit started from may have seen the rows held out here")
        found = replace(found, notes=tuple(notes))
        with writing("the report", settings.folder, "the rows are written; make room, then resume with --replace"):
            page = write_quality(found, settings.folder, title=f"Quality of {Path(settings.out).name}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; the rows are in {settings.out}, and the report is not finished"
        ) from None
    say(f"wrote {page} and {settings.folder / 'quality.json'}")
    return found
