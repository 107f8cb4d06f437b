"""The denoiser's contract and the identities of guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dragon.diffusion import EDM, Clean, Denoiser, Epsilon, Flow, Guided, Scaling, VPrediction
from dragon.errors import ShapeError

X = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMA = torch.tensor([0.1, 0.7, 2.0, 9.0], dtype=torch.float64)
COND = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
EMPTY = torch.zeros(4, dtype=torch.float64)


def net(x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
    """Non-linear in everything, so that no identity below holds by accident."""
    return torch.tanh(x + 0.3 * time[:, None, None]) * (1 + cond[:, None, None])


class Counted:
    """A denoiser that counts its calls and rows."""

    def __init__(self) -> None:
        self.inner = Denoiser(net, Flow())
        self.calls: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        self.calls.append(x.shape[0])
        result: Tensor = self.inner(x, sigma, cond)
        return result


@pytest.mark.parametrize("scaling", [EDM(), Epsilon(), VPrediction(), Flow(), Clean()])
def test_the_denoiser_is_equation_7(scaling: Scaling) -> None:
    s = SIGMA[:, None, None]
    raw = net(scaling.c_in(s) * X, scaling.c_noise(SIGMA), COND)
    denoiser = Denoiser(net, scaling)
    torch.testing.assert_close(denoiser.raw(X, SIGMA, COND), raw)
    torch.testing.assert_close(denoiser(X, SIGMA, COND), scaling.c_skip(s) * X + scaling.c_out(s) * raw)


def test_one_level_for_all_rows_reaches_the_network_as_one_a_row() -> None:
    denoiser = Denoiser(net, Flow())
    torch.testing.assert_close(denoiser(X, torch.tensor(0.7), COND), denoiser(X, torch.full((4,), 0.7), COND))


def test_the_network_gets_the_precision_of_x() -> None:
    seen: list[torch.dtype] = []

    def spy(x: Tensor, time: Tensor, cond: object) -> Tensor:
        seen.extend([x.dtype, time.dtype])
        return x

    denoised = Denoiser(spy, Flow())(X.half(), SIGMA.float(), None)
    assert seen == [torch.float16, torch.float16]
    assert denoised.dtype == torch.float32, "the sum is made in the wider precision"


def test_a_network_of_modules_is_trained_through_the_denoiser() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
            result: Tensor = self.linear(x)
            return result

    denoiser = Denoiser(Net(), EDM())
    assert len(list(denoiser.parameters())) == 2
    denoiser(X.float(), SIGMA.float()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


def test_a_network_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 3\).*expected the same"):
        Denoiser(lambda x, time, cond: x.mean(-1), Flow())(X, SIGMA)


def test_scale_one_is_the_conditional_denoiser_in_one_call() -> None:
    counted = Counted()
    result = Guided(counted, EMPTY, 1.0)(X, SIGMA, COND)
    assert counted.calls == [4]
    assert torch.equal(result, Denoiser(net, Flow())(X, SIGMA, COND))


def test_scale_zero_is_the_unconditional_denoiser_in_one_call() -> None:
    counted = Counted()
    result = Guided(counted, EMPTY, 0.0)(X, SIGMA, COND)
    assert counted.calls == [4]
    assert torch.equal(result, Denoiser(net, Flow())(X, SIGMA, EMPTY))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_guidance_is_linear_in_its_scale(scale: float) -> None:
    denoiser = Denoiser(net, Flow())
    with_cond, without = denoiser(X, SIGMA, COND), denoiser(X, SIGMA, EMPTY)
    torch.testing.assert_close(
        Guided(denoiser, EMPTY, scale)(X, SIGMA, COND), (1 - scale) * without + scale * with_cond
    )


def test_one_call_of_both_halves_equals_two_calls() -> None:
    def cat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    counted = Counted()
    joint = Guided(counted, EMPTY, 3.0, cat=cat)(X, SIGMA, COND)
    assert counted.calls == [8]
    torch.testing.assert_close(joint, Guided(Denoiser(net, Flow()), EMPTY, 3.0)(X, SIGMA, COND))


def test_both_conditions_are_joined_once_for_as_long_as_they_are_the_same() -> None:
    joined: list[Sequence[Tensor]] = []

    def cat(parts: Sequence[Tensor]) -> Tensor:
        joined.append(parts)
        return torch.cat(list(parts))

    guided, other = Guided(Denoiser(net, Flow()), EMPTY, 3.0, cat=cat), COND + 1
    first, again, changed = guided(X, SIGMA, COND), guided(2 * X, SIGMA, COND), guided(X, SIGMA, other)
    assert len(joined) == 2
    for found, x, cond in ((first, X, COND), (again, 2 * X, COND), (changed, X, other)):
        torch.testing.assert_close(found, Guided(Denoiser(net, Flow()), EMPTY, 3.0)(x, SIGMA, cond))


@pytest.mark.parametrize("scaling", [EDM(), Epsilon(), VPrediction(), Flow()])
def test_guiding_the_sample_is_guiding_the_networks_output(scaling: Scaling) -> None:
    denoiser = Denoiser(net, scaling)
    guided = Guided(denoiser, EMPTY, 2.5)(X, SIGMA, COND)
    with_cond, without = denoiser.raw(X, SIGMA, COND), denoiser.raw(X, SIGMA, EMPTY)
    torch.testing.assert_close(scaling.raw(guided, X, SIGMA), without + 2.5 * (with_cond - without))
