"""Claims about the mixture of rewards: units do not matter, spread inside prompts does, abstention is kept."""

from __future__ import annotations

import json

import pytest
import torch

from dragon.contrast import RewardMixture
from dragon.contrast.mixture import within_prompt_variance
from dragon.errors import ConfigError, NotFinite, ShapeError

NAN = float("nan")


def table(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_two_rewards_by_hand():
    """Reward a: [[0, 2], [5, 5]], deviations from prompt means -1, 1, 0, 0; squares 2 over 2 degrees of freedom,
    sd 1. Reward b: [[0, 4], [0, 0]], deviations -2, 2; 8 / 2 = 4, sd 2. Weights 1 and 3:
    a + 3 b / 2 = [[0, 2 + 6], [5, 5]]."""
    mixture = RewardMixture([1.0, 3.0])
    combined = mixture.combine([table([[0, 2], [5, 5]]), table([[0, 4], [0, 0]])])
    assert torch.equal(combined, table([[0, 8], [5, 5]]))
    assert mixture.sds == (1.0, 2.0)


def test_running_variance_by_hand():
    """Variances 1 then 4 with momentum .75: .75 * 1 + .25 * 4 = 1.75."""
    mixture = RewardMixture([1.0, 1.0], momentum=0.75)
    still = table([[0, 2], [5, 5]])
    mixture.combine([still, still])
    mixture.combine([still, 2 * still])
    assert mixture.sds[0] == 1.0
    assert mixture.sds[1] == pytest.approx(1.75**0.5, rel=1e-15)


def test_one_reward_alone_is_only_weighted():
    scores = table([[1, NAN, 3]])
    assert torch.equal(RewardMixture([-2.0]).combine([scores]).nan_to_num(99), table([[-2, 99, -6]]))


def test_the_unit_of_a_reward_does_not_matter():
    a, b = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = RewardMixture([1.0, 0.5]).combine([a, b])
    two = RewardMixture([1.0, 0.5]).combine([a, 1e4 * b])
    assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


def test_spread_between_prompts_does_not_count():
    """Shifting a prompt's scores changes no within-prompt spread, so the ranking inside prompts is the same."""
    a, b = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = 100 * torch.arange(5, dtype=torch.float64)[:, None]
    one = RewardMixture([1.0, 1.0]).combine([a, b])
    two = RewardMixture([1.0, 1.0]).combine([a, b + shift])
    assert torch.allclose(one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True), atol=1e-9)


def test_a_sample_that_one_reward_abstains_on_is_dropped():
    combined = RewardMixture([1.0, 1.0]).combine([table([[0, 1, NAN]]), table([[NAN, 0, 1]])])
    assert combined.isnan().tolist() == [[True, False, True]]


def test_a_reward_without_spread_adds_nothing():
    combined = RewardMixture([1.0, 1.0]).combine([table([[0, 2], [5, 5]]), table([[7, 7], [9, 9]])])
    assert torch.equal(combined, table([[0, 2], [5, 5]]))


def test_variance_leaves_out_abstentions():
    """Prompt 0 has 1 and 3: squares 1 + 1 = 2 over 1; prompt 1 has one score: no degree of freedom. 2 / 1."""
    assert within_prompt_variance(table([[1, NAN, 3], [NAN, 50, NAN]])) == 2.0
    assert within_prompt_variance(table([[1, NAN], [NAN, 50]])) is None


def test_state_survives_json_to_the_bit():
    scores = torch.randn(2, 2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    unbroken, before = RewardMixture([1.0, 2.0]), RewardMixture([1.0, 2.0])
    unbroken.combine(list(scores[0]))
    before.combine(list(scores[0]))
    after = RewardMixture([1.0, 2.0])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert torch.equal(unbroken.combine(list(scores[1])), after.combine(list(scores[1])))


def test_a_state_of_other_weights_is_refused():
    with pytest.raises(ConfigError, match="resume with the same rewards"):
        RewardMixture([1.0]).load_state_dict(RewardMixture([1.0, 2.0]).state_dict())


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, NAN]])
def test_useless_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="reward weights"):
        RewardMixture(weights)


def test_wrong_tables_are_refused():
    with pytest.raises(ShapeError, match="expected 2"):
        RewardMixture([1.0, 1.0]).combine([torch.zeros(2, 2)])
    with pytest.raises(ShapeError):
        RewardMixture([1.0, 1.0]).combine([torch.zeros(2, 2), torch.zeros(2, 3)])
    with pytest.raises(NotFinite, match="reward 1"):
        RewardMixture([1.0, 1.0]).combine([torch.zeros(1, 2), table([[0, float("inf")]])])
