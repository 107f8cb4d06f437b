"""Does a plug-in keep its contract? For authors of rewards and policies, in their own tests.

    from dragon.testing import check_reward
    def test_my_reward(): check_reward(MyReward())

Knows the protocols and no plug-in. What is wrong is collected and raised at once as a `PluginError`, each fault
with the method that commits it and what is expected; what runs but will train badly is a warning. Each clause
checked here is one that the trainer or the evaluation relies on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dragon.errors import PluginError
from dragon.faults import Faults, TrainsBadly
from dragon.media import Cond, Generation, Media
from dragon.protocols import InfluenceReward, InstanceReward, Noising, Policy, SetReward, SwappableReward

__all__ = ["TrainsBadly", "check_policy", "check_reward"]


def check_reward(reward: InstanceReward | SetReward, media: Media | None = None) -> None:
    """Checks a reward on `media` (default: four seconds-long 16 kHz mono clips of tones and noise).

    Give clips of your own where the default ones mean nothing to the reward: at least 3, all different, with
    the columns that it reads.

    Raises:
        PluginError: everything that breaks the contract, one line a fault.
    """
    media = _clips() if media is None else media
    faults = Faults(_name(reward))
    if len(media) < 3:
        raise PluginError(f"check_reward got {len(media)} clips; expected at least 3, all different")
    faults.expect(isinstance(getattr(reward, "name", None), str) and reward.name, "name", "is a non-empty string")
    if isinstance(reward, SetReward):
        _check_set_reward(reward, media, faults)
    else:
        _check_instance_reward(reward, media, faults)
    faults.report()


def check_policy(
    policy: Policy, prompts: Sequence[str] = ("a slow piano", "fast drums", "a choir"), *, steps: int = 2
) -> None:
    """Checks a policy on `prompts` (at least 2, different); its weights are as before when this returns.

    Raises:
        PluginError: everything that breaks the contract, one line a fault.
    """
    prompts = list(prompts)
    if len(set(prompts)) < 2:
        raise PluginError(f"check_policy got prompts {prompts}; expected at least 2 different ones")
    faults = Faults(_name(policy))
    faults.expect(isinstance(getattr(policy, "name", None), str) and policy.name, "name", "is a non-empty string")
    parameters = faults.call("trainable", policy.trainable) or {}
    faults.expect(parameters, "trainable", "names at least one parameter")
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    faults.expect(not frozen, "trainable", f"gives parameters that require a gradient; {frozen[:3]} do not")
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        _check_encode(policy, prompts, faults)
        made = _check_generate(policy, prompts, steps, faults)
        if made is not None:
            _check_decode(policy, made, faults)
            noising = _check_noising(policy, made.latents, faults)
            if noising is not None and parameters:
                _check_learning(policy, made, noising, faults)
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
                p.grad = None
    faults.report()


def _check_instance_reward(reward: InstanceReward, media: Media, faults: Faults) -> None:
    abstains = getattr(reward, "abstains", None)
    faults.expect(isinstance(abstains, bool), "abstains", f"is a bool, not {abstains!r}")
    score = _pure(reward, "score", media, faults)
    first = score(media)
    if first is None or not faults.shape("score", first, (len(media),), "one score a clip"):
        return
    faults.expect(first.dtype == torch.float64, "score", f"gives float64, not {first.dtype}")
    faults.expect(not torch.isinf(first).any(), "score", f"gives no infinity; it gave {first.tolist()}")
    faults.expect(
        bool(abstains) or not torch.isnan(first).any(),
        "score",
        f"gives NaN only where `abstains` is True; it gave {first.tolist()}",
    )
    faults.same("score", first, score(media), "gives the same scores for the same clips (no unseeded randomness)")
    singles = [score(media.rows([row])) for row in range(len(media))]
    if all(s is not None and s.shape == (1,) for s in singles):
        joined = torch.cat([s for s in singles if s is not None])
        faults.same("score", first, joined, "does not depend on the other clips of the batch")
    backwards = list(reversed(range(len(media))))
    faults.same("score", first[backwards], score(media.rows(backwards)), "keeps the clips' order")
    opinions = first[torch.isfinite(first)]
    if abstains and len(opinions) == 0:
        faults.warn("score", "abstained on every clip given: nothing but the abstention was checked")
    elif len(opinions) > 1 and bool((opinions == opinions[0]).all()):
        faults.warn("score", f"is {opinions[0]:g} for all of {len(opinions)} different clips: it ranks nothing")


def _check_set_reward(reward: SetReward, media: Media, faults: Faults) -> None:
    embed = _pure(reward, "embed", media, faults)
    features = embed(media)
    if features is None:
        return
    if features.ndim != 3 or len(features) != len(media):
        faults.add("embed", f"gives (b, frames, features) for b clips, here b = {len(media)}; {tuple(features.shape)}")
        return
    faults.expect(torch.isfinite(features).all(), "embed", "gives finite features")
    faults.same("embed", features, embed(media), "gives the same features for the same clips")
    singles = [embed(media.rows([row])) for row in range(len(media))]
    if all(s is not None and s.shape[1:] == features.shape[1:] for s in singles):
        joined = torch.cat([s for s in singles if s is not None])
        faults.same("embed", features, joined, "does not depend on the other clips of the batch")
    else:
        faults.add("embed", "gives as many frames for one clip as for the same clip in a batch")
    n = len(media)
    members = torch.stack([torch.arange(n - 1), torch.arange(1, n), torch.arange(n - 1).flip(0)])
    copy = features.clone()
    scores = faults.call("score_sets", lambda: reward.score_sets(features, members))
    if scores is None or not faults.shape("score_sets", scores, (3,), "one score a candidate set"):
        return
    faults.expect(torch.equal(features, copy), "score_sets", "leaves the features it is given as they are")
    faults.expect(torch.isfinite(scores).all(), "score_sets", f"gives finite scores; it gave {scores.tolist()}")
    faults.same("score_sets", scores[:1], scores[2:], "does not depend on the order of a set's members")
    alone = faults.call("score_sets", lambda: torch.cat([reward.score_sets(features, m[None]) for m in members]))
    faults.same("score_sets", scores, alone, "scores a candidate set alike alone and among others")
    if isinstance(reward, SwappableReward):
        _check_swap_scorer(reward, features, faults)
    if isinstance(reward, InfluenceReward):
        _check_influence(reward, features, faults)


def _check_swap_scorer(reward: SwappableReward, features: Tensor, faults: Faults) -> None:
    """Of the set of all clips but the last: its neighbours, which let the last clip in."""
    n = len(features)
    scorer = faults.call("swap_scorer", lambda: reward.swap_scorer(features))
    if scorer is None:
        return
    inside, last = torch.arange(n - 1), torch.full((n - 1,), n - 1)
    sets = torch.where(torch.eye(n - 1, dtype=torch.bool), last, inside.repeat(n - 1, 1))
    expected = reward.score_sets(features, sets).double()
    faults.call("swap_scorer", lambda: scorer.start(inside))
    found = faults.call("swap_scorer", lambda: scorer.neighbours(inside, last))
    if found is None or not faults.shape("swap_scorer", found, (n - 1,), "neighbours gives one score an exchange"):
        return
    faults.same("swap_scorer", found, expected, "scores a set after an exchange as score_sets does")
    low, high = scorer.bounds(inside, last)
    slack = 1e-6 * (1 + expected.abs())
    inside_bounds = ((low <= expected + slack) & (expected <= high + slack)).all()
    faults.expect(inside_bounds, "swap_scorer", "gives bounds that hold the score")
    scorer.swap(0, n - 1)
    faults.same(
        "swap_scorer", torch.tensor([scorer.value], dtype=torch.float64), expected[:1], "keeps its value over a swap"
    )


def _check_influence(reward: InfluenceReward, features: Tensor, faults: Faults) -> None:
    found = faults.call("influence", lambda: reward.influence(features, features))
    if found is None or not faults.shape("influence", found, (len(features),), "one number a clip"):
        return
    faults.expect(torch.isfinite(found).all(), "influence", f"gives finite numbers; it gave {found.tolist()}")
    # a mixture of the queue with itself is the queue
    small = abs(float(found.mean())) <= 1e-6 * (1 + float(found.abs().max()))
    faults.expect(
        small, "influence", f"averages to 0 over the queue's own clips; it averages to {float(found.mean()):g}"
    )


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


def _check_generate(policy: Policy, prompts: list[str], steps: int, faults: Faults) -> Generation | None:
    asked, seeds = [*prompts, prompts[0]], list(range(11, 12 + len(prompts)))

    def generate(rows: Sequence[int]) -> Generation | None:
        chosen = [asked[i] for i in rows], [seeds[i] for i in rows]
        return faults.call("generate", lambda: policy.generate(*chosen, steps=steps, guidance=1.5))

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
    again, alone = generate(every), generate([len(asked) - 1])
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


def _check_decode(policy: Policy, made: Generation, faults: Faults) -> None:
    media = faults.call("decode", lambda: policy.decode(made))
    if media is None:
        return
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


def _check_learning(policy: Policy, made: Generation, noising: Noising, faults: Faults) -> None:
    """predict, target, weights, reference, save and load: all read through what `predict` gives."""

    def predict() -> Tensor | None:
        return faults.call("predict", lambda: policy.predict(made.latents, noising, made.cond))

    with torch.no_grad():
        start = predict()
        target = faults.call("target", lambda: policy.target(made.latents, noising))
    shape = tuple(made.latents.shape)
    good = start is not None and faults.shape("predict", start, shape, "like the latents")
    if not good or target is None or not faults.shape("target", target, shape, "like the latents"):
        return
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
    _check_gradient(policy, predict, target, faults)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        saved = faults.run("save", lambda: policy.save(folder))
        for p in policy.trainable().values():
            p.zero_()
        if saved and faults.run("load", lambda: policy.load(folder)):
            faults.same("load", trained, predict(), "brings back what `save` wrote")


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


def _pure(owner: object, method: str, media: Media, faults: Faults) -> Callable[[Media], Tensor | None]:
    """`owner.method` of a batch, checked to leave the clips and torch's gradient mode as they were."""

    def called(batch: Media) -> Tensor | None:
        copy, mode = batch.tensor.clone(), torch.is_grad_enabled()
        result = faults.call(method, lambda: getattr(owner, method)(batch))
        faults.expect(torch.equal(batch.tensor, copy), method, "leaves the clips it is given as they are")
        if torch.is_grad_enabled() != mode:
            torch.set_grad_enabled(mode)  # else the caller's own process goes on without gradients
            faults.add(method, "leaves torch's gradient mode as it was (use `with torch.no_grad():`)")
        if result is not None and not isinstance(result, Tensor):
            faults.add(method, f"gives a torch.Tensor, not {type(result).__name__}")
            return None
        return None if result is None else result.detach()

    return called


class _Probe(Exception):
    """Raised inside a context to see that it restores what it changed."""


def _name(plugin: object) -> str:
    return type(plugin).__name__


def _clips() -> Media:
    """Four different one-second clips at 16 kHz: two tones, noise, a fading tone."""
    t = torch.arange(16_000) / 16_000
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    clips = [0.5 * torch.sin(880 * torch.pi * t), 0.3 * torch.sin(220 * torch.pi * t), 0.1 * noise]
    clips.append(clips[0] * torch.exp(-3 * t))
    return Media(torch.stack(clips)[:, None], ("a high tone", "a low tone", "noise", "a fading tone"), 16_000)
