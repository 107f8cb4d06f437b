"""What a run will take, before it is started: two of its own steps are made, and the rest follows by arithmetic.

    two steps -> seconds of a step and of a clip -> everything that can be tried without the model is tried at full
    size in a folder beside output_dir, which is removed (a checkpoint, the log, the statistics and the page of the
    evaluation)

Knows a built run and how `dragon train` spends its time. The steps are real ones on the run's model, in memory: nothing
is kept. Seconds are those of one process on this machine, as busy as it is now.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dragon import checkpoint
from dragon.batching import Batching
from dragon.build import Run, build_run
from dragon.callbacks import RewardHacking
from dragon.collect import Collected, draw_seeds
from dragon.config import TrainConfig, to_dict, trackers
from dragon.contrast import Influence, Swap
from dragon.errors import Unwritable
from dragon.evaluate import compare
from dragon.files import readable, room, size_on_disk, standing, writing
from dragon.policy.storing import weights_writer
from dragon.probe import PROMPTS as PROBE_PROMPTS
from dragon.protocols import SetReward
from dragon.report import write_evaluation, write_report
from dragon.rollout import Stopwatch
from dragon.track import JsonLines, TensorBoard
from dragon.trainer import StepReport, Trainer
from dragon.verdicts import Verdicts, batched

_LOGGED = 100
"""Lines of the log that is tried."""
_CLIPS_EVERY = 5
"""Steps between two of which TensorBoard keeps clips."""


@dataclass(frozen=True)
class Plan:
    """What a run takes, as one process on this machine. Bytes and seconds; `total` is the sum of the others.

    prompts: drawn over the run; epochs: how often each comes. generations: {training, probes, evaluation, total}.
    seconds: {start, training, saving, probes, evaluation, total}. step_seconds: of one step, by stage.
    memory: {process, gpu, replay}: peak of this process and, on a GPU, of what torch reserved there, over two steps and
    what else is tried; replay: what the pairs that are kept later will add, on the GPU if there is one.
    disk: {checkpoints, weights, logs, evaluation, total}, at the moment when most checkpoints are there.
    free: bytes free where output_dir is or will be. warnings: what there is not enough of, and what is not known.
    """

    steps: int
    prompts: int
    epochs: float
    generations: Mapping[str, int]
    updates: int
    seconds: Mapping[str, float]
    step_seconds: Mapping[str, float]
    memory: Mapping[str, int]
    disk: Mapping[str, int]
    free: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The fields, as JSON values."""
        return asdict(self)


def plan(config: TrainConfig, *, hours: float = 0.0, say: Callable[[str], None] = print) -> Plan:
    """What `config` will take from its first step to its evaluation. hours: the time there is; 0: not said.

    Raises:
        ConfigError: as `dragon train` does. NotFinite, PluginError: a part of the run breaks its contract.
        Unwritable: a checkpoint does not fit where the run would write its own.
    """
    watch = Stopwatch()
    with watch("start"):
        run = build_run(config)
        # the first two steps are the same ones whatever max_steps is
        trainer = replace(run, settings=replace(run.settings, max_steps=2)).trainer()
    steps = trainer.run()
    say(f"making two steps: {config.rollout.prompts_per_step} prompts, {config.num_generations} samples each")
    with watch("first step"):
        first = next(steps)
    _fill_queue(trainer)
    with watch("step"):
        report = next(steps)
    say(f"trying the evaluation of {len(run.eval_prompts)} prompts, all but their samples")
    clip = _clip_costs(run, report)
    with _beside(Path(config.output_dir)) as place:
        disk, pairs = _save(run, trainer, report, place, watch)
        disk["evaluation"] = _evaluate(run, report, clip, place, watch)
    memory = _memory(trainer) | {"replay": _replayed(config, first) * pairs}
    return _summed(run, report, clip, watch.stages, disk, memory, hours)


@contextmanager
def _beside(output_dir: Path) -> Iterator[Path]:
    """A folder on the disk that the run will write to, removed on leaving; whatever cannot be written there is said."""
    place = standing(output_dir.parent)
    hint = "`dragon train` would fail here, too: make room, or choose another --output_dir"
    with (
        writing("what is tried", place, hint),
        tempfile.TemporaryDirectory(prefix=".dragon-plan-", dir=place) as folder,
    ):
        try:
            yield Path(folder)
        except Unwritable as error:  # its hint is for a run that can be resumed
            raise error.__cause__ or error from None


def _fill_queue(trainer: Trainer) -> None:
    """Fills the queue of an influence: the next step then gives credit, and costs what most steps will cost."""
    credit = trainer.scoring.credit
    if isinstance(credit, Influence):
        queues = credit.state_dict()["queues"]
        assert isinstance(queues, dict)
        credit.load_state_dict({"queues": {name: _more(features, credit.queue) for name, features in queues.items()}})


def _more(features: Tensor, count: int) -> Tensor:
    """(count, s, f): copies of (b, s, f), each moved a little, since equal ones span too few directions to be a set."""
    copies = features.repeat(-(-count // len(features)), 1, 1)[:count]
    spread = features.std(0, keepdim=True) if len(features) > 1 else torch.ones_like(features)
    noise = torch.randn(copies.shape, generator=torch.Generator().manual_seed(0))
    return copies + 0.5 * spread * noise.to(copies)


@dataclass(frozen=True)
class _Clip:
    """What one clip of an evaluation costs in seconds, and what was found of the step's clips on the way.

    sampled: roll-out and decoding. instance: the rewards that score single clips. whole: all rewards, and diversity.
    rewards: each of them. said: their verdicts. vectors: (b, f) of the diversity encoder.
    """

    sampled: float
    instance: float
    whole: float
    rewards: Mapping[str, float]
    said: Verdicts
    vectors: Tensor | None


def _clip_costs(run: Run, report: StepReport) -> _Clip:
    """From the second step, and a look of every measured reward at its clips."""
    rollout, evaluation, count = run.config.rollout, run.config.evaluation, len(report.media)
    work = evaluation.steps * _rows(evaluation.guidance) / (rollout.steps * _rows(rollout.guidance))
    sampled = (report.seconds["rollout"] * work + report.seconds["decode"]) / count
    few, rewards, timeout = report.media.rows(range(min(2, count))), run.evaluated(), rollout.reward_timeout
    batching = Batching(rollout.batch_size, "scoring batch")
    batched(rewards, few, report.seeds[:2], batching, timeout=timeout)  # the watched ones load what they need now
    said = batched(rewards, report.media, report.seeds, batching, timeout=timeout)
    each = {name: seconds / count for name, seconds in said.seconds.items()}
    watch = Stopwatch({"diversity": 0.0})
    vectors, encoder = None, run.diversity
    if encoder is not None:
        encoder.embed_clips(few)
        with watch("diversity"):
            vectors = torch.cat(
                batching.run(count, lambda rows: encoder.embed_clips(report.media.rows(rows)).double().cpu())
            )
    instance = sum(each[name] for name in said.scores)
    return _Clip(sampled, instance, sum(each.values()) + watch.stages["diversity"] / count, each, said, vectors)


def _rows(guidance: float) -> int:
    """Rows that the network sees for one of x: guidance needs the unconditional one, too."""
    return 1 if guidance in (0, 1) else 2


def _save(run: Run, trainer: Trainer, report: StepReport, folder: Path, watch: Stopwatch) -> tuple[dict[str, int], int]:
    """Writes one checkpoint and the log of one step.

    Bytes over the run of {checkpoints, weights, logs} on the disk, and of one step's pairs, where some are replayed.
    """
    config, state, weights = run.config, trainer.state_dict(), trainer.ema_weights()
    with watch("save"):
        place = checkpoint.save(
            folder / "checkpoints",
            trainer.step,
            state,
            to_dict(config),
            extra=lambda partial: weights_writer(run.policy, weights)(partial / "weights"),
        )
    pools = state["replay"]
    pairs = sum(map(_bytes, pools)) // max(1, len(pools))
    later = max(0, min(config.update.replay_steps, config.max_steps) - len(pools)) * pairs
    there = min(_saves(config), config.save_total_limit + 2)  # the newest, the best, and the one that is written
    log, lines = JsonLines(folder / "log.jsonl"), min(config.max_steps, _LOGGED)
    for step in range(1, 1 + lines):  # the pictures of the run are made of it, too
        log.log(replace(report, step=step))
    log.close()
    logs = config.max_steps * (folder / "log.jsonl").stat().st_size // lines
    if trackers(config):
        board = TensorBoard(folder / "tensorboard", clips_every=_CLIPS_EVERY)
        sizes = []
        for step in (1, 2):  # with clips and without
            board.log(replace(report, step=step))
            sizes.append(size_on_disk(folder / "tensorboard"))
        board.close()
        shown = 1 + config.max_steps // _CLIPS_EVERY
        logs += len(trackers(config)) * (shown * sizes[0] + (config.max_steps - shown) * (sizes[1] - sizes[0]))
    return {
        "checkpoints": there * (size_on_disk(place) + later),
        "weights": size_on_disk(place / "weights"),
        "logs": logs,
    }, pairs


def _evaluate(run: Run, report: StepReport, clip: _Clip, folder: Path, watch: Stopwatch) -> int:
    """The final evaluation at full size, of the clips there are instead of its own; bytes of what it writes."""
    sides = {name: _side(run, report, clip, name) for name in ("base", "tuned")}
    rewards, wanted = run.evaluated(), run.config.evaluation
    with watch("statistics"):
        trained = {weighted.reward.name for weighted in run.rewards}
        found = compare(sides, rewards, trained, seed=wanted.seed, set_size=wanted.set_size)
    before = size_on_disk(folder)
    with watch("page"):
        write_evaluation(found, folder)
        write_report(folder)
    return size_on_disk(folder) - before


def _side(run: Run, report: StepReport, clip: _Clip, name: str) -> Collected:
    """One side, made of the step's clips over and over."""
    wanted, prompts = run.config.evaluation, run.eval_prompts.prompts
    count = len(prompts) * wanted.samples_per_prompt
    kept = tuple(range(min(wanted.keep_samples, len(prompts))))
    clips = report.media.rows([i % len(report.media) for i in kept])
    return Collected(
        prompts=prompts,
        seeds=draw_seeds(wanted.seed, name, len(prompts), wanted.samples_per_prompt),
        steps=wanted.steps,
        guidance=wanted.guidance,
        scores={
            reward: np.resize(scores.numpy(), (len(prompts), wanted.samples_per_prompt))
            for reward, scores in clip.said.scores.items()
        },
        features={reward: _more(features, count) for reward, features in clip.said.features.items()},
        embeddings=None if clip.vectors is None else _more(clip.vectors[:, None], count)[:, 0],
        kept=replace(clips, tensor=clips.tensor.float().cpu(), prompts=prompts[: len(kept)], columns={}),
        kept_prompts=kept,
        seconds={},
    )


def _summed(
    run: Run,
    report: StepReport,
    clip: _Clip,
    took: Mapping[str, float],
    disk: dict[str, int],
    memory: Mapping[str, int],
    hours: float,
) -> Plan:
    """The run's counts times what each of them costs."""
    config, wanted = run.config, run.config.evaluation
    steps, held_out = config.max_steps, len(run.eval_prompts)
    drawn, clips = steps * config.rollout.prompts_per_step, config.rollout.prompts_per_step * config.num_generations
    by_credit = not isinstance(run.contrast, Swap) and any(isinstance(w.reward, SetReward) for w in run.rewards)
    waiting = -(-run.credit.minimum // clips) - 1 if by_credit else 0  # steps before there is a credit
    probes = 1 + steps // config.eval_steps if config.eval_steps else 0
    probed = min(PROBE_PROMPTS, held_out)
    generations = {
        "training": steps * clips,
        "probes": probed * (1 + probes) if probes else 0,
        "evaluation": held_out * (2 * wanted.samples_per_prompt + 1),
    }
    looked_at = sum(clip.rewards[c.watched] for c in run.callbacks if isinstance(c, RewardHacking))
    seconds = {
        "start": took["start"],
        "training": took["first step"]
        + (steps - 1) * took["step"]
        - max(0, waiting - 1) * report.seconds["train"]
        + steps * clips * looked_at,
        "saving": (_saves(config) + 1) * took["save"],
        "probes": generations["probes"] * (clip.sampled + clip.whole) + probes * took["statistics"] * probed / held_out,
        "evaluation": generations["evaluation"] * clip.sampled
        + held_out * (2 * wanted.samples_per_prompt * clip.whole + clip.instance)
        + took["statistics"]
        + took["page"],
    }
    total, size, free = sum(seconds.values()), sum(disk.values()), room(Path(config.output_dir))
    warnings = []
    if size > free:
        warnings.append(
            f"the disk of {config.output_dir!r} has {readable(free)} free, and the run writes {readable(size)}"
        )
    if 0 < hours * 3600 < total:
        warnings.append(f"the run takes {total / 3600:.1f} hours, and there are {hours:g}")
    if report.skipped:
        warnings.append(
            f"the second step made no update ({report.skipped}): the seconds and memory of updates are not known"
        )
    return Plan(
        steps=steps,
        prompts=drawn,
        epochs=drawn / len(run.prompts),
        generations=generations | {"total": sum(generations.values())},
        updates=(steps - min(waiting, steps)) * config.update.updates_per_step,
        seconds=seconds | {"total": total},
        step_seconds=dict(report.seconds),
        memory=memory,
        disk=disk | {"total": size},
        free=free,
        warnings=tuple(warnings),
    )


def _saves(config: TrainConfig) -> int:
    """Checkpoints of a run: those on the way, and the last step's."""
    return -(-config.max_steps // config.save_steps) if config.save_steps else 1


def _replayed(config: TrainConfig, first: StepReport) -> int:
    """Times the pairs of one step that the last step holds more than the second one did: each once, and once joined."""
    most = min(config.update.replay_steps, config.max_steps - 1)
    return 2 * max(0, most - (1 if first.pairs else 0))


def _memory(trainer: Trainer) -> dict[str, int]:
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if trainer.learner.device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_reserved(trainer.learner.device)
    return found


def _bytes(tree: object) -> int:
    """Of all tensors in nested mappings and lists."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    return sum(map(_bytes, parts))
