"""A plain function as a reward: what it is given, and every way it can go wrong."""

from __future__ import annotations

import math
from functools import partial, update_wrapper
from typing import Any

import numpy as np
import pytest
import torch

from dragon.audio import Audio
from dragon.errors import AudioError, NotFinite, PluginError
from dragon.media import Media
from dragon.protocols import InstanceReward
from dragon.rewards import FunctionReward


def media(**columns: tuple[object, ...]) -> Media:
    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 2, 2) / 12
    return Media(tensor, ("a", "b", "c"), 16_000, columns)


def loudness(audio: list[Audio], prompts: list[str]) -> list[float | None]:
    return [float(np.abs(clip.samples).max()) for clip in audio]


def test_scores_are_the_functions_own_in_order():
    reward = FunctionReward(loudness)
    assert isinstance(reward, InstanceReward)
    assert (reward.name, reward.abstains) == ("loudness", True)
    scores = reward.score(media())
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor([3.0, 7.0, 11.0], dtype=torch.float64) / 12, rtol=1e-6, atol=0)


def test_the_function_sees_samples_rate_and_prompts():
    seen = []

    def look(audio, prompts):
        seen.extend([audio, prompts])
        return [0.0] * len(audio)

    FunctionReward(look).score(media())
    audio, prompts = seen
    assert prompts == ["a", "b", "c"]
    assert [(a.samples.shape, a.samples.dtype, a.rate) for a in audio] == [((2, 2), np.float32, 16_000)] * 3


def test_none_abstains():
    scores = FunctionReward(lambda audio, prompts: [1, None, 2.5], name="some").score(media())
    assert scores[0] == 1 and math.isnan(scores[1]) and scores[2] == 2.5


def test_numpy_and_torch_results_are_taken():
    assert FunctionReward(lambda a, p: np.array([1.0, 2.0, 3.0])).score(media()).tolist() == [1, 2, 3]
    assert FunctionReward(lambda a, p: torch.tensor([1.0, 2.0, 3.0])).score(media()).tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_stops_with_row_and_prompt(value: float):
    with pytest.raises(NotFinite, match=r"reward 'odd' returned -?(nan|inf) for clip 1 \(prompt 'b'\)"):
        FunctionReward(lambda a, p: [0.0, value, 0.0], name="odd").score(media())


def test_a_clip_that_is_not_finite_stops_before_the_function_sees_it():
    broken = media()
    broken.tensor[2, 0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"clip 2 \(prompt 'c'\)"):
        FunctionReward(loudness).score(broken)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], "returned 2 scores for 3 clips"),
        (1.0, "returned float; expected a list of 3"),
        (None, "returned NoneType"),
        ({"a": 1}, "returned dict"),
        ([1.0, "loud", 2.0], r"returned 'loud' for clip 1 \(prompt 'b'\)"),
    ],
)
def test_a_result_of_the_wrong_form_is_named(result: Any, message: str):
    with pytest.raises(PluginError, match=message):
        FunctionReward(lambda a, p: result, name="bad").score(media())


def test_columns_go_to_the_functions_that_name_them():
    def tempo(audio, prompts, bpm):
        return bpm

    def everything(audio, prompts, **columns):
        return [len(columns)] * len(audio)

    clips = media(bpm=(60, 90, 120), key=("C", "D", "E"))
    assert FunctionReward(tempo).score(clips).tolist() == [60, 90, 120]
    assert FunctionReward(everything).score(clips).tolist() == [2, 2, 2]
    assert FunctionReward(loudness).score(clips).shape == (3,)


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    def tempo(audio, prompts, bpm):
        return bpm

    with pytest.raises(PluginError, match="needs column 'bpm', which the prompts lack .*'key'"):
        FunctionReward(tempo).score(media(key=("C", "D", "E")))

    def with_default(audio, prompts, bpm=None):
        return [0.0 if bpm is None else 1.0] * len(audio)

    assert FunctionReward(with_default).score(media()).tolist() == [0, 0, 0]


def test_an_option_bound_to_the_function_is_no_column():
    def near(audio, prompts, target):
        return [-abs(target - 3.0)] * len(audio)

    for bound in (partial(near, target=5.0), update_wrapper(partial(near, target=5.0), near)):
        reward = FunctionReward(bound, "near")
        assert reward.score(media()).tolist() == [-2, -2, -2]


def test_what_is_no_reward_function_is_refused_at_once():
    with pytest.raises(PluginError, match="is not a function"):
        FunctionReward(3)
    with pytest.raises(PluginError, match="takes 1 positional arguments"):
        FunctionReward(lambda audio: [])


def test_images_are_not_handed_to_an_audio_function():
    with pytest.raises(AudioError, match="media without a rate"):
        FunctionReward(loudness).score(Media(torch.zeros(1, 3, 4, 4), ("a",)))
