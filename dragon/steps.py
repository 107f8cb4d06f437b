"""The steps of a run, each logged; checkpoints and probes when their time has come, and one when the run must stop.

Knows a built run, its trainer and its folder. What ends it early (Ctrl-C, a callback, an error, another process that
is gone) finds the last whole step saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from dragon import checkpoint
from dragon.build import Run
from dragon.callbacks import callbacks_state, load_callbacks_state, stopping_reason
from dragon.collect import Progress
from dragon.config import TrainConfig, to_dict, trackers
from dragon.errors import DragonError
from dragon.files import writing
from dragon.interrupts import Interrupts
from dragon.policy.storing import weights_writer
from dragon.probe import Probe
from dragon.processes import Processes
from dragon.runfolder import Start
from dragon.sharding import is_sharded
from dragon.track import JsonLines, ProgressLine, TensorBoard, Tracker, WandB, tracking
from dragon.trainer import StepReport, Trainer

Say = Callable[[str], None]
_GO_ON = "make room, then go on with --resume_from_checkpoint latest"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM after the last whole step was saved; its text says where."""


def learn(
    run: Run,
    trainer: Trainer,
    start: Start,
    config: TrainConfig,
    made_with: Mapping[str, object],
    *,
    processes: Processes,
    interrupts: Interrupts,
    say: Say,
    progress: Progress | None,
) -> None:
    """The steps that are left. Every process of the run calls it; the main one logs, saves and asks the callbacks.

    config: as it was given, without what is true of this process alone. made_with: see `runfolder.describe`.
    """
    save = _Saver(run, trainer, start, config, made_with, processes, interrupts)
    probe = Probe(run, start.folder / "probes.jsonl", processes, say, progress, after=trainer.step)
    if start.checkpoint is not None:
        load_callbacks_state(run.callbacks, start.checkpoint.state.get("callbacks", ()))  # type: ignore[arg-type]
    # sharded weights need all processes to be saved, so that none of them may leave in the middle of a step
    with (
        interrupts.held() if save.sharded else nullcontext(),
        _logging(_trackers(config, trainer, start.folder) if processes.main else [], start.folder) as tracker,
    ):
        logged = trainer.step
        try:
            if _due(config.eval_steps, trainer.step) and probe.step < trainer.step:
                probe(trainer.step, trainer.ema_weights())
            for report in trainer.run():
                with interrupts.held(), processes.together():
                    reason = _looked_at(report, run, tracker, start.folder) if processes.main else ""
                    logged = report.step
                save.rewards.append(report.reward)
                if _due(config.eval_steps, trainer.step):
                    probe(trainer.step, trainer.ema_weights())
                save.score = probe.score if config.eval_steps else _mean(save.rewards)
                if _due(config.save_steps, trainer.step):
                    save()
                reason = processes.gather_values(reason)[0]
                if reason:
                    say(f"stopped after step {trainer.step}: {reason}")
                    break
                # an interrupt that somebody's code has swallowed still counts
                if any(processes.gather_values(interrupts.arrived)) if save.sharded else interrupts.arrived:
                    raise KeyboardInterrupt
            if save.step != trainer.step:
                save()
        except Exception as error:
            # a signal now (a launcher sends one when a process has failed) waits: the state must be a whole step's
            with interrupts.held():
                trainer.go_back()
                if processes.main and not save.sharded and not save.failed and trainer.step not in (0, save.step):
                    try:
                        say(f"the last whole step was saved: {save(alone=True)}")
                    except DragonError as second:
                        say(f"the last whole step could not be saved: {second}")
                raise error
        except KeyboardInterrupt:
            trainer.go_back()
            made = trainer.report
            if processes.main and made is not None and logged < made.step == trainer.step:
                _log(made, tracker, start.folder)  # the signal came between a whole step and its line
            raise Interrupted(save.on_interrupt()) from None


class _Saver:
    """Writes checkpoints, in the main process, once all have gathered what it writes of sharded weights.

    score: how good the present weights are: the mean held-out win rate of the rewards that are trained on at the last
    probe; without probes the mean reward of the steps since the last checkpoint. The latter compares the training
    prompts of different steps, and of several rewards the mixture, whose scale moves a little.
    step: of the last checkpoint; -1 before the first. failed: whether the last one could not be written.
    """

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        start: Start,
        config: TrainConfig,
        made_with: Mapping[str, object],
        processes: Processes,
        interrupts: Interrupts,
    ) -> None:
        self._run, self._trainer, self._config, self._made_with = run, trainer, config, made_with
        self._processes, self._interrupts = processes, interrupts
        self._folder = start.folder / "checkpoints"
        self.sharded = is_sharded(trainer.learner.parameters)
        here = self._folder / f"step-{trainer.step:06d}"
        from_here = start.checkpoint is not None and start.checkpoint.folder.resolve() == here.resolve()
        self.step = trainer.step if from_here else -1
        self.score, self.failed = math.nan, False
        rewards = ", ".join(f"{w.weight:g} {w.reward.name}" for w in run.rewards)
        self._score_of = ("held-out win rate of " if config.eval_steps else "mean training reward of ") + rewards
        self.rewards: list[float] = []

    def __call__(self, alone: bool = False) -> Path:
        """The checkpoint of the present step, a call of all processes; a signal waits until it is complete.

        alone: of the main process, which cannot count on the others; not with sharded weights.
        """
        self.failed = True
        with self._interrupts.held():
            gathered = self._gathered() if self.sharded else None  # by all, before one of them writes and may fail
            with nullcontext() if alone else self._processes.together():
                if self._processes.main:
                    self._write(*(gathered or self._gathered()))
            self.step, self.rewards, self.failed = self._trainer.step, [], False
        return self._folder / f"step-{self.step:06d}"

    def _gathered(self) -> tuple[dict[str, object], Callable[[Path], None]]:
        """The state, and what writes the weights; with sharded ones a call of all processes."""
        return self._trainer.state_dict(), weights_writer(self._run.policy, self._trainer.ema_weights())

    def _write(self, state: dict[str, object], write_weights: Callable[[Path], None]) -> None:
        checkpoint.save(
            self._folder,
            self._trainer.step,
            state | {"callbacks": callbacks_state(self._run.callbacks)},
            to_dict(self._config),
            versions=self._made_with,
            score=self.score,
            score_of=self._score_of,
            keep=self._config.save_total_limit,
            extra=lambda partial: write_weights(partial / "weights"),
        )

    def on_interrupt(self) -> str:
        """Saves what is not saved yet; where, in words."""
        if self._trainer.step == 0:
            return "interrupted before the first step was done; nothing to save"
        if self._processes.main or self.sharded:
            saved = self.step == self._trainer.step
            place = self._folder / f"step-{self.step:06d}" if saved else self(alone=not self.sharded)
            return f"interrupted; saved {place}; go on with --resume_from_checkpoint latest"
        return "interrupted"


@contextmanager
def _logging(made: Sequence[Tracker], folder: Path) -> Iterator[Tracker]:
    """The trackers as one. That they cannot be closed is said, unless the run ends for another reason anyway."""
    reason: BaseException | None = None
    try:
        with tracking(made) as tracker:
            try:
                yield tracker
            except BaseException as error:
                reason = error
                raise
    except OSError:
        if reason is not None:
            raise reason from None
        with writing("the log of a run", folder, _GO_ON):
            raise


def _looked_at(report: StepReport, run: Run, tracker: Tracker, folder: Path) -> str:
    """Logs the report and shows it to the callbacks; their reason to stop, if there is one."""
    _log(report, tracker, folder)
    return stopping_reason(run.callbacks, report)


def _log(report: StepReport, tracker: Tracker, folder: Path) -> None:
    with writing("the log of a step", folder, _GO_ON):
        tracker.log(report)


def _trackers(config: TrainConfig, trainer: Trainer, folder: Path) -> list[Tracker]:
    made: list[Tracker] = []
    with writing("the log of a run", folder, _GO_ON):
        made.append(JsonLines(folder / "log.jsonl", after=trainer.step))
        if "tensorboard" in trackers(config):
            made.append(TensorBoard(folder / "tensorboard", after=trainer.step))
        if "wandb" in trackers(config):
            made.append(WandB(folder, to_dict(config)))
    return [*made, ProgressLine(config.max_steps, done=trainer.step)]


def _due(every: int, step: int) -> bool:
    """Whether it is time for what happens every that many steps; 0: never."""
    return every > 0 and step % every == 0


def _mean(rewards: list[float]) -> float:
    """Without NaN, which a step gives whose clips took no part; NaN if nothing is left."""
    return float(torch.tensor(rewards, dtype=torch.float64).nanmean())
