"""dragon upsample, through the command line: its contract, resuming to the bit, interruptions, refusals."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragon.cli import main
from dragon.synther.training import Fit

SMALL = ("--max_steps", "24", "--batch_size", "16", "--steps", "3", "--save_steps", "8")
QUIET = ("--report", "false")


def system(n: int = 400, seed: int = 0) -> dict[str, Any]:
    """A linear system; float64 rewards and a whole-number column, so that types differ."""
    random = np.random.default_rng(seed)
    state, action = random.standard_normal((n, 2)), random.uniform(-1, 1, (n, 1))
    after = state @ np.array([[0.9, -0.1], [0.2, 0.8]]) + action * [0.3, 0.1]
    return {
        "observations": state.astype(np.float32),
        "actions": action.astype(np.float32),
        "rewards": -np.square(state).sum(1),
        "next_observations": after.astype(np.float32),
        "terminals": after[:, 0] > 1.5,
        "level": random.integers(0, 5, n),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("upsample")
    box: dict[str, Any] = {"action_low": np.array([-2.0]), "action_high": np.array([2.0], dtype=np.float32)}
    np.savez(root / "in.npz", **system(), **box)
    np.savez(root / "other.npz", **system(seed=1))
    return root


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An unbroken run with its report."""
    assert upsample(folder, "whole.npz", *SMALL) == 0
    return folder / "whole.npz"


def upsample(folder: Path, out: str, *flags: str, source: str = "in.npz", samples: int = 1500) -> int:
    return main(["upsample", str(folder / source), "--out", str(folder / out), "--samples", str(samples), *flags])


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """A signal in the middle of a step."""
    update = Fit._update

    def interrupted(self: Fit):
        if self.step == step:
            signal.raise_signal(number)
        return update(self)

    monkeypatch.setattr(Fit, "_update", interrupted)


# ---- the contract


def test_hdf5_and_a_minari_folder_come_in_as_npz_does(folder: Path) -> None:
    h5py = pytest.importorskip("h5py")
    rows = system()
    with h5py.File(folder / "d4rl.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards", "next_observations", "terminals"):
            file[name] = rows[name]
    (folder / "minari" / "data").mkdir(parents=True)
    with h5py.File(folder / "minari" / "data" / "main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        episode["observations"] = np.concatenate([rows["observations"], rows["observations"][:1]])
        for name in ("actions", "rewards"):
            episode[name] = rows[name]
        episode["terminations"] = rows["terminals"]
        episode["truncations"] = np.zeros(len(rows["rewards"]), dtype=bool)
    for source in ("d4rl.hdf5", "minari"):
        assert upsample(folder, f"from_{source}.npz", *SMALL, *QUIET, source=source, samples=50) == 0
        with np.load(folder / f"from_{source}.npz") as after:
            assert after["next_observations"].shape == (50, 2) and after["observations"].dtype == np.float32


def test_the_output_has_the_keys_types_and_box_of_the_input(folder: Path, whole: Path) -> None:
    with np.load(folder / "in.npz") as before, np.load(whole) as after:
        assert set(after.files) == set(before.files)
        for name in before.files:
            assert after[name].dtype == before[name].dtype, name
            assert after[name].shape[1:] == before[name].shape[1:], name
        assert len(after["rewards"]) == 1500
        assert after["action_low"] == -2 and after["action_high"] == 2
        assert np.abs(after["actions"]).max() <= 2 and set(after["level"]) <= set(range(5))


def test_without_a_box_the_range_of_the_data_holds_and_no_keys_appear(folder: Path) -> None:
    assert upsample(folder, "free.npz", *SMALL, *QUIET, source="other.npz") == 0
    with np.load(folder / "other.npz") as before, np.load(folder / "free.npz") as after:
        assert set(after.files) == set(before.files)
        assert after["actions"].min() >= before["actions"].min() and after["actions"].max() <= before["actions"].max()


def test_the_environment_gives_the_box_and_a_note_where_it_cannot_be_simulated(folder: Path, capsys) -> None:
    pytest.importorskip("gymnasium")
    random = np.random.default_rng(0)
    np.savez(
        folder / "pendulum.npz",
        **system()
        | {name: random.standard_normal((400, 3)).astype(np.float32) for name in ("observations", "next_observations")},
    )
    assert upsample(folder, "p.npz", *SMALL, "--env", "Pendulum-v1", source="pendulum.npz", samples=1000) == 0
    assert "note: no errors of the dynamics in the report" in capsys.readouterr().out
    stored = json.loads((folder / "p" / "model" / "config.json").read_text())
    actions = next(g for g in stored["layout"]["groups"] if g["name"] == "actions")
    assert (actions["low"], actions["high"]) == ([-2.0], [2.0])


def test_what_a_run_leaves(folder: Path, whole: Path) -> None:
    place = folder / "whole"
    names = {path.name for path in place.iterdir()}
    assert names == {
        *(
            "config.json",
            "versions.json",
            "log.jsonl",
            "checkpoints",
            "model",
            "quality.json",
            "report.html",
            "pictures",
        )
    }
    assert not [path for path in folder.rglob("*.p*t") if path.suffix in (".pt", ".pkl")]
    assert [path.name for path in sorted((place / "checkpoints").iterdir())] == ["step-000016", "step-000024"]
    assert json.loads((place / "log.jsonl").read_text().splitlines()[-1])["step"] == 24
    quality = json.loads((place / "quality.json").read_text())
    assert quality["rows"] == {"new": 1500, "train": 380, "held_out": 20}


# ---- seeds and resuming


def test_a_finished_fit_only_samples_again(folder: Path, whole: Path, capsys, monkeypatch) -> None:
    monkeypatch.delattr(Fit, "_update")
    again = ("--output_dir", str(folder / "whole"), "--resume_from_checkpoint", "latest", *SMALL, *QUIET)
    assert upsample(folder, "again.npz", *again) == 0
    assert "only sampling" in capsys.readouterr().out
    assert (folder / "again.npz").read_bytes() == whole.read_bytes()
    assert upsample(folder, "fewer.npz", *again, samples=600) == 0
    assert upsample(folder, "seed.npz", *again, "--sample_seed", "1") == 0
    with np.load(whole) as a, np.load(folder / "fewer.npz") as b, np.load(folder / "seed.npz") as c:
        # close, not equal: sums over batches of another size round in another order
        assert np.allclose(a["rewards"][:600], b["rewards"], atol=1e-4)
        assert not np.allclose(a["rewards"], c["rewards"], atol=1e-2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fit_saves_and_goes_on_to_the_bit(number, folder: Path, whole: Path, capsys) -> None:
    out = f"broken{int(number)}.npz"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 11, number)
        assert upsample(folder, out, *SMALL, *QUIET) == 130
    said = capsys.readouterr().err
    assert "step 12 of 24 is saved" in said and "--resume_from_checkpoint latest" in said
    assert not (folder / out).exists()
    assert upsample(folder, out, *SMALL, *QUIET, "--resume_from_checkpoint", "true") == 0
    assert "going on from" in capsys.readouterr().out
    assert (folder / out).read_bytes() == whole.read_bytes()
    weights = Path("model", "model.safetensors")
    assert (folder / out[:-4] / weights).read_bytes() == (folder / "whole" / weights).read_bytes()


def test_an_interrupted_drawing_leaves_no_rows_and_the_model(folder: Path, capsys) -> None:
    from dragon.synther.streaming import NpzWriter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NpzWriter, "add", lambda self, arrays: signal.raise_signal(signal.SIGINT))
        assert upsample(folder, "cut.npz", *SMALL, *QUIET) == 130
    assert "the model is in" in capsys.readouterr().err
    assert not list(folder.glob("*cut.npz*")) and (folder / "cut" / "model" / "config.json").is_file()


def test_another_run_does_not_go_on_here(folder: Path, whole: Path, capsys) -> None:
    there = ("--output_dir", str(folder / "whole"), *QUIET)
    assert upsample(folder, "n.npz", *SMALL, *there) == 2
    assert "holds a run already" in capsys.readouterr().err
    resumed = (*there, "--resume_from_checkpoint", "latest")
    assert upsample(folder, "n.npz", *SMALL, *resumed, "--seed", "1") == 2
    assert "fit.seed: checkpoint 0, now 1" in capsys.readouterr().err
    assert upsample(folder, "n.npz", *SMALL, *resumed, source="other.npz") == 2
    assert "data.sha256" in capsys.readouterr().err
    assert not (folder / "n.npz").exists()


# ---- scores, warm start, discrete actions


def test_rows_for_a_score_and_a_start_from_another_model(folder: Path, whole: Path, capsys) -> None:
    asked = ("--score", "rewards", "--guidance", "2", "--score_quantile", "0.95")
    assert upsample(folder, "high.npz", *SMALL, *asked, samples=1000) == 0
    assert "meant to differ" in capsys.readouterr().out
    np.save(folder / "scores.npy", system()["level"])
    assert upsample(folder, "file.npz", *SMALL, *QUIET, "--score", str(folder / "scores.npy"), samples=100) == 0
    warm = ("--start", str(folder / "whole"), "--max_steps", "1", "--learning_rate", "1e-12")
    assert upsample(folder, "warm.npz", *SMALL, *QUIET, *warm) == 0
    from safetensors.torch import load_file

    before, after = (load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "warm"))
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before if name.startswith("net."))


def test_discrete_actions_stay_whole_numbers(folder: Path) -> None:
    np.savez(folder / "discrete.npz", **system() | {"actions": np.arange(400) % 3})
    assert upsample(folder, "d.npz", *SMALL, *QUIET, source="discrete.npz", samples=1000) == 0
    with np.load(folder / "d.npz") as after:
        assert after["actions"].shape == (1000,) and set(after["actions"]) <= {0, 1, 2}


# ---- refusals


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--out", "x.csv"], "expected a name that ends in .npz"),
        (["--samples", "0"], "give the number of transitions to draw"),
        (["--held_out", "0"], "held_out is 0 and a report needs rows"),
        (["--guidance", "2"], "guidance is 2.0 without a score"),
        (["--guidance", "nan", "--score", "rewards"], "guidance is nan; expected 0 or above"),
        (["--samples", "99999999999999"], "99,999,999,999,999 transitions need"),
        (["--score", "reward"], "expected a file of one number a row, or a column: observations.0 to observations.1"),
        (["--score", "observations.2"], "score is 'observations.2'"),
        (["--start", "nowhere"], "no model in 'nowhere'"),
        (["--device", "gpu"], "device is 'gpu'"),
        (["--env", "NoSuchTask-v0"], "env is 'NoSuchTask-v0'"),
        (["--seed", "-1"], "seed is -1"),
        (["--resume_from_checkpoint", "latest", "--output_dir", "FOLDER/in.npz"], "is a file"),
    ],
)
def test_mistakes_are_one_message_and_nothing_is_written(folder: Path, flags, part, capsys, monkeypatch) -> None:
    if "--env" in flags:
        pytest.importorskip("gymnasium")
    monkeypatch.chdir(folder)
    before = set(folder.iterdir())
    given = [flag.replace("FOLDER", str(folder)) for flag in flags]
    assert upsample(folder, "refused.npz", *SMALL, *given) == 2
    said = capsys.readouterr().err
    assert part in said and "Traceback" not in said
    assert set(folder.iterdir()) == before


def test_a_file_that_exists_is_refused_unless_it_may_be_replaced(folder: Path, whole: Path, capsys) -> None:
    again = ("--resume_from_checkpoint", "latest", *SMALL, *QUIET)
    assert upsample(folder, "whole.npz", *again) == 2
    assert "exists already; give another --out, or --replace" in capsys.readouterr().err
    before = whole.read_bytes()
    assert upsample(folder, "whole.npz", *again, "--replace") == 0
    assert whole.read_bytes() == before
    assert main(["upsample", str(whole), "--out", str(whole), "--samples", "5", "--replace"]) == 2


def test_bad_rows_are_named(folder: Path, capsys) -> None:
    broken = system()
    broken["rewards"][7] = np.nan
    np.savez(folder / "nan.npz", **broken)
    assert upsample(folder, "r.npz", *SMALL, source="nan.npz") == 2
    assert "rewards holds NaN or infinity in row 7" in capsys.readouterr().err
    np.savez(folder / "few.npz", **system(20))
    assert upsample(folder, "r.npz", *SMALL, source="few.npz") == 2
    assert "holds 20 transitions, of which held_out 0.05 keeps 1" in capsys.readouterr().err
    assert main(["upsample", "--out", "x.npz"]) == 2
    assert "no file of transitions given" in capsys.readouterr().err


def test_a_full_disk_is_one_message(folder: Path, whole: Path, capsys, monkeypatch) -> None:
    from dragon.synther import streaming

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streaming.shutil, "copyfileobj", full)
    there = ("--output_dir", str(folder / "whole"), "--resume_from_checkpoint", "latest")
    assert upsample(folder, "full.npz", *SMALL, *QUIET, *there) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said and "resuming only samples again" in said
    assert not list(folder.glob("*full.npz*"))


def test_help_names_the_flags(capsys) -> None:
    with pytest.raises(SystemExit) as status:
        main(["upsample", "--help"])
    assert status.value.code == 0 and "--sample_seed" in capsys.readouterr().out
