"""One whole run, from a checked configuration to an evaluated model: what `dragon train` does, callable from Python.

    folder checked -> parts built -> steps, logged and saved -> final/ -> evaluation.json, samples, pictures, page

Knows the order of things; each thing itself is done by its own module.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dragon import checkpoint
from dragon.build import Run, build_policy, build_run
from dragon.collect import Collected, Progress
from dragon.config import TrainConfig, from_dict, read_yaml, to_dict
from dragon.errors import ConfigError, DragonError
from dragon.evaluate import Evaluation, evaluate
from dragon.intervals import SMALLEST_SPLIT
from dragon.protocols import Policy
from dragon.report import write_evaluation, write_report
from dragon.runfolder import Start, check_folder, open_folder
from dragon.track import JsonLines, ProgressLine, TensorBoard, Tracker, tracking
from dragon.trainer import Trainer

Say = Callable[[str], None]
PROBE_PROMPTS = 32
"""Held-out prompts of the short evaluations that `eval_steps` asks for, one sample each."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after the last whole step was saved; its text says where."""


def train(config: TrainConfig, *, say: Say = print, progress: Progress | None = None) -> Evaluation:
    """Trains as `config` says and evaluates the tuned model against its start, all of it kept in `output_dir`.

    Raises:
        ConfigError: anything wrong with the configuration, the folder or the checkpoint; nothing was written then.
        NotFinite: a part of the run gave a NaN or infinity; the last whole step was saved.
        Interrupted: Ctrl-C; the last whole step was saved.
    """
    start = check_folder(config, say)
    run = build_run(config)
    trainer = run.trainer()
    if start.checkpoint is not None:
        trainer.load_state_dict(start.checkpoint.state)
    for line in notices(run):
        say(line)
    open_folder(start, config)
    if trainer.step < config.max_steps:
        _learn(run, trainer, start, say, progress)
    weights = trainer.ema_weights()
    if trainer.step > (start.checkpoint.step if start.checkpoint else -1) or not (start.folder / "final").is_dir():
        save_final(run.policy, weights, start.folder / "final")
    return measure(run, start.folder, weights, say, progress)


def measure(
    run: Run,
    folder: Path,
    weights: Mapping[str, Tensor] | None,
    say: Say = print,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluates `weights` (None: the policy's own) against the start; writes numbers, clips, pictures and page."""
    wanted = run.config.evaluation
    say(f"evaluating {len(run.eval_prompts)} held-out prompts, {wanted.samples_per_prompt} samples each, on both sides")
    result = evaluate(
        run.policy,
        run.evaluated(),
        {weighted.reward.name for weighted in run.rewards},
        run.eval_prompts.prompts,
        samples_per_prompt=wanted.samples_per_prompt,
        steps=wanted.steps,
        guidance=wanted.guidance,
        seed=wanted.seed,
        tuned_weights=weights,
        diversity=run.diversity,
        columns=run.eval_prompts.columns,
        batch_size=run.config.rollout.batch_size,
        keep=wanted.keep_samples,
        set_size=wanted.set_size,
        progress=progress,
    )
    write_evaluation(result, folder)
    for path in write_report(folder):
        say(f"wrote {path}")
    return result


def reevaluate(config: TrainConfig, model: Path, *, say: Say = print, progress: Progress | None = None) -> Evaluation:
    """Evaluates the tuned weights in the run folder `model` again; results go to `config.output_dir`."""
    run = build_run(config)
    run.policy.load(str(tuned_folder(model)))
    folder = Path(config.output_dir)
    if folder.resolve() != model.resolve():
        start = check_folder(replace(config, resume_from_checkpoint=""), say)
        open_folder(start, config)
    return measure(run, folder, None, say, progress)


def load_tuned(folder: Path, device: str = "cpu") -> tuple[TrainConfig, Policy]:
    """The configuration of a run folder, and its policy with the tuned weights, on `device`.

    Raises:
        ConfigError: it is no run folder, or holds no tuned weights yet.
    """
    config = replace(read_run(folder), device=device)
    weights = tuned_folder(folder)  # before the model is loaded, which takes long
    policy = build_policy(config)
    policy.load(str(weights))
    return config, policy


def read_run(folder: Path) -> TrainConfig:
    """The filled configuration that a run folder was made with."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{str(folder)!r} is no run folder: it has no config.yaml; give one that `dragon train` made")
    return from_dict(read_yaml(folder / "config.yaml"), source=str(folder / "config.yaml"))


def tuned_folder(folder: Path) -> Path:
    """Where a run keeps its tuned weights: final/, or the newest checkpoint's if it is not finished."""
    newest = checkpoint.latest(folder / "checkpoints")
    for place in (folder / "final", *([newest / "weights"] if newest else [])):
        if place.is_dir():
            return place
    raise ConfigError(f"{str(folder)!r} holds neither final/ nor a checkpoint: nothing was tuned yet; train first")


def save_final(policy: Policy, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the tuned weights beside `folder` and renames, so that it is complete as soon as it is there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with policy.weights(weights):
        policy.save(str(partial))
    if folder.exists():
        old = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def notices(run: Run) -> Iterator[str]:
    """What runs but should be known: held-out prompts that are trained on, or fewer than asked for."""
    asked = run.config.evaluation.prompts
    if len(run.eval_prompts) < asked:
        there = len(run.eval_prompts)
        yield f"note: evaluation.prompts is {asked}, but {run.config.eval_prompts} holds {there}: all of them are used"
    shared = set(run.prompts.prompts) & set(run.eval_prompts.prompts)
    if shared:
        yield f"warning: {len(shared)} held-out prompts are training prompts too, such as {min(shared)!r}"


def _learn(run: Run, trainer: Trainer, start: Start, say: Say, progress: Progress | None) -> None:
    """The steps that are left, each logged; checkpoints and probes when their time has come."""
    config = run.config
    saved = trainer.step if start.checkpoint else -1

    def save() -> Path:
        nonlocal saved
        saved = trainer.step
        return checkpoint.save(
            start.folder / "checkpoints",
            trainer.step,
            trainer.state_dict(),
            to_dict(config),
            keep=config.save_total_limit,
            extra=lambda place: save_final(run.policy, trainer.ema_weights(), place / "weights"),
        )

    probe = _Probe(run, start.folder / "probes.jsonl", say, progress)
    with tracking(_trackers(run, trainer, start.folder)) as tracker:
        try:
            if config.eval_steps and start.checkpoint is None:
                probe(0, trainer.ema_weights())
            for report in trainer.run():
                tracker.log(report)
                if config.save_steps and trainer.step % config.save_steps == 0:
                    save()
                if config.eval_steps and trainer.step % config.eval_steps == 0:
                    probe(trainer.step, trainer.ema_weights())
            if saved != trainer.step:
                save()
        except KeyboardInterrupt:
            if trainer.step == 0:
                raise Interrupted("interrupted before the first step was done; nothing to save") from None
            place = save() if saved != trainer.step else start.folder / "checkpoints" / f"step-{trainer.step:06d}"
            raise Interrupted(f"interrupted; saved {place}; go on with --resume_from_checkpoint latest") from None
        except DragonError:
            if trainer.step and saved != trainer.step:
                say(f"the last whole step was saved: {save()}")
            raise


class _Probe:
    """Short held-out evaluations during training; the base is sampled once."""

    def __init__(self, run: Run, path: Path, say: Say, progress: Progress | None) -> None:
        self._run, self._path, self._say, self._progress = run, path, say, progress
        self._base: Collected | None = None

    def __call__(self, step: int, weights: Mapping[str, Tensor]) -> None:
        prompts, wanted = self._run.eval_prompts.first(PROBE_PROMPTS), self._run.config.evaluation
        result = evaluate(
            self._run.policy,
            self._run.evaluated(),
            {weighted.reward.name for weighted in self._run.rewards},
            prompts.prompts,
            samples_per_prompt=1,
            steps=wanted.steps,
            guidance=wanted.guidance,
            seed=wanted.seed,
            tuned_weights=weights,
            diversity=self._run.diversity,
            columns=prompts.columns,
            batch_size=self._run.config.rollout.batch_size,
            keep=0,
            set_size=min(wanted.set_size, len(prompts) // SMALLEST_SPLIT),
            same_seed=False,
            progress=self._progress,
            base=self._base,
        )
        self._base = result.sides["base"]
        line = {
            "step": step,
            "prompts": len(prompts),
            "rewards": {name: found.to_json() for name, found in result.rewards.items()},
            "diversity": result.diversity,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        figures = ", ".join(
            f"{name} {f.base:.4g} -> {f.tuned:.4g}, win {f.win_rate:.2f} [{f.low:.2f}, {f.high:.2f}]"
            for name, f in result.rewards.items()
        )
        self._say(f"held out, step {step}: {figures}")


def _trackers(run: Run, trainer: Trainer, folder: Path) -> list[Tracker]:
    config = run.config
    trackers: list[Tracker] = [JsonLines(folder / "log.jsonl", after=trainer.step)]
    if config.report_to == "tensorboard":
        trackers.append(TensorBoard(folder / "tensorboard", after=trainer.step))
    return [*trackers, ProgressLine(config.max_steps, done=trainer.step)]
