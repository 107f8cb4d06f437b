"""The denoiser's positions: laws of the published formula, whatever the weights."""

from __future__ import annotations

import torch

from dragon.mini.denoiser import _rotary, _rotate


def test_attention_depends_on_relative_positions_only() -> None:
    """Su et al. (2021): the product of a query at m and a key at n is a function of m - n, and lengths are kept."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=generator)
    rotary = _rotary(12, 16, torch.device("cpu"))
    q, k = (_rotate(x.expand(12, 16), rotary) for x in (query, key))
    products = q @ k.T  # (m, n)
    for shift in (-7, -1, 0, 3):
        same = products.diagonal(shift)
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=0, atol=1e-4)
    assert float((products.diagonal(1)[0] - products.diagonal(3)[0]).abs()) > 1e-2
    torch.testing.assert_close(q.norm(dim=1), query.norm().expand(12))
    torch.testing.assert_close(q[0], query)
