"""The schema of a run: frozen dataclasses, and nothing else, say what a configuration may hold.

YAML files and the command line fill the same classes (`load`, `dragon.cli`); defaults live here only.
Knows no plug-in: names are resolved in `dragon.build`. Names that TRL users know keep their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ConfigDict

_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Spec:
    """A plug-in by name, with the options its constructor takes."""

    __pydantic_config__ = _FORBID
    name: str
    """Registered name, or module:Name."""
    options: dict[str, object] = field(default_factory=dict)
    """Keyword arguments of the plug-in's constructor."""


@dataclass(frozen=True)
class RewardSpec:
    """A reward with its weight in the mixture that ranks samples."""

    __pydantic_config__ = _FORBID
    name: str
    """Registered name, or module:Name."""
    options: dict[str, object] = field(default_factory=dict)
    """Keyword arguments of the reward's constructor."""
    weight: float = 1.0
    """Weight after each reward was divided by its standard deviation within a prompt."""


@dataclass(frozen=True)
class TuningConfig:
    """Which weights are trained."""

    __pydantic_config__ = _FORBID
    kind: str = "lora"
    """lora (PEFT adapter on the denoiser) or full."""
    rank: int = 16
    """Rank of the LoRA matrices."""
    alpha: float = 16.0
    """LoRA scale: the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Module-name endings that get an adapter; empty: the policy's own list."""


@dataclass(frozen=True)
class RolloutConfig:
    """How samples are drawn while training."""

    __pydantic_config__ = _FORBID
    prompts_per_step: int = 16
    """m: prompts drawn at each step."""
    steps: int = 8
    """Solver steps of a demonstration."""
    guidance: float = 2.0
    """Classifier-free guidance scale; 1 switches it off."""
    batch_size: int = 32
    """Samples per denoiser call; changes speed and memory, not the samples."""


@dataclass(frozen=True)
class UpdateConfig:
    """How the contrast is trained on."""

    __pydantic_config__ = _FORBID
    updates_per_step: int = 3
    """Optimiser steps after each roll-out."""
    pairs_per_update: int = 24
    """Pairs drawn (without replacement) from the fresh and replayed pairs at each update."""
    micro_batch_size: int = 24
    """Pairs per backward pass; gradients are accumulated, so the result does not depend on it."""
    replay_steps: int = 0
    """Pairs of that many earlier steps stay in the pool; 0: on-policy only."""
    old_decay: float = 0.8
    """Decay of the moving old policy, updated once a step (NFT only)."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    warmup_steps: int = 2
    """Learning rate rises linearly over that many steps."""
    ema_decay: float = 0.9
    """Decay of the weights that are evaluated and saved, updated once an optimiser step; 0: none."""
    beta_calibration_updates: int = 6
    """Updates over which beta is calibrated to a median |beta * gain| of `beta_target`, then frozen; 0: beta as stated."""
    beta_target: float = 1.0


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on held-out prompts, before and after."""

    __pydantic_config__ = _FORBID
    prompts: int = 128
    """Held-out prompts used (the first ones of the file)."""
    samples_per_prompt: int = 2
    """Independent samples a prompt, for base and tuned each."""
    steps: int = 8
    guidance: float = 2.0
    watch: tuple[Spec, ...] = ()
    """Rewards that are measured and never trained on (a judge, ...)."""
    diversity: Spec | None = None
    """Encoder whose embedding diversity is reported (mean pairwise cosine distance)."""
    seed: int = 1_000_003
    keep_samples: int = 16
    """Samples a side written as audio."""


@dataclass(frozen=True)
class TrainConfig:
    """One whole run."""

    __pydantic_config__ = _FORBID
    output_dir: str = "runs/mini"
    """Run folder; a new run into one that holds a run is refused."""
    prompts: str = "mini:train"
    """Training prompts: a .txt, .csv or .jsonl file, or mini:train."""
    eval_prompts: str = "mini:test"
    """Held-out prompts, of the same kinds."""
    policy: Spec = field(default_factory=lambda: Spec("mini"))
    tuning: TuningConfig = field(default_factory=TuningConfig)
    rewards: tuple[RewardSpec, ...] = ()
    """At least one; their weighted sum ranks samples."""
    contrast: Spec = field(default_factory=lambda: Spec("best_worst"))
    objective: Spec = field(default_factory=lambda: Spec("nft"))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    num_generations: int = 4
    """k: samples of each prompt."""
    learning_rate: float = 2e-4
    max_steps: int = 40
    save_steps: int = 10
    """A checkpoint every that many steps; 0: only at the end and on interrupt."""
    eval_steps: int = 0
    """A short held-out evaluation every that many steps; 0: only at start and end."""
    save_total_limit: int = 3
    """Checkpoints kept."""
    seed: int = 0
    device: str = "cpu"
    """cpu, cuda, or cuda:N."""
    report_to: str = "tensorboard"
    """tensorboard or none."""
    resume_from_checkpoint: str = ""
    """true or latest: the newest checkpoint of output_dir; a path: that one; empty: a new run."""
    dry_run: bool = False
    """Check everything, print the filled configuration, and stop."""
