"""Evaluation on the toy policy: base against base, a tuned one against it, and every contract it refuses to break."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dragon import evaluate as ev
from dragon import intervals
from dragon.collect import collect, draw_seeds
from dragon.errors import ConfigError, NotFinite, PluginError
from dragon.policy.toy import ToyPolicy

PROMPTS = ("left", "right", "up", "down") * 16
FAST = {"samples_per_prompt": 2, "steps": 3, "guidance": 1.0, "batch_size": 64}


@dataclass(frozen=True)
class Rightness:
    """The point's first coordinate."""

    name: str = "rightness"
    abstains: bool = False

    def score(self, media):
        return media.tensor[:, 0, 0].double()


@dataclass(frozen=True)
class OnlyUpper:
    """Has an opinion on points above the axis alone."""

    name: str = "only_upper"
    abstains: bool = True

    def score(self, media):
        x, y = media.tensor[:, 0, 0].double(), media.tensor[:, 1, 0]
        return torch.where(y > 0, x, torch.nan)


@dataclass(frozen=True)
class Spread:
    """A set reward: total variance of the points."""

    name: str = "spread"

    def embed(self, media):
        return media.tensor.transpose(1, 2).double()  # (b, 1, 2)

    def score_sets(self, features, members):
        return features[members, 0].var(1).sum(1)


class PointEncoder:
    name, fingerprint, features = "points", "1", 2

    def embed_media(self, media):
        return media.tensor.transpose(1, 2)


def shifted(policy, by):
    """Weights that add `by` to every velocity along x; fewer than 8 solver steps do not follow that field."""
    weights = {name: p.detach().clone() for name, p in policy.trainable().items()}
    bias = next(name for name, p in reversed(weights.items()) if p.shape == (2,))
    weights[bias] += torch.tensor([by, 0.0])
    return weights


@pytest.fixture(scope="module")
def policy():
    return ToyPolicy()


@pytest.fixture(scope="module")
def tuned(policy):
    rewards = {"rightness": Rightness(), "only_upper": OnlyUpper(), "spread": Spread()}
    return ev.evaluate(
        policy,
        rewards,
        {"rightness"},
        PROMPTS,
        tuned_weights=shifted(policy, -0.4),
        diversity=PointEncoder(),
        **{**FAST, "steps": 8},
    )


class TestBaseAgainstBase:
    def test_intervals_cover_one_half(self, policy):
        """20 evaluations of 64 prompts at nominal .95: fewer than 16 covering has probability .0026."""
        covered = {"rightness": 0, "spread": 0, "difference": 0}
        for seed in range(20):
            found = ev.evaluate(
                policy,
                {"rightness": Rightness(), "spread": Spread()},
                set(),
                PROMPTS,
                seed=seed,
                same_seed=False,
                **FAST,
            )
            for name, result in found.rewards.items():
                covered[name] += result.low <= 0.5 <= result.high
            spread = found.rewards["spread"]
            covered["difference"] += spread.difference_low <= 0 <= spread.difference_high
        assert min(covered.values()) >= 16, covered

    def test_same_seeds_tie_everywhere(self, policy):
        found = ev.evaluate(policy, {"rightness": Rightness()}, set(), PROMPTS[:8], **FAST)
        assert found.rewards["rightness"].same_seed_win_rate == 0.5
        np.testing.assert_array_equal(
            found.sides["same_seed"].scores["rightness"], found.sides["base"].scores["rightness"][:, :1]
        )


class TestTuned:
    def test_a_shift_wins_and_the_numbers_fit_together(self, tuned):
        result = tuned.rewards["rightness"]
        assert result.low > 0.55
        assert result.gain_sd > 0.2
        base, after = (tuned.sides[side].scores["rightness"] for side in ("base", "tuned"))
        assert (result.base, result.tuned) == pytest.approx((base.mean(), after.mean()))
        assert result.gain_sd == pytest.approx((after.mean() - base.mean()) / base.std(ddof=1))
        assert result.win_rate == pytest.approx(intervals.win_shares(base, after).mean())
        assert result.n == len(PROMPTS)

    def test_shared_seeds_win_more_than_independent_ones(self, tuned):
        assert tuned.rewards["rightness"].same_seed_win_rate > tuned.rewards["rightness"].win_rate + 0.1

    def test_a_shift_leaves_the_spread(self, tuned):
        result = tuned.rewards["spread"]
        assert result.kind == "set"
        assert result.difference == pytest.approx(result.tuned - result.base)
        assert result.difference_low <= result.difference <= result.difference_high
        assert abs(result.gain_sd) < 1
        assert result.same_seed_win_rate is None

    def test_abstentions_are_left_out_and_prompts_counted(self, tuned):
        """ "up" always has an opinion, "down" never; the others on both sides of a pair in most prompts."""
        result = tuned.rewards["only_upper"]
        assert 16 <= result.n <= 48
        base = tuned.sides["base"].scores["only_upper"]
        assert np.isnan(base[3::4]).mean() > 0.9
        assert result.base == pytest.approx(np.nanmean(base))

    def test_base_runs_in_reference_and_leaves_no_trace(self, policy):
        """Weights tuned in place: the base side is still the start, and the tuned side the weights in place."""
        moved = ToyPolicy()
        with torch.no_grad():
            for name, value in shifted(moved, -0.4).items():
                moved.trainable()[name].copy_(value)
        here = ev.evaluate(moved, {"rightness": Rightness()}, set(), PROMPTS[:8], **FAST)
        there = ev.evaluate(
            policy, {"rightness": Rightness()}, set(), PROMPTS[:8], tuned_weights=shifted(policy, -0.4), **FAST
        )
        for side in ("base", "tuned", "same_seed"):
            np.testing.assert_array_equal(here.sides[side].scores["rightness"], there.sides[side].scores["rightness"])
        assert (here.settings["tuned_weights"], there.settings["tuned_weights"]) == ("current", "given")

    def test_a_base_collected_once_gives_the_same(self, policy, tuned):
        rewards = {"rightness": Rightness(), "only_upper": OnlyUpper(), "spread": Spread()}
        again = ev.evaluate(
            policy, rewards, {"rightness"}, PROMPTS,
            tuned_weights=shifted(policy, -0.4), diversity=PointEncoder(), base=tuned.sides["base"],
            **{**FAST, "steps": 8},
        )  # fmt: skip
        assert again.rewards == tuned.rewards
        assert again.diversity == tuned.diversity


class TestCollect:
    @pytest.mark.parametrize("batch_size", [1, 7])
    def test_batch_size_changes_nothing(self, policy, batch_size):
        """Batched matrix products round differently: 1e-5 relative is the samplers' own tolerance."""
        seeds = draw_seeds(0, "base", 4, 2)
        common = {"steps": 3, "guidance": 2.0, "keep": 2, "diversity": PointEncoder()}
        one, other = (
            collect(policy, {"r": Rightness(), "s": Spread()}, PROMPTS[:4], seeds, batch_size=size, **common)
            for size in (8, batch_size)
        )
        np.testing.assert_allclose(one.scores["r"], other.scores["r"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.features["s"], other.features["s"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.kept.tensor, other.kept.tensor, rtol=1e-5, atol=1e-6)
        assert one.kept.prompts == other.kept.prompts == ("left", "down")

    def test_kept_clips_are_the_first_samples_of_their_prompts(self, policy):
        got = collect(
            policy, {"r": Rightness()}, PROMPTS[:9], draw_seeds(0, "base", 9, 2), steps=3, guidance=1.0, keep=3
        )
        assert got.kept_prompts == (0, 4, 8)
        np.testing.assert_allclose(got.kept.tensor[:, 0, 0].numpy(), got.scores["r"][[0, 4, 8], 0], rtol=1e-6)

    def test_seeds_of_sides_prompts_and_samples_differ_and_do_not_depend_on_counts(self):
        drawn = [s for side in ("base", "tuned") for row in draw_seeds(3, side, 50, 3) for s in row]
        assert len(set(drawn)) == 300
        assert draw_seeds(3, "base", 2, 1) == tuple(row[:1] for row in draw_seeds(3, "base", 50, 3)[:2])

    def test_columns_reach_the_rewards(self, policy):
        seen = []

        class Reads:
            name, abstains = "reads", False

            def score(self, media):
                seen.extend(zip(media.prompts, media.columns["style"], strict=True))
                return torch.zeros(len(media), dtype=torch.float64)

        ev.evaluate(policy, {"reads": Reads()}, set(), PROMPTS[:2], columns={"style": ("a", "b")}, **FAST)
        assert set(seen) == {("left", "a"), ("right", "b")}

    def test_progress_counts_every_sample(self, policy):
        calls = []
        ev.evaluate(
            policy, {"r": Rightness()}, set(), PROMPTS[:4], progress=lambda *call: calls.append(call),
            **{**FAST, "batch_size": 6},
        )  # fmt: skip
        assert calls == [("base", 6, 8), ("base", 8, 8), ("tuned", 6, 8), ("tuned", 8, 8), ("same_seed", 4, 4)]


class TestJson:
    def test_fields_are_those_of_the_contract(self, tuned):
        found = json.loads(json.dumps(tuned.to_json(), allow_nan=False))
        assert list(found) == [
            "version", "prompts", "samples_per_prompt", "settings", "rewards", "diversity", "seconds",
        ]  # fmt: skip
        assert (found["version"], found["prompts"], found["samples_per_prompt"]) == (1, 64, 2)
        fields = {
            "kind", "trained_on", "base", "tuned", "gain_sd", "win_rate", "low", "high", "n", "same_seed_win_rate",
        }  # fmt: skip
        assert set(found["rewards"]["rightness"]) == fields
        assert set(found["rewards"]["spread"]) == fields | {"difference", "difference_low", "difference_high"}
        assert [r["trained_on"] for r in found["rewards"].values()] == [True, False, False]
        assert set(found["diversity"]) == {"base", "tuned"}
        assert found["settings"]["set_size"] == 16
        assert found["seconds"]["total"] > found["seconds"]["base_rollout"] > 0

    def test_diversity_is_null_without_an_encoder(self, policy):
        found = ev.evaluate(policy, {"r": Rightness()}, set(), PROMPTS[:2], same_seed=False, **FAST).to_json()
        assert found["diversity"] is None
        assert found["rewards"]["r"]["same_seed_win_rate"] is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rewards": {}}, "no rewards"),
            ({"prompts": ()}, "no held-out prompts"),
            ({"samples_per_prompt": 0}, "samples_per_prompt is 0"),
            ({"trained_on": {"wrongness"}}, r"trained_on names \['wrongness'\].*\['r'\]"),
            ({"columns": {"style": ("a",)}}, "column 'style' has 1 values for 4 prompts"),
            (
                {"rewards": {"r": Rightness(), "s": Spread()}},
                "4 prompts are too few for the set reward 's'.*64 prompts",
            ),
        ],
    )
    def test_before_anything_is_sampled(self, change, message):
        class Untouched:
            name = "untouched"

        asked = {"rewards": {"r": Rightness()}, "trained_on": set(), "prompts": PROMPTS[:4], **FAST, **change}
        with pytest.raises(ConfigError, match=message):
            ev.evaluate(Untouched(), **asked)

    @pytest.mark.parametrize("change", [{"prompts": PROMPTS[:4]}, {"seed": 1}, {"steps": 3}, {"guidance": 2.0}])
    def test_a_base_of_another_evaluation(self, policy, tuned, change):
        asked = {"prompts": PROMPTS, **FAST, "steps": 8, **change}
        with pytest.raises(ConfigError, match="other prompts, seeds, steps or guidance"):
            ev.evaluate(policy, {"rightness": Rightness()}, set(), base=tuned.sides["base"], **asked)

    def test_a_base_without_one_of_the_rewards(self, policy, tuned):
        with pytest.raises(ConfigError, match=r"lacks \['new'\]"):
            ev.evaluate(policy, {"new": Rightness()}, set(), PROMPTS, base=tuned.sides["base"], **{**FAST, "steps": 8})

    @pytest.mark.parametrize(
        ("scores", "error", "message"),
        [
            (
                lambda x: x[:, 0, 0] * torch.nan,
                NotFinite,
                r"reward 'bad' is nan for prompt 'left', seed \d+; .* `abstains`",
            ),
            (lambda x: x[:, 0, 0] / 0, NotFinite, "reward 'bad' is -?inf for prompt 'left'"),
            (
                lambda x: x[:, :, 0],
                PluginError,
                r"scores of shape \(4, 2\) for 4 clips, the first for .*; expected \(4,\)",
            ),
            (lambda x: None, PluginError, r"'bad' returned None for 4 clips, .* is a `return` missing"),
        ],
    )
    def test_scores_that_break_the_contract(self, policy, scores, error, message):
        class Bad:
            name, abstains = "bad", False

            def score(self, media):
                return scores(media.tensor)

        with pytest.raises(error, match=message):
            ev.evaluate(policy, {"bad": Bad()}, set(), PROMPTS[:2], **FAST)

    def test_a_clip_that_is_not_finite(self):
        class Broken(ToyPolicy):
            def decode(self, generation):
                media = super().decode(generation)
                tensor = media.tensor.clone()
                tensor[1] = torch.nan
                return replace(media, tensor=tensor)

        with pytest.raises(NotFinite, match=r"decoded clip is not finite for prompt 'left', seed \d+ "):
            ev.evaluate(Broken(), {"r": Rightness()}, set(), PROMPTS[:2], **FAST)

    def test_a_reward_that_always_abstains(self, policy):
        class Never:
            name, abstains = "never", True

            def score(self, media):
                return torch.full((len(media),), torch.nan, dtype=torch.float64)

        with pytest.raises(NotFinite, match="'never' has an opinion on no pair"):
            ev.evaluate(policy, {"never": Never()}, set(), PROMPTS[:2], **FAST)
