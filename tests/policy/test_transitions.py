"""Transitions as a policy: the upsampler's samples, the policy contract, prompts as conditions, and that it learns."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dragon.contrast import Influence
from dragon.contrast.pairs import best_worst
from dragon.diffusion import SeededNoise, heun, karras_sigmas, last
from dragon.encoders.transitions import TransitionEncoder
from dragon.errors import ConfigError, ShapeError
from dragon.exemplars import gather_transitions
from dragon.media import Media
from dragon.objectives.nft import NFT
from dragon.policy.transitions import TransitionPolicy, media_of, transitions_of
from dragon.rewards import SetMean
from dragon.scoring import WeightedReward
from dragon.synther import TransitionSpec, Upsampler, fit
from dragon.testing.policies import check_policy
from dragon.trainer import Trainer, TrainSettings
from tests.synther.linear_system import QUICK, fitted, system

WORDS = ("row 0", "row 1", "row 2")


def policy(scored: bool = False, **options: Any) -> TransitionPolicy:
    return TransitionPolicy(copy.deepcopy(fitted(scored)), **options)


@pytest.mark.parametrize("scored", [False, True])
def test_it_keeps_the_policy_contract(scored: bool):
    prompts = ("row 0 terminals=1 score=1", "row 1 terminals=0 score=-1", "row 2 terminals=0 score=0")
    found = check_policy(policy(scored), prompts if scored else ("row terminals=1", "row terminals=0"), steps=16)
    assert found.latent == (6,) and found.explained > 0.3


def test_rows_are_those_of_the_upsampler_for_the_same_noise():
    ours = policy(sampler="heun")
    made = ours.generate(["row terminals=1"] * 3, [4, 5, 6], steps=8, guidance=1.0)
    model = ours.upsampler
    sigmas = karras_sigmas(8, 0.02, 10.0, 7.0)
    denoise = model._denoise(torch.ones(3, 1), None, 1.0, clamp=True)
    expected = last(heun(denoise, 10.0 * SeededNoise([4, 5, 6]).draw((6,)), sigmas))
    torch.testing.assert_close(made.latents, expected, rtol=1e-5, atol=1e-5)
    rows = transitions_of(ours.decode(made), model.layout)
    assert rows.terminals.all() and (np.abs(rows.actions) <= 1).all()
    again = model.layout.decode(made.latents, torch.ones(3, 1))
    np.testing.assert_allclose(rows.next_observations, again.next_observations, rtol=1e-6)


def test_the_papers_sampler_gives_rows_that_do_not_depend_on_their_batch():
    ours = policy(sampler="paper", clamp=False)
    made = ours.generate(["row terminals=0"] * 4, [1, 2, 3, 4], steps=16, guidance=1.0).latents
    alone = ours.generate(["row terminals=0"], [3], steps=16, guidance=1.0).latents
    torch.testing.assert_close(made[2:3], alone, rtol=1e-4, atol=1e-4)
    assert (
        float((policy().generate(["row terminals=0"], [3], steps=16, guidance=1.0).latents - alone).abs().max()) > 0.01
    )
    with pytest.raises(ConfigError, match="sampler is 'ddim'"):
        policy(sampler="ddim")


def test_clips_hold_transitions_whole():
    data, layout = system(50), fitted().layout
    back = transitions_of(media_of(data, layout), layout)
    for name, value in data.arrays().items():
        np.testing.assert_allclose(back.arrays()[name], value, rtol=1e-6, err_msg=name)
    with pytest.raises(ShapeError, match=r"expected \(b, 1, 7\)"):
        transitions_of(Media(torch.zeros(2, 1, 3), ("", "")), layout)


def test_flags_that_a_prompt_leaves_open_are_as_frequent_as_in_the_data():
    data = system()
    flags = policy().encode([f"row {i}" for i in range(2000)]).tensors["row"][:, 0]
    rate = data.terminals.mean()
    assert abs(float(flags.mean()) - rate) < 4 * (rate * (1 - rate) / 2000) ** 0.5


def test_guidance_leads_toward_the_score_that_a_prompt_asks_for():
    ours = policy(scored=True)
    means = []
    for guidance in (1.0, 2.0):
        made = ours.generate([f"row {i} score=2" for i in range(256)], range(256), steps=8, guidance=guidance)
        means.append(transitions_of(ours.decode(made), ours.upsampler.layout).observations[:, 1].mean())
    assert 0.6 < means[0] < 1.4 and means[1] > means[0] + 0.3


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [("row terminals=2", "terminals=2"), ("row score=1", "score=1"), ("done=1", "done=1")],
)
def test_a_condition_that_the_model_does_not_have_is_refused(prompt: str, wrong: str):
    with pytest.raises(ConfigError, match=rf"asks for '{wrong}'.*expected terminals=0, terminals=1"):
        policy().encode([prompt])


def test_lora_and_another_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected 'full'"):
        policy(tuning="lora")
    fitted(scored=True).save(tmp_path)
    with pytest.raises(ConfigError, match="other columns or another network"):
        policy().load(str(tmp_path))


def test_what_it_saves_is_an_upsampler(tmp_path):
    ours = policy()
    with torch.no_grad():
        for p in ours.trainable().values():
            p.add_(0.01)
    ours.save(str(tmp_path))
    there, here = Upsampler.load(tmp_path).sample(20, seed=1), ours.upsampler.sample(20, seed=1)
    np.testing.assert_array_equal(there.next_observations, here.next_observations)
    other = policy()
    other.load(str(tmp_path))
    np.testing.assert_array_equal(other.upsampler.sample(20, seed=1).rewards, here.rewards)
    with other.reference():
        np.testing.assert_array_equal(other.upsampler.sample(20, seed=1).rewards, fitted().sample(20, seed=1).rewards)


def test_a_set_reward_restores_a_rate():
    """A model fitted to data with a third of the terminals left out, tuned toward the rate of all of them."""
    data = system()
    few = data.rows(np.flatnonzero(~data.terminals | (np.arange(len(data)) % 3 == 0)))
    model = fit(few, TransitionSpec(flags="column"), QUICK)
    encoder = TransitionEncoder(data, columns=("terminals",))
    reward = SetMean(gather_transitions(data, encoder).as_set("all"), encoder)
    ours = TransitionPolicy(model)
    before = model.sample(4096, seed=3).terminals.mean()
    settings = TrainSettings(
        prompts_per_step=64,
        num_generations=8,
        rollout_steps=8,
        guidance=1.0,
        batch_size=512,
        updates_per_step=4,
        pairs_per_update=64,
        micro_batch_size=64,
        learning_rate=1e-4,
        max_steps=25,
        seed=0,
    )
    trainer = Trainer(
        ours,
        [WeightedReward(reward, 1.0)],
        [f"row {i}" for i in range(64 * 25)],
        contrast=best_worst(),
        objective=NFT(anchor=0.1),
        settings=settings,
        credit=Influence(queue=2048, minimum=256),
    )
    for _ in trainer.run():
        pass
    after = ours.upsampler.sample(4096, seed=3).terminals.mean()
    wanted = data.terminals.mean()
    assert before < 0.6 * wanted
    assert abs(after - wanted) < 0.5 * abs(before - wanted)
