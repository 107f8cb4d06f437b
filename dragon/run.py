"""One whole run, from a checked configuration to an evaluated model: what `dragon train` does, callable from Python.

    folder checked -> parts built -> steps, logged and saved -> final/ -> evaluation.json, samples, pictures, page

Knows the order of things; each thing itself is done by its own module.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dragon import checkpoint
from dragon.build import Run, build_policy, build_run
from dragon.collect import Progress
from dragon.config import TrainConfig, from_dict, read_yaml
from dragon.errors import ConfigError
from dragon.evaluate import Evaluation
from dragon.files import writing
from dragon.interrupts import one_interrupt
from dragon.launch import sharding_asked
from dragon.policy.storing import weights_writer
from dragon.processes import Alone, Processes, launched, local_device
from dragon.protocols import Policy, ShardablePolicy
from dragon.report import write_evaluation, write_report
from dragon.runfolder import Start, check_folder, describe, open_folder, what_cannot_be_equal
from dragon.steps import Interrupted, learn

__all__ = ["Interrupted", "load_tuned", "measure", "notices", "read_run", "reevaluate", "train", "tuned_folder"]

Say = Callable[[str], None]


def train(
    config: TrainConfig, *, say: Say = print, progress: Progress | None = None, processes: Processes | None = None
) -> Evaluation:
    """Trains as `config` says and evaluates the tuned model against its start, all of it kept in `output_dir`.

    processes: those that share the run; None: those that accelerate or torchrun started. Each of them calls this;
    the main one writes and speaks.

    Raises:
        ConfigError: anything wrong with the configuration, the folder or the checkpoint; nothing was written then.
        NotFinite: a part of the run gave a NaN or infinity; the last whole step was saved.
        Unwritable: a full disk or the like; the last complete checkpoint stays.
        Interrupted: Ctrl-C or SIGTERM; the last whole step was saved.
        OtherProcess: one of the others has stopped; the last whole step was saved.
    """
    processes = launched(config.device) if processes is None else processes
    if not processes.main:
        say, progress = _silent, None
    with one_interrupt() as interrupts:
        with processes.together():
            start = check_folder(config, say)
            run = build_run(replace(config, device=local_device(config.device)))
        _check_same_start(start, processes)
        if sharding_asked():
            _shard(run.policy)
        with processes.together():
            trainer = run.trainer(processes)
            if start.checkpoint is not None:
                trainer.load_state_dict(start.checkpoint.state, start.anew)
            made_with = describe(config, processes.count, policy=run.policy)
            for line in notices(run, start, made_with):
                say(line)
            if processes.main:
                open_folder(start, config, made_with)
        if trainer.step < config.max_steps:
            learn(
                run,
                trainer,
                start,
                config,
                made_with,
                processes=processes,
                interrupts=interrupts,
                say=say,
                progress=progress,
            )
        weights = trainer.ema_weights()
        write = weights_writer(run.policy, weights)
        with processes.together():
            if processes.main:  # also those of a finished run: it may have been extended and stopped since
                save_final(write, start.folder / "final", needed=sum(value.nbytes for value in weights.values()))
        try:
            return measure(run, start.folder, weights, say, progress, processes)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; the weights are in {start.folder / 'final'}; go on with: dragon evaluate {start.folder}"
            ) from None


def measure(
    run: Run,
    folder: Path,
    weights: Mapping[str, Tensor] | None,
    say: Say = print,
    progress: Progress | None = None,
    processes: Processes = Alone(),
) -> Evaluation:
    """Evaluates `weights` (None: the policy's own) against the start; writes numbers, clips, pictures and page."""
    wanted = run.config.evaluation
    say(f"evaluating {len(run.eval_prompts)} held-out prompts, {wanted.samples_per_prompt} samples each, on both sides")
    result = run.evaluate(
        run.eval_prompts,
        weights,
        samples_per_prompt=wanted.samples_per_prompt,
        set_size=wanted.set_size,
        keep=wanted.keep_samples,
        progress=progress,
        processes=processes,
    )
    with processes.together():
        if processes.main:
            with writing("the evaluation", folder, f"the weights are whole; make room, then: dragon evaluate {folder}"):
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
        open_folder(start, config, describe(config, policy=run.policy))
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


def save_final(write: Callable[[Path], None], folder: Path, needed: int) -> None:
    """Has the tuned weights written beside `folder` and renames, so that it is complete as soon as it is there.

    write: see `weights_writer`. needed: bytes, for the message.

    Raises:
        Unwritable: a full disk or the like; what was there before stays.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    hint = "the last checkpoint is whole; make room, then go on with --resume_from_checkpoint latest"
    with writing("the tuned weights", folder, hint, needed):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if folder.exists():
            old = folder.with_name(f".{folder.name}.replaced")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)


def notices(run: Run, start: Start | None = None, made_with: Mapping[str, object] | None = None) -> Iterator[str]:
    """What runs but should be known: held-out prompts that are trained on, or fewer than asked for; another machine."""
    asked = run.config.evaluation.prompts
    if len(run.eval_prompts) < asked:
        there = len(run.eval_prompts)
        yield f"note: evaluation.prompts is {asked}, but {run.config.eval_prompts} holds {there}: all of them are used"
    shared = set(run.prompts.prompts) & set(run.eval_prompts.prompts)
    if shared:
        yield f"warning: {len(shared)} held-out prompts are training prompts too, such as {min(shared)!r}"
    if start is not None and start.checkpoint is not None and made_with is not None:
        yield from what_cannot_be_equal(start.checkpoint.versions, made_with)


def _shard(policy: Policy) -> None:
    if not isinstance(policy, ShardablePolicy):
        raise ConfigError(
            f"policy {policy.name!r} lacks one of shard(), stored() and write() (dragon.protocols.ShardablePolicy), so "
            "its weights cannot be sharded; launch without FSDP (configs/accelerate/gpu8_ddp.yaml)"
        )
    policy.shard()


def _check_same_start(start: Start, processes: Processes) -> None:
    """Machines that do not share the folder would go on from different steps."""
    steps = processes.gather_values(start.checkpoint.step if start.checkpoint else 0)
    if len(set(steps)) > 1:
        raise ConfigError(
            f"the processes find checkpoints of steps {steps} in {str(start.folder)!r}; expected one: output_dir must "
            "be a folder that all machines share"
        )


def _silent(text: str) -> None:
    """The main process says it."""
