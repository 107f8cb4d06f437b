"""Claims about the toy policy: its score is exact, its samples are the mixture's, and it keeps the policy contract."""

from __future__ import annotations

import math

import pytest
import torch

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.media import Cond
from dragon.policy import ToyPolicy
from dragon.protocols import Noising, Policy

UNEVEN = {"a": [(0.5, 0.0, 0.2, 3.0), (-0.5, 0.4, 0.3, 1.0)], "b": [(0.0, -0.5, 0.1, 1.0)]}


@pytest.fixture
def policy():
    return ToyPolicy()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def disturb(policy, size=0.1):
    """Trainable weights away from the start, as training leaves them."""
    with torch.no_grad():
        for i, p in enumerate(policy.trainable().values()):
            p.add_(size * torch.randn(p.shape, generator=generator(i)))


def denoised(policy, x, sigma, prompt):
    """The policy's clean point of x = 0 + sigma * (x / sigma), by u = noise - x0 and x = x0 + sigma * noise."""
    noising = Noising(torch.full((len(x),), sigma), x / sigma)
    u = policy.predict(torch.zeros_like(x), noising, policy.encode([prompt] * len(x)))
    return (x - sigma * u) / (1 + sigma)


def test_it_is_a_policy(policy):
    as_protocol: Policy = policy
    assert as_protocol.name == "toy"


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 20.0])
def test_the_start_satisfies_tweedie(sigma):
    """E[x0 | x] = x + sigma^2 grad log p(x; sigma), the density written down here and differentiated by autograd."""
    policy = ToyPolicy(components=UNEVEN)
    x = torch.randn(64, 2, generator=generator()) * math.sqrt(0.25 + sigma**2)
    point = x.double().requires_grad_()
    logs = [
        math.log(w)
        - (point - torch.tensor([mx, my])).square().sum(1) / (2 * (sd**2 + sigma**2))
        - math.log(sd**2 + sigma**2)
        for mx, my, sd, w in UNEVEN["a"]
    ]
    (score,) = torch.autograd.grad(torch.stack(logs).logsumexp(0).sum(), point)
    expected = (point + sigma**2 * score).detach().float()
    # float32 input: x0 is what remains of numbers of size sigma
    assert torch.allclose(denoised(policy, x, sigma, "a"), expected, atol=3e-6 * (1 + sigma))


def test_at_high_noise_the_clean_point_is_the_mean_and_at_low_noise_the_point_itself():
    policy = ToyPolicy(components=UNEVEN)
    mean, _ = policy.moments("a")
    x = torch.randn(8, 2, generator=generator())
    assert torch.allclose(denoised(policy, 500 * x, 500.0, "a"), mean.float().expand(8, 2), atol=5e-3)
    near = torch.tensor([[0.5, 0.1], [-0.4, 0.3]])
    assert torch.allclose(denoised(policy, near, 1e-3, "a"), near, atol=1e-4)


def test_moments_by_hand():
    """Weights 3/4 and 1/4. Mean (.375 - .125, .1) = (.25, .1). E[x^2] = .75 (.25 + .04) + .25 (.25 + .09) = .3025,
    var x = .24; E[y^2] = .75 * .04 + .25 (.16 + .09) = .0925, var y = .0825; E[xy] = .25 * -.2 = -.05,
    cov = -.075. The empty prompt is half "a", half "b": mean (.125, -.2)."""
    policy = ToyPolicy(components=UNEVEN)
    mean, cov = policy.moments("a")
    assert torch.allclose(mean, torch.tensor([0.25, 0.1], dtype=torch.float64))
    assert torch.allclose(cov, torch.tensor([[0.24, -0.075], [-0.075, 0.0825]], dtype=torch.float64))
    assert torch.allclose(policy.moments("")[0], torch.tensor([0.125, -0.2], dtype=torch.float64))


def test_samples_have_the_mixture_s_moments():
    """4,000 samples, 64 Heun steps. Tolerance: 4.5 standard errors (mean sqrt(var / n), second moments below
    sqrt(2 / n) * var of the widest axis), and 2 % for the solver."""
    policy, n = ToyPolicy(components=UNEVEN), 4000
    latents = policy.generate(["a"] * n, range(n), steps=64, guidance=1.0).latents.double()
    mean, cov = policy.moments("a")
    assert ((latents.mean(0) - mean).abs() < 4.5 * (cov.diagonal() / n).sqrt()).all()
    assert (latents.T.cov() - cov).abs().max() < (4.5 * math.sqrt(2 / n) + 0.02) * cov.diagonal().max()


def test_prompts_go_to_their_own_components(policy):
    prompts = ["left", "right", "up", "down"] * 50
    latents = policy.generate(prompts, range(200), steps=16, guidance=1.0).latents
    assert (latents[0::4, 0] < 0).all() and (latents[1::4, 0] > 0).all()
    assert (latents[2::4, 1] > 0).all() and (latents[3::4, 1] < 0).all()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_a_sample_does_not_depend_on_its_batch(sampler, guidance):
    policy = ToyPolicy(sampler=sampler)
    disturb(policy)
    prompts, seeds = ["left", "up", "right", "left", "down"], [7, 1, 2, 3, 7]
    whole = policy.generate(prompts, seeds, steps=6, guidance=guidance).latents
    assert not torch.equal(whole[0], whole[3])
    for rows in ([0], [3, 1], [4, 2, 0]):
        part = policy.generate([prompts[i] for i in rows], [seeds[i] for i in rows], steps=6, guidance=guidance)
        assert (part.latents - whole[rows]).norm() <= 1e-5 * whole[rows].norm()


def test_guidance_pushes_away_from_the_other_prompts(policy):
    x = [policy.generate(["left"] * 200, range(200), steps=12, guidance=g).latents[:, 0].mean() for g in (1.0, 3.0)]
    assert x[1] < x[0]


def test_before_training_the_policy_is_its_reference_to_the_bit(policy):
    latents = torch.randn(16, 2, generator=generator())
    noising, cond = policy.draw_noising(latents, generator(1)), policy.encode(["left", "up"] * 8)
    ours = policy.predict(latents, noising, cond)
    rollout = policy.generate(["left"] * 4, range(4), steps=5, guidance=2.0).latents
    with policy.reference():
        assert torch.equal(policy.predict(latents, noising, cond), ours)
        assert torch.equal(policy.generate(["left"] * 4, range(4), steps=5, guidance=2.0).latents, rollout)


def test_reference_and_weights_restore(policy):
    start = policy.generate(["up"] * 3, range(3), steps=4, guidance=1.0).latents
    stored = {name: p.detach().clone() for name, p in policy.trainable().items()}
    disturb(policy)
    moved = policy.generate(["up"] * 3, range(3), steps=4, guidance=1.0).latents
    assert not torch.allclose(moved, start, atol=1e-3)
    for context in (policy.reference(), policy.weights(stored)):
        with context:
            assert torch.equal(policy.generate(["up"] * 3, range(3), steps=4, guidance=1.0).latents, start)
        assert torch.equal(policy.generate(["up"] * 3, range(3), steps=4, guidance=1.0).latents, moved)


def test_save_then_load_gives_the_same_samples(policy, tmp_path):
    disturb(policy)
    policy.save(str(tmp_path))
    other = ToyPolicy(seed=3)
    other.load(str(tmp_path))
    one, two = (p.generate(["left", "down"], [1, 2], steps=4, guidance=2.0).latents for p in (policy, other))
    assert torch.equal(one, two)


def test_fine_tuning_on_points_lowers_their_error(policy):
    """Prediction and target fit together: a few steps on points at (0, 0), which "left" never makes, learn them."""
    latents, cond = torch.zeros(256, 2), policy.encode(["left"] * 256)
    optimiser = torch.optim.Adam(policy.trainable().values(), lr=1e-2)
    losses = []
    for step in range(60):
        noising = policy.draw_noising(latents, generator(step))
        loss = (policy.predict(latents, noising, cond) - policy.target(latents, noising)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_target_is_the_velocity(policy):
    latents = torch.tensor([[0.5, -0.25]])
    assert policy.target(latents, Noising(torch.tensor([3.0]), torch.tensor([[1.0, 1.0]]))).tolist() == [[0.5, 1.25]]


def test_noising_comes_from_the_generator_and_stays_in_the_range_of_times():
    policy = ToyPolicy(t_min=0.35, t_max=0.9)
    latents = torch.zeros(2000, 2)
    one, two = policy.draw_noising(latents, generator(4)), policy.draw_noising(latents, generator(4))
    assert torch.equal(one.sigma, two.sigma) and torch.equal(one.noise, two.noise)
    t = one.sigma / (1 + one.sigma)
    assert t.min() > 0.35 - 1e-6 and t.max() < 0.9 + 1e-6 and t.min() < 0.37 and t.max() > 0.88
    assert one.noise.std() == pytest.approx(1.0, abs=5 / math.sqrt(2 * 4000))


def test_decoded_points_are_media(policy):
    generation = policy.generate(["left", "up"], [0, 1], steps=4, guidance=1.0)
    media = policy.decode(generation)
    assert media.tensor.shape == (2, 2, 1) and media.rate is None and media.prompts == ("left", "up")
    assert torch.equal(media.tensor[..., 0], generation.latents)


def test_wrong_requests_are_refused(policy):
    with pytest.raises(ConfigError, match="'sideways' is unknown"):
        policy.generate(["sideways"], [0], steps=2, guidance=1.0)
    with pytest.raises(ShapeError, match="1 seeds for 2 prompts"):
        policy.generate(["left", "up"], [0], steps=2, guidance=1.0)
    with pytest.raises(ConfigError, match="steps is 0"):
        policy.generate(["left"], [0], steps=0, guidance=1.0)
    with pytest.raises(ConfigError, match="t_min"):
        ToyPolicy(t_min=0.9, t_max=0.5)
    with pytest.raises(ConfigError, match="sampler is 'ddpm'"):
        ToyPolicy(sampler="ddpm")
    with pytest.raises(ConfigError, match="components"):
        ToyPolicy(components={"a": [(0.0, 0.0, -1.0, 1.0)]})
    with pytest.raises(ConfigError, match="device is 'cuda:99'"):
        ToyPolicy(device="cuda:99")
    with pytest.raises(ConfigError, match="device is 'gpu'"):
        ToyPolicy(device="gpu")


def test_a_broken_sample_names_its_prompt_and_seed(policy):
    with torch.no_grad():
        next(iter(policy.trainable().values())).fill_(math.nan)
    with pytest.raises(NotFinite, match="prompt 'left', seed 5"):
        policy.generate(["left"], [5], steps=2, guidance=1.0)


def test_remembered_prompts_give_the_same_conditions(policy):
    first, again = policy.encode(["left", "up", "left"]), policy.encode(["left", "up", "left"])
    assert isinstance(first, Cond)
    assert torch.equal(first.tensors["weights"], again.tensors["weights"])
    assert torch.equal(first.tensors["weights"][0], first.tensors["weights"][2])


def test_building_a_policy_leaves_the_global_random_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    ToyPolicy()
    assert torch.equal(torch.get_rng_state(), state)
