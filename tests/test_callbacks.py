"""Callbacks: they stop a run for the reason they give, remember over a resume, and never change what is trained."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dragon.build import build_run, plugin_problems
from dragon.callbacks import (
    RewardHacking,
    StopWhen,
    callbacks_state,
    load_callbacks_state,
    stopping_reason,
)
from dragon.config import TrainConfig, from_dict
from dragon.errors import ConfigError, PluginError
from dragon.faults import TrainsBadly
from dragon.media import Media
from dragon.protocols import Callback, Report
from dragon.record import numbers, record
from dragon.trainer import StepReport


def report(step: int = 1, *, clip: float = 0.0, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "step": step, "rewards": {"clap": 0.5}, "reward": 0.5, "figures": {"clap/positive": 0.6}, "gap": 0.25,
        "loss": 0.7, "implicit_accuracy": 0.75, "gain_positive": 0.1, "gain_negative": -0.1, "z0": math.nan,
        "beta": None, "beta_gain_median": 1.0, "grad_norm": 2.0, "learning_rate": 1e-4, "pairs": 2, "ties_dropped": 1,
        "seconds": {"rollout": 2.0}, "reward_seconds": {}, "skipped": "",
        "media": Media(torch.full((2, 2, 1), clip), ("a", "a")), "seeds": (1, 2), "scores": torch.zeros(1, 2),
    }  # fmt: skip
    return StepReport(**{**values, **changes})


class Height:
    """A reward: where the point is; of NaN it has no opinion."""

    name, abstains = "height", True

    def score(self, media: Media) -> Tensor:
        return media.tensor[:, 0, 0].double()


def test_the_numbers_of_a_step_have_the_names_that_are_logged() -> None:
    logged = record(report())
    found = numbers(report())
    assert found["rewards/clap"] == 0.5 and found["figures/clap/positive"] == 0.6 and found["seconds/rollout"] == 2.0
    no_numbers = {"step", "skipped", "reward_seconds"}  # the last has no reward here
    assert {name.split("/")[0] for name in found} == logged.keys() - no_numbers


@pytest.mark.parametrize(
    "figure",
    ["z0", "beta", "learning_rate", "gain_positive", "gain_negative", "pairs", "ties_dropped", "skipped_updates",
     "whole_seconds", "reward_seconds/clap", "seconds/rollout", "figures/clap/positive"],
)  # fmt: skip
def test_every_number_that_is_shown_can_stop_a_run(figure: str) -> None:
    """Also one that has no value yet, such as beta before it is calibrated."""
    stop = StopWhen(figure, above=-10.0)
    seen = report(z0=0.5, beta=10.0, whole_seconds=3.0, reward_seconds={"clap": 0.1}, skipped_updates=2)
    assert stop(report(reward_seconds={"clap": math.nan}, z0=math.nan)) is None or figure not in ("z0", "beta")
    assert (stop(seen) or "").startswith(f"{figure} is {numbers(seen)[figure]:.4g}, above -10 for ")


def test_a_figure_beyond_its_bound_for_long_enough_stops_the_run() -> None:
    stop = StopWhen("rewards/clap", above=0.8, patience=2)
    values = (0.9, 0.7, 0.9, math.nan, 0.9, 0.95)
    reasons = [stop(report(step, rewards={"clap": value})) for step, value in enumerate(values, 1)]
    assert reasons == [None] * 5 + ["rewards/clap is 0.95, above 0.8 for 2 steps"]
    assert StopWhen("gap", below=0)(report(gap=-0.1)) == "gap is -0.1, below 0 for 1 step"
    assert StopWhen("gap", below=0)(report(gap=0.0)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "above is None and below is None; expected one of the two"),
        ({"above": 1.0, "below": 0.0}, "above is 1.0 and below is 0.0"),
        ({"above": 1.0, "patience": 0}, "patience is 0; expected at least 1"),
    ],
)
def test_a_bound_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StopWhen("loss", **options)


def test_a_figure_that_is_not_there_is_named_at_the_first_step_with_an_update() -> None:
    stop = StopWhen("rewards/clip", above=1.0)
    assert stop(report(skipped="the queue is filling up")) is None
    with pytest.raises(ConfigError, match="no figure of a step is called 'rewards/clip'; did you mean 'rewards/clap'"):
        stop(report())


def learnt(watched_change: float, trained_change: float, steps: int = 12, **options: Any) -> list[str | None]:
    """What the watch says of a run whose rewards change by that much in the middle; their noise is 0.1."""
    watch = RewardHacking("height", watch={"height": Height()}, **options)
    generator = torch.Generator().manual_seed(0)
    said = []
    for step in range(steps):
        a, b = (0.1 * torch.randn(2, generator=generator)).tolist()
        later = step >= steps // 2
        said.append(watch(report(step, rewards={"clap": a + later * trained_change}, clip=b + later * watched_change)))
    return said


def test_a_watched_reward_that_falls_while_the_trained_one_rises_is_noticed() -> None:
    reasons = learnt(-1.0, 1.0, stop=True)
    assert reasons[:9] == [None] * 9  # two windows must have been seen
    assert reasons[-1] and "clap rose while 'height', which is only watched, fell" in reasons[-1]
    with pytest.warns(TrainsBadly, match="listen whether the reward is being hacked") as caught:
        assert learnt(-1.0, 1.0, steps=14) == [None] * 14
    assert len(caught) == 1


@pytest.mark.parametrize("changes", [(0.0, 1.0), (1.0, 1.0), (-1.0, 0.0), (-1.0, -1.0), (math.nan, 1.0)])
@pytest.mark.filterwarnings("error")
def test_nothing_else_is_taken_for_it(changes: tuple[float, float]) -> None:
    assert learnt(*changes) == [None] * 12


def test_the_stated_rate_of_false_alarms() -> None:
    """Two windows of equal, independent steps: the statistic is below -3 about once in a hundred."""
    watch = RewardHacking("height", watch={"height": Height()})
    draws = torch.randn(20_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    alarms = sum(watch._change(values) < -watch.errors for values in draws) / len(draws)
    assert alarms == pytest.approx(0.01, abs=0.004)


def test_a_set_reward_can_be_watched() -> None:
    class Spread:
        name = "spread"

        def embed(self, media: Media) -> Tensor:
            return media.tensor.double().transpose(1, 2)

        def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
            return features[members].mean((1, 2, 3))

    watch = RewardHacking("spread", window=2, stop=True, watch={"spread": Spread()})
    values = [(0.0, 1.0), (0.1, 0.9), (1.0, 0.0), (1.1, 0.1)]
    reasons = [watch(report(rewards={"clap": trained}, clip=clip)) for trained, clip in values]
    assert reasons[:3] == [None] * 3 and reasons[3]


def test_a_watched_reward_sees_the_clips_in_batches() -> None:
    sizes: list[int] = []

    class Sized(Height):
        def score(self, media: Media) -> Tensor:
            sizes.append(len(media))
            if len(media) > 2:
                raise MemoryError
            return super().score(media)

    watch = RewardHacking("height", watch={"height": Sized()}, batch_size=4)
    clips = report(media=Media(torch.arange(5.0)[:, None, None], ("a",) * 5), seeds=tuple(range(5)))
    with pytest.warns(UserWarning, match="out of memory in a scoring batch of 4 rows; going on with 2"):
        watch(clips)
    assert sizes == [4, 2, 2, 1] and watch.state_dict()["seen"][0]["watched height"] == 2.0


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda media: 1 / 0, "reward 'height' raised ZeroDivisionError: .* the first for prompt 'a', seed 1; mend"),
        (lambda media: None, "reward 'height' returned None for 2 clips"),
        (lambda media: torch.zeros(1), r"reward 'height' returned scores of shape \(1,\) for 2 clips"),
        (lambda media: time.sleep(60), "reward 'height' took more than 0.2 seconds for 2 clips"),
    ],
)
def test_a_watched_reward_that_breaks_its_contract_is_named_as_a_reward(score: Any, message: str) -> None:
    broken = Height()
    broken.score = score  # type: ignore[method-assign]
    watch = RewardHacking("height", watch={"height": broken}, reward_timeout=0.2)
    with pytest.raises(PluginError, match=message):
        stopping_reason([watch], report())


def test_a_watched_set_reward_that_breaks_its_contract_is_named_as_a_reward() -> None:
    class Broken:
        name = "spread"

        def embed(self, media: Media) -> Tensor:
            return media.tensor.double()

        def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
            raise KeyError("members")

    with pytest.raises(PluginError, match="set reward 'spread' raised KeyError: 'members' .* for 1 sets of 2 clips"):
        stopping_reason([RewardHacking("spread", watch={"spread": Broken()})], report())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watched": "hieght"}, "watched is 'hieght', which is no reward of evaluation.watch; did you mean 'height'"),
        ({"watched": "height", "window": 1}, "window is 1 and errors 3.0"),
        ({"watched": "height", "errors": 0.0}, "window is 5 and errors 0.0"),
    ],
)
def test_a_watch_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardHacking(**options, watch={"height": Height()})


def test_what_callbacks_remember_is_json_and_survives_a_resume() -> None:
    def callbacks() -> list[Callback]:
        return [
            StopWhen("loss", above=0.0, patience=7),
            RewardHacking("height", window=3, stop=True, watch={"height": Height()}),
            lambda report: None,
        ]

    def steps(parts: list[Callback], which: range) -> list[str]:
        return [stopping_reason(parts[1:], report(i, clip=-float(i), rewards={"clap": float(i)})) for i in which] + [
            stopping_reason(parts[:1], report(i)) for i in which
        ]

    whole, first, second = callbacks(), callbacks(), callbacks()
    steps(whole, range(4))
    steps(first, range(4))
    load_callbacks_state(second, json.loads(json.dumps(callbacks_state(first))))
    assert steps(whole, range(4, 8)) == steps(second, range(4, 8))
    assert any(steps(whole, range(8, 9)))
    load_callbacks_state(callbacks()[::-1], callbacks_state(first))  # other ones in their places start anew


def test_a_callback_that_breaks_its_contract_is_named() -> None:
    def broken(report: Report) -> str | None:
        raise KeyError("clip")

    def wrong(report: Report) -> Any:
        return True

    with pytest.raises(PluginError, match=r"callback .*broken raised KeyError at step 3: 'clip'; mend it"):
        stopping_reason([broken], report(3))
    with pytest.raises(PluginError, match=r"callback .*wrong returned True at step 3; expected None to go on, or text"):
        stopping_reason([wrong], report(3))


def test_a_callback_whose_memory_is_no_json_or_that_leaves_the_program_is_named() -> None:
    class Odd:
        def __call__(self, report: Any) -> None:
            raise SystemExit(3)

        def state_dict(self) -> dict[str, Any]:
            return {"reward": torch.zeros(1)}

        def load_state_dict(self, state: Any) -> None:
            raise KeyError("row")

    with pytest.raises(PluginError, match="Odd raised SystemExit at step"):
        stopping_reason([Odd()], report())
    with pytest.raises(PluginError, match="Odd: state_dict failed .*expected JSON values"):
        callbacks_state([Odd()])
    with pytest.raises(PluginError, match="Odd: load_state_dict failed .KeyError"):
        load_callbacks_state([Odd()], [{"callback": Odd.__qualname__, "state": {}}])


def test_every_callback_is_called_even_when_one_stops() -> None:
    seen: list[int] = []

    def note(report: Report) -> None:
        seen.append(report.step)

    assert stopping_reason([lambda report: "enough", note, lambda report: "more"], report(4)) == "enough"
    assert seen == [4]


OWN = """
def after(report, step: int, word: str = "enough"):
    return word if report.step >= step else None

class Watching:
    def __init__(self, watch, limit: float = 1.0):
        self.names, self.limit = list(watch), limit

    def __call__(self, report):
        return None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "train.txt").write_text("left\nright\n")
    (tmp_path / "test.txt").write_text("up\ndown\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(*callbacks: dict[str, Any]) -> TrainConfig:
    return from_dict(
        {
            "prompts": "train.txt",
            "eval_prompts": "test.txt",
            "policy": {"name": "toy"},
            "rewards": [{"name": "random"}],
            "evaluation": {"watch": [{"name": "random", "options": {"seed": 1, "name": "judge"}}]},
            "rollout": {"prompts_per_step": 2, "steps": 2, "batch_size": 3, "reward_timeout": 60.0},
            "callbacks": list(callbacks),
        }
    )


def test_functions_and_classes_of_ones_own_are_built_with_their_options(folder: Path) -> None:
    run = build_run(
        config(
            {"name": "own.py:after", "options": {"step": "2"}},
            {"name": "own.py:Watching", "options": {"limit": 2}},
            {"name": "stop_when", "options": {"figure": "loss", "above": "1e9"}},
            {"name": "reward_hacking", "options": {"watched": "judge"}},
        )
    )
    assert all(isinstance(callback, Callback) for callback in run.callbacks)
    watch = run.callbacks[3]
    assert isinstance(watch, RewardHacking) and (watch._batching.size, watch._timeout) == (3, 60.0)  # those of rollout
    assert vars(run.callbacks[1]) == {"names": ["judge"], "limit": 2.0}
    reasons = [stopping_reason(run.callbacks, done) for done in run.trainer().run(2)]
    assert reasons == ["", "enough"]


def test_wrong_callbacks_are_told_with_all_other_problems(folder: Path) -> None:
    problems = plugin_problems(
        config(
            {"name": "stop_wen"},
            {"name": "own.py:after", "options": {"stpe": 2}},
            {"name": "reward_hacking", "options": {"watched": "judge", "watch": {}}},
        )
    )
    told = {problem.path: problem.text for problem in problems}
    assert "did you mean 'stop_when'" in told["callbacks.0.name"]
    assert told["callbacks.1.options.stpe"] == "unknown option; did you mean 'step'?"
    assert told["callbacks.1.options.step"] == "is missing and has no default; give it"
    assert told["callbacks.2.options.watch"] == "is set by evaluation.watch; leave it out here"
    with pytest.raises(ConfigError, match="callbacks.0: watched is 'jugde', which is no reward of evaluation.watch"):
        build_run(config({"name": "reward_hacking", "options": {"watched": "jugde"}}))
