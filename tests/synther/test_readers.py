"""Other programs' files and buffers: the layout each program documents, written here by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dragon.errors import ConfigError, DragonError, NotFinite, ShapeError
from dragon.synther import Transitions, from_d3rlpy, from_stable_baselines3, read_transitions, write_npz

h5py = pytest.importorskip("h5py")


def walk(steps: int, start: float) -> np.ndarray:
    """(steps + 1, 2) observations that tell where they come from."""
    return np.stack([start + np.arange(steps + 1), np.full(steps + 1, start)], 1).astype(np.float32)


def follows(found: Transitions) -> None:
    """Each next observation is one further in the same episode."""
    alive = ~found.terminals.astype(bool)
    np.testing.assert_array_equal(found.next_observations[alive, 0], found.observations[alive, 0] + 1)
    np.testing.assert_array_equal(found.next_observations[:, 1], found.observations[:, 1])


def write(path: Any, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value


def d4rl() -> dict[str, np.ndarray]:
    """Two episodes of three steps: the first ends by a terminal, the second by a time limit."""
    return {
        "observations": np.concatenate([walk(2, 0), walk(2, 100)]),
        "actions": np.arange(6.0)[:, None] / 6,
        "rewards": np.arange(6.0),
        "terminals": np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        "timeouts": np.array([0, 0, 0, 0, 0, 1], dtype=bool),
    }


def test_d4rl_steps_do_not_cross_the_end_of_an_episode(tmp_path) -> None:
    write(tmp_path / "a.bin", d4rl())
    found = read_transitions(tmp_path / "a.bin")
    assert len(found) == 5, "after the time limit the next observation is lost"
    follows(found)
    np.testing.assert_array_equal(found.terminals, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(found.rewards, [0, 1, 2, 3, 4])


def test_d4rl_with_next_observations_keeps_every_step(tmp_path) -> None:
    arrays = d4rl()
    arrays["next_observations"] = np.concatenate([walk(3, 0)[1:], walk(3, 100)[1:]])
    arrays["metadata/algorithm"] = np.zeros(3)
    write(tmp_path / "a.hdf5", arrays)
    found = read_transitions(tmp_path / "a.hdf5")
    assert len(found) == 6 and found.terminals.sum() == 1
    follows(found)


def test_minari(tmp_path) -> None:
    for place in (tmp_path / "set" / "data", tmp_path / "flat"):
        place.mkdir(parents=True)
        arrays: dict[str, Any] = {}
        for number in range(11):  # "episode_10" comes before "episode_2" in the file
            arrays |= {
                f"episode_{number}/observations": walk(3, 100 * number),
                f"episode_{number}/actions": np.zeros((3, 1), dtype=np.float32),
                f"episode_{number}/rewards": np.full(3, float(number)),
                f"episode_{number}/terminations": np.array([0, 0, number == 2], dtype=bool),
                f"episode_{number}/truncations": np.array([0, 0, number != 2], dtype=bool),
            }
        write(place / "main_data.hdf5", arrays)
    for folder in ("set", "flat"):
        found = read_transitions(tmp_path / folder)
        assert len(found) == 33 and found.terminals.sum() == 1
        np.testing.assert_array_equal(found.rewards, np.repeat(np.arange(11), 3))
        follows(found)
        np.testing.assert_array_equal(found.next_observations[found.terminals], [[203, 200]])


def test_d3rlpy_in_memory_and_stored(tmp_path) -> None:
    """An episode that was cut off gives one transition less; one that ended repeats its last observation."""
    episodes = [
        SimpleNamespace(
            observations=walk(2, 0), actions=np.array([[0], [1], [2]]), rewards=np.ones((3, 1)), terminated=True
        ),
        SimpleNamespace(
            observations=walk(3, 100),
            actions=np.array([[0], [1], [2], [0]]),
            rewards=np.zeros((4, 1)),
            terminated=False,
        ),
    ]
    arrays: dict[str, Any] = {"columns": ["observations", "actions", "rewards", "terminated"], "version": "2.1"}
    for i, e in enumerate(episodes):
        arrays |= {f"{key}_{i}": value for key, value in vars(e).items()}
    write(tmp_path / "d.h5", arrays)
    for found in (
        from_d3rlpy(SimpleNamespace(episodes=episodes)),
        from_d3rlpy(episodes),
        read_transitions(tmp_path / "d.h5"),
    ):
        assert found.actions.tolist() == [0, 1, 2, 0, 1, 2] and found.rewards.shape == (6,)
        assert found.terminals.tolist() == [False, False, True, False, False, False]
        np.testing.assert_array_equal(found.next_observations[2], found.observations[2])
        follows(found)


def buffer(added: int, size: int = 5, environments: int = 2, saving: bool = False) -> SimpleNamespace:
    """A ring buffer as stable-baselines3 fills it, after `added` steps of each environment; a time limit at step 3."""
    shape = (size, environments)
    made = SimpleNamespace(
        buffer_size=size,
        pos=added % size,
        full=added >= size,
        optimize_memory_usage=saving,
        observations=np.full((*shape, 2), -1, dtype=np.float32),
        actions=np.zeros((*shape, 1), dtype=np.float32),
        rewards=np.full(shape, -1, dtype=np.float32),
        dones=np.zeros(shape, dtype=np.float32),
        timeouts=np.zeros(shape, dtype=np.float32),
        action_space=SimpleNamespace(low=np.array([-2.0]), high=np.array([2.0])),
    )
    if not saving:
        made.next_observations = np.full((*shape, 2), -1, dtype=np.float32)
    for step in range(added):
        for e in range(environments):
            at, seen = step % size, walk(added, 100 * e)
            made.observations[at, e] = seen[step]
            if saving:
                made.observations[(at + 1) % size, e] = seen[step + 1]
            else:
                made.next_observations[at, e] = seen[step + 1]
            made.rewards[at, e] = step
            made.dones[at, e] = step in (3, 4)
            made.timeouts[at, e] = step == 3
    return made


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize(("added", "steps"), [(3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (7, [2, 3, 4, 5, 6])])
def test_stable_baselines_rings_give_the_steps_they_hold(added: int, steps: list[int], saving: bool) -> None:
    """Neither what has been overwritten nor what is not yet filled; a time limit is no terminal."""
    found = from_stable_baselines3(buffer(added, saving=saving))
    steps = steps[1:] if saving and added >= 5 else steps  # the oldest observation has been overwritten
    np.testing.assert_array_equal(found.rewards, steps * 2)
    np.testing.assert_array_equal(found.terminals, np.array(steps * 2) == 4)
    np.testing.assert_array_equal(found.next_observations[:, 0], found.observations[:, 0] + 1)
    follows(found)
    assert found.action_low is not None and found.action_low.tolist() == [-2]


def test_discrete_actions_of_stable_baselines() -> None:
    made = buffer(3)
    made.actions = made.actions.astype(np.int64)
    made.action_space = type("Discrete", (), {"n": 3})()
    assert from_stable_baselines3(made).actions.shape == (6,)


def test_npz_by_content(tmp_path) -> None:
    write(tmp_path / "a.h5", d4rl())
    found = read_transitions(tmp_path / "a.h5")
    write_npz(found, tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(tmp_path / "b.hdf5")
    np.testing.assert_array_equal(read_transitions(tmp_path / "b.hdf5").observations, found.observations)


def test_refusals(tmp_path) -> None:
    cases: list[tuple[dict[str, Any], type[DragonError], str]] = [
        ({k: v for k, v in d4rl().items() if k != "timeouts"}, ConfigError, "neither next_observations nor timeouts"),
        ({k: v for k, v in d4rl().items() if k != "rewards"}, ConfigError, "lacks rewards; it holds"),
        (d4rl() | {"rewards": np.array([0, 1, np.nan, 3, 4, 5])}, NotFinite, "rewards holds NaN or infinity in row 2"),
        (d4rl() | {"rewards": np.zeros(5)}, ShapeError, "different lengths"),
        ({"pixels": np.zeros(3)}, ConfigError, "holds pixels; expected D4RL's"),
        (
            {"episode_0/observations": np.zeros((3, 1)), "episode_0/actions": np.zeros((3, 1))},
            ConfigError,
            "no array rewards",
        ),
        (
            {f"episode_0/{k}": np.zeros((3, 1)) for k in ("observations", "actions", "rewards", "terminations")},
            ShapeError,
            "episode_0 has 3 observations and 3 steps; expected one more",
        ),
        ({"episode_0/a": np.zeros(1), "episode_2/a": np.zeros(1)}, ConfigError, "no array observations"),
    ]
    for number, (arrays, kind, message) in enumerate(cases):
        write(tmp_path / f"{number}.hdf5", arrays)
        with pytest.raises(kind, match=message):
            read_transitions(tmp_path / f"{number}.hdf5")
    (tmp_path / "text").write_text("a,b,c\n1,2,3\n")
    (tmp_path / "cut.hdf5").write_bytes((tmp_path / "0.hdf5").read_bytes()[:600])
    for name, message in (("none", "cannot be read"), ("text", "neither npz nor HDF5"), ("cut.hdf5", "damaged")):
        with pytest.raises(ConfigError, match=message):
            read_transitions(tmp_path / name)
    with pytest.raises(ConfigError, match="without data/main_data.hdf5"):
        read_transitions(tmp_path)
    with pytest.raises(ConfigError, match="holds no episodes"):
        from_d3rlpy([])
