"""The loop: it learns what the reward says and nothing else, resumes to the bit, and stops with a name."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dragon import checkpoint
from dragon.contrast import Influence, LeaveOneOut, Swap, all_pairs, best_worst, random_labels
from dragon.errors import ConfigError, NotFinite, PluginError
from dragon.media import Media
from dragon.objectives import DPO, KTO, NFT, BestOfK
from dragon.policy.base import DiffusionPolicy
from dragon.policy.mini import MiniPolicy
from dragon.policy.toy import ToyPolicy
from dragon.policy.tuning import LoraTuning
from dragon.protocols import Objective, Policy
from dragon.scoring import Scoring, WeightedReward
from dragon.trainer import StepReport, Trainer, TrainSettings

PROMPTS = ("left", "right", "up", "down")
SMALL = TrainSettings(
    prompts_per_step=4, num_generations=3, rollout_steps=4, guidance=1.5, pairs_per_update=6, updates_per_step=2,
    learning_rate=3e-3, max_steps=100, beta_calibration_updates=3,
)  # fmt: skip


@dataclass(frozen=True)
class Reward:
    """A function of the points (b, 2) and the media."""

    function: Callable[[Tensor, Media], Tensor]
    name: str = "height"
    abstains: bool = False

    def score(self, media: Media) -> Tensor:
        return self.function(media.tensor[:, :, 0].double(), media)


@dataclass(frozen=True)
class Narrow:
    """A set reward that no reward of single points can express: the heights of a set lie close together."""

    name: str = "narrow"

    def embed(self, media: Media) -> Tensor:
        return media.tensor.mT

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        return -features[members][..., 1].double().flatten(1).var(1).log()


def height(points: Tensor, media: Media) -> Tensor:
    return points[:, 1]


def loudness(start: Tensor, media: Media) -> Tensor:
    return media.tensor.double().square().mean((1, 2))


def careless(points: Tensor, media: Media) -> Tensor:
    """Its numbers come from three global generators."""
    noise = torch.rand(len(points)) + torch.from_numpy(np.random.rand(len(points))) + random.random()
    return points[:, 0] * 7 + noise


def toy() -> ToyPolicy:
    """Euler: with few steps Heun's first step, from sigma 999, multiplies what the weights have learnt by -100."""
    return ToyPolicy(sampler="euler")


def trainer(
    objective: Objective | None = None,
    settings: TrainSettings = SMALL,
    rewards: Sequence[Reward | Narrow] = (Reward(height),),
    policy: Policy | None = None,
    contrast: Any = None,
    **more: Any,
) -> Trainer:
    return Trainer(
        policy or toy(),
        [WeightedReward(reward, 1.0 + i) for i, reward in enumerate(rewards)],
        more.pop("prompts", PROMPTS),
        contrast=contrast or best_worst(),
        objective=objective or NFT(),
        settings=settings,
        **more,
    )


def lora_toy() -> Policy:
    """The toy with PEFT matrices on its residual network in place of all its weights."""
    backbone = toy()._backbone
    tuning = LoraTuning(backbone.denoiser, rank=4, alpha=8.0, targets=("layers.2", "layers.4"))
    return DiffusionPolicy(backbone, tuning)


def flat(value: Any) -> Any:
    """A state as something `==` can compare: tensors as their bytes."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {name: flat(item) for name, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list) else value


def heights(it: Trainer, samples: int) -> tuple[Tensor, Tensor]:
    """Heights of fresh samples, and of the start's of the same seeds."""
    prompts = [PROMPTS[i % 4] for i in range(samples)]

    def drawn() -> Tensor:
        return it.policy.generate(prompts, range(samples), steps=4, guidance=1.5).latents[:, 1]

    tuned = drawn()
    with it.policy.reference():
        return tuned, drawn()


def shift(it: Trainer, samples: int = 512) -> float:
    """How much higher fresh samples lie than the start's of the same seeds, in standard deviations of the start."""
    tuned, base = heights(it, samples)
    return float((tuned - base).mean() / base.std())


LEARNING = replace(
    SMALL, prompts_per_step=16, num_generations=4, pairs_per_update=24, updates_per_step=3, max_steps=30,
    replay_steps=2, beta_calibration_updates=6, beta_target=0.1,
)  # fmt: skip
OBJECTIVES: list[Objective] = [
    NFT(), NFT(anchor=0.0), NFT(reference="start"), NFT(strength=0.5), DPO(), DPO(winner=0.5),
    KTO(), KTO(paired=False), BestOfK(), BestOfK(anchor=0.2),
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_raises_its_reward(objective: Objective) -> None:
    it = trainer(objective, LEARNING)
    list(it.run())
    # seen: .17 (NFT held by the frozen start) to 4.7; random labels below moved it by .04 at most
    assert shift(it) > 0.12


def test_random_labels_do_not_move_it() -> None:
    shifts = []
    for seed in range(3):
        it = trainer(NFT(), replace(LEARNING, seed=seed), contrast=random_labels())
        list(it.run())
        shifts.append(shift(it))
    true = trainer(NFT(), LEARNING)
    list(true.run())
    assert shift(true) > 0.3
    # same seeds show any drift however small, so the bound is on its size: a fourth of what the reward moves
    assert all(abs(value) < 0.08 for value in shifts), shifts
    assert abs(sum(shifts) / 3) < 0.04, shifts


SETS: dict[str, dict[str, Any]] = {
    "influence": {"credit": Influence(queue=256, minimum=64)},
    "leave-one-out": {"credit": LeaveOneOut()},
    "swap": {"contrast": Swap()},
    "swap-positive": {"contrast": Swap("positive")},
}


@pytest.mark.parametrize("how", SETS.values(), ids=SETS.keys())
def test_a_reward_of_whole_sets_is_learnt(how: dict[str, Any]) -> None:
    it = trainer(NFT(), LEARNING, rewards=(Narrow(),), **how)
    reports = list(it.run())
    tuned, base = heights(it, 1024)
    assert tuned.std() < 0.95 * base.std()  # seen: .92
    assert all(r.figures["narrow/positive"] > r.figures["narrow/negative"] for r in reports)


def test_a_reward_of_whole_sets_with_random_labels_moves_nothing() -> None:
    it = trainer(NFT(), LEARNING, rewards=(Narrow(),), contrast=random_labels(), credit=LeaveOneOut())
    list(it.run())
    tuned, base = heights(it, 1024)
    assert float(tuned.std() / base.std()) == pytest.approx(1.0, abs=0.02)  # seen: .999


def test_while_the_queue_fills_samples_are_drawn_and_weights_stay() -> None:
    it = trainer(NFT(), SMALL, rewards=(Narrow(),), credit=Influence(queue=256, minimum=24))  # 12 samples a step
    start = flat(it.state_dict()["learner"]["weights"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is no fault: nothing is warned of
        first = next(it.run(1))
    assert first.skipped.startswith("the queue of recent clips is filling up to the ") and first.pairs == 0
    assert flat(it.state_dict()["learner"]["weights"]) == start
    assert next(it.run(1)).pairs == 4


RESUMED = {
    "nft-replay": lambda: trainer(NFT(), replace(SMALL, replay_steps=2)),
    "nft-all-pairs-thinned": lambda: trainer(NFT(strength=0.7), contrast=all_pairs(2)),
    "dpo-while-beta-is-calibrated": lambda: trainer(DPO(), replace(SMALL, beta_calibration_updates=4)),
    "dpo-after": lambda: trainer(DPO(winner=0.1), replace(SMALL, beta_calibration_updates=1)),
    "kto-unpaired-replay": lambda: trainer(KTO(paired=False), replace(SMALL, replay_steps=1)),
    "best-of-k": lambda: trainer(BestOfK()),
    "lora-nft": lambda: trainer(NFT(), replace(SMALL, replay_steps=1), policy=lora_toy()),
    "lora-kto": lambda: trainer(KTO(), policy=lora_toy()),
    "two-rewards": lambda: trainer(NFT(), rewards=[Reward(height), Reward(careless, "x")]),
    "overlapped-scoring": lambda: trainer(
        NFT(), replace(SMALL, overlap_scoring=True, batch_size=5), rewards=[Reward(height), Reward(careless, "x")]
    ),
    "set-reward-by-influence": lambda: trainer(rewards=[Narrow()], credit=Influence(queue=40, minimum=24)),
    "set-and-instance-by-search": lambda: trainer(rewards=[Narrow(), Reward(height)], contrast=Swap()),
    "no-ema": lambda: trainer(NFT(), replace(SMALL, ema_decay=0.0)),
}


def built_in() -> Trainer:
    return trainer(NFT(), rewards=[Reward(loudness)], policy=MiniPolicy(rank=4), prompts=("fast funk", "slow waltz"))


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in RESUMED.items()),
        pytest.param(built_in, id="built-in-model", marks=pytest.mark.slow),
    ],
)
def test_two_n_steps_equal_n_and_resume_and_n_to_the_bit(make: Callable[[], Trainer], tmp_path: Path) -> None:
    whole = make()
    reports = list(whole.run(6))
    half = make()
    list(half.run(3))
    path = checkpoint.save(tmp_path, half.step, half.state_dict(), {})
    torch.rand(7)  # other random numbers were drawn meanwhile, and the process is a new one
    resumed = make()
    resumed.load_state_dict(checkpoint.load(path).state)
    again = list(resumed.run(3))
    assert flat(resumed.state_dict()) == flat(whole.state_dict())
    start = make().state_dict()["learner"]["weights"]
    assert flat(start) != flat(whole.state_dict()["learner"]["weights"])
    for one, other in zip(reports[3:], again, strict=True):
        assert torch.equal(one.media.tensor, other.media.tensor)
        assert flat(one.scores) == flat(other.scores)  # NaN and all
        assert (one.step, one.seeds, one.beta, one.loss) == (other.step, other.seeds, other.beta, other.loss)


def test_another_seed_is_another_run() -> None:
    one, other = (next(trainer(settings=replace(SMALL, seed=seed)).run()) for seed in (0, 1))
    assert not set(one.seeds) & set(other.seeds)


def test_samples_scores_and_labels_do_not_depend_on_the_batch_size() -> None:
    runs = [list(trainer(settings=replace(SMALL, batch_size=size)).run(3)) for size in (1, 5, 64)]
    for reports in runs[1:]:
        for one, other in zip(runs[0], reports, strict=True):
            assert one.seeds == other.seeds and one.media.prompts == other.media.prompts
            # float32 sums of another order; three steps of training amplify them
            torch.testing.assert_close(one.media.tensor, other.media.tensor, rtol=1e-4, atol=1e-4)
            assert torch.equal(one.scores.argmax(1), other.scores.argmax(1))
            assert torch.equal(one.scores.argmin(1), other.scores.argmin(1))


def test_replay_adds_the_pairs_of_earlier_steps_and_no_older_ones() -> None:
    sizes: list[int] = []

    @dataclass(frozen=True)
    class Counting(NFT):
        def __call__(self, terms: Any) -> Tensor:
            sizes.append(len(terms.positive.target))
            return super().__call__(terms)

    settings = replace(SMALL, replay_steps=2, pairs_per_update=100, micro_batch_size=100, updates_per_step=1)
    list(trainer(Counting(), settings).run(4))
    assert sizes == [4, 8, 12, 12]


def test_every_prompt_comes_once_an_epoch_with_its_columns() -> None:
    prompts = [PROMPTS[i % 4] for i in range(10)]
    seen: list[tuple[str, object]] = []

    def note(points: Tensor, media: Media) -> Tensor:
        seen.extend(zip(media.prompts, media.columns["number"], strict=True))
        return points[:, 0]

    it = trainer(settings=replace(SMALL, prompts_per_step=5, batch_size=4), rewards=[Reward(note)], prompts=prompts,
                 columns={"number": range(10)})  # fmt: skip
    list(it.run(4))
    numbers = [number for _, number in seen]
    assert all(prompts[number] == prompt for prompt, number in seen)  # type: ignore[call-overload]
    epochs = numbers[: 10 * 3], numbers[10 * 3 :]
    for epoch in epochs:
        assert sorted(epoch) == sorted(list(range(10)) * 3)  # type: ignore[type-var]
    assert epochs[0] != epochs[1]


def test_abstained_samples_are_in_no_pair() -> None:
    def only_right(points: Tensor, media: Media) -> Tensor:
        return points[:, 1].masked_fill(points[:, 0] < 0, torch.nan)

    it = trainer(rewards=[Reward(only_right, abstains=True)])
    for report in it.run(3):
        silent = report.scores.isnan()
        assert silent.any() and torch.equal(silent.flatten(), report.media.tensor[:, 0, 0] < 0)
        assert report.rewards["height"] == pytest.approx(float(report.scores[~silent].mean()))
        assert report.pairs == int(((~silent).sum(1) >= 2).sum()) < 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("abstains", [False, True])
def test_a_score_that_is_not_finite_stops_with_reward_prompt_and_seed(value: float, abstains: bool) -> None:
    def spoil(points: Tensor, media: Media) -> Tensor:
        return points[:, 0].index_fill(0, torch.tensor([1]), value)

    it = trainer(rewards=[Reward(height), Reward(spoil, "bad", abstains)], settings=replace(SMALL, batch_size=5))
    first = next(trainer(settings=replace(SMALL, batch_size=5)).run())
    if value != value and abstains:
        assert next(it.run()).scores.isnan().sum() == 3  # row 1 of each batch of 5, 5 and 2
        return
    before = flat(it.state_dict())
    with pytest.raises(
        NotFinite, match=f"reward 'bad' is {value} for prompt {first.media.prompts[1]!r}, seed {first.seeds[1]};"
    ):
        next(it.run())
    assert flat(it.state_dict()) == before


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (Reward(lambda p, m: p[:, 0] * torch.nan, "mute", True), "reward 'mute' abstained on every sample"),
        (Reward(lambda p, m: p[:, 0] * 0, "flat"), "equal scores"),
        (Reward(lambda p, m: p[:, 0].masked_fill(torch.arange(len(p)) % 3 > 0, torch.nan), "shy", True), "no prompt"),
    ],
)  # fmt: skip
def test_a_step_with_nothing_to_learn_is_said_and_skipped(reward: Reward, reason: str) -> None:
    it = trainer(rewards=[reward], settings=replace(SMALL, replay_steps=1))
    before = flat(it.state_dict()["learner"])
    with pytest.warns(UserWarning, match=f"step 1: .*{reason}.*no update"):
        report = next(it.run())
    assert (report.step, report.pairs) == (1, 0) and reason in report.skipped and report.loss != report.loss
    assert flat(it.state_dict()["learner"]) == before
    it.scoring = Scoring([WeightedReward(Reward(height))], best_worst())  # the next step may have something to teach
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(it.run()).pairs == 4
    assert flat(it.state_dict()["learner"]) != before


def test_an_interrupt_leaves_the_state_of_the_last_whole_step() -> None:
    settings = replace(SMALL, replay_steps=2, beta_calibration_updates=2)
    countdown = {"calls": -1}

    @dataclass(frozen=True)
    class Interrupted(DPO):
        def __call__(self, terms: Any) -> Tensor:
            countdown["calls"] -= 1
            if countdown["calls"] == 0:
                raise KeyboardInterrupt
            return super().__call__(terms)

    unbroken = trainer(Interrupted(), settings)
    list(unbroken.run(6))
    for calls in (1, 2):  # in the first and in the second of a step's two updates; the third step calibrates beta
        it = trainer(Interrupted(), settings)
        list(it.run(3))
        before = flat(it.state_dict())
        countdown["calls"] = calls
        with pytest.raises(KeyboardInterrupt):
            next(it.run())
        assert flat(it.state_dict()) == before and it.step == 3
        list(it.run(3))
        assert flat(it.state_dict()) == flat(unbroken.state_dict())


def test_leaving_the_loop_early_and_calling_again_goes_on() -> None:
    whole = trainer()
    list(whole.run(4))
    it = trainer()
    for report in it.run():
        if report.step == 2:
            break
    list(it.run(2))
    assert flat(it.state_dict()) == flat(whole.state_dict())


def test_it_stops_at_max_steps() -> None:
    it = trainer(settings=replace(SMALL, max_steps=3))
    assert [report.step for report in it.run(2)] == [1, 2]
    assert [report.step for report in it.run(5)] == [3]
    assert list(it.run()) == []


def test_the_callers_random_numbers_and_gradients_are_left_alone() -> None:
    def rude(points: Tensor, media: Media) -> Tensor:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        torch.set_grad_enabled(False)  # as some packages do when they load
        return points[:, 1]

    def seed_all() -> None:
        torch.manual_seed(123)
        np.random.seed(123)
        random.seed(123)

    seed_all()
    expected = float(torch.rand(1)), np.random.rand(), random.random()
    seed_all()
    it = trainer(rewards=[Reward(rude)])
    reports = list(it.run(2))
    assert (float(torch.rand(1)), np.random.rand(), random.random()) == expected
    assert torch.is_grad_enabled() and reports[-1].grad_norm > 0


def test_learning_rate_rises_linearly_then_stays() -> None:
    rates = [report.learning_rate for report in trainer(settings=replace(SMALL, warmup_steps=2)).run(4)]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])


def test_ema_weights_are_the_average_of_all_updates() -> None:
    it = trainer(settings=replace(SMALL, ema_decay=0.5, updates_per_step=1))
    name, parameter = next(iter(it.policy.trainable().items()))
    average = parameter.detach().clone()
    for _ in it.run(3):
        average = 0.5 * average + 0.5 * parameter.detach()
    torch.testing.assert_close(it.ema_weights()[name], average)
    plain = trainer(settings=replace(SMALL, ema_decay=0.0))
    list(plain.run(2))
    assert all(torch.equal(plain.ema_weights()[n], p) for n, p in plain.policy.trainable().items())


def test_beta_is_stored_with_the_state() -> None:
    it = trainer(DPO(), replace(SMALL, warmup_steps=1))
    betas = [report.beta for report in it.run(5)]
    assert betas[0] == 5000.0 and betas[-1] != 5000.0 and betas[-1] == betas[-2]
    resumed = trainer(DPO(), replace(SMALL, warmup_steps=1))
    resumed.load_state_dict(it.state_dict())
    assert resumed.objective.beta == betas[-1]


def test_the_report_says_what_happened() -> None:
    it = trainer(rewards=[Reward(height), Reward(lambda p, m: p[:, 0], "x")])
    report: StepReport = list(it.run(2))[-1]
    points = report.media.tensor[:, :, 0].double()
    assert report.rewards == pytest.approx({"height": float(points[:, 1].mean()), "x": float(points[:, 0].mean())})
    assert report.scores.shape == (4, 3) and len(report.media) == len(report.seeds) == 12
    best_minus_worst = (report.scores.max(1).values - report.scores.min(1).values).mean()
    assert report.gap == pytest.approx(float(best_minus_worst)) and report.gap > 0
    assert set(report.seconds) == {"rollout", "decode", "score", "search", "train"}
    assert set(report.reward_seconds) == {"height", "x"}
    assert sum(report.reward_seconds.values()) <= report.seconds["score"]
    assert 0 <= report.implicit_accuracy <= 1 and report.grad_norm > 0 and report.pairs == 4
    assert report.beta is None and report.beta_gain_median != report.beta_gain_median
    for i, prompt in enumerate(report.media.prompts):  # row = prompt * k + sample
        assert prompt == report.media.prompts[i - i % 3]


def test_scores_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(PluginError, match=r"reward 'height' returned scores of shape \(12, 2\) for 12 clips"):
        next(trainer(rewards=[Reward(lambda points, media: points)]).run())


@pytest.mark.parametrize("part", ["generate", "decode"])
def test_a_sample_that_is_not_finite_stops_with_prompt_and_seed(part: str) -> None:
    class Broken:
        def __init__(self) -> None:
            self._toy = toy()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._toy, name)

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            made = self._toy.generate(*args, **kwargs)
            if part == "generate":
                made.latents[4, 1] = torch.nan
            return made

        def decode(self, generation: Any) -> Any:
            media = self._toy.decode(generation)
            if part == "decode":
                media.tensor[4, 1] = torch.inf
            return media

    first = next(trainer().run())
    what = "a sample of the policy" if part == "generate" else "a decoded clip"
    with pytest.raises(
        NotFinite, match=f"{what} is not finite for prompt {first.media.prompts[4]!r}, seed {first.seeds[4]} "
    ):
        next(trainer(policy=Broken()).run())


def test_settings_out_of_range_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainSettings(num_generations=1, learning_rate=0.0, ema_decay=1.0, betas=(0.9, 1.5), batch_size=0)
    for name in ("num_generations is 1", "learning_rate is 0.0", "ema_decay is 1.0", "1.5", "batch_size is 0"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="learning_rate is nan"):
        TrainSettings(learning_rate=float("nan"))


def test_parts_that_cannot_train_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least one, each with a name"):
        trainer(rewards=[])
    with pytest.raises(ConfigError, match=r"\['height', 'height'\]"):
        trainer(rewards=[Reward(height), Reward(height)])
    with pytest.raises(ConfigError, match="no training prompts"):
        trainer(prompts=[])
    with pytest.raises(ConfigError, match="column 'style' has 1 values for 4 prompts"):
        trainer(columns={"style": ["jazz"]})


def test_scoring_beside_sampling_changes_no_bit_of_a_run() -> None:
    runs = {}
    for overlap in (False, True):
        it = trainer(DPO(), replace(SMALL, batch_size=5, overlap_scoring=overlap), rewards=[Narrow(), Reward(height)],
                     credit=LeaveOneOut())  # fmt: skip
        reports = list(it.run(3))
        runs[overlap] = flat(it.state_dict()), [(flat(r.scores), r.seeds, r.loss, r.figures) for r in reports]
    assert runs[False] == runs[True]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda points, media: time.sleep(60), PluginError, "reward 'height' took more than 0.3 seconds for 12 clips"),
        (lambda points, media: 1 / 0, PluginError, r"'height' raised ZeroDivisionError: .* \(test_.*\) for 12"),
        (lambda points, media: None, PluginError, "reward 'height' returned None for 12 clips, the first for prompt"),
        (lambda points, media: points[1:, 0], PluginError, r"of shape \(11,\) for 12 clips, .*; expected \(12,\)"),
    ],
)  # fmt: skip
def test_a_reward_that_fails_ends_the_step_and_leaves_the_state(
    overlap: bool, function: Any, error: type[Exception], message: str
) -> None:
    settings = replace(SMALL, overlap_scoring=overlap, reward_timeout=0.3)
    it = trainer(settings=settings)
    list(it.run(1))
    before = flat(it.state_dict())
    it.scoring.rewards = (WeightedReward(Reward(function)),)
    with pytest.raises(error, match=message):
        next(it.run())
    assert flat(it.state_dict()) == before and it.step == 1
    it.scoring.rewards = (WeightedReward(Reward(height)),)
    whole = trainer(settings=settings)
    list(whole.run(3))
    list(it.run(2))
    assert flat(it.state_dict()) == flat(whole.state_dict())


def test_a_set_reward_that_fails_on_sets_is_named() -> None:
    class Fails(Narrow):
        def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
            raise IndexError("beyond the end")

    with pytest.raises(PluginError, match=r"'narrow' raised IndexError: beyond the end \(test_.*\) for 1 sets of 12"):
        next(trainer(rewards=[Fails()], credit=LeaveOneOut()).run())


@dataclass(frozen=True)
class Loud:
    """The toy with points for waveforms, made quiet."""

    inner: ToyPolicy
    factor: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, generation: Any) -> Media:
        media = self.inner.decode(generation)
        quiet = torch.tensor([self.factor if prompt == "up" else 1.0 for prompt in media.prompts])
        return Media(media.tensor.mT * quiet[:, None, None], media.prompts, 8)


def peak(start: Tensor, media: Media) -> Tensor:
    return media.tensor.double().flatten(1).abs().amax(1)


def test_silent_clips_are_counted_and_said_once() -> None:
    it = trainer(policy=Loud(toy(), 0.0), rewards=[Reward(peak)])
    with pytest.warns(UserWarning, match="step 1: 3 of 12 clips are silent .* of prompt 'up', seed") as told:
        reports = list(it.run(3))
    assert [report.figures["silent"] for report in reports] == [0.25] * 3
    assert len([one for one in told if "silent" in str(one.message)]) == 1
    row = reports[0].media.prompts.index("up")
    assert f"seed {reports[0].seeds[row]};" in str(told[0].message)
    assert next(trainer(policy=Loud(toy(), 1.0), rewards=[Reward(peak)]).run()).figures["silent"] == 0
    assert "silent" not in next(trainer().run()).figures  # points make no sound


@pytest.mark.filterwarnings("ignore:step 1. 12 of 12 clips are silent")
def test_where_all_clips_are_silent_that_is_the_reason() -> None:
    it = trainer(policy=Loud(toy(), 0.0), rewards=[Reward(peak)], prompts=["up"])
    with pytest.warns(UserWarning, match="all 12 clips are silent; no update was made"):
        assert next(it.run()).skipped == "all 12 clips are silent"


def test_a_batch_that_was_too_large_stays_small_after_a_resume() -> None:
    def hungry(points: Tensor, media: Media) -> Tensor:
        if len(points) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return points[:, 1]

    it = trainer(rewards=[Reward(hungry)])
    with pytest.warns(UserWarning, match="out of memory in a scoring batch of 12 rows; going on with 6"):
        list(it.run(2))
    again = trainer(rewards=[Reward(hungry)])
    again.load_state_dict(it.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(again.run(2))
        list(it.run(2))
    assert flat(it.state_dict()) == flat(again.state_dict())


def test_an_update_that_is_left_out_is_reported_and_the_run_goes_on() -> None:
    @dataclass(frozen=True)
    class Spoilt(NFT):
        def __call__(self, terms: Any) -> Tensor:
            return super().__call__(terms) * (torch.nan if it.step == 1 else 1.0)

    it = trainer(Spoilt())
    with pytest.warns(UserWarning, match="left out"):
        reports = list(it.run(3))
    assert [report.skipped_updates for report in reports] == [0, 2, 2]
    assert [bool(report.skipped) for report in reports] == [False, True, False]
    assert "the loss 'nft' is not finite for prompt" in reports[1].skipped
    assert reports[1].loss != reports[1].loss and reports[2].loss == reports[2].loss


def test_parts_that_start_anew_keep_the_weights_and_the_steps() -> None:
    one = trainer(DPO(), replace(SMALL, replay_steps=2), rewards=[Reward(height), Narrow()], credit=LeaveOneOut())
    list(one.run(3))
    state = one.state_dict()
    anew = frozenset({"objective", "rewards", "credit", "optimizer"})
    other = trainer(NFT(), replace(SMALL, replay_steps=2), rewards=[Narrow()], credit=Influence(queue=24, minimum=12))
    with pytest.raises(ConfigError):
        other.load_state_dict(state)
    other = trainer(NFT(), replace(SMALL, replay_steps=2), rewards=[Narrow()], credit=Influence(queue=24, minimum=12))
    other.load_state_dict(state, anew)
    assert other.step == 3 and not other.state_dict()["replay"]
    assert flat(other.state_dict()["learner"]["weights"]) == flat(state["learner"]["weights"])
    assert next(other.run()).step == 4
