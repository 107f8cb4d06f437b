"""The roll-out: the same samples whether judged at once or beside, in one batch or as many as memory asks for."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dragon.errors import NotFinite, OutOfMemory, PluginError
from dragon.media import Generation, Media
from dragon.policy.toy import ToyPolicy
from dragon.rollout import Judged, Rollout, Stopwatch
from dragon.verdicts import Verdicts, verdicts

PROMPTS = [("left", "right", "up", "down")[i % 4] for i in range(11)]
SEEDS = list(range(100, 111))


class Height:
    name, abstains = "height", False

    def score(self, media: Media) -> torch.Tensor:
        return media.tensor[:, 1, 0].double()


def judge(media: Media, seeds: Sequence[int]) -> Verdicts:
    return verdicts({"height": Height()}, media, seeds)


class Small(ToyPolicy):
    """It has room for a few rows only, in one of its two calls."""

    def __init__(self, room: int, part: str) -> None:
        super().__init__()
        self._room, self._part = room, part

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Generation:
        self._check("generate", len(prompts))
        return super().generate(prompts, seeds, **options)

    def decode(self, generation: Generation) -> Media:
        self._check("decode", len(generation))
        return super().decode(generation)

    def _check(self, part: str, rows: int) -> None:
        if part == self._part and rows > self._room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes.")


def rollout(policy: ToyPolicy | None = None, batch_size: int = 4, overlap: bool = False) -> Rollout:
    return Rollout(policy or ToyPolicy(), steps=3, guidance=1.5, batch_size=batch_size, overlap=overlap)


def all_of(it: Rollout, judge: Any = judge, **more: Any) -> Judged:
    return Judged.cat(list(it.each(PROMPTS, SEEDS, judge, Stopwatch(), **more)))


def test_judging_beside_sampling_changes_no_bit() -> None:
    one, other = all_of(rollout()), all_of(rollout(overlap=True))
    assert torch.equal(one.generation.latents, other.generation.latents)
    assert torch.equal(one.media.tensor, other.media.tensor)
    assert torch.equal(one.verdicts.scores["height"], other.verdicts.scores["height"])
    assert one.media.prompts == other.media.prompts == tuple(PROMPTS) and other.generation.seeds == tuple(SEEDS)


def test_beside_sampling_one_batch_at_a_time_is_judged_in_order_in_another_thread() -> None:
    seen: list[Any] = []
    busy = threading.Lock()

    def slow(media: Media, seeds: Sequence[int]) -> Verdicts:
        assert busy.acquire(blocking=False), "two batches at once"
        time.sleep(0.02)
        seen.append((seeds, threading.current_thread()))
        busy.release()
        return judge(media, seeds)

    all_of(rollout(overlap=True), slow)
    assert [seed for seeds, _ in seen for seed in seeds] == SEEDS
    assert all(thread is not threading.main_thread() for _, thread in seen)


def test_beside_sampling_the_stages_take_their_own_time() -> None:
    class Slow(ToyPolicy):
        def generate(self, *args: Any, **options: Any) -> Generation:
            time.sleep(0.1)
            return super().generate(*args, **options)

    def slow(media: Media, seeds: Sequence[int]) -> Verdicts:
        time.sleep(0.1)
        return judge(media, seeds)

    seconds = {}
    for overlap in (False, True):
        watch, start = Stopwatch(), time.perf_counter()
        list(rollout(Slow(), 2, overlap).each(PROMPTS, SEEDS, slow, watch))
        seconds[overlap] = time.perf_counter() - start
        assert watch.stages["rollout"] > 0.55 and watch.stages["score"] > 0.55 and set(watch.stages) == {
            "rollout", "decode", "score",
        }  # fmt: skip
    assert seconds[True] < seconds[False] - 0.3  # 7 turns of 0.1 s for 12; half of that is room for a busy machine


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("error", [PluginError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_what_is_raised_while_judging_comes_through(overlap: bool, error: BaseException) -> None:
    def refuse(media: Media, seeds: Sequence[int]) -> Verdicts:
        if 105 in seeds:
            raise error
        return judge(media, seeds)

    with pytest.raises(type(error)):
        all_of(rollout(overlap=overlap), refuse)


def test_an_interrupt_while_sampling_waits_for_the_batch_that_is_judged() -> None:
    done: list[int] = []

    class Interrupted(ToyPolicy):
        def generate(self, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Generation:
            if 104 in seeds:
                raise KeyboardInterrupt
            return super().generate(prompts, seeds, **options)

    def slow(media: Media, seeds: Sequence[int]) -> Verdicts:
        time.sleep(0.1)
        done.extend(seeds)
        return judge(media, seeds)

    with pytest.raises(KeyboardInterrupt):
        all_of(rollout(Interrupted(), overlap=True), slow)
    assert done == SEEDS[:4]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("part", ["generate", "decode"])
def test_out_of_memory_halves_the_batch_and_loses_no_row(part: str, overlap: bool) -> None:
    it = rollout(Small(2, part), 8, overlap)
    with pytest.warns(UserWarning, match="out of memory in a (roll-out|decoding batch) of") as told:
        found = all_of(it)
    assert [str(one.message).split(";")[1] for one in told] == [
        f" going on with {size} (set rollout.batch_size to that size to start with it)" for size in (4, 2)
    ]
    whole = all_of(rollout(batch_size=100))
    # float32 sums of another order
    torch.testing.assert_close(found.media.tensor, whole.media.tensor, rtol=1e-5, atol=1e-6)
    assert found.generation.seeds == tuple(SEEDS) and found.media.prompts == tuple(PROMPTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_of(it)  # the size stays
    again = rollout(Small(2, part), 8, overlap)
    again.load_state_dict(it.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(all_of(again).media.tensor, found.media.tensor)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_out_of_memory_in_a_reward_judges_half_the_clips_at_a_time() -> None:
    def hungry(media: Media, seeds: Sequence[int]) -> Verdicts:
        if len(media) > 3:
            raise MemoryError
        return judge(media, seeds)

    with pytest.warns(UserWarning, match="out of memory in a scoring batch of 8 rows; going on with 4"):
        found = all_of(rollout(batch_size=8), hungry)
    assert torch.equal(found.verdicts.scores["height"], found.media.tensor[:, 1, 0].double())


@pytest.mark.filterwarnings("ignore:out of memory")
def test_where_one_row_does_not_fit_the_run_ends_with_a_message() -> None:
    with pytest.raises(
        OutOfMemory, match=r"roll-out of one row \(DefaultCPUAllocator: can't allocate memory: you tried"
    ):
        all_of(rollout(Small(0, "generate")))


def test_a_process_draws_its_rows_with_their_columns() -> None:
    whole = all_of(rollout(batch_size=1), columns={"number": range(11)})
    part = all_of(rollout(batch_size=1), columns={"number": range(11)}, rows=range(3, 8))
    assert torch.equal(part.media.tensor, whole.media.tensor[3:8])
    assert part.media.columns == {"number": (3, 4, 5, 6, 7)} and part.generation.seeds == tuple(SEEDS[3:8])


@pytest.mark.parametrize("overlap", [False, True])
def test_a_process_without_rows_knows_the_shapes_of_the_others(overlap: bool) -> None:
    none, whole = all_of(rollout(overlap=overlap), rows=range(0)), all_of(rollout())
    assert len(none) == len(none.media) == 0 and none.media.rate == whole.media.rate
    for mine, theirs in (
        (none.generation.latents, whole.generation.latents),
        (none.media.tensor, whole.media.tensor),
        (none.verdicts.scores["height"], whole.verdicts.scores["height"]),
        *((none.generation.cond.tensors[name], value) for name, value in whole.generation.cond.tensors.items()),
    ):
        assert mine.shape == (0, *theirs.shape[1:]) and mine.dtype == theirs.dtype


def test_a_sample_that_is_not_finite_names_prompt_and_seed() -> None:
    class Broken(ToyPolicy):
        def decode(self, generation: Generation) -> Media:
            media = super().decode(generation)
            media.tensor[[seed == 106 for seed in generation.seeds]] = torch.nan
            return media

    with pytest.raises(NotFinite, match="a decoded clip is not finite for prompt 'up', seed 106 "):
        all_of(rollout(Broken()))
