"""The memory of a run on its device, told without weights and without the device: `dragon plan --estimate`.

    sizes of the components -> the run's own policy with tensors that have no data -> the peak of each stage

Knows a configuration, pipelines and the order of a step. The stages run as in training, on torch's fake tensors: what
counts is every tensor's storage from its birth to its end. Not counted: the rewards' own networks and what they make of
clips, the device's context (some hundred MB on a GPU), a kernel's workspace and the gaps that an allocator leaves.
Leave a tenth of the device and the rewards' weights free.

With sharded weights (FSDP) the arithmetic is: shares of all that belongs to the denoiser's weights, and two of its
largest units whole, one at work and one on its way.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dragon.build import build
from dragon.config import TrainConfig
from dragon.errors import ConfigError
from dragon.footprint import Footprint, as_on_a_gpu, size_of
from dragon.media import Cond
from dragon.policy import weightless
from dragon.policy.base import DTYPES
from dragon.policy.pipeline import Family, PipelinePolicy, family_of
from dragon.protocols import Noising
from dragon.sharding import units

LEFT_OUT = (
    "not counted: the rewards' networks, the device's context, workspaces of kernels, gaps between allocations; leave "
    "a tenth of the device and the rewards' weights free"
)


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device of one process. `stages`: the most at once while a stage runs; `peak` is the largest.

    parts: weights of the components, whole, in the numbers of bytes that they are held in. kept: what training keeps
    beside them. rows: of a call of the network in roll-out and training, as the process has them.
    """

    policy: str
    source: str
    parts: Mapping[str, int]
    kept: Mapping[str, int]
    stages: Mapping[str, int]
    rows: Mapping[str, int]
    processes: int
    sharded: bool

    @property
    def peak(self) -> int:
        return max(self.stages.values())

    def to_json(self) -> dict[str, object]:
        """The fields and the peak, as JSON values."""
        return {**asdict(self), "peak": self.peak, "left_out": LEFT_OUT}


def estimate(config: TrainConfig, *, processes: int = 1, sharded: bool = False) -> Estimate:
    """Of the policy `pipeline` in `config`, whose `folder` may be a published name or config.json files alone.

    processes: those that share the run's prompts and pairs. sharded: and the denoiser's weights.

    Raises:
        ConfigError: another policy, a pipeline whose sizes are not known, an option that does not fit.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    if config.policy.name != "pipeline":
        raise ConfigError(
            f"policy is {config.policy.name!r}; memory without weights is told of policy 'pipeline' alone: run "
            "`dragon plan` without --estimate, which makes two real steps"
        )
    options = {key: value for key, value in config.policy.options.items() if key not in _NOTHING_TO_MEMORY}
    folder, tuning = options.pop("folder", ""), config.tuning
    if not isinstance(folder, str):
        raise ConfigError(f"policy.options.folder is {folder!r}; expected a folder or a hub name")
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _quiet(), weightless.moved_by_replacement():
        wanted = weightless.sizes(folder)
        kind = str(options.pop("family", "") or wanted.kind)
        common = {key: options.pop(key) for key in OF_EVERY_PIPELINE & options.keys()}
        made_by = family_of(kind, options)
        conds, low = _conditions(weightless.flat(wanted, folder), made_by)
        weights = DTYPES.get(str(common.get("weights", "float32")), torch.float32)
        pipe = weightless.hollow(wanted, folder, fake, lambda name: weights if name in low else torch.float32)
        own = made_by(pipe)
        with fake:
            policy = PipelinePolicy(
                pipe,
                family=own,
                tuning=cast(Any, tuning.kind),
                rank=tuning.rank,
                alpha=tuning.alpha,
                targets=tuning.targets,
                **cast(Any, common | {"sampler": "euler", "offload": False}),
            )
            shaped = [Cond({name: fake.from_tensor(value) for name, value in c.tensors.items()}) for c in conds]
            with as_on_a_gpu() if config.device != "cpu" else nullcontext():
                return _Stages(config, policy, pipe, shaped, processes, sharded).run(wanted.source)


_NOTHING_TO_MEMORY = ("revision", "variant", "compile")
OF_EVERY_PIPELINE = {
    p.name for p in inspect.signature(PipelinePolicy).parameters.values() if p.kind is not p.VAR_KEYWORD
}
"""Options that belong to no family."""


def _conditions(pipe: Any, made_by: Callable[[Any], Family]) -> tuple[list[Cond], set[str]]:
    """Conditions of a prompt and of "", and the names of the components that are held in the numbers of the network."""
    family = made_by(pipe)
    for name in family.text_parts:
        weightless.cut(getattr(pipe, name))
    with torch.no_grad():
        found = [family.encode(prompt, torch.device("cpu")) for prompt in (_PROMPT, "")]
    return found, {family.part, *family.text_parts}


_PROMPT = "slow jazz"


@contextmanager
def _quiet() -> Iterator[None]:
    """What pipelines warn of is of no concern before there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Stages:
    """One process's step, stage by stage."""

    def __init__(
        self,
        config: TrainConfig,
        policy: PipelinePolicy,
        pipe: Any,
        conds: Sequence[Cond],
        processes: int,
        sharded: bool,
    ) -> None:
        self.config, self.policy, self.pipe = config, policy, pipe
        self.cond, self.empty = conds
        self.family, self.backbone = policy._backbone._family, policy._backbone  # type: ignore[attr-defined]
        self.processes, self.sharded = processes, sharded
        self.module: nn.Module = getattr(pipe, self.family.part)
        update, rollout = config.update, config.rollout
        mine = -(-rollout.prompts_per_step // processes) * config.num_generations
        self.samples, self.batch = mine, min(rollout.batch_size, mine)
        self.pairs = -(-update.pairs_per_update // processes)
        self.micro = min(update.micro_batch_size, self.pairs)
        self.offload = bool(config.policy.options.get("offload", True)) and config.device != "cpu"

    def run(self, source: str) -> Estimate:
        """One look at every stage."""
        parts = {name: size_of(weightless.tensors(module)) for name, module in weightless.modules(self.pipe)}
        text = [name for name in self.family.text_parts if name in parts] if self.offload else []
        modules = [module for name, module in weightless.modules(self.pipe) if name not in text]
        held = [tensor for module in modules for tensor in weightless.tensors(module)]
        training, kept = self._training(held)
        beside = sum(kept.values()) + size_of(self.policy.trainable().values())  # gradients stay until the next update
        resident = size_of(held) + beside
        rollout, decoding, clip = self._sampling(held)
        clips, pool = self.samples * clip, self._pool()
        stages = {
            "prompts": resident + sum(parts[name] for name in text),
            "roll-out": rollout + beside + clips + pool,
            "decoding": decoding + beside + clips + pool,
            "all clips": resident + 2 * clips + pool,
            "training": training + clips + pool,
        }
        if self.sharded:
            saved = self._saved_by_sharding(kept)
            stages = {name: size - saved.get(name, saved["at rest"]) for name, size in stages.items()}
        return Estimate(
            policy=self.policy.name,
            source=source,
            parts=parts,
            kept=kept | {"clips of a step": clips, "pairs": pool},
            stages=stages,
            rows={"roll-out": self.batch, "training": 2 * self.micro},
            processes=self.processes,
            sharded=self.sharded,
        )

    def _sampling(self, held: list[Tensor]) -> tuple[int, int, int]:
        """Peaks of a call of the network under guidance and of decoding a batch; bytes of a clip."""
        guidance, shape = self.config.rollout.guidance, self.backbone.event_shape
        with Footprint(held) as seen, torch.no_grad():
            # the noise, the present sample and what a solver of higher order remembers
            latents = [torch.empty(self.batch, *shape) for _ in range(4)]
            cond, empty = (_rows(one, self.batch) for one in (self.cond, self.empty))
            with self.policy._autocast():
                network = self.family.guided(cond, empty, guidance)
                time = self.family.scaling.c_noise(torch.tensor([1.0]))  # a number that guidance may ask for
                network(latents[0], time.expand(self.batch), cond)
            rollout = seen.restart()
            del cond, empty, network, latents[1:]
            seen.restart()
            rows = min(self.batch, int(cast(int, self.config.policy.options.get("decode_rows", 4))))
            clips = self.backbone.decode_latents(latents[0][:rows])
            clip = size_of([clips]) // rows
            # the other rows' clips lie beside them, and all of a batch are put together
            together = size_of([*held, latents[0]]) + 2 * self.batch * clip
            return rollout, max(seen.peak + (self.batch - rows) * clip, together), clip

    def _pool(self) -> int:
        """Bytes of the samples of a step, and of the pairs of earlier ones that are replayed, with their conditions."""
        one = size_of([torch.empty(1, *self.backbone.event_shape), *self.cond.tensors.values()])
        pairs = self.config.rollout.prompts_per_step * (1 + self.config.update.replay_steps)
        return one * (self.samples + 2 * pairs)

    def _training(self, held: list[Tensor]) -> tuple[int, dict[str, int]]:
        """Peak of the second micro-batch of an update and of the optimiser's step; what is kept between them."""
        policy, rows = self.policy, 2 * self.micro
        parameters = policy.trainable()
        kept: dict[str, list[Tensor]] = {"average": [torch.empty_like(p) for p in parameters.values()]}
        kept["optimiser"] = [torch.empty_like(p) for p in parameters.values() for _ in range(2)]
        if self._needs_old():
            kept["old policy"] = [torch.empty_like(p) for p in parameters.values()]
        start = getattr(policy._tuning, "_start", {})
        if start:
            kept["start"] = list(start.values())
        # reference, old policy's and targets of the whole batch wait for the last micro-batch, noise and latents too
        waiting = [torch.empty(2 * self.pairs, *self.backbone.event_shape) for _ in range(5)]
        everything = [*held, *(t for tensors in kept.values() for t in tensors), *waiting]
        with Footprint(everything) as seen:
            cond = _rows(self.cond, rows)
            if self.pairs > self.micro:  # gradients of an earlier micro-batch
                for p in parameters.values():
                    p.grad = torch.empty_like(p)
            latents, noise = (torch.empty(rows, *self.backbone.event_shape) for _ in range(2))
            prediction = policy.predict(latents, Noising(torch.ones(rows), noise), cond)
            (prediction - policy.target(latents, Noising(torch.ones(rows), noise))).square().mean().backward()
            del prediction, latents, noise
            if self.config.device != "cpu":  # there the optimiser works on all parameters at once
                roots = [torch.empty_like(p) for p in parameters.values()]
                del roots
            return seen.peak, {name: size_of(tensors) for name, tensors in kept.items()}

    def _needs_old(self) -> bool:
        try:
            return bool(getattr(build("objective", self.config.objective), "needs_old", False))
        except ConfigError:
            return True

    def _saved_by_sharding(self, kept: Mapping[str, int]) -> dict[str, int]:
        """Bytes, by stage, that one of the processes does not hold."""
        weights = size_of(weightless.tensors(self.module))
        *blocks, whole = (size_of(unit.parameters()) for unit in units(self.module))
        largest = max([*blocks, whole - sum(blocks)])
        idle = weights + sum(kept.values()) + size_of(self.policy.trainable().values())
        share = 1 - 1 / self.processes
        at_rest, at_work = int(share * idle), int(share * idle) - 2 * largest
        training = at_work
        if self.config.tuning.kind == "full":
            # a unit's gradient before it is shared out, and the weights that the reference's have pushed aside
            training -= largest + weights // self.processes
        return {"at rest": at_rest, "roll-out": at_work, "training": training}


def _rows(cond: Cond, count: int) -> Cond:
    return cond.rows([0] * count)
