"""dragon exemplars: every kind of source, the two halves, what is listed, shown and compared, and what is refused."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from dragon import audio
from dragon.audio import Audio
from dragon.build import build
from dragon.cli import main
from dragon.config import Spec
from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError, DragonError
from dragon.exemplars import build_from_folder, load
from dragon.exemplars.collect import content_hash
from dragon.media import Media
from dragon.rewards import SongFrechet, frechet_distance, kernel_distance
from dragon.rewards.set_kernel import SetKernel

RATE = 16_000
EARS = ("--encoder", "{name: spectral, options: {bands: 8}}")


def clip(seed: int, seconds: float = 1.5, level: float = 0.1) -> Audio:
    samples = level * np.random.default_rng(seed).standard_normal((1, round(seconds * RATE)))
    return Audio(samples.astype(np.float32), RATE)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "my music" / "more").mkdir(parents=True)
    for i, name in enumerate(["a.wav", "b.wav", "c.wav", "more/d.wav"]):
        audio.save(tmp_path / "my music" / name, clip(i))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dragon(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(["exemplars", *arguments])
    except SystemExit as stop:  # the parser of flags leaves this way
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def built(capsys, *arguments: str):
    status, out, err = dragon(capsys, "build", *arguments)
    assert status == 0, err
    assert f"wrote {arguments[0]}.safetensors" in out
    return load(f"./{arguments[0]}.safetensors")


# ---- sources


def test_a_folder_gives_the_set_of_the_library(folder: Path, capsys):
    found = built(capsys, "music", "my music", *EARS, "--licence", "CC0")
    expected = build_from_folder(folder / "my music", Spectral(bands=8), "music")
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.cov, expected.cov)
    assert found.items == expected.items and (found.source, found.licence) == ("my music", "CC0")
    assert SongFrechet(found).encoder == Spectral(bands=8)


@pytest.mark.parametrize("name", ["song_frechet", "set_frechet", "set_kernel"])
def test_a_configuration_names_the_set_alone_or_its_encoder_with_options(folder: Path, capsys, name: str):
    built(capsys, "music", "my music", *EARS)
    named = {"encoder": {"name": "spectral", "options": {"bands": 8}}}
    for options in ({}, {"encoder": "spectral"}, named):
        reward = build("reward", Spec(name, {"exemplars": "./music.safetensors", **options}), device="cpu")
        assert reward.encoder == Spectral(bands=8)
    with pytest.raises(DragonError, match="no option 'band'; did you mean 'bands'"):
        build(
            "reward",
            Spec(name, {"exemplars": "./music.safetensors", "encoder": {"name": "spectral", "options": {"band": 8}}}),
            device="cpu",
        )


def test_a_table_names_files_beside_it_each_once(folder: Path, capsys):
    (folder / "my music" / "list.csv").write_text("file,genre\na.wav,x\nmore/d.wav,y\na.wav,z\n")
    found = built(capsys, "listed", "my music/list.csv", *EARS)
    assert [i.name for i in found.items] == ["a.wav", "more/d.wav"] and found.source == "list.csv"
    whole = built(capsys, "music", "my music", *EARS)
    assert {i.content_hash for i in found.items} < {i.content_hash for i in whole.items}


def test_a_table_of_files_and_captions_must_be_told_which(folder: Path, capsys):
    (folder / "my music" / "list.csv").write_text("file,caption\na.wav,a slow waltz\nb.wav,a happy march\n")
    status, _, err = dragon(capsys, "build", "listed", "my music/list.csv")
    assert status == 2 and "--of clips or --of captions" in err
    clips = built(capsys, "clips", "my music/list.csv", *EARS, "--of", "clips")
    told = built(capsys, "told", "my music/list.csv", "--of", "captions")
    assert (clips.modality, clips.count, told.modality, told.count) == ("audio", 2, "text", 2)
    assert [i.name for i in told.items] == ["a slow waltz", "a happy march"]


def test_files_of_a_table_that_cannot_be_used_are_all_listed(folder: Path, capsys):
    audio.save(folder / "silent.wav", Audio(np.zeros((1, 2 * RATE), np.float32), RATE))
    (folder / "list.csv").write_text("file\nmy music/a.wav\ngone.wav\nsilent.wav\nmy music/b.wav\n")
    status, _, err = dragon(capsys, "build", "listed", "list.csv", *EARS)
    assert status == 2 and "2 of 4 audio files in list.csv" in err
    assert "gone.wav: no such file" in err and "silent.wav: silent" in err and not Path("listed.safetensors").exists()
    found = built(capsys, "listed", "list.csv", *EARS, "--skip_bad")
    assert found.count == 2 and len(found.settings["skipped"]) == 2


# ---- a finished run


def finished_run(folder: Path, kept: int = 6) -> Path:
    """Six tuned samples of three prompts, scored by two rewards; the first `kept` of them lie in samples/."""
    run = folder / "run"
    (run / "samples" / "tuned").mkdir(parents=True)
    rewards = {"loud": {"kind": "instance", "trained_on": True}, "calm": {"kind": "instance", "trained_on": False}}
    settings = {"steps": 2, "guidance": 1.0}
    (run / "evaluation.json").write_text(json.dumps({"rewards": rewards, "settings": settings}))
    with (run / "evaluation_scores.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("reward", "side", "prompt_index", "prompt", "sample", "seed", "score"))
        for i in range(6):
            for side, add in (("base", 100.0), ("tuned", 0.0)):
                table.writerow(("loud", side, i // 2, f"prompt {i // 2}", i % 2, 70 + i, add + [3, 5, 1, 9, 2, 7][i]))
                table.writerow(("calm", side, i // 2, f"prompt {i // 2}", i % 2, 70 + i, [1, "", 6, 5, 4, 3][i]))
    with (run / "samples" / "samples.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "prompt", "seed", "rate", "seconds"))
        for i in range(kept):
            audio.save(run / "samples" / "tuned" / f"{i}.wav", clip(i))
            table.writerow((f"tuned/{i}.wav", f"prompt {i // 2}", 70 + i, RATE, 1.5))
    return run


def test_the_best_tuned_samples_of_a_run_are_taken(folder: Path, capsys):
    finished_run(folder)
    found = built(capsys, "best", "run", *EARS, "--best", "3")
    assert [i.name for i in found.items] == ["prompt 1, seed 73", "prompt 2, seed 75", "prompt 0, seed 71"]
    assert found.source == "the best 3 of 6 tuned samples of run run by loud"
    calm = built(capsys, "calm", "run", *EARS, "--best", "2", "--reward", "calm")
    assert [i.name for i in calm.items] == ["prompt 1, seed 72", "prompt 1, seed 73"]
    by_hand = audio.load(folder / "run" / "samples" / "tuned" / "3.wav")
    (folder / "one").mkdir()
    audio.save(folder / "one" / "x.wav", by_hand)
    assert build_from_folder("one", Spectral(bands=8), "one").items[0].content_hash == found.items[0].content_hash


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "6 tuned samples scored by 'loud', fewer than --best 32"),
        (("--best", "6", "--reward", "calm"), "5 tuned samples scored by 'calm'"),  # one abstention
        (("--best", "2", "--reward", "lod"), "reward 'lod' scored no single clip .*calm, loud"),
        (("--best", "1"), "best is 1; expected at least 2"),
    ],
)
def test_what_a_run_cannot_give_is_refused(folder: Path, capsys, flags: tuple[str, ...], message: str):
    import re

    finished_run(folder)
    status, _, err = dragon(capsys, "build", "best", "run", *EARS, *flags)
    assert status == 2 and re.search(message, err), err


def test_a_run_of_several_rewards_must_be_told_by_which(folder: Path, capsys):
    run = finished_run(folder)
    text = (run / "evaluation.json").read_text().replace("false", "true")
    (run / "evaluation.json").write_text(text)
    status, _, err = dragon(capsys, "build", "best", "run", *EARS, "--best", "2")
    assert status == 2 and "was trained on 2 rewards (loud, calm); say by which: --reward NAME" in err
    (run / "evaluation.json").unlink()
    status, _, err = dragon(capsys, "build", "best", "run", *EARS, "--best", "2")
    assert status == 2 and "no evaluation.json that can be read" in err


def test_samples_that_were_not_kept_are_sampled_as_the_evaluation_did(folder: Path, capsys, monkeypatch):
    class Replays:
        """Its sample of a seed is the clip of that number."""

        def generate(self, prompts, seeds, *, steps, guidance):
            assert (steps, guidance) == (2, 1.0) and len(prompts) == len(seeds)
            return seeds

        def decode(self, made):
            tensor = torch.from_numpy(np.stack([clip(seed - 70).samples for seed in made]))
            return Media(tensor, ("",) * len(made), RATE)

    monkeypatch.setattr("dragon.run.load_tuned", lambda run, device: (None, Replays()))
    run = finished_run(folder, kept=3)  # the best two are not among them
    found = built(capsys, "best", str(run), *EARS, "--best", "3")
    assert [i.name for i in found.items] == ["prompt 1, seed 73", "prompt 2, seed 75", "prompt 0, seed 71"]
    assert [i.content_hash for i in found.items] == [content_hash(clip(i).samples, RATE) for i in (3, 5, 1)]


@pytest.mark.slow
def test_samples_that_a_run_did_not_keep_are_made_again_as_they_were(folder: Path, capsys):
    """A real run: its evaluation kept one sample a prompt, and the set of all is what sampling by hand gives."""
    from dragon.mini import random_pipeline
    from dragon.run import load_tuned

    random_pipeline(seed=0, width=32, layers=1).save_pretrained("pipeline")
    Path("prompts.txt").write_text("slow piano\nfast drums\n")
    Path("loud.py").write_text("def loud(audio, prompts):\n    return [float((a.samples**2).mean()) for a in audio]\n")
    Path("run.yaml").write_text("""
output_dir: run
prompts: prompts.txt
eval_prompts: prompts.txt
policy: {name: mini, options: {folder: pipeline}}
tuning: {rank: 2}
rewards: [{name: "loud.py:loud"}]
evaluation: {prompts: 2, samples_per_prompt: 2, steps: 2, keep_samples: 1}
rollout: {prompts_per_step: 2, steps: 2}
num_generations: 2
max_steps: 1
report_to: none
""")
    assert main(["train", "run.yaml"]) == 0
    found = built(capsys, "best", "run", *EARS, "--best", "4")
    with open("run/evaluation_scores.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["side"] == "tuned" and row["reward"] == "loud"]
    rows.sort(key=lambda row: -float(row["score"]))
    _, policy = load_tuned(Path("run"))
    made = policy.generate([r["prompt"] for r in rows], [int(r["seed"]) for r in rows], steps=2, guidance=2.0)
    clips = audio.to_audio(policy.decode(made))
    scores = [float((c.samples**2).mean()) for c in clips]
    np.testing.assert_allclose(scores, [float(r["score"]) for r in rows], rtol=1e-5)
    assert [i.name for i in found.items] == [f"{r['prompt']}, seed {r['seed']}" for r in rows]
    assert [i.content_hash for i in found.items] == [content_hash(c.samples, c.rate) for c in clips]


# ---- halves


def test_a_split_writes_two_sets_of_different_files(folder: Path, capsys):
    for i in range(4, 8):
        audio.save(folder / "my music" / f"{i}.wav", clip(i))
    audio.save(folder / "my music" / "copy.wav", clip(0))
    status, out, err = dragon(capsys, "split", "music", "my music", *EARS, "--held_out", "0.4", "--out", "sets")
    assert status == 0, err
    train, held = load("sets/music_train.safetensors"), load("sets/music_held_out.safetensors")
    assert (train.name, held.name) == ("music_train", "music_held_out")
    names = [{i.name for i in half.items} for half in (train, held)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 9 and len(names[1]) in (3, 4)
    assert ({"a.wav", "copy.wav"} <= names[0]) or ({"a.wav", "copy.wav"} <= names[1])
    assert (
        f"distance between them: {train.distance(held):.4g}, " in out and "times the distance between two halves" in out
    )
    status, _, err = dragon(capsys, "split", "music", "my music", *EARS, "--out", "sets")
    assert status == 2 and "music_train.safetensors' exists already" in err


# ---- the rebuild command


@pytest.mark.parametrize("action", ["build", "split"])
def test_the_rebuild_command_works_if_pasted(folder: Path, capsys, action: str):
    flags = ("--seconds", "0.5", "--licence", "CC BY 4.0, see 'notes'", "--skip_bad")
    (folder / "my music" / "broken.wav").write_bytes(b"RIFF")
    out, file = {
        "build": ("sets/mine.safetensors", "sets/mine.safetensors"),
        "split": ("sets", "sets/music_train.safetensors"),
    }[action]
    assert dragon(capsys, action, "music", "my music", "--encoder", "spectral", "--out", out, *flags)[0] == 0
    before = load(file)
    wanted = {"name": "spectral", "options": {"bands": 8, "hop": 512}}
    with pytest.raises(ConfigError, match="hop 1024 in the set, 512 now") as caught:
        SongFrechet(file, wanted)
    _, _, command = str(caught.value).partition("rebuild with: ")
    words = shlex.split(command)
    assert words[:2] == ["dragon", "exemplars"]
    status, _, err = dragon(capsys, *words[2:])
    assert status == 0, err
    after = load(file)
    assert after.encoder_spec == wanted and SongFrechet(file, wanted).encoder == Spectral(bands=8, hop=512)
    assert [i.content_hash for i in after.items] == [i.content_hash for i in before.items]
    assert (after.licence, after.command, after.settings["seconds"]) == (before.licence, before.command, 0.5)


def test_the_command_that_stands_for_a_shipped_set_is_accepted(folder: Path, capsys):
    """Its own name is not free."""
    words = shlex.split(load("mini_disco").rebuild_command("spectral").replace("FOLDER_OF_AUDIO", "'my music'"))
    assert words[:2] == ["dragon", "exemplars"] and dragon(capsys, *words[2:])[0] == 0
    assert load("./my_mini_disco.safetensors").encoder == "spectral"


def test_a_set_without_frames_is_rebuilt_with_them_by_the_command_it_names(folder: Path, capsys):
    built(capsys, "music", "my music", *EARS, "--keep_frames", "0")
    with pytest.raises(ConfigError, match="hold statistics and no frames") as caught:
        SetKernel("./music.safetensors")
    words = shlex.split(str(caught.value).partition("rebuild with: ")[2])
    assert dragon(capsys, *words[2:])[0] == 0
    assert SetKernel("./music.safetensors").encoder == Spectral(bands=8)


# ---- list, show, compare


def test_sets_here_are_listed_beside_the_shipped_ones(folder: Path, capsys):
    built(capsys, "music", "my music", *EARS, "--licence", "CC0")
    (folder / "weights.safetensors").write_bytes(b"no set")
    status, out, _ = dragon(capsys, "list")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert status == 0 and lines["./music.safetensors"] == ["spectral", "4", "clips", "CC0", "my", "music"]
    assert lines["mini_disco_text"][:3] == ["mini-shared", "800", "captions"] and "weights" not in out


def test_a_set_is_shown_with_its_nearest_and_farthest_item(folder: Path, capsys):
    audio.save(folder / "my music" / "loud.wav", clip(9, level=0.8))
    found = built(capsys, "music", "my music", *EARS)
    status, out, _ = dragon(capsys, "show", "./music.safetensors")
    shown = {line[:14].strip(): line[15:] for line in out.splitlines()}
    assert status == 0 and shown["farthest"].startswith("loud.wav (")
    nearest = min(found.items, key=lambda item: item.distance or 0.0)
    assert shown["nearest"].startswith(f"{nearest.name} ({nearest.distance:.4g})")
    assert shown["made by"] == str({"name": "spectral", "options": {"bands": 8}}) and shown["count"] == "5"
    assert float(shown["spread"]) == pytest.approx(found.spread, rel=1e-5)
    assert float(shown["self_distance"]) == pytest.approx(found.self_distance, rel=1e-5)
    assert shown["command"] == "dragon exemplars build music 'my music'" and "windows" not in shown
    status, out, _ = dragon(capsys, "show", "mini_disco")
    assert status == 0 and "not kept (a set of an older version)" in out


def test_two_sets_are_compared_in_units_of_their_own_halves(folder: Path, capsys):
    (folder / "other").mkdir()
    for i in range(4):
        audio.save(folder / "other" / f"{i}.wav", clip(20 + i, level=0.02))
    a, b = built(capsys, "a", "my music", *EARS), built(capsys, "b", "other", *EARS)
    status, out, err = dragon(capsys, "compare", "./a.safetensors", "./b.safetensors")
    assert status == 0, err
    value = a.distance(b)
    assert a.features is not None and b.features is not None and a.self_distance and b.self_distance
    assert value == pytest.approx(float(frechet_distance(a.features, b.features)), rel=1e-4)  # all frames were kept
    times = 2 * value / (a.self_distance + b.self_distance)
    assert times > 20 and f"{value:.4g}, {times:.2f} times" in out
    assert f"kernel distance   {float(kernel_distance(a.features, b.features, b.bandwidth)):.4g}" in out
    built(capsys, "c", "other", "--encoder", "spectral")
    status, _, err = dragon(capsys, "compare", "./a.safetensors", "./c.safetensors")
    assert status == 2 and "'a' were embedded with" in err and "build c other --encoder" in err
    for pair in (("./a.safetensors", "mini_disco"), ("mini_disco", "./a.safetensors")):
        status, _, err = dragon(capsys, "compare", *pair)  # a shipped set cannot be built again by a command
        assert status == 2 and "build a 'my music' --encoder mini-codec --replace" in err
    status, out, _ = dragon(capsys, "compare", "mini_disco", "mini_disco_held_out")
    assert status == 0 and "holds statistics and no frames" in out


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "my music"], "'my music' given; expected: dragon exemplars build NAME SOURCE"),
        (["build"], "nothing given; expected"),
        (["build", "my music", "--name", "music"], "the name of a set stands before its source"),
        (["build", "a b", "my music"], "exemplar set name 'a b'"),
        (["build", "music", "gone"], "no folder 'gone'; expected a folder of audio"),
        (["build", "music", "my music/a.wav"], "expected a folder of audio"),
        (["build", "music", "my music", "--best", "3"], "is no run folder; leave out --best"),
        (["build", "music", "my music", "--encoder", "{name: spectral"], "is not YAML"),
        (["build", "music", "my music", "--encoder", "{nam: spectral}"], "expected a name, or {name: NAME"),
        (["build", "music", "my music", "--encoder", "spectrl"], "did you mean 'spectral'"),
        (["build", "music", "my music", *EARS, "--seconds", "0"], "seconds 0.0"),
        (["build", "music", "empty.csv", *EARS], "row 2 of 2 names no file"),
        (["build", "music", "words.csv", "--of", "clips"], "has no column 'file'"),
        (["build", "music", "words.csv", "--min_seconds", "2"], "--min_seconds given for a set of captions"),
        (["build", "rows", "rows.npz", "--skip_bad", "--best", "3"], "--skip_bad, --best given for a set of tr"),
        (["split", "music", "gone", *EARS, "--held_out", "1"], "held_out is 1.0"),
        (["split", "music", "gone", *EARS, "--seed", "-1"], "seed is -1"),
        (["build", "mini_disco", "my music"], "'mini_disco' is the name of a shipped set"),
        (
            ["build", "music", "other.csv", *EARS],
            "has columns path, text; expected 'caption' (or 'prompt') for captions",
        ),
        (["compare", "mini_disco"], "expected: dragon exemplars build NAME SOURCE"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_no_file(folder: Path, capsys, arguments: list[str], message: str):
    Path("empty.csv").write_text("file,genre\nmy music/a.wav,x\n,y\n")
    Path("other.csv").write_text("path,text\na.wav,one\nb.wav,two\n")
    Path("words.csv").write_text("caption\none\ntwo\n")
    status, _, err = dragon(capsys, *arguments)
    assert status == 2 and message in err and "Traceback" not in err, err
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize("action", ["build", "split"])
def test_help_needs_neither_name_nor_source(capsys, action: str):
    status, out, _ = dragon(capsys, action, "--help")
    assert status == 0 and "--encoder" in out and "--best" in out


def test_what_was_left_out_is_told_and_a_bad_file_is_named_once(folder, capsys):
    (folder / "my music" / "empty.wav").write_bytes(b"")
    status, _, err = dragon(capsys, "build", "mine", "my music", *EARS)
    assert status == 2 and "\n  empty.wav: empty (0 bytes)" in err
    _, out, _ = dragon(capsys, "build", "mine", "my music", *EARS, "--skip_bad")
    assert "; 1 left out (dragon exemplars show tells why)" in out


def test_a_set_of_fewer_frames_than_features_is_told_of(folder, capsys):
    _, out, _ = dragon(
        capsys, "build", "few", "my music", "--encoder", "{name: spectral, options: {bands: 64, hop: 16000}}"
    )
    assert "features, so that distances to the set are too large; give more clips" in out
    _, out, _ = dragon(capsys, "build", "many", "my music", "--encoder", "{name: spectral, options: {bands: 4}}")
    assert "wrote many" in out and "note" not in out


def test_what_cannot_be_written_is_refused_before_anything_is_heard(capsys):
    for flags, text in (
        (("--out", f"{__file__}/mine.safetensors"), f"--out: folder {__file__!r}: {__file__!r} is a file"),
        (("--out", "mine.json"), "mine.json: expected a name that ends in .safetensors"),
        (("--keep_frames", "-1"), "--keep_frames -1; expected a number"),
        (("--device", "cuda:77"), "'cuda:77' is not there"),
    ):
        status, _, err = dragon(capsys, "build", "mine", "nowhere at all", *flags)
        assert status == 2 and text in err
