"""Any diffusers pipeline of a known family as a policy: loaded, sampled as the pipeline samples, tuned and saved.

Knows how diffusers stores, loads and runs pipelines; not what any family's network, conditions or latents are: that is
a `Family`, one file each beside this one, found by the class that the pipeline's model_index.json names. Sampling,
LoRA, the reference and saving are `dragon.policy.base` and `dragon.policy.tuning`, shared with the built-in model.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Generator, Tensor, nn

from dragon.diffusion import Denoiser, Guided, Scaling, SeededNoise
from dragon.errors import ConfigError, MissingExtra
from dragon.media import Cond
from dragon.policy.base import DTYPES, DiffusionPolicy, Sampler, check_sampler, solve, torch_device
from dragon.policy.levels import draw_of
from dragon.policy.tuning import FullTuning, LoraTuning, Tuning, freeze
from dragon.protocols import Precision
from dragon.registry import available, nearest, resolve
from dragon.signatures import converted

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Network = Callable[[Tensor, Tensor, Cond], Tensor]
"""(input (b, *d), time (b,), condition) -> the network's own output (b, *d)."""

Loudness = Literal["pipeline", "decoded", "peak"]
PEAK = 10 ** (-1 / 20)  # -1 dBFS

OWN_MODEL = "docs/own_model.md"


class Family(Protocol):
    """What one class of pipelines brings. Made of a loaded pipeline and the family's own options.

    Latents, network input, output and time are the pipeline's own, so that its scheduler can be used as it is. A class
    may also name components in `unused`, which are then not loaded, and have a `checkpoint()` that turns on gradient
    checkpointing where the network's own way of doing so does not work. It may name tensors of a condition in `zeroed`,
    which are zero in guidance's empty condition unless a negative prompt is given, and say `takes_negative = False`.
    """

    @property
    def name(self) -> str: ...

    @property
    def part(self) -> str:
        """Name of the pipeline's component that denoises, the one to train: transformer, unet."""
        ...

    @property
    def text_parts(self) -> tuple[str, ...]:
        """Names of the components that only encode prompts: off the device when they are not at work."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Endings of the names of the linear layers that LoRA changes by default."""
        ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """d: shape of one latent."""
        ...

    @property
    def rate(self) -> int | None:
        """Samples a second (Hz) of the clips; None for images."""
        ...

    @property
    def scaling(self) -> Scaling:
        """What the network predicts. `c_noise` is its time, in the unit of the scheduler's `timesteps`."""
        ...

    @property
    def loudness(self) -> str:
        """What the pipeline's own call does to decoded clips (`finish`), in a few words."""
        ...

    def encode(self, prompt: str, device: torch.device) -> Cond:
        """One row; of the same shape for every prompt. The text parts are on `device`."""
        ...

    def network(self, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """(b, *d) output for the input z (b, *d) at time (b,)."""
        ...

    def guided(self, cond: Cond, empty: Cond, guidance: float) -> Network:
        """The network under guidance, made anew for each roll-out. empty: the encoded negative prompt ("" if none is
        given), one row a row of `cond`."""
        ...

    def schedule(self, steps: int) -> Any:
        """A scheduler of the pipeline's kind, of its own, set to the times of its call with so many steps."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """(steps + 1,) the same times as finite noise levels of x = x0 + sigma * noise, falling to 0."""
        ...

    def draw_sigmas(self, count: int, generator: Generator, t_min: float, t_max: float) -> Tensor:
        """(count,) noise levels of the density the family was trained with, between times t_min and t_max in [0, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(b, c, t) or (b, c, h, w) clips as the decoder gives them, trimmed to their length."""
        ...

    def finish(self, clips: Tensor) -> Tensor:
        """What the pipeline's own call does to decoded clips; `clips` themselves if nothing."""
        ...


class PipelinePolicy(DiffusionPolicy):
    """A diffusers pipeline with LoRA on its denoiser, or with all of the denoiser's weights trained.

    folder: a folder that `save_pretrained` wrote, or a hub name; a loaded pipeline is taken over (moved to the device,
    its denoiser changed). family: "" recognises it by the pipeline's class; else the class's name, or "module:Name" or
    "file.py:Name" of a `Family` of your own, or one that was made of the loaded pipeline. revision, variant: as
    `from_pretrained` has them; of a branch of the hub the commit is recorded (`settings`).
    tuning, rank, alpha, targets, adapter_seed: see `LoraTuning` (empty targets: the family's) and `FullTuning`.
    sampler: "pipeline" is the pipeline's own scheduler; the others solve the same times by `dragon.diffusion`.
    precision: see `DiffusionPolicy`. weights: number format of what is not trained, the decoder always in float32; of
    less than float32 only with LoRA and a precision other than float32.
    gradient_checkpointing: as for `MiniPolicy`. compile: the denoiser by torch.compile: faster after a minute.
    t_min, t_max: range of the times that training draws, inside the family's own density. sampler_times: n draws them
    from the n times of the sampler instead: for distilled models, which know no others.
    negative: the negative prompt of every roll-out with guidance; "": as the pipeline does without one.
    offload: components that only encode prompts stay on the CPU while they are not at work. decode_rows: clips that
    are decoded at a time. loudness: of decoded clips: "pipeline" as the pipeline's own call leaves them, "decoded" as
    the decoder gives them, "peak" each at -1 dBFS. It is recorded with the run (`settings`): scores of clips with
    different treatments do not compare.
    options: of the family (`seconds`, ...); see its class.

    Raises:
        ConfigError: no pipeline there, one of an unknown family, an option that the family does not have or cannot do.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | DiffusionPipeline,
        *,
        family: str | Family = "",
        revision: str | None = None,
        variant: str | None = None,
        tuning: Literal["lora", "full"] = "lora",
        rank: int = 16,
        alpha: float = 16.0,
        targets: tuple[str, ...] = (),
        adapter_seed: int = 0,
        sampler: Literal["pipeline", "euler", "heun", "dpmpp_2m"] = "pipeline",
        precision: Precision = "float32",
        weights: Precision = "float32",
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002  torch's name for it
        t_min: float = 0.0,
        t_max: float = 1.0,
        sampler_times: int = 0,
        negative: str = "",
        offload: bool = True,
        decode_rows: int = 4,
        loudness: Loudness = "pipeline",
        device: str = "cpu",
        **options: object,
    ) -> None:
        check_sampler(sampler, "pipeline")
        _check_numbers(tuning, precision, weights, (t_min, t_max), sampler_times, decode_rows, loudness)
        on = torch_device(device)
        if isinstance(folder, str | os.PathLike):
            folder = os.path.expanduser(os.fspath(folder))
        source = stored(folder, revision) if isinstance(folder, str) else None
        kind = source.kind if source else type(folder).__name__
        if isinstance(family, str):
            made_by = family_of(family or kind, options)
            if source:
                formats = _formats(source, made_by.func, DTYPES[weights])
                pipe = load(source, variant, getattr(made_by.func, "unused", ()), formats)
            else:
                pipe = cast("DiffusionPipeline", folder)
            own: Family = made_by(pipe)
        else:
            pipe, own = cast("DiffusionPipeline", folder), family
        if sampler == "pipeline":
            check_scheduler(pipe.scheduler)
        if negative and not getattr(own, "takes_negative", True):
            raise ConfigError(f"negative is {negative!r}, and family {own.name} takes no negative prompt; leave it out")
        module = _placed(pipe, own, on, DTYPES[weights], offload)
        _set_checkpointing(own, module, gradient_checkpointing)
        part: Tuning
        if tuning == "lora":
            names = targets or own.targets
            also = _lora_writer(pipe, own.part)
            part = LoraTuning(module, rank=rank, alpha=alpha, targets=names, seed=adapter_seed, also=also)
        else:
            part = FullTuning(module, config=json.dumps(dict(cast(Any, module).config), indent=2, default=str))
        if compile:
            _compile(module)
        backbone = PipelineBackbone(
            pipe,
            own,
            on,
            sampler=sampler,
            times=(t_min, t_max),
            sampler_times=sampler_times,
            negative=negative,
            offload=offload,
            decode_rows=decode_rows,
            loudness=loudness,
        )
        super().__init__(backbone, part, precision=precision, negative=negative)
        self.settings: Mapping[str, object] = {
            "pipeline": source.folder if source else kind,
            "commit": source.commit if source else None,
            "family": own.name,
            "sampler": sampler if sampler != "pipeline" else type(pipe.scheduler).__name__,
            "weights": weights,
            "negative": negative,
            "loudness": own.loudness if loudness == "pipeline" else _LOUDNESS[loudness],
            "rate": own.rate,
            "latent": list(own.event_shape),
        }
        """What the samples depend on besides weights and seeds; recorded with a run."""


class PipelineBackbone:
    """The `Backbone` of a pipeline and its family."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        family: Family,
        device: torch.device,
        *,
        sampler: str,
        times: tuple[float, float],
        sampler_times: int,
        negative: str,
        offload: bool,
        decode_rows: int,
        loudness: Loudness,
    ) -> None:
        self._pipe, self._family, self.device = pipe, family, device
        self._sampler, self._times, self._sampler_times = sampler, times, sampler_times
        self._zeroed: Sequence[str] = () if negative else getattr(family, "zeroed", ())
        self._offload, self._decode_rows, self._loudness = offload, decode_rows, loudness
        self.denoiser = Denoiser(family.network, family.scaling)

    @property
    def name(self) -> str:
        return self._family.name

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self._family.event_shape

    @property
    def rate(self) -> int | None:
        return self._family.rate

    def encode_prompts(self, prompts: Sequence[str]) -> list[Cond]:
        with self._text_parts():
            return [self._family.encode(prompt, self.device) for prompt in prompts]

    def rollout(self, cond: Cond, empty: Cond, seeds: Sequence[int], *, steps: int, guidance: float) -> Tensor:
        if self._zeroed:
            zeros = {name: torch.zeros_like(cond.tensors[name]) for name in self._zeroed}
            empty = Cond(dict(cond.tensors) | zeros)
        guided = self._family.guided(cond, empty, guidance)
        if self._sampler != "pipeline":
            denoiser, sigmas = Denoiser(guided, self._family.scaling), self._family.sigmas(steps)
            sampler = cast(Sampler, self._sampler)
            return solve(sampler, denoiser, cond, seeds, sigmas, self.event_shape, self.device)
        return scheduled(self._family.schedule(steps), guided, cond, seeds, self.event_shape, self.device)

    def decode_latents(self, latents: Tensor) -> Tensor:
        parts = [self._finished(self._family.decode(rows)) for rows in latents.split(self._decode_rows)]
        return torch.cat(parts)

    def draw_sigmas(self, count: int, generator: Generator) -> Tensor:
        if not self._sampler_times:
            return self._family.draw_sigmas(count, generator, *self._times)
        return draw_of(self._family.sigmas(self._sampler_times)[:-1], count, generator)

    def _finished(self, clips: Tensor) -> Tensor:
        clips = clips.float()
        if self._loudness == "decoded":
            return clips
        return self._family.finish(clips) if self._loudness == "pipeline" else at_peak(clips)

    @contextmanager
    def _text_parts(self) -> Iterator[None]:
        """Inside it they are on the device; afterwards on the CPU again, if they are to be off it."""
        with ExitStack() as stack:
            for name in self._family.text_parts if self._offload else ():
                stack.enter_context(_on_loan(getattr(self._pipe, name), self.device))
            yield


@contextmanager
def _on_loan(part: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside it the part is on the device; afterwards its tensors are those from before, which are not copied back."""
    tables = [(table, dict(table)) for module in part.modules() for table in (module._parameters, module._buffers)]
    values = [(p, p.data) for p in part.parameters()]
    try:
        part.to(device)
        yield
    finally:
        for table, before in tables:
            table.update(before)  # type: ignore[arg-type]
        for p, value in values:
            p.data = value


def scheduled(
    scheduler: Any,
    network: Network,
    cond: Cond,
    seeds: Sequence[int],
    event_shape: Sequence[int],
    device: torch.device,
) -> Tensor:
    """(b, *d) clean samples by a diffusers scheduler whose times are set, as the pipelines' own calls make them.

    One generator a sample, which the first noise and a stochastic scheduler's own both come from. A scheduler of
    Brownian paths (Stable Audio's) draws them on the samples' device: its samples differ between a CPU and a GPU.

    Raises:
        ConfigError: the scheduler draws noise and cannot be given generators.
    """
    check_scheduler(scheduler)
    noise = SeededNoise(seeds)
    z = noise.draw(event_shape).to(device, torch.float32) * getattr(scheduler, "init_noise_sigma", 1.0)
    possible: dict[str, object] = {"generator": noise.generators, "eta": 0.0}  # as the pipelines' own calls have it
    extra = {name: possible[name] for name in possible.keys() & inspect.signature(scheduler.step).parameters.keys()}
    scale = getattr(scheduler, "scale_model_input", None)
    # the scheduler's own numbers stay where it has them: on a GPU each look at one would wait for all that is queued
    for t, time in zip(scheduler.timesteps, scheduler.timesteps.to(device), strict=True):
        output = network(scale(z, t) if scale else z, time.expand(len(z)), cond).float()
        with torch.autocast(device.type, enabled=False):  # some schedulers multiply matrices
            z = scheduler.step(output, t, z, return_dict=False, **extra)[0]
    return z


def check_scheduler(scheduler: Any) -> None:
    """Raises ConfigError if the scheduler's noise cannot come from the samples' seeds."""
    if hasattr(scheduler, "noise_sampler") and "generator" not in inspect.signature(scheduler.step).parameters:
        raise ConfigError(
            f"the pipeline's scheduler is a {type(scheduler).__name__}, whose noise does not come from the samples' "
            "seeds; set sampler to dpmpp_2m, or give the pipeline another scheduler"
        )


def fresh(scheduler: Any) -> Any:
    """A scheduler of the same settings, without the state of a roll-out."""
    # a pipeline may have changed a setting (steps_offset) that is still listed as left at its default
    settings = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    return type(scheduler).from_config(settings)


def set_to(scheduler: Any, *steps: int, **times: Any) -> Any:
    """A `fresh` scheduler, its times set: the arguments are those of `set_timesteps`."""
    made = fresh(scheduler)
    made.set_timesteps(*steps, **times)
    return made


def classifier_free(network: Network, empty: Cond, guidance: float) -> Network:
    """Classifier-free guidance in one call of 2b rows; see `dragon.diffusion.Guided`."""
    return Guided(network, empty, guidance, cat=Cond.cat)


def at_peak(clips: Tensor) -> Tensor:
    """Each clip scaled to a peak of -1 dBFS; a silent one stays silent."""
    peak = clips.abs().flatten(1).amax(1).reshape(-1, *[1] * (clips.ndim - 1))
    return clips * torch.where(peak > 0, PEAK / peak.clamp(min=torch.finfo(clips.dtype).tiny), 1.0)


# ---- finding and loading


@dataclass(frozen=True)
class Stored:
    """A pipeline that can be read. index: its model_index.json. commit: of the hub's repository; None if not known.

    cached: the hub cannot be asked, and only what it gave earlier is there.
    """

    folder: str
    index: Mapping[str, Any]
    commit: str | None = None
    cached: bool = False

    @property
    def kind(self) -> str:
        """Name of its class."""
        return str(self.index["_class_name"])


def stored(folder: str, revision: str | None = None) -> Stored:
    """What lies in a folder or under a hub name; of a branch of the hub the present commit.

    Raises:
        ConfigError: no such folder or hub name, or no pipeline in it.
    """
    from diffusers import DiffusionPipeline

    local = os.path.isdir(folder)
    if os.path.isfile(folder) or (local and not os.path.isfile(os.path.join(folder, "model_index.json"))):
        raise ConfigError(
            f"{folder!r} {'is a file' if os.path.isfile(folder) else 'holds no model_index.json'}; expected the folder "
            f"of a pipeline, as save_pretrained writes it (for a checkpoint in another format see {OWN_MODEL})"
        )
    if not local and not _HUB_NAME.fullmatch(folder):
        raise ConfigError(
            f"no pipeline {folder!r}: there is no such folder (looked in {os.getcwd()}), and no hub name is written "
            "so; expected a folder that save_pretrained wrote, or owner/name"
        )
    commit, why_not = (None, "") if local else _commit(folder, revision)
    try:
        index = DiffusionPipeline.load_config(folder, revision=commit or revision, local_files_only=bool(why_not))
    except (OSError, ValueError) as error:
        if local:
            reason, advice = f"its model_index.json cannot be read ({error})", "save or download the pipeline again"
        elif why_not:
            reason = f"it is neither a folder here nor in the hub's cache, and the hub cannot be asked ({why_not})"
            advice = "download it where there is a network, or give the path of a folder"
        elif _gated(error):
            reason, advice = "the hub gives it to those who accepted its licence", _accept(folder)
        else:
            reason = f"it is no folder here, and the hub gave {type(error).__name__}: {str(error).splitlines()[0]}"
            advice = "check the name and the revision, or log in if it is a private one (hf auth login)"
        raise ConfigError(f"no pipeline {folder!r}: {reason}; {advice}") from error
    if not isinstance(index, Mapping) or not isinstance(index.get("_class_name"), str):
        raise ConfigError(f"model_index.json of {folder!r} names no _class_name; save the pipeline again")
    return Stored(folder, index, None if local else commit or revision, bool(why_not))


def load(
    source: Stored,
    variant: str | None = None,
    without: Sequence[str] = (),
    formats: Mapping[str, torch.dtype] | None = None,
) -> DiffusionPipeline:
    """The pipeline, its parts on the CPU; those called `without` are not even read. formats: of parts read in another
    number format than float32.

    Raises:
        ConfigError: a file is missing or damaged, or a component cannot be made. MissingExtra: it needs a package.
    """
    import diffusers
    from diffusers import DiffusionPipeline

    what = f"{source.kind} {source.folder!r}"
    # parts that were saved as absent: diffusers wants to be told so again
    absent = [*without, *(name for name, made_by in source.index.items() if made_by == [None, None])]
    given: dict[str, Any] = dict.fromkeys(absent) | ({} if variant is None else {"variant": variant})
    # By its own class: the base class does not know which parts may be absent, and would read them all the same.
    own = getattr(diffusers, source.kind, DiffusionPipeline)
    try:
        pipe = own.from_pretrained(
            source.folder,
            dtype={"default": torch.float32, **(formats or {})},
            revision=source.commit,
            local_files_only=source.cached,
            **given,
        )
    except ImportError as error:
        raise MissingExtra(f"{what} needs a package that is not installed: {str(error).strip()}") from error
    except Exception as error:  # diffusers, transformers and safetensors each have their own
        advice = _accept(source.folder) if _gated(error) else "save or download the pipeline again"
        raise ConfigError(f"{what} cannot be loaded: {type(error).__name__}: {error}; {advice}") from error
    pipe.set_progress_bar_config(disable=True)
    return cast("DiffusionPipeline", pipe)


_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def _commit(name: str, revision: str | None) -> tuple[str | None, str]:
    """(commit of the hub's repository, why the hub cannot be asked in a few words), None and "" for what is not so.

    A download tries for half a minute before it says that there is no network; this says so at once.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().model_info(name, revision=revision, timeout=10).sha, ""
    except HfHubHTTPError:  # it answers: what is wrong, the download says better
        return None, ""
    except Exception as error:  # of whichever HTTP library it uses
        kept = try_to_load_from_cache(name, "model_index.json", revision=revision)
        commit = os.path.basename(os.path.dirname(kept)) if isinstance(kept, str) else None
        return commit, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}"


def _gated(error: BaseException) -> bool:
    """Whether the hub refused for want of a licence: diffusers reports that as a name that is none."""
    from huggingface_hub.errors import GatedRepoError

    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, GatedRepoError):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def _accept(name: str) -> str:
    return f"accept the licence at https://huggingface.co/{name}, then log in: hf auth login"


def family_of(kind: str, options: Mapping[str, object]) -> functools.partial[Family]:
    """What makes the family of a loaded pipeline of class `kind`, with the family's `options`.

    Raises:
        ConfigError: an unknown class, or an option that its family does not have or cannot use.
    """
    made_by = _family(kind)
    return functools.partial(made_by, **_fitting(kind, made_by, options))


def _family(kind: str) -> Callable[..., Family]:
    known = available("family")
    if kind not in known and ":" not in kind:
        stems = {name.removesuffix("Pipeline"): name for name in known}  # else all would be alike
        close = difflib.get_close_matches(kind.removesuffix("Pipeline"), stems, n=2)
        near = " or ".join(repr(stems[stem]) for stem in close)
        raise ConfigError(
            f"pipelines of class {kind!r} are of no known family{f'; did you mean {near}?' if near else ''}; known: "
            f"{', '.join(known)}. {OWN_MODEL} shows how to write an adapter for your own model"
        )
    return cast(Callable[..., Family], resolve("family", kind))


def _fitting(kind: str, made_by: Callable[..., Family], options: Mapping[str, object]) -> dict[str, Any]:
    """The family's options as its signature wants them.

    Raises:
        ConfigError: all that are unknown or of another type.
    """
    allowed = dict(list(inspect.signature(made_by).parameters.items())[1:])
    common = [k for k in inspect.signature(PipelinePolicy).parameters if k not in ("device", "options")]
    fitting, problems = {}, []
    for key, value in options.items():
        near = nearest(key, [*allowed, *common])
        if key not in allowed:
            problems.append(f"policy option {key!r} is unknown to {kind}{f'; did you mean {near}?' if near else ''}")
            continue
        try:
            fitting[key] = converted(made_by, allowed[key], value)
        except ConfigError as error:
            problems.append(f"policy option {key!r} of {kind}: {error}")
    if problems:
        raise ConfigError(
            f"{'; '.join(problems)}; options of this family: {', '.join(allowed) or 'none'}; of every pipeline: "
            f"{', '.join(common)}"
        )
    return fitting


def _check_numbers(
    tuning: str,
    precision: str,
    weights: str,
    times: tuple[float, float],
    sampler_times: int,
    decode_rows: int,
    loudness: str,
) -> None:
    if tuning not in ("lora", "full"):
        raise ConfigError(f"tuning is {tuning!r}; expected 'lora' or 'full'")
    if weights not in DTYPES:
        raise ConfigError(f"weights is {weights!r}; expected one of {list(DTYPES)}")
    if weights != "float32" and tuning == "full":
        raise ConfigError(
            f"weights is {weights!r} with full tuning, whose small updates it would round away; use weights float32 "
            "(precision bfloat16 still computes in bfloat16), or tuning.kind lora"
        )
    if weights != "float32" and precision == "float32":
        raise ConfigError(f"weights is {weights!r} and precision float32; use precision bfloat16, or weights float32")
    if not 0 <= times[0] < times[1] <= 1:
        raise ConfigError(f"t_min {times[0]}, t_max {times[1]}; expected 0 <= t_min < t_max <= 1")
    if sampler_times < 0 or (sampler_times and times != (0.0, 1.0)):
        raise ConfigError(
            f"sampler_times is {sampler_times}, t_min {times[0]}, t_max {times[1]}; expected sampler_times >= 0 and no "
            "range of times beside it"
        )
    if decode_rows < 1:
        raise ConfigError(f"decode_rows is {decode_rows}; expected at least 1 clip")
    if loudness != "pipeline" and loudness not in _LOUDNESS:
        raise ConfigError(f"loudness is {loudness!r}; expected one of {['pipeline', *_LOUDNESS]}")


_LOUDNESS = {"decoded": "as decoded", "peak": "each clip at a peak of -1 dBFS"}


def _formats(source: Stored, family: Any, wanted: torch.dtype) -> dict[str, torch.dtype]:
    """Of text encoders, which are the largest parts: read as they will be held, not in float32 first.

    Only transformers' models keep their buffers in float32 when they are read so.
    """
    names = getattr(family, "text_parts", ())
    made_by = {name: source.index.get(name) for name in names} if isinstance(names, tuple) else {}
    return {name: wanted for name, found in made_by.items() if found and found[0] == "transformers"}


def _placed(pipe: Any, family: Family, device: torch.device, dtype: torch.dtype, offload: bool) -> nn.Module:
    """Freezes and places the pipeline's components; gives the one that denoises."""
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            freeze(part)
            wanted = dtype if name == family.part or name in family.text_parts else torch.float32
            _set_format(part, wanted)
            part.to(torch.device("cpu") if offload and name in family.text_parts else device)
    return cast(nn.Module, getattr(pipe, family.part))


def _set_format(part: Any, wanted: torch.dtype) -> None:
    """Of the weights. Buffers hold frequencies and positions, for which half precision has too few digits.

    Layers that overflow in float16, by the model's own list (T5's second matrices), stay float32.
    """
    kept = set(getattr(part, "_keep_in_fp32_modules", None) or ()) if wanted == torch.float16 else set()
    for name, p in part.named_parameters():
        dtype = torch.float32 if kept & set(name.split(".")) else wanted
        if p.is_floating_point() and p.dtype != dtype:
            p.data = p.data.to(dtype)
    for module in part.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in (torch.float16, torch.bfloat16):
                module._buffers[name] = buffer.float()


def _set_checkpointing(family: Family, module: Any, wanted: bool) -> None:
    if wanted and not getattr(module, "_supports_gradient_checkpointing", False):
        raise ConfigError(
            f"{type(module).__name__} of family {family.name} has no gradient checkpointing; leave "
            "gradient_checkpointing out and lower update.micro_batch_size instead"
        )
    if wanted:
        getattr(family, "checkpoint", module.enable_gradient_checkpointing)()
    elif getattr(module, "_supports_gradient_checkpointing", False):
        module.disable_gradient_checkpointing()


def _compile(module: nn.Module) -> None:
    """Where most weights are in a row of equal blocks, each is compiled by itself and the first serves for all.

    That gains about as much as compiling the whole, for a fraction of the wait; unequal blocks are compiled together.
    """
    # rows of roll-outs and of micro-batches, with and without gradient, with and without the adapter: more than the 8
    # versions of one function after which torch would give up and run it as it is
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    total = sum(p.numel() for p in module.parameters())
    rows = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len({type(b) for b in part}) == 1]
    most = [row for row in rows if len(row) > 1 and sum(p.numel() for p in row.parameters()) > _MOST * total]
    for part in most[0] if most else [module]:
        part.compile()


_MOST = 0.8  # U-Nets have less in any of their lists


def _lora_writer(pipe: Any, part: str) -> Callable[[Mapping[str, Tensor], Mapping[str, Any], str], None] | None:
    """Writes what the pipeline's `load_lora_weights` reads, where it has that."""
    if not hasattr(pipe, "load_lora_weights"):
        return None
    save = type(pipe).save_lora_weights

    def write(matrices: Mapping[str, Tensor], config: Mapping[str, Any], folder: str) -> None:
        given = {f"{part}_lora_layers": dict(matrices), f"{part}_lora_adapter_metadata": copy.deepcopy(dict(config))}
        save(folder, **given)

    return write
