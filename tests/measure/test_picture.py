"""The picture: the reference's own axes, the shares of its variance, and a PNG of every case."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dragon.exemplars.gaussian import Gaussian
from dragon.exemplars.sets import ExemplarSet
from dragon.measure.picture import COLOURS, POINTS, Projection, draw, project
from dragon.measure.result import Song
from dragon.measure.sides import SetReference


def songs(seed, clips=20, features=5, scale=(4.0, 2.0, 0.5, 0.1, 0.1), shift=0.0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clips, features)) * np.array(scale)[:features]
    return [shift + np.repeat(centre[None], 3, axis=0) for centre in centres]


class Heard:
    """A side, or a folder as reference: all that a picture asks of either."""

    def __init__(self, name, found) -> None:
        self.name = name
        self.embedded = SimpleNamespace(encoder=SimpleNamespace(name="known"))
        self._frames = torch.from_numpy(np.concatenate(found)).float()
        self.clips = torch.from_numpy(np.stack([song.mean(axis=0) for song in found]))
        self.gaussian = Gaussian.of_frames(self._frames)

    def frames(self, limit, seed):
        return self._frames[:limit], None


def side(name, found) -> Any:
    return Heard(name, found)


REFERENCE = songs(0, 60)


def test_the_reference_has_mean_zero_and_the_stated_shares_of_its_variance():
    found = project([side("a", songs(1))], side("r", REFERENCE))
    assert found is not None and found.reference is not None
    points, table = found.reference, np.stack([song[0] for song in REFERENCE])
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)
    whole = table.var(axis=0).sum()
    assert found.explained == pytest.approx(tuple(points.var(axis=0) / whole), rel=1e-5)
    assert found.explained[0] > found.explained[1] and sum(found.explained) <= 1
    assert abs(np.corrcoef(points.T)[0, 1]) < 1e-6  # principal axes


def test_a_set_moves_no_axis_and_no_other_set():
    reference = side("r", REFERENCE)
    alone = project([side("a", songs(1))], reference)
    beside = project([side("a", songs(1)), side("b", songs(2, shift=50.0))], reference)
    assert alone is not None and beside is not None
    np.testing.assert_array_equal(alone.sets["a"], beside.sets["a"])
    assert np.linalg.norm(beside.sets["b"].mean(0)) > 10


def test_an_exemplar_set_gives_the_axes_of_its_covariance():
    table = torch.from_numpy(np.concatenate(REFERENCE)).float()
    gaussian = Gaussian.of_frames(table)
    kept = ExemplarSet("s", "known", "0", gaussian.mean, gaussian.covariance, len(table), features=table)
    found = project([side("a", songs(1))], SetReference(kept))
    by_folder = project([side("a", songs(1))], side("r", REFERENCE))
    assert found is not None and by_folder is not None and (found.of, by_folder.of) == ("frames", "clips")
    assert found.explained == pytest.approx(by_folder.explained, rel=1e-5)
    # a clip's frames are equal here, so its mean lies where they do
    np.testing.assert_allclose(found.sets["a"].mean(0), by_folder.sets["a"].mean(0), atol=1e-4)
    bare = ExemplarSet("s", "known", "0", gaussian.mean, gaussian.covariance, len(table))
    assert project([side("a", songs(1))], SetReference(bare)).reference is None


def test_without_a_reference_the_axes_are_those_of_all_sets():
    found = project([side("a", songs(1)), side("b", songs(2, shift=9.0))], None)
    assert found is not None and found.reference is None
    np.testing.assert_allclose(np.concatenate(list(found.sets.values())).mean(0), 0, atol=1e-5)


def test_points_are_bounded_and_one_clip_makes_no_plane():
    many = project([side("a", songs(1, POINTS + 50))], side("r", REFERENCE))
    assert many is not None and len(many.sets["a"]) == POINTS
    assert project([side("a", songs(1, 1))], None) is None


def pixels(content: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def rows(values: dict[str, list[float | None]], metric: str = "song_fad") -> list[Song]:
    return [
        Song(name, f"{i}.wav", "", 1.0, {metric: v}) for name, all_of in values.items() for i, v in enumerate(all_of)
    ]


def shows(image: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(image.astype(int) - wanted).max(axis=2) < 12).any())


def test_both_panels_show_every_set_and_neither_depends_on_the_machine():
    found = project([side("a", songs(1)), side("b", songs(2, shift=5.0))], side("r", REFERENCE))
    assert found is not None
    table = rows({"a": [1.0, 2.0, 3.0], "b": [2.0, None, 400.0]})
    content = draw(found, table, {"song_fad": "lower"})
    assert content == draw(found, table, {"song_fad": "lower"})
    image = pixels(content)
    half = image.shape[1] // 2
    for panel in (image[:, :half], image[:, half:]):
        assert shows(panel, COLOURS[0]) and shows(panel, COLOURS[1])
    alone = pixels(draw(found, [], {}))
    assert alone.shape[1] < image.shape[1]  # no values, no histogram


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], [-3.0, 0.0, 5.0]])
def test_any_values_can_be_drawn(values):
    flat = Projection("e", "clips", (1.0, 0.0), {"a": np.zeros((len(values), 2))}, None, "")
    assert draw(flat, rows({"a": values}, "m"), {"m": "higher"}).startswith(b"\x89PNG")


def test_one_clip_far_off_does_not_squeeze_the_others():
    """Without it the bins span 0 to 1000, and all other values fill one bar, as high as the axis."""
    near = np.linspace(0, 10, 300).tolist()
    found = project([side("a", songs(1))], side("r", REFERENCE))
    assert found is not None
    spread, squeezed = (pixels(draw(found, rows({"a": [*near, far]}), {})) for far in (10.0, 1000.0))
    blue = [
        (np.abs(i[:, i.shape[1] // 2 :].astype(int) - (0, 114, 178)).max(axis=2) < 12).sum() for i in (spread, squeezed)
    ]
    assert blue[1] > 0.7 * blue[0]
