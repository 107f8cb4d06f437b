"""Whatever a reward does, what comes out is one number a clip, or one message that names the reward and the clips."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dragon.aside import Aside, NotDone, within
from dragon.errors import AudioError, DragonError, NotFinite, PluginError
from dragon.media import Media
from dragon.verdicts import SILENCE, Verdicts, verdicts

CLIPS = Media(torch.linspace(-1, 1, 3 * 8).reshape(3, 1, 8), ("slow", "fast", "late"), 8)
SEEDS = (7, 8, 9)


class Says:
    """An instance reward that gives whatever the function gives."""

    name = "odd"

    def __init__(self, function: Callable[[Media], Any], abstains: bool = False) -> None:
        self.abstains, self._function = abstains, function

    def score(self, media: Media) -> Any:
        return self._function(media)


class Embeds(Says):
    """A set reward that does."""

    def embed(self, media: Media) -> Any:
        return self._function(media)

    def score_sets(self, features: Tensor, members: Tensor) -> Tensor:
        return features[members].double().mean((1, 2, 3))


def asked(reward: Any, timeout: float = 0.0) -> Verdicts:
    return verdicts({reward.name: reward}, CLIPS, SEEDS, timeout=timeout)


def raising(error: BaseException) -> Callable[[Media], Any]:
    def function(media: Media) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    "scores", [[1, 2.5, True], (1.0, 2.5, 1.0), torch.tensor([1, 2.5, 1]), torch.tensor([1.0, 2.5, 1.0]).numpy()]
)
def test_numbers_of_any_kind_are_scores(scores: Any) -> None:
    found = asked(Says(lambda media: scores)).scores["odd"]
    assert found.dtype == torch.float64 and found.tolist() == [1.0, 2.5, 1.0]


@pytest.mark.parametrize("kind", [Says, Embeds])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m: None, "'odd' returned None for 3 clips, the first for prompt 'slow', seed 7; .* `return` missing"),
        (lambda m: "high", "'odd' returned 'high' for 3 clips, .*; expected"),
        (lambda m: {"score": 1.0}, "'odd' returned {'score': 1.0} for 3 clips"),
        (lambda m: [1.0, None, 2.0], r"'odd' returned \[1.0, None, 2.0\] for 3 clips"),
        (lambda m: [[1.0], [2.0, 3.0], []], r"'odd' returned \[\[1.0\], \[2.0, 3.0\], \[\]\] for"),
        (lambda m: torch.ones(3) * 1j, "'odd' returned complex numbers"),
        (raising(ValueError("no\nsuch")), r"raised ValueError: no \(test_verdicts.py, line \d+\) for 3 clips"),
        (raising(KeyError("style")), r"'odd' raised KeyError: 'style' \(.*\) for 3 clips"),
        (raising(SystemExit(3)), r"'odd' raised SystemExit: 3 \(.*\) for 3 clips"),
        (raising(TimeoutError()), r"'odd' raised TimeoutError \(.*\) for 3 clips"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("timeout", [0.0, 30.0])
def test_what_is_no_answer_is_one_message(kind: Any, function: Any, message: str, timeout: float) -> None:
    with pytest.raises(PluginError, match=message):
        asked(kind(function), timeout)


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [1.0] * 4, 0.5, [], torch.ones(3, 1)])
def test_another_number_of_scores_is_refused(wrong: Any) -> None:
    shape = tuple(torch.as_tensor(wrong).shape)
    with pytest.raises(PluginError) as caught:
        asked(Says(lambda media: wrong))
    assert f"returned scores of shape {shape} for 3 clips, the first for prompt" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_names_prompt_and_seed(value: float) -> None:
    with pytest.raises(NotFinite, match=f"reward 'odd' is {value} for prompt 'fast', seed 8; expected a finite number"):
        asked(Says(lambda media: [0.0, value, 0.0]))


def test_only_a_reward_that_may_abstain_gives_nan() -> None:
    found = asked(Says(lambda media: [0.0, float("nan"), 0.0], abstains=True)).scores["odd"]
    assert found.isnan().tolist() == [False, True, False]


def test_features_of_another_shape_in_another_batch_are_refused() -> None:
    parts = [asked(Embeds(lambda media, f=f: torch.ones(3, 1, f))) for f in (2, 3)]  # type: ignore[misc]
    with pytest.raises(PluginError, match=r"set reward 'odd' embedded 3 clips as \(3, 1, 3\); .* every batch"):
        Verdicts.cat(parts)


def test_an_error_that_says_what_to_do_is_passed_on() -> None:
    with pytest.raises(AudioError, match="^too short$"):
        asked(Says(raising(AudioError("too short"))))


def test_memory_that_runs_out_is_for_the_one_who_chose_the_batch() -> None:
    with pytest.raises(MemoryError):
        asked(Says(raising(MemoryError())))


def test_the_cause_is_kept() -> None:
    cause = ZeroDivisionError("here")
    with pytest.raises(PluginError) as caught:
        asked(Says(raising(cause)))
    assert caught.value.__cause__ is cause


def test_a_reward_that_hangs_is_left_behind() -> None:
    start = time.monotonic()
    with pytest.raises(PluginError, match=r"'odd' took more than 0.2 seconds for 3 clips, .*rollout.reward_timeout"):
        asked(Says(lambda media: time.sleep(30)), timeout=0.2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("timeout", [0.0, 30.0])
def test_no_gradient_is_kept_and_none_is_switched_off(timeout: float) -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))

    def rude(media: Media) -> Tensor:
        scores = media.tensor.mean((1, 2)) * weight
        assert not scores.requires_grad
        torch.set_grad_enabled(False)
        return scores

    asked(Says(rude), timeout)
    assert torch.is_grad_enabled()


def test_a_prompt_of_100_kb_does_not_fill_the_screen() -> None:
    clips = Media(CLIPS.tensor[:1], ("la " * 30_000,), 8)
    with pytest.raises(DragonError) as caught:
        verdicts({"odd": Says(lambda media: [float("nan")])}, clips, [1])
    assert len(str(caught.value)) < 600


def test_peaks_tell_silence_of_audio_and_nothing_of_points() -> None:
    quiet = Media(torch.tensor([[[0.0, -0.5]], [[0.5e-4, -0.5e-4]]]), ("a", "b"), 8)
    assert (verdicts({}, quiet, [0, 1]).peaks < SILENCE).tolist() == [False, True]
    points = Media(torch.zeros(2, 2, 1), ("a", "b"), None)
    assert (verdicts({}, points, [0, 1]).peaks < SILENCE).tolist() == [False, False]


def test_work_aside_gives_its_result_or_its_error() -> None:
    assert Aside(lambda: 3).result() == 3
    with pytest.raises(SystemExit):
        Aside(sys.exit).result()
    with pytest.raises(NotDone):
        within(0.01, lambda: time.sleep(10))
    assert within(0, lambda: 4) == 4
