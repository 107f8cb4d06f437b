"""Metrics of sets: equal to the metric functions, and each value without a group to that of the other clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dragon.errors import ConfigError, ShapeError
from dragon.exemplars.gaussian import Gaussian
from dragon.exemplars.sets import ExemplarSet
from dragon.measure.comparison import difference, interval_of
from dragon.measure.embedded import Embedded
from dragon.measure.measured import Measured, SetMetric
from dragon.measure.metrics import METRICS, Clap, Diversity, Fad, FadInfinity, Kad, Prdc, SongFad, Vendi
from dragon.measure.sides import FolderReference, SetReference, Side, sample_frames, split_groups
from dragon.measure.store import Stored
from dragon.rewards import (
    diversity,
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    per_song_frechet,
    prdc,
    vendi_score,
)


class Known:
    """An encoder whose features are given; it embeds a caption as the unit vector of the caption's length."""

    name = "known"
    fingerprint = "0" * 16

    def __init__(self, features: int) -> None:
        self.features = features

    def embed_media(self, media):
        raise AssertionError("everything is embedded already")

    embed_clips = embed_media

    def embed_text(self, prompts):
        return torch.eye(self.features)[[len(prompt) % self.features for prompt in prompts]]


class Memory:
    """A shelf that holds features in memory."""

    folder = "memory"

    def __init__(self, songs):
        self.found = {f"{i:032x}": Stored(song, song.mean(dim=0), 16_000, 16_000, 1) for i, song in enumerate(songs)}

    def read(self, content):
        return self.found.get(content)


def embedded(songs) -> Embedded:
    songs = [torch.as_tensor(song, dtype=torch.float32) for song in songs]
    n = len(songs)
    shelf, names = Memory(songs), tuple(f"{i}.wav" for i in range(n))
    facts = ((1.0,) * n, (16_000,) * n, (1,) * n, tuple(map(len, songs)))
    encoder = Known(songs[0].shape[1])
    return Embedded("songs", encoder, names, tuple(shelf.found), *facts, (), (), shelf)  # type: ignore[arg-type]


def draw(seed, clips=12, features=4, shift=0.0, frames=(3, 9)):
    """Songs of different lengths whose frames lie about a centre of their own."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(*frames, clips)
    return [shift + generator.normal(size=features) + generator.normal(size=(s, features)) for s in lengths]


def side(songs, groups=5, captions=None) -> Side:
    return Side("generated", embedded(songs), split_groups(len(songs), groups), captions)


def reference(songs) -> FolderReference:
    return FolderReference("reference", embedded(songs))


def pooled(songs) -> np.ndarray:
    return np.concatenate(songs).astype(np.float32)


def means(songs) -> np.ndarray:
    return np.stack([torch.as_tensor(s, dtype=torch.float32).mean(dim=0).numpy() for s in songs])


def measure(metric: SetMetric, songs, target=None, **options) -> dict[str, Measured]:
    found = metric.measure(side(songs, **options), None if target is None else reference(target))
    return {one.metric: one for one in found}


SONGS, TARGET = draw(0, shift=0.7), draw(1, clips=15)

BY_THE_FUNCTIONS = {
    "fad": lambda s, t: frechet_distance(pooled(s), pooled(t)).value,
    "song_fad": lambda s, t: per_song_frechet([x.astype(np.float32) for x in s], pooled(t)).mean(),
    "kad": lambda s, t: kernel_distance(pooled(s), pooled(t)).value,
    "vendi": lambda s, t: vendi_score(means(s)).value,
    "diversity": lambda s, t: diversity(means(s)).value,
    "precision": lambda s, t: prdc(means(s), means(t)).precision,
    "recall": lambda s, t: prdc(means(s), means(t)).recall,
    "density": lambda s, t: prdc(means(s), means(t)).density,
    "coverage": lambda s, t: prdc(means(s), means(t)).coverage,
}


@pytest.mark.parametrize("metric", [Fad(), SongFad(), Kad(), Vendi(), Diversity(), Prdc()], ids=lambda m: m.name)
@pytest.mark.parametrize("features", [4, 120])
def test_values_and_those_without_a_group_equal_the_metric_functions(metric, features):
    """120 features are more than there are frames: covariances are singular there.

    Values without a group come by eigenvalues of a difference: 1e-6 of the traces is their stated error.
    """
    songs, target = draw(0, features=features, shift=0.7), draw(1, clips=15, features=features)
    for name, found in measure(metric, songs, target).items():
        function = BY_THE_FUNCTIONS[name]
        assert found.value == pytest.approx(function(songs, target), rel=1e-6)
        if found.scores is not None:
            assert found.replicates is None and len(found.scores) == 12
            continue
        groups = split_groups(12, 5)
        assert found.replicates is not None
        expected = [function([s for i, s in enumerate(songs) if i not in group], target) for group in groups]
        # the kernel's bandwidth is the reference's, so it stays
        np.testing.assert_allclose(found.replicates, expected, rtol=1e-5, atol=1e-6)


def test_fad_inf_is_the_function_on_the_clips_group_by_group():
    songs = draw(2, clips=24)
    order = [i for group in split_groups(24, 12) for i in group]
    expected = frechet_distance_infinity(pooled([songs[i] for i in order]), Gaussian.of_frames(pooled(TARGET)))
    found = measure(FadInfinity(), songs, TARGET, groups=12)["fad_inf"]
    assert found.value == pytest.approx(expected.value)
    interval, how = interval_of(found) or pytest.fail("no interval")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high)) and "own" in how


def test_fad_inf_of_too_few_clips_to_leave_any_out_has_no_interval():
    """Its four blocks of rows would part the frames of a clip, and the interval be too narrow."""
    found = measure(FadInfinity(), draw(2, clips=3, frames=(20, 30)), TARGET)["fad_inf"]
    assert np.isfinite(found.value) and interval_of(found) is None
    four = measure(FadInfinity(), draw(2, clips=4, frames=(20, 30)), TARGET)["fad_inf"]
    assert interval_of(four) is not None


def test_clap_pairs_each_clip_with_its_caption():
    songs = [10 * torch.eye(4)[[i % 4]].repeat(3, 1).numpy() for i in range(8)]
    fitting = tuple("x" * (i % 4) for i in range(8))
    right = Clap().measure(side(songs, captions=fitting), None)[0]
    wrong = Clap().measure(side(songs, captions=fitting[1:] + fitting[:1]), None)[0]
    assert right.value == pytest.approx(1) and wrong.value == pytest.approx(0)
    assert right.scores is not None and len(right.scores) == 8


@pytest.mark.parametrize("metric", [Fad(), Kad(), Vendi(), Diversity()], ids=lambda m: m.name)
def test_two_sets_of_one_law_differ_significantly_one_time_in_twenty(metric):
    """Nominal .05 for 100 draws has a standard error of .022: at most .12 is 3 of them."""
    target, wrong = reference(draw(99, clips=40)), 0
    for seed in range(100):
        pair = [metric.measure(side(draw(1000 + 2 * seed + i, clips=20), 10), target)[0] for i in (0, 1)]
        found = difference(*pair, paired=False)
        assert found is not None
        wrong += found.significant
    assert wrong / 100 <= 0.12


@pytest.mark.parametrize("metric", [Fad(), Kad(), SongFad()], ids=lambda m: m.name)
def test_a_real_shift_is_significant(metric):
    target = reference(draw(99, clips=40))
    near, far = (metric.measure(side(draw(5, clips=40, shift=shift), 10), target)[0] for shift in (0.0, 1.5))
    found = difference(near, far, paired=False)
    assert found is not None and found.significant and found.value < 0


def test_the_order_of_the_clips_changes_no_value():
    turned = SONGS[::-1]
    for metric in (Fad(), SongFad(), Kad(), Vendi(), Diversity(), Prdc()):
        there, back = measure(metric, SONGS, TARGET), measure(metric, turned, TARGET)
        for name in there:
            assert there[name].value == pytest.approx(back[name].value, rel=1e-9), name


def test_the_jackknife_tells_how_much_of_a_distance_few_clips_make():
    """Sets of the reference's own law: all of the distance is bias, and most of it is found."""
    target, biases, values = reference(draw(99, clips=400)), [], []
    for seed in range(30):
        found = Fad().measure(side(draw(seed, clips=20), 20), target)[0]
        biases.append(found.facts["jackknife_bias"])
        values.append(found.value)
    assert 0.5 * np.mean(values) < np.mean(biases) < 1.5 * np.mean(values)
    assert any("comes from having only 20 clips" in text for text in found.warnings)


def test_fewer_frames_than_features_are_warned_of_on_either_side():
    few, many = draw(3, clips=4, features=60), draw(4, clips=40, features=60)
    assert any("'generated'" in w and "singular" in w for w in measure(Fad(), few, many)["fad"].warnings)
    assert any("'reference'" in w and "singular" in w for w in measure(Fad(), many, few)["fad"].warnings)
    assert not any("singular" in w for w in measure(Fad(), many, many)["fad"].warnings)


def test_a_set_too_small_to_leave_clips_out_has_a_value_and_no_interval():
    for metric in (Fad(), Kad(), Vendi()):
        found = measure(metric, SONGS[:1], TARGET)[metric.name]
        assert np.isfinite(found.value) and interval_of(found) is None
    assert interval_of(measure(Prdc(), SONGS[:6], TARGET)["precision"]) is None  # 5 neighbours, 4 or 5 clips left


def test_an_exemplar_set_stands_for_its_folder():
    table = torch.from_numpy(pooled(TARGET)).double()
    gaussian = Gaussian.of_frames(table)
    kept = ExemplarSet("set", "known", "0", gaussian.mean, gaussian.covariance, len(table), bandwidth=2.0)
    whole = ExemplarSet(
        "set", "known", "0", gaussian.mean, gaussian.covariance, len(table), bandwidth=2.0, features=table.float()
    )
    clips = side(SONGS)
    assert Fad().measure(clips, SetReference(kept))[0].value == pytest.approx(
        measure(Fad(), SONGS, TARGET)["fad"].value
    )
    found = Kad().measure(clips, SetReference(whole))[0]
    assert found.facts["bandwidth"] == 2.0  # the set's own, so that every score against it uses the same
    assert found.value == pytest.approx(kernel_distance(pooled(SONGS), pooled(TARGET), 2.0).value)
    assert SetReference(kept).frames(100, 0) is None and SetReference(kept).clips is None
    assert len(SetReference(whole).frames(10, 0)) == 10


def test_every_metric_is_one_by_the_protocol_and_known_by_its_name():
    for name, made in METRICS.items():
        assert isinstance(made(), SetMetric) and made().name == name


class TestSides:
    def test_groups_hold_every_clip_once_and_differ_by_at_most_one(self):
        groups = split_groups(47, 20, seed=3)
        assert sorted(np.concatenate(groups)) == list(range(47))
        assert {len(group) for group in groups} == {2, 3}
        assert [g.tolist() for g in groups] == [g.tolist() for g in split_groups(47, 20, seed=3)]
        assert len(split_groups(3, 20)) == 3

    def test_one_group_is_refused(self):
        with pytest.raises(ConfigError, match="groups is 1; a jack-knife needs at least 2"):
            split_groups(10, 1)

    def test_sampled_frames_are_the_limit_in_proportion_to_the_clips(self):
        songs = embedded(draw(6, clips=30, frames=(1, 40)))
        rows, clips = sample_frames(songs, 200, 0)
        assert len(rows) == len(clips) == 200
        share = 200 / songs.total
        for clip, count in enumerate(songs.counts):
            assert abs(int((clips == clip).sum()) - share * count) < 1 + 1e-9
            drawn = {tuple(row.tolist()) for row in rows[clips == clip]}
            assert drawn <= {tuple(row.tolist()) for row in songs.frames(clip)}
            assert len(drawn) == int((clips == clip).sum())  # without replacement
        assert torch.equal(rows, sample_frames(songs, 200, 0)[0])
        assert not torch.equal(rows, sample_frames(songs, 200, 1)[0])

    def test_all_frames_are_taken_where_they_are_few(self):
        rows, clips = sample_frames(embedded(SONGS), 10_000, 0)
        assert torch.equal(rows, torch.from_numpy(pooled(SONGS)))
        assert torch.bincount(clips).tolist() == [len(song) for song in SONGS]


class TestBadInput:
    def test_too_many_neighbours(self):
        with pytest.raises(ConfigError, match="k is 15; expected 1 to 11"):
            measure(Prdc(k=15), SONGS, TARGET)

    def test_options_out_of_range_are_refused_before_anything_is_heard(self):
        with pytest.raises(ConfigError, match="k is 0"):
            Prdc(k=0)
        with pytest.raises(ConfigError, match="q is -1"):
            Vendi(q=-1)

    def test_a_reference_of_equal_frames_has_no_bandwidth(self):
        same = [np.ones((4, 4))] * 3
        with pytest.raises(ConfigError, match="most frames of the reference are equal"):
            measure(Kad(), SONGS, same)
        assert np.isfinite(measure(Kad(bandwidth=1.0), SONGS, same)["kad"].value)

    def test_one_frame_has_no_covariance(self):
        with pytest.raises(ShapeError, match="at least 2"):
            measure(Fad(), [SONGS[0][:1]], TARGET)

    def test_too_few_frames_to_extrapolate(self):
        with pytest.raises(ShapeError, match="the extrapolation needs at least"):
            measure(FadInfinity(), SONGS[:3], TARGET)


def test_many_frames_are_sampled_for_the_kernel_and_said_so():
    songs = draw(8, clips=20, frames=(30, 60))
    found = measure(Kad(frames=100), songs, TARGET)["kad"]
    assert found.facts["n"] == 100 and found.facts["reference_n"] == sum(map(len, TARGET))
