"""The conformance checkers: they pass what is right and name the method at fault in what is wrong."""

from __future__ import annotations

import os
import random
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dragon.contrast.swap import Rescored
from dragon.errors import PluginError
from dragon.media import Cond, Media
from dragon.policy.toy import ToyPolicy
from dragon.testing import TrainsBadly, check_policy, check_reward, example_clips

TOY = ("left", "right", "up")


class Loudness:
    name = "loudness"
    abstains = False

    def score(self, media):
        return media.tensor.double().square().mean((1, 2))


class MeanSpread:
    name = "mean_spread"

    def embed(self, media):
        return media.tensor.double().unfold(2, 4000, 4000).square().mean(3).transpose(1, 2)

    def score_sets(self, features, members):
        return features[members].mean((2, 3)).var(1)


class SquaredMean(MeanSpread):
    """Minus the squared mean of a set, with a swap scorer and its derivative."""

    def score_sets(self, features, members):
        return -features[members].mean((1, 2, 3)).square()

    def swap_scorer(self, features):
        return Rescored(self, features)

    def influence(self, queue, features):
        mean = queue.mean()
        return -2 * mean * (features.mean((1, 2)) - mean)


def rescored(features, **methods):
    """A swap scorer of SquaredMean with these methods in place of its own."""
    return type("Broken", (Rescored,), methods)(SquaredMean(), features)


def breaking(base, **methods):
    """An instance of `base` with these methods or attributes in place of its own."""
    return type("Broken", (base,), methods)()


def test_right_ones_pass_without_a_warning(recwarn):
    check_reward(Loudness())
    check_reward(MeanSpread())
    check_policy(ToyPolicy(), TOY)
    assert not [w for w in recwarn if issubclass(w.category, TrainsBadly)]


class TestRewards:
    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ({"name": ""}, "Broken.name: expected that it is a non-empty string"),
            ({"abstains": None}, "Broken.abstains: expected that it is a bool, not None"),
            (
                {"score": lambda self, m: m.tensor.double().mean(2)},
                r"gives shape \(4,\) .one score a clip., not \(4, 1\)",
            ),
            ({"score": lambda self, m: m.tensor.square().mean((1, 2))}, "gives float64, not torch.float32"),
            ({"score": lambda self, m: [0.0] * len(m)}, "gives a torch.Tensor, not list"),
            ({"score": lambda self, m: Loudness().score(m) / 0}, "gives no infinity"),
            ({"score": lambda self, m: Loudness().score(m) * torch.nan}, "gives NaN only where `abstains` is True"),
            ({"score": lambda self, m: torch.randn(len(m), dtype=torch.float64)}, "gives the same scores"),
            (
                {"score": lambda self, m: Loudness().score(m) - Loudness().score(m).mean()},
                "does not depend on the other clips",
            ),
            ({"score": lambda self, m: Loudness().score(m).sort().values}, "keeps the clips' order"),
            ({"score": lambda self, m: None}, "score: expected that it gives a torch.Tensor, not None"),
            ({"score": lambda self, m: 1 / 0}, "runs; it raised ZeroDivisionError: division by zero"),
            (
                {"score": lambda self, m: Loudness().score(replace(m, tensor=m.tensor.mul_(0.5)))},
                "leaves the clips it is given as they are",
            ),
        ],
    )
    def test_each_breach_is_named(self, broken, message):
        with pytest.raises(PluginError, match=message):
            check_reward(breaking(Loudness, **broken))

    def test_switching_gradients_off_is_named_and_undone(self):
        def score(self, media):
            torch.set_grad_enabled(False)
            return Loudness().score(media)

        with pytest.raises(PluginError, match="score: expected that it leaves torch's gradient mode"):
            check_reward(breaking(Loudness, score=score))
        assert torch.is_grad_enabled()

    def test_all_faults_come_at_once(self):
        with pytest.raises(PluginError, match=r"(?s)3 breaches.*name.*abstains.*float64"):
            check_reward(breaking(Loudness, name="", abstains=1, score=lambda self, m: m.tensor.mean((1, 2))))

    def test_abstaining_is_allowed_where_it_is_said(self):
        def score(self, media):
            scores = Loudness().score(media)
            return torch.where(scores > 0.06, scores, torch.nan)

        check_reward(breaking(Loudness, abstains=True, score=score))

    def test_a_constant_reward_is_warned_about(self):
        with pytest.warns(TrainsBadly, match="it ranks nothing"):
            check_reward(breaking(Loudness, score=lambda self, m: torch.zeros(len(m), dtype=torch.float64)))

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ({"embed": lambda self, m: None}, "embed: expected that it gives a torch.Tensor, not None"),
            ({"embed": lambda self, m: m.tensor.mean(2)}, r"embed: expected that it gives \(b, frames, features\)"),
            ({"embed": lambda self, m: MeanSpread().embed(m) / 0}, "embed: expected that it gives finite features"),
            (
                {"score_sets": lambda self, f, m: [0.0] * 3},
                "score_sets: expected that it gives a torch.Tensor, not list",
            ),
            ({"score_sets": lambda self, f, m: f[m].mean()}, r"score_sets: expected that it gives shape \(3,\)"),
            (
                {"score_sets": lambda self, f, m: f[m[:, 0]].mean((1, 2))},
                "does not depend on the order of a set's members",
            ),
            (
                {"score_sets": lambda self, f, m: MeanSpread().score_sets(f, m) + len(m)},
                "scores a candidate set alike alone and among others",
            ),
            (
                {"score_sets": lambda self, f, m: MeanSpread().score_sets(f.mul_(2), m)},
                "leaves the features it is given as they are",
            ),
        ],
    )
    def test_each_breach_of_a_set_reward_is_named(self, broken, message):
        with pytest.raises(PluginError, match=message):
            check_reward(breaking(MeanSpread, **broken))

    def test_a_set_reward_that_lacks_a_part_is_told_which(self):
        class Scores:
            name = "scores"

            def score_sets(self, features, members):
                return features[members].mean((1, 2, 3))

        with pytest.raises(PluginError, match="Scores.score_sets: expected that it comes with embed, as"):
            check_reward(Scores())

    def test_a_set_reward_with_swaps_and_influence_passes(self):
        check_reward(SquaredMean())

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (
                {"swap_scorer": lambda self, f: Rescored(MeanSpread(), f)},
                "swap_scorer: expected that it scores a set after an exchange as score_sets does",
            ),
            (
                {"swap_scorer": lambda self, f: rescored(f, swap=lambda self, a, b: None)},
                "swap_scorer: expected that it keeps its value over a swap",
            ),
            (
                {"swap_scorer": lambda self, f: rescored(f, bounds=lambda self, a, b: (a * 0 + 1, a * 0 + 2))},
                "swap_scorer: expected that it gives bounds that hold the score",
            ),
            (
                {"swap_scorer": lambda self, f: rescored(f, bounds=lambda self, a, b: 1 / 0)},
                "swap_scorer: expected that it runs; it raised ZeroDivisionError",
            ),
            (
                {"swap_scorer": lambda self, f: rescored(f, swap=lambda self, a, b: 1 / 0)},
                "swap_scorer: expected that it runs; it raised ZeroDivisionError",
            ),
            ({"influence": lambda self, q, f: f.mean()}, r"influence: expected that it gives shape \(\d,\)"),
            (
                {"influence": lambda self, q, f: f.mean((1, 2))},
                "influence: expected that it averages to 0 over the queue's own clips",
            ),
        ],
    )
    def test_each_breach_of_swaps_and_influence_is_named(self, broken, message):
        with pytest.raises(PluginError, match=message):
            check_reward(breaking(SquaredMean, **broken))

    def test_embedding_in_another_order_is_named(self):
        def embed(self, media):
            return MeanSpread().embed(media).sort(dim=0).values

        with pytest.raises(PluginError, match="embed: expected that it keeps the clips' order"):
            check_reward(breaking(MeanSpread, embed=embed))

    def test_too_few_clips_are_refused(self):
        with pytest.raises(PluginError, match="got 1 clips; expected at least 3"):
            check_reward(Loudness(), Media(torch.zeros(1, 1, 8), ("x",), 16_000))


def draws_from_torch(self, media):
    return Loudness().score(media) + 0 * torch.rand(1)


def seeds_torch(self, media):
    torch.manual_seed(0)
    return Loudness().score(media) + torch.rand(1).double()


def seeds_numpy(self, media):
    np.random.seed(0)
    return Loudness().score(media) + np.random.rand()


def draws_from_random(self, media):
    random.random()
    return Loudness().score(media)


def sets_the_default_dtype(self, media):
    torch.set_default_dtype(torch.float64)
    return Loudness().score(media)


def sets_threads(self, media):
    torch.set_num_threads(torch.get_num_threads() + 1)
    return Loudness().score(media)


def goes_elsewhere(self, media):
    os.chdir("/")
    return Loudness().score(media)


def wants_determinism(self, media):
    torch.use_deterministic_algorithms(True)
    return Loudness().score(media)


def process_state():
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    modes = torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    return *states, *modes, os.getcwd(), torch.is_grad_enabled()


class TestTheProcess:
    @pytest.mark.parametrize(
        ("score", "law"),
        [
            (draws_from_torch, "torch's random state as it was .draw from a torch.Generator"),
            (seeds_torch, "torch's random state"),
            (seeds_numpy, "numpy's random state as it was .draw from numpy.random.default_rng"),
            (draws_from_random, "the random state of module random"),
            (sets_the_default_dtype, "torch's default dtype"),
            (sets_threads, "torch's thread count"),
            (goes_elsewhere, "the working directory"),
            (wants_determinism, "torch's deterministic mode"),
        ],
    )
    def test_what_a_reward_changes_of_it_is_the_one_fault_and_put_back(self, score, law, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        before = process_state()
        with pytest.raises(PluginError, match=f"^1 breach of contract:\n  Broken.score: expected that it leaves {law}"):
            check_reward(breaking(Loudness, score=score))
        assert process_state() == before

    def test_methods_of_set_rewards_are_watched_too(self):
        def influence(self, queue, features):
            torch.set_grad_enabled(False)
            return SquaredMean().influence(queue, features)

        with pytest.raises(PluginError, match="Broken.influence: expected that it leaves torch's gradient mode"):
            check_reward(breaking(SquaredMean, influence=influence))
        assert torch.is_grad_enabled()

        def score_sets(self, features, members):
            return MeanSpread().score_sets(features, members) + 0 * float(torch.rand(1))

        with pytest.raises(PluginError, match="Broken.score_sets: expected that it leaves torch's random state"):
            check_reward(breaking(MeanSpread, score_sets=score_sets))

    def test_a_reward_with_a_generator_of_its_own_passes(self):
        def score(self, media):
            noise = torch.randn(len(media), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            return Loudness().score(media) + 0 * noise

        check_reward(breaking(Loudness, score=score))


class TestWhatIsSeen:
    def test_the_report_holds_range_laws_and_speed(self):
        media = example_clips(seconds=0.5)
        found = check_reward(Loudness(), media)
        scores = Loudness().score(media)
        assert (found.name, found.kind, found.clips, found.abstained) == ("loudness", "clips", 4, 0)
        assert (found.low, found.high) == (float(scores.min()), float(scores.max()))
        assert found.real_time == pytest.approx(found.clips_per_second * 0.5)
        assert any("does not depend on the others" in law for law in found.laws)
        swappable = check_reward(SquaredMean())
        assert swappable.kind == "sets" and len(swappable.laws) == len(check_reward(MeanSpread()).laws) + 2

    def test_a_function_is_checked_as_a_reward(self):
        def peak(audio, prompts, scale=1.0):
            return [scale * float(np.abs(clip.samples).max()) for clip in audio]

        assert check_reward(peak).high == pytest.approx(0.5, abs=1e-3)
        assert check_reward(partial(peak, scale=2.0)).high == pytest.approx(1.0, abs=1e-3)
        with pytest.raises(PluginError, match="FunctionReward.score: .* does not depend on the other clips"):
            check_reward(lambda audio, prompts: [float(len(audio) + i) for i in range(len(audio))])

    def test_a_class_instead_of_a_reward_is_named(self):
        with pytest.raises(PluginError, match=r"got the class Loudness; give it a reward: Loudness\(...\)"):
            check_reward(Loudness)

    def test_a_slow_reward_is_warned_about(self):
        def score(self, media):
            time.sleep(0.01 * len(media))
            return Loudness().score(media)

        with pytest.warns(TrainsBadly, match="seconds of audio a second .* slower than real time"):
            found = check_reward(breaking(Loudness, score=score), example_clips(seconds=0.001))
        assert found.real_time < 0.1

    @pytest.mark.parametrize(
        ("score", "text"),
        [
            (lambda self, m: Loudness().score(m).log(), "gives NaN or infinity for a blank clip"),
            (lambda self, m: refuse_silence(m), r"raises ValueError .silence. for a blank clip"),
        ],
    )
    def test_a_blank_clip_that_breaks_a_reward_is_warned_about(self, score, text):
        with pytest.warns(TrainsBadly, match=text):
            check_reward(breaking(Loudness, score=score))

    def test_abstaining_on_a_blank_clip_is_right(self, recwarn):
        def score(self, media):
            scores = Loudness().score(media)
            return torch.where(scores > 0, scores, torch.nan)

        check_reward(breaking(Loudness, abstains=True, score=score))
        assert not recwarn

    def test_example_clips_differ_and_take_columns(self):
        media = example_clips(0.25, 8_000, 2, {"bpm": (1, 2, 3, 4)})
        assert media.tensor.shape == (4, 2, 2_000) and media.columns["bpm"] == (1, 2, 3, 4)
        assert len({tuple(clip.flatten().tolist()) for clip in media.tensor}) == 4
        with pytest.raises(PluginError, match="expected all above 0"):
            example_clips(0.0)


def refuse_silence(media):
    if not media.tensor.any():
        raise ValueError("silence")
    return Loudness().score(media)


class ForgetsToRestore(ToyPolicy):
    @contextmanager
    def weights(self, values):
        with torch.no_grad():
            for name, p in self.trainable().items():
                p.copy_(values[name])
        yield


class ReferenceIsCurrent(ToyPolicy):
    @contextmanager
    def reference(self):
        yield


class SavesNothing(ToyPolicy):
    def save(self, folder):
        super().save(folder)
        with torch.no_grad():
            for p in self.trainable().values():
                p.mul_(0)
        super().save(folder)


class OneNoiseForAll(ToyPolicy):
    def generate(self, prompts, seeds, *, steps, guidance):
        return replace(
            super().generate(prompts, [seeds[0]] * len(prompts), steps=steps, guidance=guidance), seeds=tuple(seeds)
        )


class BatchDependent(ToyPolicy):
    def generate(self, prompts, seeds, *, steps, guidance):
        made = super().generate(prompts, seeds, steps=steps, guidance=guidance)
        return replace(made, latents=made.latents - made.latents.mean(0))


class GlobalNoise(ToyPolicy):
    def draw_noising(self, latents, generator):
        drawn = super().draw_noising(latents, generator)
        return replace(drawn, noise=torch.randn_like(latents))


class Detached(ToyPolicy):
    def predict(self, latents, noising, cond):
        return super().predict(latents, noising, cond).detach()


class WrongTarget(ToyPolicy):
    def target(self, latents, noising):
        return super().target(latents, noising)[..., :1]


class ShortCond(ToyPolicy):
    def encode(self, prompts):
        return Cond({name: tensor[:1] for name, tensor in super().encode(prompts).tensors.items()})


class MaskedCond(ToyPolicy):
    """A condition with a boolean mask, as text encoders give."""

    def encode(self, prompts):
        cond = super().encode(prompts)
        return Cond({**cond.tensors, "mask": cond.tensors["weights"] > 0})


class MaskOfTheBatch(ToyPolicy):
    def encode(self, prompts):
        cond = super().encode(prompts)
        return Cond({**cond.tensors, "mask": torch.full((len(prompts), 1), len(prompts) > 1)})


class HalfPrecision(ToyPolicy):
    def __init__(self):
        super().__init__()
        self.precision = "half"


class WritesAnother(ToyPolicy):
    def write(self, stored, folder):
        super().write({name: 2 * value for name, value in stored.items()}, folder)


class ShardsOnly:
    """A policy with `shard` and without what then stores it."""

    def __init__(self):
        self._toy = ToyPolicy()

    def __getattr__(self, name):
        if name == "write" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._toy, name)


class LosesPrompts(ToyPolicy):
    def decode(self, generation):
        return replace(super().decode(generation), prompts=("",) * len(generation))


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "message"),
        [
            (ForgetsToRestore, "weights: expected that it restores the weights on leaving"),
            (ReferenceIsCurrent, "reference: expected that it shows the starting model"),
            (SavesNothing, "load: expected that it brings back what `save` wrote"),
            (OneNoiseForAll, "generate: expected that it gives another sample for another seed"),
            (BatchDependent, "generate: expected that it gives a sample that its batch does not change"),
            (GlobalNoise, "draw_noising: expected that it draws from the generator it is given"),
            (Detached, "predict: expected that it lets gradients flow"),
            (WrongTarget, r"target: expected that it gives shape \(4, 2\) .like the latents., not \(4, 1\)"),
            (ShortCond, "encode: expected that it gives one row a prompt"),
            (MaskOfTheBatch, r"encode: expected that it does not depend on the batch .'mask'."),
            (HalfPrecision, r"precision: expected that it is one of .'float32', 'bfloat16', 'float16'.*, not 'half'"),
            (WritesAnother, "load: expected that it brings back what `write` wrote"),
            (ShardsOnly, r"shard: expected that it comes with `stored` and `write`; missing: .'write'."),
            (LosesPrompts, "decode: expected that it keeps the generation's prompts"),
        ],
    )
    def test_each_breach_is_named(self, policy, message):
        with pytest.raises(PluginError, match=f"{policy.__name__}.{message}"):
            check_policy(policy(), TOY)

    def test_weights_are_as_before_even_after_a_breach(self):
        policy = ForgetsToRestore()
        before = {name: p.detach().clone() for name, p in policy.trainable().items()}
        with pytest.raises(PluginError):
            check_policy(policy, TOY)
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in policy.trainable().items())

    def test_a_parameter_that_never_learns_is_warned_about(self):
        class Spare(ToyPolicy):
            def __init__(self):
                super().__init__()
                self.spare = torch.nn.Parameter(torch.ones(2))

            def trainable(self):
                return {**super().trainable(), "spare": self.spare}

            @contextmanager
            def weights(self, values):
                with super().weights({name: v for name, v in values.items() if name != "spare"}):
                    yield

        with pytest.warns(TrainsBadly, match=r"gives no gradient to \['spare'\] \(1 of 7 parameters\)"):
            check_policy(Spare(), TOY)

    def test_conditions_may_hold_masks(self):
        check_policy(MaskedCond(), TOY)

    def test_what_is_no_policy_is_told_what_it_lacks(self):
        with pytest.raises(PluginError, match="MeanSpread is no policy: it lacks decode, draw_noising, encode"):
            check_policy(MeanSpread())

    def test_one_prompt_is_refused(self):
        with pytest.raises(PluginError, match="at least 2 different"):
            check_policy(ToyPolicy(), ("left", "left"))
