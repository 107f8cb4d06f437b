"""Claims about the losses: limits, signs of gradients, minimisers, and values worked by hand.

The sides of every hand-worked example, d = 2:

    winner  target (1, 1)  reference (0, 0)  policy (.5, .5)  old (.25, .25)
            errors: reference 1, policy .25: gain .75
    loser   target (0, 2)  reference (0, 0)  policy (0, -1)   old (0, 0)
            errors: reference (0 + 4) / 2 = 2, policy (0 + 9) / 2 = 4.5: gain -2.5
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.objectives import DPO, KTO, NFT, BestOfK, calibrated_beta, gain, squared_error, zero_point
from dragon.protocols import Objective, Side, Terms

ALL: list[Objective] = [
    DPO(beta=3.0, winner=0.1),
    KTO(beta=3.0, winner=0.1),
    KTO(beta=3.0, paired=False),
    NFT(anchor=0.5, winner=0.1),
    NFT(anchor=0.2, reference="start", strength=0.5),
    BestOfK(anchor=0.3),
]


def side(target, reference, policy, old):
    target, reference, policy, old = (torch.tensor([v], dtype=torch.float64) for v in (target, reference, policy, old))
    return Side(target=target, policy=policy, reference=reference, old=old)


def by_hand(z0: float = 0.0) -> Terms:
    return Terms(
        positive=side((1, 1), (0, 0), (0.5, 0.5), (0.25, 0.25)),
        negative=side((0, 2), (0, 0), (0, -1), (0, 0)),
        z0=torch.tensor(z0, dtype=torch.float64),
    )


def random_terms(b: int = 5, seed: int = 0) -> Terms:
    """Sides of shape (b, 3, 2), all different, z0 given."""
    draw = torch.randn(2, 4, b, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Terms(Side(*draw[0]), Side(*draw[1]), z0=torch.tensor(0.1, dtype=torch.float64))


def at_the_start(b: int = 5) -> Terms:
    """Policy, old policy and reference are one."""
    terms = random_terms(b)
    one, two = (replace(s, policy=s.reference, old=s.reference) for s in (terms.positive, terms.negative))
    return Terms(one, two, z0=torch.tensor(0.0, dtype=torch.float64))


def gradients(objective: Objective, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the summed loss with respect to the policy's predictions at winner and loser."""
    w, lo = (s.policy.clone().requires_grad_() for s in (terms.positive, terms.negative))
    loss = objective(Terms(replace(terms.positive, policy=w), replace(terms.negative, policy=lo), terms.z0)).sum()
    first, second = torch.autograd.grad(loss, [w, lo], allow_unused=True)
    zeros = torch.zeros_like(w)
    return (zeros if first is None else first), (zeros if second is None else second)


# ---- gains


def test_gain_by_hand():
    assert gain(by_hand().positive).tolist() == [0.75]
    assert gain(by_hand().negative).tolist() == [-2.5]


def test_squared_error_is_a_mean_in_float32_at_least():
    """256 + 1 is no bfloat16 number; the error of (256, 0) against (255, 0) is 1 / 2."""
    a, b = torch.tensor([[256.0, 0.0]]).bfloat16(), torch.tensor([[255.0, 0.0]]).bfloat16()
    assert squared_error(a, b).dtype == torch.float32
    assert squared_error(a, b).tolist() == [0.5]


def test_squared_error_never_broadcasts():
    with pytest.raises(ShapeError, match="equal shapes"):
        squared_error(torch.zeros(4, 2), torch.zeros(1, 2))
    with pytest.raises(ShapeError):
        squared_error(torch.zeros(4), torch.zeros(4))


def test_zero_point_is_the_mean_gain_but_not_below_zero():
    assert float(zero_point(torch.tensor([0.75, -0.25]))) == 0.25
    assert float(zero_point(torch.tensor([0.75, -2.5]))) == 0.0
    assert not zero_point(torch.ones(2, requires_grad=True)).requires_grad


def test_calibrated_beta_by_hand():
    """|gains| .1, .2, .4: median .2; beta * .2 = 1 at beta 5, = 2 at beta 10."""
    gains = torch.tensor([0.1, -0.2, 0.4], dtype=torch.float64)
    assert calibrated_beta(gains) == pytest.approx(5.0, rel=1e-12)
    assert calibrated_beta(gains, target=2.0) == pytest.approx(10.0, rel=1e-12)


def test_calibrated_beta_makes_the_loss_independent_of_the_unit_of_errors():
    terms = random_terms()
    small = Terms(*(Side(*(1e-3 * v for v in vars(s).values())) for s in (terms.positive, terms.negative)))
    losses = []
    for each in (terms, small):
        gains = torch.cat([gain(each.positive), gain(each.negative)])
        losses.append(DPO(beta=calibrated_beta(gains))(each))
    assert torch.allclose(*losses, rtol=1e-9)


def test_beta_cannot_be_calibrated_from_nothing():
    with pytest.raises(ConfigError, match="still equals its reference"):
        calibrated_beta(torch.zeros(8))
    with pytest.raises(ConfigError):
        calibrated_beta(torch.zeros(0))
    with pytest.raises(NotFinite):
        calibrated_beta(torch.tensor([1.0, math.nan]))


# ---- values by hand


def test_dpo_by_hand():
    """beta/2 * (.75 + 2.5) = 3.25 at beta 2; -log sigmoid(3.25) = log(1 + e^-3.25) = log 1.0387742 = .0380414;
    the winner term adds .1 * .25."""
    assert DPO(beta=2.0)(by_hand()).item() == pytest.approx(0.0380414, abs=1e-7)
    assert DPO(beta=2.0, winner=0.1)(by_hand()).item() == pytest.approx(0.0380414 + 0.025, abs=1e-7)


def test_kto_by_hand():
    """z0 = .25, beta 2: sigmoid(2 (.75 - .25)) = sigmoid(1) = .7310586; sigmoid(-2 (-2.5 - .25)) = sigmoid(5.5)
    = .9959299; 1 - their mean = .1365058; the winner term adds .2 * .25."""
    assert KTO(beta=2.0)(by_hand(0.25)).item() == pytest.approx(0.1365058, abs=1e-7)
    assert KTO(beta=2.0, winner=0.2)(by_hand(0.25)).item() == pytest.approx(0.1865058, abs=1e-7)


def test_nft_by_hand():
    """b = 1: |(.5, .5) - (1, 1)|^2 = .25; mirrored loser 2 (0, 0) - (0, -1) = (0, 1), error 1 / 2; anchors
    .25 (winner) and .5 (loser) times .5 = .375; in all 1.125. Winner term .1 * .25."""
    assert NFT(anchor=0.0)(by_hand()).item() == pytest.approx(0.75, abs=1e-12)
    assert NFT(anchor=0.5)(by_hand()).item() == pytest.approx(1.125, abs=1e-12)
    assert NFT(anchor=0.5, winner=0.1)(by_hand()).item() == pytest.approx(1.15, abs=1e-12)


def test_nft_of_strength_two_by_hand():
    """v+ = -(.25, .25) + 2 (.5, .5) = (.75, .75), error .0625; v- = 3 (0, 0) - 2 (0, -1) = (0, 2), error 0.
    From the start, v+ = 2 (.5, .5) = (1, 1), error 0."""
    assert NFT(anchor=0.0, strength=2.0)(by_hand()).item() == pytest.approx(0.0625, abs=1e-12)
    assert NFT(anchor=0.0, strength=2.0, reference="start")(by_hand()).item() == pytest.approx(0.0, abs=1e-12)


def test_best_of_k_by_hand():
    """Winner's error .25; anchor |(.5, .5) - (0, 0)|^2 = .25 times 2."""
    assert BestOfK()(by_hand()).item() == 0.25
    assert BestOfK(anchor=2.0)(by_hand()).item() == 0.75


# ---- limits


def test_at_the_start_dpo_is_log_two_and_kto_one_half():
    terms = at_the_start()
    assert torch.allclose(DPO(beta=5000.0)(terms), torch.full((5,), math.log(2), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(KTO(beta=5000.0)(terms), torch.full((5,), 0.5, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_at_the_start_nft_is_the_sum_of_plain_errors_whatever_anchor_and_strength(strength):
    terms = at_the_start()
    plain = sum(squared_error(s.target, s.reference) for s in (terms.positive, terms.negative))
    assert torch.allclose(NFT(anchor=7.0, strength=strength)(terms), plain, rtol=1e-12)


def test_kto_saturates_at_both_ends():
    """A pair learnt fully, and one that is hopeless, have no gradient left: robust to wrong labels."""
    terms = by_hand()
    far = side((1, 1), (0, 0), (40, 40), (0, 0))  # error 1521: gain -1520
    for case in (Terms(terms.positive, far, terms.z0), Terms(far, terms.negative, terms.z0)):
        first, second = gradients(KTO(beta=1.0), case)
        assert (second if case.negative is far else first).abs().max() < 1e-12


# ---- gradients and minimisers


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_at_the_start_a_gradient_step_nears_the_winner_and_leaves_the_loser(objective):
    terms = at_the_start()
    first, second = gradients(objective, terms)
    assert ((-first * (terms.positive.target - terms.positive.policy)).flatten(1).sum(1) > 0).all()
    if objective.name == "best_of_k":
        assert second.abs().max() == 0
    else:
        assert ((-second * (terms.negative.target - terms.negative.policy)).flatten(1).sum(1) < 0).all()


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_gradients_reach_the_policy_only(objective):
    terms = random_terms()
    leaves = [v.requires_grad_() for s in (terms.positive, terms.negative) for v in (s.reference, s.old)]
    for s in (terms.positive, terms.negative):
        s.policy.requires_grad_()
    z0 = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    objective(replace(terms, z0=z0)).sum().backward()
    assert terms.positive.policy.grad is not None
    assert all(v.grad is None for v in leaves)
    assert z0.grad is None


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("anchor", [0.0, 0.7])
@pytest.mark.parametrize("reference", ["old", "start"])
def test_nft_minimiser_of_each_side(strength, anchor, reference):
    """The gradient vanishes at winner (b t - b (1-b) o + a r) / (b^2 + a), loser (b (1+b) o - b t + a r) / (b^2 + a);
    the loss is a strictly convex quadratic, so that is its only minimum."""
    terms, a, b = random_terms(), anchor, strength
    (tw, rw, ow), (tl, rl, ol) = ((s.target, s.reference, s.old) for s in (terms.positive, terms.negative))
    if reference == "start":
        ow, ol = rw, rl
    winner = (b * tw - b * (1 - b) * ow + a * rw) / (b**2 + a)
    loser = (b * (1 + b) * ol - b * tl + a * rl) / (b**2 + a)
    best = Terms(replace(terms.positive, policy=winner), replace(terms.negative, policy=loser))
    first, second = gradients(NFT(anchor=a, strength=b, reference=reference), best)
    assert first.abs().max() < 1e-12 and second.abs().max() < 1e-12


def test_nft_minimiser_at_a_shared_point_is_a_step_along_the_contrast():
    """Both sides at one point, old = reference = r, b = 1: v* = r + (t_w - t_l) / (2 (1 + a)). Found by Newton's
    method (one step from 0 solves a quadratic), not by the formula."""
    terms, a = random_terms(), 0.7
    r = terms.positive.reference
    fixed = [replace(s, reference=r, old=r) for s in (terms.positive, terms.negative)]

    def loss(v):
        v = v.view_as(r)
        return NFT(anchor=a)(Terms(*(replace(s, policy=v) for s in fixed))).sum()

    start = torch.zeros(r.numel(), dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(loss, start)
    curvature = torch.autograd.functional.hessian(loss, start)
    best = (start - torch.linalg.solve(curvature, slope)).view_as(r)
    assert torch.allclose(best, r + (fixed[0].target - fixed[1].target) / (2 * (1 + a)), atol=1e-10)


# ---- contract


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_a_pair_s_loss_does_not_depend_on_the_other_pairs(objective):
    terms = random_terms()
    whole = objective(terms)
    assert whole.shape == (5,)
    for i in range(5):
        alone = [Side(*(v[i : i + 1] for v in vars(s).values())) for s in (terms.positive, terms.negative)]
        assert torch.allclose(objective(Terms(*alone, z0=terms.z0)), whole[i : i + 1], rtol=1e-12)


def test_only_dpo_and_kto_have_a_beta():
    assert DPO(beta=2.0).with_beta(7.0) == DPO(beta=7.0)
    assert KTO(beta=2.0, paired=False, winner=0.5).with_beta(7.0) == KTO(beta=7.0, paired=False, winner=0.5)
    for objective in (NFT(), BestOfK()):
        assert objective.beta is None
        with pytest.raises(ConfigError, match="has no beta"):
            objective.with_beta(1.0)


def test_what_each_objective_asks_for():
    asks = {(o.name, getattr(o, "paired", None), o.needs_old, o.needs_z0) for o in ALL}
    assert asks == {
        ("dpo", True, False, False),
        ("kto", True, False, True),
        ("kto", False, False, True),
        ("nft", True, True, False),
        ("nft", True, False, False),
        ("best_of_k", True, False, False),
    }


def test_kto_refuses_a_missing_zero_point():
    with pytest.raises(ShapeError, match="zero_point"):
        KTO()(replace(random_terms(), z0=None))
    with pytest.raises(ShapeError, match="zero_point"):
        KTO()(replace(random_terms(), z0=torch.zeros(5)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DPO(beta=0.0), "beta is 0.0"),
        (lambda: KTO(beta=math.nan), "beta is nan"),
        (lambda: NFT(anchor=-1.0), "anchor is -1.0"),
        (lambda: NFT(strength=0.0), "strength is 0.0"),
        (lambda: NFT(reference="new"), "reference is 'new'"),  # type: ignore[arg-type]
        (lambda: DPO(winner=math.inf), "winner is inf"),
        (lambda: BestOfK(anchor=-0.1), "anchor is -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
