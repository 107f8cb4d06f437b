"""Metrics run where their generated side lies, shown without a GPU: on tensors that say they lie elsewhere.

`Elsewhere` holds a tensor of the CPU and reports another device ("meta", which every build of torch knows). Inside
`OtherDevice`, what is computed of such tensors is one as well, new tensors go where they are told to, and a step that
mixes two devices is refused, as a GPU refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dragon.exemplars import Gaussian
from dragon.exemplars.features import as_features, float64
from dragon.rewards import (
    clap_score,
    diversity,
    frechet_distance,
    frechet_distance_from_moments,
    kernel_distance,
    per_song_frechet,
    vendi_score,
    vendi_score_from_kernel,
)
from dragon.rewards.infinity import frechet_distance_infinity
from dragon.rewards.labels import inception_score, kl_divergence
from dragon.rewards.neighbours import prdc

DEVICE = torch.device("meta")
TAKES_INDEX_OF_THE_CPU = ("aten.index.Tensor", "aten.index_put_.default")  # as on a GPU


class Elsewhere(Tensor):
    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, content.size(), strides=content.stride(), dtype=content.dtype, device=DEVICE
        )
        made.content = content
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} outside OtherDevice")


class OtherDevice(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = torch.device(kwargs.pop("device")) if kwargs.get("device") is not None else None
        away = any(isinstance(tensor, Elsewhere) for tensor in tensors)
        moves = str(func) in ("aten._to_copy.default", "aten.copy_.default")
        if away and not moves and str(func) not in TAKES_INDEX_OF_THE_CPU:
            mixed = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim > 0]
            assert not mixed, f"{func} mixes two devices"
        self.steps += away
        args, kwargs = tree_map(lambda leaf: leaf.content if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
        found = func(*args, **kwargs)
        if target is None and not away or target is not None and target != DEVICE:
            return found
        return tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, found)


def table(rows: int, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, size)) + seed


def softmax(rows: int, seed: int) -> np.ndarray:
    weights = np.exp(table(rows, seed=seed))
    return weights / weights.sum(axis=1, keepdims=True)


CASES: dict[str, tuple[Callable[..., object], tuple[np.ndarray, ...]]] = {
    "few frames": (frechet_distance, (table(3), table(30, seed=1))),
    "many frames": (frechet_distance, (table(30), table(30, seed=1))),
    "moments": (frechet_distance_from_moments, (np.zeros(3), np.eye(3), np.ones(3), 2 * np.eye(3))),
    "singular moments": (frechet_distance_from_moments, (np.zeros(2), np.diag([1.0, 0]), np.ones(2), np.eye(2))),
    "songs": (lambda x, y: per_song_frechet([x[:5], x[5:6], x[6:]], y), (table(20), table(30, seed=1))),
    "infinity": (lambda x, y: frechet_distance_infinity(x, y, draws=2, groups=4), (table(40), table(30, seed=1))),
    "kernel": (kernel_distance, (table(20), table(30, seed=1))),
    "prdc": (prdc, (np.floor(table(20)), np.floor(table(30, seed=1)))),
    "clap": (clap_score, (table(5), table(5, seed=1))),
    "diversity": (diversity, (table(5),)),
    "vendi": (lambda x: vendi_score(x, weights=np.arange(1, 6)), (table(5),)),
    "vendi of many": (lambda x: vendi_score(x, q=0.5), (table(9),)),
    "vendi of a kernel": (lambda k: vendi_score_from_kernel(k, q=2), (np.full((3, 3), 0.5) + 0.5 * np.eye(3),)),
    "kernel, far off": (lambda x, y: kernel_distance(x, y, 0.001), (table(20), table(30, seed=1))),
    "kl": (kl_divergence, (softmax(5, 0), softmax(5, 1))),
    "inception": (lambda p: inception_score(p, splits=2), (softmax(6, 0),)),
}


def fields(result: object) -> list[Any]:
    return list(vars(result).values()) if hasattr(result, "__dict__") else [result]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reference_too", [True, False])
def test_a_metric_runs_on_the_device_of_its_generated_side(case: str, reference_too: bool, monkeypatch):
    monkeypatch.setattr("dragon.rewards.neighbours._SPARE", 0)  # so that the rare branch runs as well
    function, arguments = CASES[case]
    expected = function(*arguments)
    with OtherDevice() as mode:
        generated: Tensor = Elsewhere(torch.from_numpy(arguments[0]))
        others = [torch.from_numpy(other) for other in arguments[1:]]
        found = function(generated, *[Elsewhere(other) if reference_too else other for other in others])
    assert mode.steps > 3
    for one, other in zip(fields(found), fields(expected), strict=True):
        assert not isinstance(one, Tensor)
        np.testing.assert_allclose(one, other, rtol=1e-13)  # padding adds in another order


def test_a_long_reference_is_moved_and_its_median_found_there(monkeypatch):
    monkeypatch.setattr("dragon.rewards.kernel._SORT_PAIRS", 0)
    monkeypatch.setattr("dragon.rewards.kernel._BRACKET_ROWS", 20)
    x, y = table(20), table(60, seed=1)
    expected = kernel_distance(x, y)
    with OtherDevice():
        assert kernel_distance(Elsewhere(torch.from_numpy(x)), y) == expected


def test_a_reference_elsewhere_comes_to_generated_arrays():
    x, y = table(10), table(30, seed=1)
    with OtherDevice() as mode:
        assert frechet_distance(x, Gaussian.of_frames(Elsewhere(torch.from_numpy(y)))) == frechet_distance(x, y)
        assert mode.steps > 3


def test_a_tensor_stays_where_it_is_and_single_precision_is_widened():
    with OtherDevice():
        single = Elsewhere(torch.ones(3, 2))
        assert as_features(single, "x").device == DEVICE
        assert as_features(single, "x").dtype == torch.float64
        assert as_features(np.ones((3, 2)), "x", like=single).device == DEVICE
        assert as_features(single, "x", like=np.ones((3, 2))).device.type == "cpu"


def test_a_device_without_float64_hands_its_tensors_to_the_cpu(monkeypatch):
    monkeypatch.setattr("dragon.exemplars.features._NO_FLOAT64", (DEVICE.type,))
    x, y = table(10).astype(np.float32), table(30, seed=1)
    with OtherDevice():
        moved = float64(Elsewhere(torch.from_numpy(x)))
        assert (moved.device.type, moved.dtype) == ("cpu", torch.float64)
        assert frechet_distance(Elsewhere(torch.from_numpy(x)), y) == frechet_distance(x, y)


def test_float64_does_not_copy_what_is_right_already():
    x = torch.ones(3, 2, dtype=torch.float64)
    assert as_features(x, "x").data_ptr() == x.data_ptr()
