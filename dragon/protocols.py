"""What plug-in authors implement: rewards, encoders, policies, objectives, callbacks.

Protocol attributes are read-only properties, so that a frozen dataclass satisfies them. The trainer
knows these and no concrete class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Generator, Tensor
from torch.nn import Parameter

from dragon.media import Cond, Generation, Media


@runtime_checkable
class InstanceReward(Protocol):
    """Judges one clip at a time; higher is better."""

    @property
    def name(self) -> str: ...

    @property
    def abstains(self) -> bool:
        """Whether NaN in a score means "no opinion on this clip". If False, NaN is an error."""
        ...

    def score(self, media: Media) -> Tensor:
        """(b,) float64, one score a clip, independent of the other clips of the batch."""
        ...


@runtime_checkable
class SetReward(Protocol):
    """Judges a whole set of clips; higher is better."""

    @property
    def name(self) -> str: ...

    def embed(self, media: Media) -> Tensor:
        """(b, s, f): features of each clip, computed once a clip."""
        ...

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        """(k,) float64 scores of k candidate sets; `members` (k, n) are rows of `features`."""
        ...


class SwapScorer(Protocol):
    """The score of one set of rows, and of the sets that differ from it in one member: what a swap search asks for.

    Made for fixed features; a row stands at most once in the set.
    """

    @property
    def value(self) -> float:
        """Score of the present set."""
        ...

    def start(self, members: Tensor) -> None:
        """Makes `members` (n,), rows of the features, the present set."""
        ...

    def neighbours(self, leaving: Tensor, entering: Tensor) -> Tensor:
        """(c,) float64: the score after row leaving[j] of the set is replaced by row entering[j]; exact."""
        ...

    def bounds(self, leaving: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """(c,) and (c,): cheap lower and upper bounds of `neighbours`, infinite where there are none."""
        ...

    def swap(self, leaving: int, entering: int) -> None:
        """Makes that neighbour the present set."""
        ...


@runtime_checkable
class SwappableReward(SetReward, Protocol):
    """A set reward that scores one-swap neighbours faster than one by one."""

    def swap_scorer(self, features: Tensor) -> SwapScorer:
        """A scorer of sets of rows of `features` (b, s, f)."""
        ...


@runtime_checkable
class InfluenceReward(SetReward, Protocol):
    """A set reward whose derivative at a large set is known in closed form."""

    def influence(self, queue: Tensor, features: Tensor) -> Tensor:
        """(b,) float64: d/de of the score of the mixture (1 - e) * queue + e * clip i, at e = 0.

        queue (n, s, f), features (b, s, f). In a set of n clips, exchanging clip i for clip j changes the score by
        about (influence_j - influence_i) / n.
        """
        ...


@runtime_checkable
class Encoder(Protocol):
    """Media -> features. `fingerprint` identifies weights and settings: equal fingerprints, equal features.

    An encoder may also have `settings`, JSON values by name that its features depend on (hash of the weights, rate,
    windows): they are recorded with every score.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def features(self) -> int:
        """f, the size of one feature vector."""
        ...

    def embed_media(self, media: Media) -> Tensor:
        """(b, s, f): s frames a clip; s = 1 for an encoder that gives one vector a clip."""
        ...


@runtime_checkable
class JointEncoder(Encoder, Protocol):
    """An encoder that also embeds text in the same space (CLAP, CLIP)."""

    def embed_clips(self, media: Media) -> Tensor:
        """(b, f): one unit vector a clip."""
        ...

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        """(b, f): one unit vector a prompt."""
        ...


@dataclass(frozen=True)
class Noising:
    """Noise levels and noise of a training batch, shared by policy and reference and by both sides of a pair.

    sigma: (b,) in the coordinates x = x0 + sigma * noise; noise: (b, *d).
    """

    sigma: Tensor
    noise: Tensor


Precision = Literal["float32", "bfloat16", "float16"]


class Policy(Protocol):
    """A conditional diffusion model that can be sampled and trained.

    A policy may also have `precision`, the number format that its network runs in, "float32" if it has none: with
    "float16" the learner scales the loss; and `settings`, JSON values by name that its samples depend on besides
    weights and seeds (scheduler, loudness of its clips): they are recorded with a run. To be trained with sharded
    weights it is a `ShardablePolicy`.
    """

    @property
    def name(self) -> str: ...

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditions of `prompts`; row i belongs to prompt i. Never needs a gradient."""
        ...

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float) -> Generation:
        """One sample a prompt, without gradient; a sample does not depend on its batch."""
        ...

    def decode(self, generation: Generation) -> Media:
        """Latents -> clips (without the prompt file's columns), without gradient."""
        ...

    def draw_noising(self, latents: Tensor, generator: Generator) -> Noising:
        """Noise levels from the density the model was trained with, one a row, and unit noise."""
        ...

    def predict(self, latents: Tensor, noising: Noising, cond: Cond) -> Tensor:
        """(b, *d) the network's raw output F for x = latents + sigma * noise, in its own parameterisation."""
        ...

    def target(self, latents: Tensor, noising: Noising) -> Tensor:
        """(b, *d) what `predict` was trained to equal (epsilon, v, flow velocity, ...)."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the policy is the frozen starting model."""
        ...

    def weights(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside it the trainable parameters have these values (EMA, old policy); restored on leaving."""
        ...

    def trainable(self) -> dict[str, Parameter]:
        """The parameters that training changes, by name."""
        ...

    def save(self, folder: str) -> None:
        """Writes what was trained (adapter or full weights, safetensors) into `folder`."""
        ...

    def load(self, folder: str) -> None:
        """Reads what `save` wrote."""
        ...


@runtime_checkable
class ShardablePolicy(Policy, Protocol):
    """A policy whose weights can be sharded over processes (FSDP), which then make all calls but `write` together."""

    def shard(self) -> None:
        """Shards the weights over all processes (`dragon.sharding.shard`); `trainable()` is new afterwards."""
        ...

    def stored(self) -> dict[str, Tensor]:
        """What `save` would write, whole and on the CPU; of sharded weights on the first process, else empty."""
        ...

    def write(self, stored: Mapping[str, Tensor], folder: str) -> None:
        """Writes what `stored` gave as `save` would; one process calls it, so it must not call the others."""
        ...


@dataclass(frozen=True)
class Side:
    """Everything an objective may read of one side (D+ or D-) of a batch of pairs. All (b, *d).

    target: what a perfect denoiser of these samples would predict, in the model's own parameterisation.
    policy: the prediction that is trained. reference: the frozen start's. old: the moving old policy's
    (equal to the reference's where an objective does not ask for it).
    """

    target: Tensor
    policy: Tensor
    reference: Tensor
    old: Tensor


@dataclass(frozen=True)
class Terms:
    """Both sides of a batch of pairs, at one shared noise level and noise a pair."""

    positive: Side
    negative: Side
    z0: Tensor | None = None


class Objective(Protocol):
    """Terms -> per-pair loss. `beta` is frozen once calibrated; objectives without one have beta None."""

    @property
    def name(self) -> str: ...

    @property
    def beta(self) -> float | None: ...

    @property
    def needs_old(self) -> bool: ...

    @property
    def needs_z0(self) -> bool: ...

    @property
    def paired(self) -> bool:
        """Whether both sides of a row share prompt, noise level and noise."""
        ...

    def with_beta(self, beta: float) -> Objective:
        """The same objective at another beta."""
        ...

    def __call__(self, terms: Terms) -> Tensor:
        """(b,) loss of each pair."""
        ...


class Report(Protocol):
    """What a callback may read of a finished step: most of `dragon.trainer.StepReport`, where each is explained."""

    @property
    def step(self) -> int: ...

    @property
    def reward(self) -> float: ...

    @property
    def rewards(self) -> Mapping[str, float]: ...

    @property
    def figures(self) -> Mapping[str, float]: ...

    @property
    def gap(self) -> float: ...

    @property
    def loss(self) -> float: ...

    @property
    def implicit_accuracy(self) -> float: ...

    @property
    def gain_positive(self) -> float: ...

    @property
    def gain_negative(self) -> float: ...

    @property
    def z0(self) -> float: ...

    @property
    def beta(self) -> float | None: ...

    @property
    def beta_gain_median(self) -> float: ...

    @property
    def grad_norm(self) -> float: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def pairs(self) -> int: ...

    @property
    def ties_dropped(self) -> int: ...

    @property
    def seconds(self) -> Mapping[str, float]: ...

    @property
    def reward_seconds(self) -> Mapping[str, float]: ...

    @property
    def whole_seconds(self) -> float: ...

    @property
    def skipped(self) -> str: ...

    @property
    def skipped_updates(self) -> int: ...

    @property
    def media(self) -> Media:
        """The step's clips; of several processes, those of the main one."""
        ...

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the clips."""
        ...


@runtime_checkable
class Callback(Protocol):
    """Called after every step, once it is logged; may look, and may stop the run. A plain function will do.

    Among several processes the main one calls it. What it must remember over a resume it hands out as JSON values by
    `state_dict` and takes back by `load_state_dict` (dragon.callbacks); those two may be left out.
    """

    def __call__(self, report: Report) -> str | None:
        """Why the run should stop; None or empty to go on. A stopped run is saved and evaluated as usual."""
        ...
