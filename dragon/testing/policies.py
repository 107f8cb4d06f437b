"""check_policy: does a policy keep its contract? Each clause is one that the trainer or the evaluation relies on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from dragon.errors import PluginError
from dragon.faults import Faults
from dragon.media import Cond, Generation
from dragon.protocols import Noising, Policy, Precision, ShardablePolicy

OPPOSED = -0.5
"""Cosine of prediction and target below which a network most likely has its sign or its time the wrong way round."""


@dataclass(frozen=True)
class CheckedPolicy:
    """A policy that keeps its contract, and what was seen of it.

    laws: what was checked, one sentence each. latent: shape of one. clip: shape of one; rate in Hz, None if not audio.
    parameters, tensors: how many are trained. sample_seconds: time a sample took with so many `steps`; step_seconds:
    of what a training step computes for `rows` clips (prediction, the reference's, backward), both once warm.
    explained: share of the target that the starting model predicts, 1 - error / size of the target: near 0 or below for
    a model that was not trained, or one whose sign, time or scale is wrong here.
    """

    name: str
    laws: tuple[str, ...]
    latent: tuple[int, ...]
    clip: tuple[int, ...]
    rate: int | None
    parameters: int
    tensors: int
    steps: int
    rows: int
    sample_seconds: float
    step_seconds: float
    explained: float


_LAWS = (
    "conditions: one row a prompt, one shape for all prompts, independent of the batch, without gradient",
    "samples: the same for the same seeds, others for other seeds, independent of the batch, finite",
    "clips: float32, finite, in the prompts' order, independent of the batch",
    "noise: levels above 0, one a row, drawn from the generator given and from no other",
    "predict and target: shaped like the latents; a gradient reaches the trained parameters",
    "latents, noise and conditions are left as they were",
    "reference() shows the starting model, weights() restores, after an error too",
    "load brings back what {stored} wrote",
)


def check_policy(
    policy: Policy,
    prompts: Sequence[str] = ("a slow piano", "fast drums", "a choir"),
    *,
    steps: int = 2,
    guidance: float = 1.5,
) -> CheckedPolicy:
    """Checks a policy on `prompts` (at least 2, different); its weights are as before when this returns.

    Raises:
        PluginError: everything that breaks the contract, one line a fault.
    """
    prompts = list(prompts)
    if len(set(prompts)) < 2:
        raise PluginError(f"check_policy got prompts {prompts}; expected at least 2 different ones")
    faults, seen = Faults(type(policy).__name__), _Seen()
    lacking = sorted(part for part in vars(Policy) if not part.startswith("_") and not hasattr(policy, part))
    if lacking:
        raise PluginError(
            f"{type(policy).__name__} is no policy: it lacks {', '.join(lacking)} (dragon.protocols.Policy); subclass "
            "dragon.policy.DiffusionPolicy, which has them, or add them"
        )
    faults.expect(isinstance(getattr(policy, "name", None), str) and policy.name, "name", "is a non-empty string")
    _check_optional(policy, faults)
    parameters = faults.call("trainable", policy.trainable) or {}
    faults.expect(parameters, "trainable", "names at least one parameter")
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    faults.expect(not frozen, "trainable", f"gives parameters that require a gradient; {frozen[:3]} do not")
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        _check_encode(policy, prompts, faults)
        made = _check_generate(policy, prompts, steps, guidance, faults, seen)
        if made is not None:
            _check_decode(policy, made, faults, seen)
            noising = _check_noising(policy, made.latents, faults)
            if noising is not None and parameters:
                _check_learning(policy, made, noising, faults, seen)
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
                p.grad = None
    faults.report()
    stored = "save and write" if isinstance(policy, ShardablePolicy) else "save"
    return CheckedPolicy(
        name=policy.name,
        laws=tuple(law.format(stored=stored) for law in _LAWS),
        latent=seen.latent,
        clip=seen.clip,
        rate=seen.rate,
        parameters=sum(p.numel() for p in parameters.values()),
        tensors=len(parameters),
        steps=steps,
        rows=len(prompts) + 1,
        sample_seconds=seen.sampling / (len(prompts) + 1),
        step_seconds=seen.training,
        explained=seen.explained,
    )


@dataclass
class _Seen:
    """What is noted on the way; sampling and training in seconds of a whole batch."""

    latent: tuple[int, ...] = ()
    clip: tuple[int, ...] = ()
    rate: int | None = None
    sampling: float = float("nan")
    training: float = float("nan")
    explained: float = float("nan")


def _now(like: Tensor) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()


@contextmanager
def _kept(method: str, faults: Faults, **given: Tensor) -> Iterator[None]:
    """What changes in place of the tensors given becomes a fault of `method`, and is put back."""
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    yield
    for name, tensor in given.items():
        if not torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(before[name])):
            faults.add(method, f"leaves the {name} it is given as they are (no in-place changes)")
            with torch.no_grad():
                tensor.copy_(before[name])


def _check_optional(policy: Policy, faults: Faults) -> None:
    """What only some policies have, and the trainer asks for."""
    precision, names = getattr(policy, "precision", "float32"), get_args(Precision)
    faults.expect(precision in names, "precision", f"is one of {names} where there is one, not {precision!r}")
    if hasattr(policy, "shard"):
        missing = [name for name in ("stored", "write") if not hasattr(policy, name)]
        faults.expect(not missing, "shard", f"comes with `stored` and `write`; missing: {missing}")


def _check_encode(policy: Policy, prompts: list[str], faults: Faults) -> None:
    cond = faults.call("encode", lambda: policy.encode(prompts))
    if not isinstance(cond, Cond):
        faults.add("encode", f"gives a dragon.media.Cond, not {type(cond).__name__}")
        return
    for name, tensor in cond.tensors.items():
        faults.expect(len(tensor) == len(prompts), "encode", f"gives one row a prompt; {name!r} has {len(tensor)}")
        faults.expect(not tensor.requires_grad, "encode", f"needs no gradient; {name!r} requires one")
    alone = faults.call("encode", lambda: policy.encode(prompts[-1:]))
    for name, tensor in cond.tensors.items():
        if alone is not None and alone.tensors[name].shape[1:] == tensor.shape[1:]:
            faults.same("encode", tensor[-1:], alone.tensors[name], f"does not depend on the batch ({name!r})")
        elif alone is not None:
            faults.add("encode", f"gives one shape for all prompts, so that rows of two calls fit together ({name!r})")


def _check_generate(
    policy: Policy, prompts: list[str], steps: int, guidance: float, faults: Faults, seen: _Seen
) -> Generation | None:
    asked, seeds = [*prompts, prompts[0]], list(range(11, 12 + len(prompts)))

    def generate(rows: Sequence[int]) -> Generation | None:
        chosen = [asked[i] for i in rows], [seeds[i] for i in rows]
        return faults.call("generate", lambda: policy.generate(*chosen, steps=steps, guidance=guidance))

    every = range(len(asked))
    made = generate(every)
    if made is None or not isinstance(made, Generation):
        faults.add("generate", f"gives a dragon.media.Generation, not {type(made).__name__}")
        return None
    faults.expect(list(made.prompts) == asked, "generate", f"keeps the prompts in order; it gave {made.prompts}")
    faults.expect(list(made.seeds) == seeds, "generate", f"keeps the seeds in order; it gave {made.seeds}")
    faults.expect(not made.latents.requires_grad, "generate", "runs without gradient")
    faults.expect(torch.isfinite(made.latents).all(), "generate", "gives finite latents")
    if len(made.latents) != len(asked):
        faults.add("generate", f"gives one latent a prompt; {len(made.latents)} for {len(asked)}")
        return None
    seen.latent = tuple(made.latents.shape[1:])
    start = _now(made.latents)
    again = generate(every)
    seen.sampling = _now(made.latents) - start
    alone = generate([len(asked) - 1])
    faults.same(
        "generate", made.latents, None if again is None else again.latents, "gives the same samples for the same seeds"
    )
    faults.same(
        "generate",
        made.latents[-1:],
        None if alone is None else alone.latents,
        "gives a sample that its batch does not change",
    )
    faults.expect(
        not torch.allclose(made.latents[0], made.latents[-1]), "generate", "gives another sample for another seed"
    )
    return made


def _check_decode(policy: Policy, made: Generation, faults: Faults, seen: _Seen) -> None:
    with _kept("decode", faults, latents=made.latents):
        media = faults.call("decode", lambda: policy.decode(made))
    if media is None:
        return
    seen.clip, seen.rate = tuple(media.tensor.shape[1:]), media.rate
    faults.expect(media.prompts == made.prompts, "decode", "keeps the generation's prompts, in order")
    faults.expect(not media.tensor.requires_grad, "decode", "runs without gradient")
    faults.expect(media.tensor.dtype == torch.float32, "decode", f"gives float32, not {media.tensor.dtype}")
    faults.expect(torch.isfinite(media.tensor).all(), "decode", "gives finite clips")
    faults.expect(media.rate is None or media.rate > 0, "decode", f"gives a rate in Hz or None, not {media.rate}")
    if media.rate is not None and float(media.tensor.abs().max()) > 1.5:
        faults.warn(
            "decode", f"reaches {float(media.tensor.abs().max()):.2g}; audio beyond [-1, 1] is clipped in files"
        )
    alone = faults.call("decode", lambda: policy.decode(made.rows([1])))
    if alone is not None:
        faults.same("decode", media.tensor[1:2], alone.tensor, "does not depend on the batch")


def _check_noising(policy: Policy, latents: Tensor, faults: Faults) -> Noising | None:
    def draw(generator: torch.Generator) -> Noising | None:
        return faults.call("draw_noising", lambda: policy.draw_noising(latents, generator))

    generator = torch.Generator().manual_seed(5)
    first, second = draw(generator), draw(generator)
    again = draw(torch.Generator().manual_seed(5))
    if first is None or second is None or again is None:
        return None
    if first.sigma.shape != latents.shape[:1] or first.noise.shape != latents.shape:
        found = tuple(first.sigma.shape), tuple(first.noise.shape)
        faults.add("draw_noising", f"gives sigma (b,) and noise shaped like the latents; it gave {found}")
        return None
    faults.expect((first.sigma > 0).all(), "draw_noising", f"gives sigma > 0; it gave {first.sigma.tolist()}")
    faults.expect(torch.isfinite(first.sigma).all(), "draw_noising", "gives finite noise levels")
    same = torch.equal(first.noise, again.noise) and torch.equal(first.sigma, again.sigma)
    faults.expect(same, "draw_noising", "draws from the generator it is given, and from no other")
    faults.expect(not torch.equal(first.noise, second.noise), "draw_noising", "draws new noise at each call")
    return first


def _check_learning(policy: Policy, made: Generation, noising: Noising, faults: Faults, seen: _Seen) -> None:
    """predict, target, weights, reference, save and load: all read through what `predict` gives."""
    given = {"latents": made.latents, "noise": noising.noise, "noise levels": noising.sigma}
    conditions = {f"conditions ({name!r})": tensor for name, tensor in made.cond.tensors.items()}

    def predict() -> Tensor | None:
        return faults.call("predict", lambda: policy.predict(made.latents, noising, made.cond))

    with torch.no_grad():
        with _kept("predict", faults, **given, **conditions):
            start = predict()
        with _kept("target", faults, **given):
            target = faults.call("target", lambda: policy.target(made.latents, noising))
    shape = tuple(made.latents.shape)
    good = start is not None and faults.shape("predict", start, shape, "like the latents")
    if not good or target is None or not faults.shape("target", target, shape, "like the latents"):
        return
    assert start is not None
    seen.explained = _explained(start.double(), target.double(), faults)
    others = made.cond.rows([*range(1, len(made.latents)), 0])
    with torch.no_grad():
        exchanged = faults.call("predict", lambda: policy.predict(made.latents, noising, others))
    if exchanged is not None and torch.allclose(start, exchanged):
        faults.warn("predict", "gives the same whatever the prompt: are its conditions used?")
    moved = {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p)
        for i, (name, p) in enumerate(policy.trainable().items())
    }
    with torch.no_grad():
        _check_weights(policy, moved, predict, start, faults)
    with torch.no_grad():  # from here on the weights are the moved ones, in place, as after training
        for name, p in policy.trainable().items():
            p.copy_(moved[name])
        trained = predict()
        with faults.inside("reference", policy.reference):
            reference = predict()
        faults.same("reference", start, reference, "shows the starting model, whatever the weights have become")
        faults.same("reference", trained, predict(), "leaves the trained weights as they were")
    begun = _now(target)
    with torch.no_grad(), faults.inside("reference", policy.reference):
        predict()
    _check_gradient(policy, predict, target, faults)
    seen.training = _now(target) - begun
    _check_stored(policy, moved, predict, faults)


def _explained(prediction: Tensor, target: Tensor, faults: Faults) -> float:
    """1 - error / size of the target; a warning where the two point away from each other."""
    size = float(target.square().sum())
    cosine = float((prediction * target).sum()) / max(size * float(prediction.square().sum()), 1e-30) ** 0.5
    if cosine < OPPOSED:
        faults.warn(
            "predict",
            f"points away from its target (cosine {cosine:.2f}): unless its weights are random, the network predicts "
            "the opposite sign, or its time runs the other way (`scaling`: Flow or ReversedFlow?)",
        )
    return 1 - float((prediction - target).square().sum()) / max(size, 1e-30)


def _check_stored(
    policy: Policy, trained: Mapping[str, Tensor], predict: Callable[[], Tensor | None], faults: Faults
) -> None:
    """Each way of storing, and `load`, with the weights `trained`."""
    ways: dict[str, Callable[[str], None]] = {"save": policy.save}
    if isinstance(policy, ShardablePolicy):
        ways["write"] = partial(_gather_and_write, policy)
    for method, store in ways.items():
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            for name, p in policy.trainable().items():
                p.copy_(trained[name])
            before = predict()
            stored = faults.run(method, partial(store, folder))
            for p in policy.trainable().values():
                p.zero_()
            if stored and faults.run("load", partial(policy.load, folder)):
                faults.same("load", before, predict(), f"brings back what `{method}` wrote")


def _gather_and_write(policy: ShardablePolicy, folder: str) -> None:
    policy.write(policy.stored(), folder)


def _check_weights(
    policy: Policy, moved: dict[str, Tensor], predict: Callable[[], Tensor | None], start: Tensor | None, faults: Faults
) -> None:
    with faults.inside("weights", lambda: policy.weights(moved)):
        inside = predict()
    if start is None or inside is None:
        return
    faults.expect(not torch.allclose(start, inside), "weights", "changes what `predict` gives while it is entered")
    faults.same("weights", start, predict(), "restores the weights on leaving")
    try:
        with policy.weights(moved):
            raise _Probe
    except _Probe:
        faults.same("weights", start, predict(), "restores the weights when an error leaves it")


def _check_gradient(policy: Policy, predict: Callable[[], Tensor | None], target: Tensor, faults: Faults) -> None:
    parameters = policy.trainable()
    found = predict()
    if found is None:
        return
    if not found.requires_grad:
        faults.add("predict", "lets gradients flow to the trainable parameters; its result requires none")
        return
    (found - target.detach()).square().mean().backward()
    dead = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    faults.expect(len(dead) < len(parameters), "predict", "gives a gradient to at least one trainable parameter")
    if dead and len(dead) < len(parameters):
        faults.warn("predict", f"gives no gradient to {dead[:3]} ({len(dead)} of {len(parameters)} parameters)")
    for p in parameters.values():
        p.grad = None


class _Probe(Exception):
    """Raised inside a context to see that it restores what it changed."""
