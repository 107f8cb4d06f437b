"""What counts as a table of numbers: any array that numpy reads, without loss; everything else is one clear error."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

from dragon.errors import ConfigError, NotFinite, ShapeError
from dragon.exemplars.features import LARGEST, as_features, numbers, whole

TABLE = np.random.default_rng(0).standard_normal((4, 3))


@pytest.mark.parametrize(
    "given",
    [
        TABLE.tolist(),
        TABLE[::-1][::-1],
        TABLE[::-1].copy()[::-1],
        np.asfortranarray(TABLE),
        TABLE.astype(">f8"),
        TABLE.astype(np.longdouble),
        torch.from_numpy(TABLE).requires_grad_(),
    ],
    ids=["lists", "views", "backwards", "columns", "big-endian", "long double", "with gradient"],
)
def test_any_array_is_read_to_the_last_bit(given: object) -> None:
    found = as_features(given, "x")  # type: ignore[arg-type]
    assert found.dtype == torch.float64 and not found.requires_grad
    np.testing.assert_array_equal(found.numpy(), TABLE)


def test_arrays_that_may_not_be_written_to_are_read_without_a_warning_in_their_own_type() -> None:
    frozen = TABLE.astype(np.float32)
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(frozen, "x").dtype == torch.float32
    assert numbers(np.arange(4, dtype=np.uint16), "x").tolist() == [0, 1, 2, 3]


class Held:
    features = TABLE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (scipy.sparse.csr_matrix(np.eye(3)), r"x: a sparse matrix; .* call \.toarray\(\)"),
        (torch.eye(3).to_sparse(), r"x: a sparse tensor; .* call \.to_dense\(\)"),
        (np.eye(3) + 1j, "x of type complex128; expected an array or tensor of real numbers"),
        (torch.eye(3) + 1j, "x of type torch.complex64; expected real numbers"),
        ([[1.0, 2.0], [3.0]], "x: numpy makes no array of this list"),
        ([["a", "b"]], "x given as list; expected an array or tensor of real numbers"),
        (None, "x given as NoneType; expected"),
        (Held(), r"x given as Held; .* give its \.features"),
        (np.ones(3), r"x of shape \(3,\); expected \(n, features\)"),
        (np.ones((1, 3)), "x: 1 rows; expected at least 2; give more clips or frames"),
        (np.ones((2, 4)), "rows of 4 features; expected 3, as in the other set: embed both with the same encoder"),
    ],
)
def test_what_is_no_table_is_refused_with_what_to_do(given: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        as_features(given, "x", size=3, at_least=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_row(value: float) -> None:
    table = TABLE.copy()
    table[2, 1] = value
    with pytest.raises(NotFinite, match="x: row 2 holds NaN or infinity"):
        as_features(table, "x")


def test_numbers_whose_squares_overflow_are_refused_and_others_are_not() -> None:
    table = TABLE.copy()
    table[1, 1] = -LARGEST
    as_features(table, "x")
    table[1, 1] *= 10
    with pytest.raises(NotFinite, match=r"x: row 1 holds 1e\+141, .* expected at most 1e\+140: scale both sets down"):
        as_features(table, "x")


def test_whole_numbers_of_any_kind_and_nothing_else() -> None:
    assert type(whole(np.int64(3), "k")) is int  # type: ignore[arg-type]
    for value in (2.5, "5", None):
        with pytest.raises(ConfigError, match=f"k is {value!r}; expected a whole number"):
            whole(value, "k")  # type: ignore[arg-type]
