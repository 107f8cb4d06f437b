"""What crosses the borders between modules: clips, and the generations they come from.

Knows tensors only. Letters used for shapes throughout the project:

    b batch    m prompts    k samples of one prompt    n items of a set    f features
    c channels t samples in time    s frames in time    d event dimensions of x (all of them)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dragon.errors import NotFinite, ShapeError


@dataclass(frozen=True)
class Media:
    """A batch of clips of one medium, with the prompts they answer.

    tensor: (b, c, t) audio or (b, c, h, w) images, float32; full scale is [-1, 1], which some models' audio exceeds.
    rate: samples a second (Hz) of audio; None for images.
    columns: the prompt file's other columns, one value a row, passed on to rewards.
    """

    tensor: Tensor
    prompts: tuple[str, ...]
    rate: int | None = None
    columns: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = self.tensor.shape[0] if self.tensor.ndim else 0
        if self.tensor.ndim < 2 or rows != len(self.prompts):
            raise ShapeError(
                f"Media of shape {tuple(self.tensor.shape)} with {len(self.prompts)} prompts; expected "
                "(b, channels, samples) or (b, channels, height, width) with b prompts"
            )
        for name, values in self.columns.items():
            if len(values) != rows:
                raise ShapeError(f"column {name!r} has {len(values)} values for {rows} clips; expected one a clip")

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, index: Sequence[int]) -> Media:
        """The clips at `index`, in that order."""
        return replace(
            self,
            tensor=self.tensor[torch.as_tensor(list(index), dtype=torch.long, device=self.tensor.device)],
            prompts=tuple(self.prompts[i] for i in index),
            columns={name: tuple(values[i] for i in index) for name, values in self.columns.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Media]) -> Media:
        """All clips of `parts`, one after another; a single part as it is."""
        if len(parts) == 1:
            return parts[0]
        return replace(
            parts[0],
            tensor=torch.cat([part.tensor for part in parts]),
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            columns={name: tuple(v for part in parts for v in part.columns[name]) for name in parts[0].columns},
        )


@dataclass(frozen=True)
class Cond:
    """What a denoiser is conditioned on; row i belongs to sample i.

    tensors: named batches, for example {"text": (b, l, f), "mask": (b, l)}; empty for none.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, index: Sequence[int]) -> Cond:
        """The conditions at `index`, in that order."""
        return Cond(
            {k: v[torch.as_tensor(list(index), dtype=torch.long, device=v.device)] for k, v in self.tensors.items()}
        )

    def to(self, device: torch.device) -> Cond:
        """The conditions on `device`."""
        return Cond({k: v.to(device) for k, v in self.tensors.items()})

    def repeated(self, count: int) -> Cond:
        """One row as `count` rows that share its memory."""
        return Cond({k: v.expand(count, *v.shape[1:]) for k, v in self.tensors.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(v.nbytes for v in self.tensors.values())

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """All rows of `parts`, one after another."""
        return Cond({k: torch.cat([p.tensors[k] for p in parts]) for k in parts[0].tensors})


@dataclass(frozen=True)
class Generation:
    """Samples of a policy, in the denoiser's own space, with what made them.

    latents: (b, *d) clean x0 in the denoiser's scale.
    cond: row i conditioned latent i (without guidance's empty condition).
    seeds: one a sample; the same prompt, seed and weights give the same sample in any batch.
    """

    latents: Tensor
    cond: Cond
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, index: Sequence[int]) -> Generation:
        """The samples at `index`, in that order."""
        index = list(index)
        return Generation(
            self.latents[torch.as_tensor(index, dtype=torch.long, device=self.latents.device)],
            self.cond.rows(index),
            tuple(self.prompts[i] for i in index),
            tuple(self.seeds[i] for i in index),
        )

    @staticmethod
    def cat(parts: Sequence[Generation]) -> Generation:
        """All samples of `parts`, one after another."""
        return Generation(
            torch.cat([p.latents for p in parts]),
            Cond.cat([p.cond for p in parts]),
            tuple(prompt for p in parts for prompt in p.prompts),
            tuple(seed for p in parts for seed in p.seeds),
        )


def check_finite(part: str, value: Tensor, rows: Generation) -> None:
    """Raises NotFinite with the part's name, and the prompt and seed of the first row that is not finite."""
    fault = not_finite(part, value, rows)
    if fault:
        raise NotFinite(fault)


def not_finite(part: str, value: Tensor, rows: Generation) -> str:
    """What `check_finite` says; empty if all rows are finite."""
    finite = value.detach().reshape(len(rows), -1).isfinite().all(1)
    if finite.all():
        return ""
    row = int((~finite).nonzero()[0])
    return (
        f"{part} is not finite for prompt {rows.prompts[row]!r}, seed {rows.seeds[row]} ({int((~finite).sum())} of "
        f"{len(rows)} rows); expected finite numbers; lower learning_rate, or sample this prompt and seed alone"
    )
