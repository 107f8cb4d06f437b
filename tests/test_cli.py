"""The command line, whole runs on the toy policy: exit status, what is said, and what is left on disk."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from dragon.cli import main

POINTS = """
import os

class Axis:
    abstains = False

    def __init__(self, axis: int = 0, stop_at: int = 0, kind: str = ""):
        self.name, self.axis, self.stop_at, self.kind, self.calls = "xy"[axis], axis, stop_at, kind, 0

    def score(self, media):
        self.calls += 1
        if self.calls == self.stop_at:
            if self.kind == "interrupt":
                raise KeyboardInterrupt
            return media.tensor[:, self.axis, 0].double() * float("nan")
        return media.tensor[:, self.axis, 0].double()
"""

RUN = """
output_dir: out
prompts: train.txt
eval_prompts: test.txt
policy: {name: toy}
rewards: [{name: "points.py:Axis"}]
evaluation: {prompts: 2, samples_per_prompt: 4, steps: 4, guidance: 1, watch: [{name: random}]}
rollout: {guidance: 1, prompts_per_step: 4, steps: 4}
learning_rate: 0.01
max_steps: 4
save_steps: 2
report_to: none
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "points.py").write_text(POINTS)
    (tmp_path / "train.txt").write_text("left\nright\n")
    (tmp_path / "test.txt").write_text("up\ndown\n")
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dragon(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # tyro leaves this way
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_list_on_the_command_line_replaces_that_of_the_file(capsys, folder):
    """Two rewards in the file, one in the flag: one is left."""
    text = (folder / "run.yaml").read_text(encoding="utf-8")
    two = text.replace(
        'rewards: [{name: "points.py:Axis"}]',
        'rewards: [{name: "points.py:Axis"}, {name: "points.py:Axis", options: {axis: 1}}]',
    )
    assert two != text
    (folder / "run.yaml").write_text(two, encoding="utf-8")
    status, out, _ = dragon(capsys, "train", "run.yaml", "--dry_run", "--rewards", "[{name: 'points.py:Axis'}]")
    assert status == 0 and out.count("Axis") == 1 and "axis: 1" not in out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_command_trains_evaluates_and_keeps_everything(folder: Path, capsys) -> None:
    status, out, _ = dragon(capsys, "train", "run.yaml", "--report_to", "tensorboard", "--eval_steps", "2")
    assert status == 0
    for text in ("win rate", "x", "random (only watched)", "listen:", "out/evaluation.json", "held out, step 2"):
        assert text in out
    run = folder / "out"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["update"]["updates_per_step"] == 3, "all defaults are written out"
    versions = json.loads((run / "versions.json").read_text())
    assert versions["packages"]["torch"] and versions["seeds"] == {"training": 0, "evaluation": 1_000_003}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert {"reward", "gap", "loss", "implicit_accuracy", "beta_gain_median", "grad_norm", "seconds"} <= set(log[0])
    assert [json.loads(line)["step"] for line in (run / "probes.jsonl").read_text().splitlines()] == [0, 2, 4]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert list((run / "final").glob("*.safetensors")) and (run / "final" / "config.json").is_file()
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["version"] == 1 and evaluation["prompts"] == 2 and evaluation["samples_per_prompt"] == 4
    assert evaluation["rewards"]["x"]["trained_on"] and not evaluation["rewards"]["random"]["trained_on"]
    assert len(list((run / "samples" / "base").iterdir())) == 2
    with (run / "samples" / "samples.csv").open() as file:
        assert next(csv.reader(file)) == ["file", "prompt", "seed", "rate", "seconds"]
    assert list((run / "pictures").glob("*.png")) and list((run / "tensorboard").iterdir())
    assert not list(run.rglob("*.partial"))


def test_the_reward_rises_and_flags_win_over_the_file(folder: Path, capsys) -> None:
    flags = "--max_steps 25 --rollout.prompts_per_step 8 --output_dir learned --evaluation.samples_per_prompt 64"
    status, *_ = dragon(capsys, "train", "run.yaml", *flags.split(), "--update.replay_steps=2")
    assert status == 0
    found = json.loads((folder / "learned" / "evaluation.json").read_text())["rewards"]["x"]
    assert found["win_rate"] > 0.6 and found["tuned"] > found["base"]
    assert yaml.safe_load((folder / "learned" / "config.yaml").read_text())["update"]["replay_steps"] == 2


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(folder: Path, capsys) -> None:
    assert dragon(capsys, "train", "run.yaml", "--output_dir", "whole")[0] == 0
    assert dragon(capsys, "train", "run.yaml", "--max_steps", "2")[0] == 0
    status, out, _ = dragon(capsys, "train", "run.yaml", "--resume_from_checkpoint", "latest")
    assert status == 0 and "going on from out/checkpoints/step-000002, step 2" in out
    for place in ("final", "checkpoints/step-000004"):
        (file,) = (p.name for p in (folder / "whole" / place).glob("*.safetensors"))
        whole, resumed = (load_file(folder / run / place / file) for run in ("whole", "out"))
        assert whole.keys() == resumed.keys() and all((whole[k] == resumed[k]).all() for k in whole)
    reports = [json.loads((folder / run / "evaluation.json").read_text())["rewards"] for run in ("whole", "out")]
    assert reports[0] == reports[1]
    assert len((folder / "out" / "log.jsonl").read_text().splitlines()) == 4
    resumed_at = json.loads((folder / "out" / "versions.json").read_text())["resumed"]
    assert [record["step"] for record in resumed_at] == [2]


def test_resuming_a_finished_run_repeats_its_evaluation_only(folder: Path, capsys) -> None:
    dragon(capsys, "train", "run.yaml")
    final = contents(folder / "out" / "final")
    (folder / "out" / "evaluation.json").unlink()
    status, out, _ = dragon(capsys, "train", "run.yaml", "--resume_from_checkpoint", "true")
    assert status == 0 and "step 1/" not in out
    assert contents(folder / "out" / "final") == final and (folder / "out" / "evaluation.json").is_file()
    assert len((folder / "out" / "log.jsonl").read_text().splitlines()) == 4


def test_resuming_without_a_checkpoint_starts_afresh_and_says_so(folder: Path, capsys) -> None:
    status, out, _ = dragon(capsys, "train", "run.yaml", "--resume_from_checkpoint", "latest")
    assert status == 0 and "no checkpoint in out/checkpoints: starting at step 0" in out


def test_everything_wrong_is_one_message_and_nothing_is_written(folder: Path, capsys) -> None:
    (folder / "wrong.yaml").write_text(
        RUN.replace("max_steps: 4", "max_stepz: 4").replace("points.py:Axis", "clap_scor") + "num_generations: two\n"
    )
    status, out, err = dragon(capsys, "train", "wrong.yaml")
    assert status == 2 and out == ""
    for line in (
        "max_stepz: unknown key; did you mean 'max_steps'",
        "rewards.0.name: no reward is called 'clap_scor'; did you mean 'clap_score'",
        "num_generations: 'two' does not fit",
    ):
        assert line in err
    assert "Traceback" not in err and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "no configuration file 'none.yaml'"),
        (["train"], "no configuration given; expected: dragon train CONFIG.yaml"),
        (["trian"], "no command is called 'trian'; did you mean 'train'"),
        (["train", "run.yaml", "--prompts", "empty.txt"], "there is no prompt in it"),
        (["train", "run.yaml", "--output_dir", "run.yaml"], "'run.yaml' is a file"),
        (["train", "run.yaml", "--output_dir", "run.yaml/deeper"], "'run.yaml' is a file"),
        (["train", "run.yaml", "--output_dir", "/proc/of/dragon"], "/proc"),
        (["train", "run.yaml", "--max_stesp", "3"], "--max_steps"),
        (["train", "run.yaml", "--max_steps", "three"], "three"),
        (["train", "run.yaml", "--num_generations", "1"], "num_generations: 1 is out of range"),
        (["train", "run.yaml", "--rewards", "[{nme: x}]"], "rewards.0.nme: unknown key; did you mean 'name'"),
        (["train", "run.yaml", "--rewards", "[]"], "rewards: none given"),
        (
            [
                "train",
                "run.yaml",
                "--rewards",
                "[{name: song_frechet, options: {exemplars: no_such, encoder: spectral}}]",
            ],
            "no exemplar set 'no_such'",
        ),
        (["train", "run.yaml", "--resume_from_checkpoint", "out/step-1"], "checkpoint out/step-1 cannot be used"),
        (["evaluate", "nowhere"], "'nowhere' is no run folder"),
        (["evaluate"], "no run folder given"),
        (["sample", "nowhere", "--prompt", "left"], "neither a run folder"),
        (["sample", "toy"], "no prompts; give --prompt"),
        (["sample", "toy", "--prompt", "nowhere"], "nowhere"),
        (["exemplars", "build", "mine", "nowhere"], "no folder 'nowhere'"),
        (["exemplars", "show", "nothing"], "no exemplar set 'nothing'"),
        (["exemplars", "lits"], "expected: dragon exemplars build"),
        (["plugins", "rewards"], "no kind of plug-in is called 'rewards'; did you mean 'reward'?"),
        (["train", "."], "'.' is a folder; expected a configuration file"),
        (
            ["train", "run.yaml", "--rewards", "[random]"],
            "rewards.0: 'random' does not fit: expected keys, for example {name",
        ),
        (["sample", "toy", "--prompt", "left", "--output_dir", "s", "--steps", "-1"], "steps is -1"),
        (["sample", "toy", "--prompt", "left", "--output_dir", "s", "--guidance", "nan"], "guidance nan"),
        (["sample", "toy", "--prompt", "left", "--output_dir", "s", "--seed", "-1"], "seed is -1"),
        (["aesthetics", "fit", ".", "--out", "a.safetensors"], "'.' is a folder; expected the .csv"),
    ],
)
def test_a_mistake_is_one_message_on_standard_error_and_exit_status_2(
    folder: Path, capsys, arguments: list[str], message: str
) -> None:
    (folder / "empty.txt").write_text("\n")
    before = contents(folder)
    status, _, err = dragon(capsys, *arguments)
    assert status == 2 and message in err and "Traceback" not in err
    assert {k: v for k, v in contents(folder).items() if "__pycache__" not in k} == before


def test_a_new_run_into_a_folder_that_holds_one_changes_nothing(folder: Path, capsys) -> None:
    dragon(capsys, "train", "run.yaml", "--max_steps", "1")
    before = contents(folder / "out")
    status, _, err = dragon(capsys, "train", "run.yaml")
    assert status == 2 and "holds a run already" in err and "--resume_from_checkpoint latest" in err
    other = ("--resume_from_checkpoint", "latest", "--learning_rate", "0.5", "--objective.name", "dpo")
    status, _, err = dragon(capsys, "train", "run.yaml", *other, "--objective.options", "{beta: 10}")
    assert status == 2 and "learning_rate: checkpoint 0.01, now 0.5" in err and "objective.name" in err
    assert contents(folder / "out") == before


def test_an_interrupt_saves_the_last_whole_step(folder: Path, capsys) -> None:
    interrupted = "[{name: 'points.py:Axis', options: {stop_at: 4, kind: interrupt}}]"
    status, _, err = dragon(capsys, "train", "run.yaml", "--rewards", interrupted)
    assert status == 130 and "saved out/checkpoints/step-000003" in err
    assert (folder / "out" / "checkpoints" / "step-000003" / "manifest.json").is_file()
    assert not (folder / "out" / "final").exists()


def test_a_nan_stops_with_the_name_of_the_part_and_keeps_the_steps_before(folder: Path, capsys) -> None:
    broken = "[{name: 'points.py:Axis', options: {stop_at: 4, kind: nan}}]"
    status, out, err = dragon(capsys, "train", "run.yaml", "--rewards", broken)
    assert status == 2 and "reward 'x' is nan for prompt" in err and "seed" in err
    assert "the last whole step was saved: out/checkpoints/step-000003" in out


def test_sigterm_saves_like_an_interrupt(folder: Path, root: Path) -> None:
    command = [sys.executable, "-m", "dragon", "train", "run.yaml", "--max_steps", "100000", "--save_steps", "0"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if "step 2/" in line:
                run.send_signal(signal.SIGTERM)
                break
        rest = run.stdout.read()
        assert run.wait(60) == 130, rest
    assert "saved out/checkpoints/step-" in rest


def test_dry_run_prints_the_filled_configuration_and_writes_nothing(folder: Path, capsys) -> None:
    for flags in (["--dry_run"], ["--dry_run", "true"]):
        status, out, _ = dragon(capsys, "train", "run.yaml", *flags, "--seed", "5")
        assert status == 0 and not (folder / "out").exists()
        filled = yaml.safe_load(out)
        assert filled["seed"] == 5 and filled["rollout"]["batch_size"] == 32
    status, _, err = dragon(capsys, "train", "run.yaml", "--dry_run", "--policy.options", "{components: {a: [[0, 0]]}}")
    assert status == 2 and "components" in err


def test_sample_writes_clips_of_the_tuned_and_of_the_base_model(folder: Path, capsys) -> None:
    dragon(capsys, "train", "run.yaml")
    asked = ("--prompt", "left", "up", "--samples_per_prompt", "2")
    for model, place, flags in (("out", "tuned", ()), ("out", "base", ("--base",)), ("toy", "fresh", ())):
        status, out, err = dragon(capsys, "sample", model, *asked, "--output_dir", place, *flags)
        assert status == 0 and len(out.splitlines()) == 4, err
    files = {place: contents(folder / place) for place in ("tuned", "base", "fresh")}
    with (folder / "tuned" / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["seed"]) for row in rows] == [("left", "0"), ("left", "1"), ("up", "2"), ("up", "3")]
    assert files["base"]["0000.npy"] != files["tuned"]["0000.npy"]
    status, _, err = dragon(capsys, "sample", "out", *asked, "--output_dir", "tuned")
    assert status == 2 and "holds something already" in err


def test_evaluate_measures_the_final_weights_again(folder: Path, capsys) -> None:
    dragon(capsys, "train", "run.yaml")
    first = json.loads((folder / "out" / "evaluation.json").read_text())
    status, out, _ = dragon(capsys, "evaluate", "out", "--output_dir", "again")
    assert status == 0 and "win rate" in out
    again = json.loads((folder / "again" / "evaluation.json").read_text())
    assert again["rewards"] == first["rewards"]
    watched = ("--evaluation.watch", "[{name: 'points.py:Axis', options: {axis: 1}}]")
    assert dragon(capsys, "evaluate", "out", *watched)[0] == 0
    assert set(json.loads((folder / "out" / "evaluation.json").read_text())["rewards"]) == {"x", "y"}


def test_exemplars_are_built_listed_and_shown(folder: Path, capsys) -> None:
    import numpy as np
    import soundfile

    (folder / "sounds").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(folder / "sounds" / f"{name}.wav", 0.1 * rng.standard_normal(32000), 16000)
    build = ("exemplars", "build", "mine", "sounds", "--encoder", "spectral", "--licence", "CC0")
    status, out, err = dragon(capsys, *build)
    assert status == 0 and "2 clips" in out, err
    status, out, _ = dragon(capsys, "exemplars", "show", "./mine.safetensors")
    assert status == 0 and "sounds" in out and "CC0" in out and "spectral" in out
    status, _, err = dragon(capsys, *build)
    assert status == 2 and "exists already" in err
    assert dragon(capsys, "exemplars", "list")[0] == 0


def test_exemplars_are_built_of_captions(folder: Path, capsys) -> None:
    (folder / "waltzes.txt").write_text("a slow waltz\nwaltz in three, with piano\na waltz dance, happy\n")
    status, out, err = dragon(capsys, "exemplars", "build", "waltzes", "waltzes.txt", "--licence", "CC0")
    assert status == 0 and "wrote waltzes.safetensors: 3 captions, 3 frames of mini-shared" in out, err
    status, out, _ = dragon(capsys, "exemplars", "show", "./waltzes.safetensors")
    shown = dict(line.split(None, 1) for line in out.replace("kept frames", "kept_frames").splitlines())
    assert shown["modality"] == "text" and shown["kept_frames"] == "3" and shown["source"] == "waltzes.txt"

    rows = [{"caption": "a slow waltz", "genre": 1}, {"caption": "a waltz dance", "genre": 2}]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "c.csv").write_text("file,caption\na.wav,a slow waltz\nb.wav,a waltz dance\n")
    (folder / "p.csv").write_text("prompt,genre\na slow waltz,1\na waltz dance,2\n")
    found = []
    for name in ("c.jsonl", "c.csv", "p.csv"):
        flags = ("--of", "captions", "--out", f"{name}.safetensors")
        status, out, err = dragon(capsys, "exemplars", "build", "two", name, *flags)
        assert status == 0 and "2 captions" in out, err
        found.append(load_file(f"{name}.safetensors")["features"])
    assert found[0].equal(found[1]) and found[0].equal(found[2])
    assert dragon(capsys, "exemplars", "list")[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("c.txt", "one\n", [], "1 captions; give at least two"),
        ("c.txt", "one\n\ntwo\n", [], "line 2: the prompt is ''"),
        ("c.txt", "one\ntwo\n", ["--encoder", "spectral"], "'spectral' embeds no text"),
        ("c.csv", 'caption\none\n""\ntwo\n', [], "caption 2 of 3 is blank"),
        ("c.csv", "words\none\n", [], "has columns words; expected 'caption' (or 'prompt') for captions"),
        ("c.jsonl", '{"caption": "one"}\n{oops\n', [], "captions 'c.jsonl' cannot be read (Expecting"),
        ("c.txt", None, [], "no such file"),
    ],
)
def test_captions_that_cannot_be_used_leave_no_file(
    folder: Path, capsys, name: str, content: str | None, flags: list[str], message: str
) -> None:
    if content is not None:
        (folder / name).write_text(content)
    status, _, err = dragon(capsys, "exemplars", "build", "told", name, *flags)
    assert status == 2 and message in err and "Traceback" not in err, err
    assert not list(folder.glob("*.safetensors"))


def test_plugins_lists_every_name(capsys) -> None:
    from dragon.registry import BUILT_IN

    status, out, _ = dragon(capsys, "plugins")
    assert status == 0 and all(name in out for names in BUILT_IN.values() for name in names)
    status, out, _ = dragon(capsys, "plugins", "reward")
    assert "clap_score" in out and "best_worst" not in out


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_every_command_explains_its_flags(capsys, command: str) -> None:
    arguments = [command, "toy", "--help"] if command == "sample" else [command, "--help"]
    status, out, _ = dragon(capsys, *arguments)
    assert status == 0 and "--output_dir" in out


def test_help_and_version(capsys) -> None:
    assert dragon(capsys, "--help")[0] == 0
    assert dragon(capsys)[0] == 2
    status, out, _ = dragon(capsys, "--version")
    assert status == 0 and out.startswith("dragon ")


def test_python_m_dragon_is_the_same_program(root: Path, folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "dragon", "plugins", "contrast"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "best_worst" in done.stdout
    done = subprocess.run([*command[:3], "nothing"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(root: Path) -> None:
    """As in `dragon plugins | head -1`."""
    command = [sys.executable, "-m", "dragon", "plugins"]
    running = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    with running.stderr:
        assert running.stderr.read() == ""
    assert running.wait(timeout=60) == 141


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A saved pipeline of the built-in kind, tiny and untrained."""
    from dragon.mini import random_pipeline

    place = tmp_path_factory.mktemp("pipeline")
    random_pipeline(seed=0, width=32, layers=1).save_pretrained(place)
    return place


def test_a_text_to_music_run_leaves_audio_to_hear_and_an_adapter_in_peft_format(
    folder: Path, capsys, pipeline: Path
) -> None:
    (folder / "loud.py").write_text(
        "def loud(audio, prompts):\n    return [float((a.samples**2).mean()) for a in audio]\n"
    )
    (folder / "music.yaml").write_text(
        f"""
output_dir: music
prompts: train.txt
eval_prompts: test.txt
policy: {{name: mini, options: {{folder: "{pipeline}"}}}}
tuning: {{rank: 2}}
rewards: [{{name: "loud.py:loud"}}]
evaluation: {{prompts: 2, samples_per_prompt: 1, steps: 2, keep_samples: 2}}
rollout: {{prompts_per_step: 2, steps: 2}}
num_generations: 2
max_steps: 2
"""
    )
    status, out, err = dragon(capsys, "train", "music.yaml")
    assert status == 0, err
    run = folder / "music"
    assert "listen:  music/listen.html" in out and "<audio" in (run / "listen.html").read_text()
    assert {p.name for p in (run / "final").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    for side in ("base", "tuned"):
        assert len(list((run / "samples" / side).glob("*.wav"))) == 2
    assert len(list((run / "pictures").glob("*.png"))) >= 3
    status, out, err = dragon(capsys, "sample", "music", "--prompt", "slow piano", "--output_dir", "heard")
    assert status == 0 and (folder / "heard" / "0000.wav").stat().st_size > 10_000, err
