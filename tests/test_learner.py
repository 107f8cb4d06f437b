"""One update: independent of how it is cut, honest about what is not finite, beta set once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dragon.errors import ConfigError, NotFinite, OutOfMemory
from dragon.learner import Learner, Update
from dragon.loss_scale import LossScale
from dragon.media import Cond, Generation
from dragon.objectives import DPO, KTO, NFT, BestOfK, gain
from dragon.policy.toy import ToyPolicy
from dragon.pool import PairPool
from dragon.protocols import Noising, Objective, Policy, Terms

OPTIONS: dict[str, Any] = {
    "weight_decay": 0.01,
    "betas": (0.9, 0.99),
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
    "old_decay": 0.8,
    "pairs_per_update": 8,
    "micro_batch_size": 8,
    "calibration_updates": 0,
    "beta_target": 1.0,
}
OBJECTIVES = [
    NFT(anchor=0.3),
    NFT(reference="start"),
    DPO(beta=50),
    KTO(beta=50),
    KTO(beta=50, paired=False),
    BestOfK(),
]


class DoubleToy:
    """The toy in float64: sums of another order then differ in the 16th digit, not in the 7th."""

    def __init__(self) -> None:
        self._toy = ToyPolicy()
        self._toy._backbone.denoiser.double()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._toy, name)

    def draw_noising(self, latents: Tensor, generator: Generator) -> Noising:
        drawn = self._toy.draw_noising(latents, generator)
        return Noising(drawn.sigma.double(), drawn.noise.double())


def pool(policy: Policy, pairs: int = 12, dtype: torch.dtype = torch.float32) -> PairPool:
    prompts = [("left", "right", "up", "down")[i % 4] for i in range(pairs)]
    better = policy.generate(prompts, range(pairs), steps=4, guidance=1.0)
    worse = policy.generate(prompts, range(100, 100 + pairs), steps=4, guidance=1.0)
    return PairPool(*(replace(side, latents=side.latents.to(dtype)) for side in (better, worse)))


def learner(policy: Policy, objective: Objective, **options: Any) -> Learner:
    return Learner(policy, objective, **{**OPTIONS, **options})


def figures(update: Update) -> dict[str, float]:
    return {name: value for name, value in vars(update).items() if name != "skipped"}


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def weights(it: Learner) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in it.parameters.values()])


@dataclass(frozen=True)
class Watched:
    """Another objective that notes what it was given."""

    inner: Any
    seen: list[Terms]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def with_beta(self, beta: float) -> Watched:
        return Watched(self.inner.with_beta(beta), self.seen)

    def __call__(self, terms: Terms) -> Tensor:
        self.seen.append(terms)
        return self.inner(terms)


@dataclass(frozen=True)
class Spoilt:
    """Another objective whose loss is changed by a function."""

    inner: Any
    spoil: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, terms: Terms) -> Tensor:
        return self.spoil(self.inner(terms))


class Small:
    """Another policy, with room for so many pairs of rows in one call."""

    def __init__(self, inner: Any, room: int) -> None:
        self.inner, self.room = inner, room
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def predict(self, latents: Tensor, noising: Noising, cond: Cond) -> Tensor:
        pairs = len(latents) // 2
        self.calls.append(pairs)
        if pairs > self.room:
            raise torch.OutOfMemoryError(f"no room for {pairs} pairs")
        found: Tensor = self.inner.predict(latents, noising, cond)
        return found


class HalfToy:
    """The toy as if its network ran in float16: what is larger than that type's largest number becomes infinite."""

    precision = "float16"

    def __init__(self, largest: float = 65504.0) -> None:
        self._toy = ToyPolicy()
        for p in self._toy.trainable().values():
            p.register_hook(lambda g: torch.where(g.abs() > largest, torch.inf, g))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._toy, name)


def spoilt_loss(row: int = 2) -> Spoilt:
    return Spoilt(BestOfK(), lambda loss: loss.index_fill(0, torch.tensor([row]), torch.nan))


def spoilt_gradient() -> Spoilt:
    """sqrt at 0 is 0 with an infinite slope: the loss alone would not show it."""
    return Spoilt(NFT(), lambda loss: (loss - loss.detach()).abs().sqrt())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_accumulation_one_by_eight_equals_eight_by_one(objective: Objective) -> None:
    weights, reports = [], []
    for micro in (8, 1, 3):
        policy = DoubleToy()
        # the first updates are free of AdamW's division by nearly zero moments only in float64: hence 1e-9
        it = learner(policy, objective, micro_batch_size=micro)
        pairs = pool(ToyPolicy(), dtype=torch.float64)
        reports.append([it.update(pairs, seeded(i), 1e-2) for i in range(4)])
        it.follow()
        weights.append(torch.cat([p.detach().flatten() for p in it.parameters.values()]))
    start = torch.cat([p.detach().flatten() for p in DoubleToy().trainable().values()])
    assert weights[0].dtype == torch.float64 and (weights[0] - start).abs().max() > 1e-3
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-9, atol=1e-9)
    for other_reports in reports[1:]:
        for one, other_one in zip(reports[0], other_reports, strict=True):
            assert figures(one) == pytest.approx(figures(other_one), rel=1e-7, abs=1e-9, nan_ok=True)


def test_the_reference_and_both_sides_see_the_same_noise() -> None:
    seen: list[Terms] = []
    it = learner(ToyPolicy(), Watched(DPO(beta=1.0), seen))
    it.update(pool(it.policy), seeded(0), 0.0)
    it.update(pool(it.policy), seeded(0), 0.0)
    for terms in seen:  # the policy has not moved, so equal noise means equal predictions: to the bit
        assert torch.equal(terms.positive.policy, terms.positive.reference)
        assert torch.equal(terms.negative.policy, terms.negative.reference)
        # flow target u = noise - x0; same noise: the difference of targets is that of the samples
        assert torch.isfinite(terms.positive.target).all()
    assert torch.equal(seen[0].positive.target, seen[1].positive.target)


def test_sides_share_noise_when_paired_and_not_when_unpaired() -> None:
    for objective, shared in ((KTO(beta=1.0), True), (KTO(beta=1.0, paired=False), False)):
        it = learner(ToyPolicy(), objective)
        batch = it._draw(pool(it.policy), seeded(0))
        assert torch.equal(batch.positive.noise, batch.negative.noise) is shared
        assert torch.equal(batch.positive.sigma, batch.negative.sigma) is shared
        same = [a == b for a, b in zip(batch.pairs.positive.prompts, batch.pairs.negative.prompts, strict=True)]
        assert all(same) if shared else not any(same)


def test_unpaired_keeps_every_sample_once() -> None:
    pairs = pool(ToyPolicy())
    turned = pairs.unpaired()
    assert sorted(turned.positive.seeds) == sorted(pairs.positive.seeds)
    assert sorted(turned.negative.seeds) == sorted(pairs.negative.seeds)
    assert all(a != b for a, b in zip(turned.positive.prompts, turned.negative.prompts, strict=True))
    for side in (turned.positive, turned.negative):  # rows stay whole: latent, prompt and seed together
        row = dict(zip(side.seeds, side.latents, strict=True))
        original = pairs.positive if side is turned.positive else pairs.negative
        assert all(torch.equal(row[s], x) for s, x in zip(original.seeds, original.latents, strict=True))


def test_pairs_are_drawn_without_replacement() -> None:
    it = learner(ToyPolicy(), BestOfK(), pairs_per_update=7)
    batch = it._draw(pool(it.policy, pairs=12), seeded(3))
    assert len(set(batch.pairs.positive.seeds)) == 7
    assert len(it._draw(pool(it.policy, pairs=3), seeded(3))) == 3


def test_kto_zero_point_is_that_of_the_whole_batch_of_one_update() -> None:
    seen: list[Terms] = []
    it = learner(ToyPolicy(), Watched(KTO(beta=10.0, winner=5.0), seen), micro_batch_size=3)
    pairs = pool(ToyPolicy())
    for _ in range(12):  # the same pairs and noise each time, so that gains rise above 0
        seen.clear()
        report = it.update(pairs, seeded(0), 1e-2)
        assert len(seen) == 3  # 8 pairs in chunks of 3
        gains = torch.cat([gain(side) for terms in seen for side in (terms.positive, terms.negative)]).detach()
        for terms in seen:
            assert terms.z0 is not None
            assert float(terms.z0) == pytest.approx(max(0.0, float(gains.mean())), rel=1e-5, abs=1e-7)
        assert report.z0 == pytest.approx(max(0.0, float(gains.mean())), rel=1e-5, abs=1e-7)
    assert report.z0 > 0


def test_the_old_policy_follows_once_a_roll_out() -> None:
    seen: list[Terms] = []
    it = learner(ToyPolicy(), Watched(NFT(), seen), old_decay=0.0)
    for i in range(2):
        it.update(pool(it.policy), seeded(i), 1e-2)
    assert torch.equal(seen[1].positive.old, seen[1].positive.reference)
    it.follow()  # decay 0: the old policy now is the present one
    it.update(pool(it.policy), seeded(2), 0.0)
    assert torch.equal(seen[2].positive.old, seen[2].positive.policy)
    assert not torch.equal(seen[2].positive.old, seen[2].positive.reference)


def test_gradient_norm_is_clipped_and_reported_before_clipping() -> None:
    # plain SGD would show it directly; AdamW's first moment does: exp_avg = (1 - 0.9) * clipped gradient
    it = learner(ToyPolicy(), BestOfK(), max_grad_norm=1e-3)
    report = it.update(pool(it.policy), seeded(0), 1e-2)
    moments = torch.cat([m["exp_avg"].flatten() for m in it.state_dict()["optimizer"].values()])
    assert report.grad_norm > 1e-2
    assert float(moments.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    free = learner(ToyPolicy(), BestOfK(), max_grad_norm=0.0)
    report = free.update(pool(free.policy), seeded(0), 1e-2)
    moments = torch.cat([m["exp_avg"].flatten() for m in free.state_dict()["optimizer"].values()])
    assert float(moments.norm()) == pytest.approx(0.1 * report.grad_norm, rel=1e-3)


def test_beta_is_calibrated_to_its_target_then_frozen() -> None:
    seen: list[Terms] = []
    it = learner(ToyPolicy(), Watched(DPO(beta=5000.0), seen), calibration_updates=3, beta_target=0.5)
    betas = []
    for i in range(8):
        it.update(pool(it.policy), seeded(i), 1e-2, calibrate=i >= 2)
        betas.append(it.objective.beta)
    assert betas[:4] == [5000.0] * 4 and len(set(betas[4:])) == 1
    gains = torch.cat([gain(side) for terms in seen[2:5] for side in (terms.positive, terms.negative)]).detach()
    assert betas[-1] is not None
    assert float((betas[-1] * gains).abs().double().quantile(0.5)) == pytest.approx(0.5, rel=1e-5)


def test_the_first_update_does_not_calibrate_because_every_gain_is_zero() -> None:
    it = learner(ToyPolicy(), DPO(), calibration_updates=1)
    first = it.update(pool(it.policy), seeded(0), 1e-2)
    assert first.gain_positive == first.gain_negative == 0.0 and first.implicit_accuracy == 0.5
    assert it.objective.beta == 5000.0
    it.update(pool(it.policy), seeded(1), 1e-2)
    assert it.objective.beta != 5000.0


def test_a_loss_that_is_not_finite_stops_with_prompt_and_seed() -> None:
    it = learner(ToyPolicy(), spoilt_loss())
    expected = it._draw(pool(it.policy), seeded(0)).pairs.positive
    before = weights(it)
    with pytest.raises(NotFinite, match=f"the loss 'best_of_k' .*{expected.prompts[2]!r}, seed {expected.seeds[2]} "):
        it.update(pool(it.policy), seeded(0), 1e-2)
    assert torch.equal(before, weights(it))


def test_a_gradient_that_is_not_finite_stops_with_parameter_prompt_and_seeds() -> None:
    it = learner(ToyPolicy(), spoilt_gradient())
    pairs = it._draw(pool(it.policy), seeded(0)).pairs
    before = weights(it)
    first = f"prompt {pairs.positive.prompts[0]!r}, seeds {pairs.positive.seeds[0]} .*{pairs.negative.seeds[0]} "
    with pytest.raises(NotFinite, match=f"the gradient of 'layers.*{first}"):
        it.update(pool(it.policy), seeded(0), 1e-2)
    assert torch.equal(before, weights(it))


@pytest.mark.parametrize("part", ["reference", "policy"])
def test_a_prediction_that_is_not_finite_names_whose_it_is(part: str) -> None:
    policy = ToyPolicy()
    it = learner(policy, DPO())
    if part == "policy":
        with torch.no_grad():
            next(iter(it.parameters.values())).fill_(torch.nan)
    else:
        policy._backbone.exact.means[0] = torch.nan  # type: ignore[attr-defined]
    with pytest.raises(NotFinite, match=f"the {part}'s prediction is not finite for prompt"):
        it.update(pool(ToyPolicy()), seeded(0), 1e-2)


@pytest.mark.parametrize("spoilt", [spoilt_loss(), spoilt_gradient()], ids=["loss", "gradient"])
def test_an_update_that_is_left_out_changes_nothing_and_is_counted(spoilt: Spoilt) -> None:
    it = learner(ToyPolicy(), spoilt.inner, max_skipped_updates=3)
    pairs = pool(it.policy)
    it.update(pairs, seeded(0), 1e-2)
    before, whole = it.state_dict(), it.objective
    it.objective = spoilt
    with pytest.warns(UserWarning, match="left out, number 1 of at most 3 of the run: the .* not finite for prompt '"):
        report = it.update(pairs, seeded(1), 1e-2)
    assert "not finite for prompt" in report.skipped
    assert all(math.isnan(value) for value in figures(report).values())
    assert it.skipped == 1
    after = it.state_dict()
    assert after.pop("skipped") == 1 and before.pop("skipped") == 0
    assert same(after, before)
    it.objective = whole
    fresh = learner(ToyPolicy(), whole)
    fresh.load_state_dict({**before, "skipped": 0})
    for one in (it, fresh):  # what follows is what would have followed
        one.update(pairs, seeded(2), 1e-2)
    assert torch.equal(weights(it), weights(fresh))


def test_after_the_stated_number_of_updates_left_out_the_last_one_is_an_error() -> None:
    it = learner(ToyPolicy(), spoilt_loss(), max_skipped_updates=2)
    pairs = pool(it.policy)
    for i in range(2):
        with pytest.warns(UserWarning, match=f"number {i + 1} of at most 2"):
            it.update(pairs, seeded(i), 1e-2)
    last = it._draw(pairs, seeded(2)).pairs.positive
    told = f"{last.prompts[2]!r}, seed {last.seeds[2]} .*number 3 to be left out, and max_skipped_updates is 2"
    with pytest.raises(NotFinite, match=told):
        it.update(pairs, seeded(2), 1e-2)


def test_the_count_of_updates_left_out_goes_on_after_resuming() -> None:
    it, again = (learner(ToyPolicy(), spoilt_loss(), max_skipped_updates=1) for _ in range(2))
    with pytest.warns(UserWarning, match="left out"):
        it.update(pool(it.policy), seeded(0), 1e-2)
    again.load_state_dict(it.state_dict())
    assert again.skipped == 1
    with pytest.raises(NotFinite, match="number 2 to be left out"):
        again.update(pool(it.policy), seeded(1), 1e-2)


def test_out_of_memory_halves_the_micro_batch_and_the_result_stays() -> None:
    ends = []
    for room in (99, 5):
        policy = Small(DoubleToy(), room)
        it = learner(policy, KTO(beta=50))
        pairs = pool(ToyPolicy(), dtype=torch.float64)
        with (
            pytest.warns(UserWarning, match="out of memory in a micro-batch of 8 rows; going on with 4")
            if (room == 5)
            else nullcontext()
        ):
            it.update(pairs, seeded(0), 1e-2)
        policy.calls.clear()
        it.update(pairs, seeded(1), 1e-2)  # says nothing and tries no larger one
        assert max(policy.calls) == (8 if room == 99 else 4)
        ends.append(weights(it))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_single_pair_that_does_not_fit_is_an_error() -> None:
    it = learner(Small(ToyPolicy(), 0), NFT())
    with (
        pytest.warns(UserWarning, match="of 2 rows; going on with 1 .set update.micro_batch_size"),
        pytest.raises(OutOfMemory, match="micro-batch of one row"),
    ):
        it.update(pool(ToyPolicy()), seeded(0), 1e-2)


def test_a_smaller_micro_batch_is_kept_when_resuming() -> None:
    it = learner(Small(ToyPolicy(), 4), NFT())
    with pytest.warns(UserWarning, match="out of memory"):
        it.update(pool(ToyPolicy()), seeded(0), 1e-2)
    policy = Small(ToyPolicy(), 4)
    again = learner(policy, NFT())
    again.load_state_dict(it.state_dict())
    again.update(pool(ToyPolicy()), seeded(1), 1e-2)
    assert max(policy.calls) == 4


def test_the_loss_scale_falls_until_nothing_overflows_and_changes_no_digit() -> None:
    ends, scales = [], []
    for policy in (ToyPolicy(), HalfToy(largest=100.0)):
        it = learner(policy, NFT())
        reports = [it.update(pool(ToyPolicy()), seeded(i), 1e-2) for i in range(3)]
        ends.append((weights(it), [figures(report) for report in reports]))
        scales.append(it.state_dict()["scale"])
    assert torch.equal(ends[0][0], ends[1][0]) and str(ends[0][1]) == str(ends[1][1])  # as text: NaN equals NaN
    assert scales[0] == {} and 1 < scales[1]["value"] < 2**16
    again = learner(HalfToy(), NFT())
    again.load_state_dict(it.state_dict())
    assert again.state_dict()["scale"] == scales[1]
    again.load_state_dict(learner(ToyPolicy(), NFT()).state_dict())  # of a run in float32: goes on with its own
    assert again.state_dict()["scale"] == scales[1]


def test_a_gradient_that_no_loss_scale_mends_leaves_the_scale_alone() -> None:
    it = learner(HalfToy(), spoilt_gradient(), max_skipped_updates=1)
    with pytest.warns(UserWarning, match="the gradient of 'layers"):
        it.update(pool(ToyPolicy()), seeded(0), 1e-2)
    assert it.state_dict()["scale"] == LossScale(True).state_dict()


def test_the_loss_scale_doubles_after_many_updates_without_overflow() -> None:
    scale, single = LossScale(True), LossScale(False)
    scale.lower()
    for _ in range(2000):
        assert scale.value == 2.0**15
        scale.served()
        single.served()
    assert scale.value == 2.0**16 and single.value == 1.0 and not single.lower()


def test_state_of_another_objective_or_model_is_refused() -> None:
    state = learner(ToyPolicy(), NFT()).state_dict()
    with pytest.raises(ConfigError, match="objective 'nft', this run has 'dpo'"):
        learner(ToyPolicy(), DPO()).load_state_dict(state)
    with pytest.raises(ConfigError, match="do not fit the policy"):
        learner(ToyPolicy(hidden=8), NFT()).load_state_dict(state)


def trained(objective: Objective, updates: int = 5) -> Learner:
    it = learner(ToyPolicy(), objective, calibration_updates=2)
    for i in range(updates):
        it.update(pool(it.policy), seeded(i), 1e-2)
    it.follow()
    return it


def test_another_objective_that_is_allowed_starts_anew_at_the_stored_weights() -> None:
    state = trained(DPO()).state_dict()
    it = learner(ToyPolicy(), NFT())
    it.load_state_dict(state, frozenset({"objective"}))
    assert it.objective == NFT() and it.updates == 5
    assert it._old is not None
    for name, value in state["weights"].items():
        assert torch.equal(it.parameters[name], value) and torch.equal(it._old.values[name], value)
        assert torch.equal(it.ema.values[name], state["ema"][name])
    assert it.state_dict()["optimizer"].keys() == state["optimizer"].keys()
    other = learner(ToyPolicy(), DPO(beta=7.0), calibration_updates=2)  # the same objective with another option
    other.load_state_dict(state, frozenset({"objective"}))
    assert other.objective == DPO(beta=7.0)
    other.load_state_dict(state)
    assert other.objective.beta == state["beta"] != 5000.0


def test_an_optimizer_that_starts_anew_has_no_moments() -> None:
    state = trained(NFT()).state_dict()
    it = learner(ToyPolicy(), NFT())
    it.load_state_dict(state, frozenset({"optimizer", "rewards", "credit"}))
    assert it.state_dict()["optimizer"] == {} and it.updates == 5
    assert it._old is not None and all(torch.equal(it._old.values[name], v) for name, v in state["old"].items())
    it.update(pool(it.policy), seeded(9), 1e-2)
    assert {int(moments["step"]) for moments in it.state_dict()["optimizer"].values()} == {1}


def test_a_state_of_version_0_1_can_be_read() -> None:
    state = trained(NFT()).state_dict()
    old = {key: value for key, value in state.items() if key not in ("skipped", "micro_batch", "scale")}
    it = learner(ToyPolicy(), NFT())
    it.load_state_dict(old)
    assert same(it.state_dict(), state)


def test_a_state_stays_as_it_was_when_training_goes_on() -> None:
    it = learner(ToyPolicy(), NFT())
    it.update(pool(it.policy), seeded(0), 1e-2)
    state = it.state_dict()
    ends = []
    for _ in range(2):  # twice from the same state: loading must not hand its tensors to the optimiser
        it.load_state_dict(state)
        it.update(pool(ToyPolicy()), seeded(1), 1e-2)
        ends.append(torch.cat([p.detach().flatten().clone() for p in it.parameters.values()]))
    assert torch.equal(*ends)


def test_a_policy_without_trainable_parameters_is_refused() -> None:
    class Frozen:
        def trainable(self) -> Mapping[str, Tensor]:
            return {}

    with pytest.raises(ConfigError, match="no trainable parameters"):
        learner(Frozen(), NFT())  # type: ignore[arg-type]


def test_pools_come_back_from_their_state() -> None:
    pairs = pool(ToyPolicy(), pairs=3)
    again = PairPool.from_state(pairs.state_dict(), torch.device("cpu"))
    assert again.positive.seeds == pairs.positive.seeds and again.negative.prompts == pairs.negative.prompts
    assert torch.equal(again.negative.latents, pairs.negative.latents)
    empty = Generation(torch.zeros(1, 2), Cond(), ("a",), (1,))
    assert PairPool.from_state(PairPool(empty, empty).state_dict(), torch.device("cpu")).positive.cond == Cond()
