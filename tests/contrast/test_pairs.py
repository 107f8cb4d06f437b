"""Claims about pairs: who is better, what is dropped, and that the control ignores scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragon.contrast import Pairs, all_pairs, best_worst, random_labels
from dragon.errors import ConfigError, NotFinite, ShapeError

NAN = float("nan")


def table(rows):
    return torch.tensor(rows, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def as_tuples(pairs: Pairs):
    return list(zip(pairs.positive.tolist(), pairs.negative.tolist(), pairs.gap.tolist(), strict=True))


def test_best_worst_by_hand():
    """Rows count as prompt * 3 + sample. Prompt 0: 5 (sample 1) over 1 (sample 2), rows 1 and 2, gap 4.
    Prompt 1: all equal, a tie. Prompt 2: sample 0 abstains; -1 (sample 2) over -2 (sample 1), rows 8 and 7.
    Prompt 3: one score only, no pair and no tie."""
    scores = table([[2, 5, 1], [3, 3, 3], [NAN, -2, -1], [NAN, 7, NAN]])
    pairs = best_worst()(scores, generator())
    assert as_tuples(pairs) == [(1, 2, 4.0), (8, 7, 1.0)]
    assert pairs.ties == 1
    assert pairs.positive.dtype == torch.long and pairs.gap.dtype == torch.float64


def test_best_worst_takes_the_first_of_equals():
    pairs = best_worst()(table([[4, 4, 0, 0]]), generator())
    assert as_tuples(pairs) == [(0, 2, 4.0)]


def test_all_pairs_by_hand():
    """Prompt 0: scores 2, 5, 2: (1 over 0), (0 ties with 2), (1 over 2). Prompt 1: only samples 1 and 2 count."""
    pairs = all_pairs()(table([[2, 5, 2], [NAN, 1, 4]]), generator())
    assert as_tuples(pairs) == [(1, 0, 3.0), (1, 2, 3.0), (5, 4, 3.0)]
    assert pairs.ties == 1


def test_all_pairs_without_ties_gives_every_pair():
    pairs = all_pairs()(torch.rand(3, 5, dtype=torch.float64, generator=generator()), generator())
    assert len(pairs) == 3 * 10 and pairs.ties == 0


def test_max_per_prompt_keeps_a_subset_of_each_prompt_drawn_by_the_generator():
    scores = torch.rand(6, 5, dtype=torch.float64, generator=generator())
    everything = set(as_tuples(all_pairs()(scores, generator())))
    first = all_pairs(max_per_prompt=2)(scores, generator(1))
    assert (first.positive // 5).bincount().tolist() == [2] * 6
    assert set(as_tuples(first)) <= everything
    assert as_tuples(first) == as_tuples(all_pairs(max_per_prompt=2)(scores, generator(1)))
    assert as_tuples(first) != as_tuples(all_pairs(max_per_prompt=2)(scores, generator(2)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([NAN, 0.0, 0.5, 1.0, 2.0, -3.0]), min_size=4, max_size=4), min_size=1))
def test_laws_of_every_contrast(rows):
    """Both samples are of one prompt and scored; positives are better; the best-worst pair is among all pairs."""
    scores = table(rows)
    flat = scores.flatten()
    for contrast in (best_worst(), all_pairs(), random_labels()):
        pairs = contrast(scores, generator())
        assert torch.equal(pairs.positive // 4, pairs.negative // 4)
        assert (pairs.positive != pairs.negative).all()
        assert torch.equal(pairs.gap, flat[pairs.positive] - flat[pairs.negative])  # NaN would not be equal
    best, every = best_worst()(scores, generator()), all_pairs()(scores, generator())
    assert (best.gap > 0).all() and (every.gap > 0).all()
    assert set(as_tuples(best)) <= set(as_tuples(every))


def test_a_rising_function_of_the_scores_changes_no_pair():
    scores = torch.randn(8, 4, dtype=torch.float64, generator=generator())
    for contrast in (best_worst(), all_pairs()):
        one, two = contrast(scores, generator()), contrast(scores.exp() * 3 - 7, generator())
        assert torch.equal(one.positive, two.positive) and torch.equal(one.negative, two.negative)


def test_random_labels_ignore_the_scores_but_not_abstention():
    scores = torch.randn(50, 4, dtype=torch.float64, generator=generator())
    scores[:, 1] = NAN
    one = random_labels()(scores, generator(3))
    two = random_labels()(-10 * scores, generator(3))
    assert len(one) == 50
    assert torch.equal(one.positive, two.positive) and torch.equal(one.negative, two.negative)
    assert not ((one.positive % 4 == 1) | (one.negative % 4 == 1)).any()


def test_random_labels_draw_every_ordered_pair_equally_often():
    """12 ordered pairs of 4 samples over 6,000 prompts: 500 each, standard deviation sqrt(6000 * 11) / 12 = 21.4."""
    pairs = random_labels()(torch.zeros(6000, 4, dtype=torch.float64), generator())
    counts = (pairs.positive % 4 * 4 + pairs.negative % 4).bincount(minlength=16).reshape(4, 4)
    assert counts.diagonal().sum() == 0
    off = counts[~torch.eye(4, dtype=torch.bool)].double()
    assert (off - 500).abs().max() < 5 * 21.4


@pytest.mark.parametrize("contrast", [best_worst(), all_pairs(), random_labels()])
def test_one_sample_a_prompt_or_none_scored_gives_no_pairs(contrast):
    assert len(contrast(torch.zeros(3, 1, dtype=torch.float64), generator())) == 0
    assert len(contrast(torch.full((3, 4), NAN, dtype=torch.float64), generator())) == 0


@pytest.mark.parametrize("contrast", [best_worst(), all_pairs(), random_labels()])
def test_wrong_scores_are_refused(contrast):
    with pytest.raises(ShapeError, match="samples"):
        contrast(torch.zeros(4), generator())
    with pytest.raises(NotFinite, match="prompt 1, sample 0"):
        contrast(table([[0, 1], [float("inf"), 1]]), generator())


def test_max_per_prompt_below_one_is_refused():
    with pytest.raises(ConfigError, match="max_per_prompt is 0"):
        all_pairs(max_per_prompt=0)
