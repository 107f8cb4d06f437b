"""The published network: its size to the parameter, its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dragon.synther.network import ResidualMLP


@pytest.mark.parametrize(
    ("inner", "width", "count"), [(128, 2048, 25_552_682), (128, 1024, 6_497_066), (256, 1024, 6_685_226)]
)
def test_parameter_counts_of_the_release(inner: int, width: int, count: int) -> None:
    """HalfCheetah: 17 + 6 + 1 + 17 + 1 = 42 numbers a row; the frequencies are not trained and do not count."""
    with torch.device("meta"):
        net = ResidualMLP(42, width=width, inner=inner)
    assert sum(p.numel() for p in net.parameters()) == count


def test_it_is_the_formula() -> None:
    net = ResidualMLP(5, width=16, inner=8, depth=3)
    x, time = torch.randn(7, 5), torch.randn(7)

    def linear(layer: nn.Module, h: torch.Tensor) -> torch.Tensor:
        assert isinstance(layer, nn.Linear)
        return h @ layer.weight.T + layer.bias

    turns = 2 * math.pi * time[:, None] * net.frequencies[None]
    features = torch.cat([time[:, None], torch.sin(turns), torch.cos(turns)], 1)
    first = linear(net.time[0], features)
    t = linear(net.time[2], first * torch.sigmoid(first))
    h = linear(net.start, linear(net.row, x) + t)
    for block in net.blocks:
        h = h + linear(block, h.clamp(min=0))
    torch.testing.assert_close(net(x, time), linear(net.end, h.clamp(min=0)))


def test_frequencies_are_stored_and_not_trained() -> None:
    net = ResidualMLP(5, width=16, inner=8)
    assert "frequencies" in net.state_dict() and "frequencies" not in dict(net.named_parameters())


def test_logits_come_beside_the_same_output() -> None:
    net = ResidualMLP(5, width=16, inner=8, cond=3, flags=2)
    x, time, cond = torch.randn(7, 5), torch.randn(7), torch.randn(7, 3)
    out, logits = net.both(x, time, cond)
    assert torch.equal(out, net(x, time, cond)) and logits.shape == (7, 2)
    assert not torch.equal(net(x, time, cond), net(x, time, cond + 1))
