"""dragon check: every way to name a reward or a policy, what it prints, and what it says is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from dragon import cli
from dragon.commands import check
from tiny_pipelines import tiny_pipeline

MINE = '''
import torch

class Brightness:
    """Share of a clip's change from sample to sample."""
    name, abstains = "brightness", False
    def __init__(self, power: float = 1.0):
        self.power = power
    def score(self, media):
        wave = media.tensor.mean(dim=1).double()
        return (wave.diff(dim=1).abs().mean(dim=1) / wave.abs().mean(dim=1).clamp(min=1e-9)) ** self.power

class Relative(Brightness):
    def score(self, media):
        torch.manual_seed(0)
        scores = super().score(media)
        return scores - scores.mean()

def tempo(audio, prompts, bpm, scale=1.0):
    return [scale * b if b else None for b in bpm]

class Spread:
    name = "spread"
    def embed(self, media):
        return media.tensor.double().square().mean((1, 2))[:, None, None]
    def score_sets(self, features, members):
        return features[members].mean((2, 3)).var(1)
'''

MODELS = """
import torch
from dragon.policy.toy import ToyPolicy

class WrongSign(ToyPolicy):
    def target(self, latents, noising):
        return -super().target(latents, noising)

class Deaf(ToyPolicy):
    def predict(self, latents, noising, cond):
        return super().predict(latents, noising, self.encode([""] * len(latents)))

class InPlace(ToyPolicy):
    def decode(self, generation):
        generation.latents.mul_(2)
        return super().decode(generation)

    def predict(self, latents, noising, cond):
        noising.noise.clamp_(-0.1, 0.1)
        return super().predict(latents, noising, cond)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_right_reward_is_reported_with_what_was_checked(folder: Path, capsys):
    assert cli.main(["check", "mine.py:Brightness", "--options", "{power: 2}"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("reward 'brightness' of clips keeps its contract; checked on 4 clips of 1 s at 16000 Hz")
    assert "does not depend on the others of its batch" in text and "times real time" in text
    cli.main(["check", "mine.py:Brightness"])  # the option reached it: a share below 1, squared, is less
    plain = float(capsys.readouterr().out.split("scores from ")[1].split(" ")[0])
    assert float(text.split("scores from ")[1].split(" ")[0]) == pytest.approx(plain**2, rel=1e-3)


def test_every_fault_of_a_wrong_one_is_said_at_once(folder: Path, capsys):
    assert cli.main(["check", "mine.py:Relative"]) == 2
    text = capsys.readouterr().err
    assert "dragon check: 2 breaches of contract:" in text
    assert "Relative.score: expected that it leaves torch's random state as it was (draw from a torch.Generator" in text
    assert "Relative.score: expected that it does not depend on the other clips of the batch" in text


def test_a_function_gets_columns_and_options(folder: Path, capsys):
    arguments = ["check", "mine.py:tempo", "--columns", "{bpm: [60, 90, 0, 180]}", "--options", "{scale: 2}"]
    assert cli.main(arguments) == 0
    assert "scores from 120 to 360, 1 of 4 without opinion" in capsys.readouterr().out
    assert cli.main(["check", "mine.py:tempo"]) == 2
    assert "needs column 'bpm'" in capsys.readouterr().err
    assert cli.main(["check", "mine.py:tempo", "--columns", "{bpm: [60, 90]}"]) == 2
    assert "bpm has 2 values; expected one, or a list of 4" in capsys.readouterr().err


def test_a_reward_of_sets_and_a_built_in_one_with_other_clips(folder: Path, capsys):
    assert cli.main(["check", "mine.py:Spread"]) == 0
    assert "reward 'spread' of sets" in capsys.readouterr().out
    assert cli.main(["check", "sanity", "--seconds", "2", "--rate", "22050", "--channels", "2"]) == 0
    assert "4 clips of 2 s at 22050 Hz, 2 channels" in capsys.readouterr().out


def test_wrong_names_options_and_arguments_say_what_there_is(folder: Path, capsys):
    for arguments, message in [
        (["santy"], "no reward is called 'santy'; did you mean 'sanity'"),
        (["mine.py:Brightnes"], "did you mean 'Brightness'"),
        (["mine.py:Brightness", "--options", "{powr: 2}"], "powr: unknown option; did you mean 'power'?"),
        (["mine.py:Brightness", "--options", "2"], "--options is 2; expected YAML keys"),
        ([], "no reward given; expected: dragon check NAME"),
    ]:
        assert cli.main(["check", *arguments]) == 2, arguments
        assert message in capsys.readouterr().err


def test_a_module_beside_the_caller_is_found(folder: Path, root: Path):
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    code = "from dragon.commands import check; check.run(['mine:Brightness'])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.startswith("reward 'brightness' of clips keeps its contract"), found.stderr


def test_an_installed_package_is_checked_by_its_entry_point(folder: Path, monkeypatch, capsys):
    """A real distribution's metadata: dragon finds the name, builds it with options, and checks it."""
    place = folder / "site"
    info = place / "bright_rewards-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-rewards\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[dragon.reward]\nbright = bright_rewards_of_test:Brightness\n")
    (place / "bright_rewards_of_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(place))
    check.run(["bright", "--options", "{power: 0.5}"])
    assert "reward 'brightness' of clips keeps its contract" in capsys.readouterr().out
    monkeypatch.undo()


def test_a_device_that_is_not_there_is_refused(folder: Path, capsys):
    assert cli.main(["check", "mine.py:Brightness", "--device", "cuda:77"]) == 2
    assert "device 'cuda:77' is not there" in capsys.readouterr().err


TWO = ["--prompt", "left", "right"]


def test_a_right_policy_is_reported_with_what_was_checked_and_seen(folder: Path, capsys):
    assert cli.main(["check", "policy", "toy", *TWO, "--options", "{hidden: 8}", "--steps", "3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("policy 'toy' keeps its contract; checked on 2 prompts:")
    assert "latents 2, clips 2 x 1\n" in text
    # two prompts' four Gaussians each: layers of 11 -> 8 -> 8 -> 2, with biases
    assert f"trained: {11 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2} parameters in 6 tensors" in text
    assert "s a sample of 3 steps, " in text and "s a training step of 3 clips" in text
    explained = float(text.split("explains ")[1].split("%")[0])
    assert 50 < explained <= 100 and "sign," not in text  # an exact denoiser


def test_faults_of_a_policy_are_said_and_what_trains_badly_is_a_warning(folder: Path, capsys):
    assert cli.main(["check", "policy", "models.py:InPlace", *TWO]) == 2
    text = capsys.readouterr().err
    assert "InPlace.decode: expected that it leaves the latents it is given as they are" in text
    assert "InPlace.predict: expected that it leaves the noise it is given as they are" in text
    assert cli.main(["check", "policy", "models.py:WrongSign", *TWO]) == 0
    found = capsys.readouterr()
    assert "warning: WrongSign.predict points away from its target (cosine -0." in found.err
    assert "with trained ones sign,\ntime, scale or conditions are wrong here" in found.out
    assert cli.main(["check", "policy", "models.py:Deaf", *TWO]) == 0
    assert "Deaf.predict gives the same whatever the prompt" in capsys.readouterr().err


def test_a_decoded_sample_of_each_prompt_can_be_heard(folder: Path, capsys):
    arguments = ["check", "policy", "mini", "--prompt", "slow piano", "fast drums"]
    arguments += ["--tuning.rank", "2", "--steps", "1", "--listen", "heard", "--listen_steps", "1"]
    assert cli.main(arguments) == 0
    assert "heard/0000.wav\nheard/0001.wav" in capsys.readouterr().out
    first, second = (soundfile.read(folder / "heard" / f"000{i}.wav")[0] for i in range(2))
    assert len(first) == 81_920 and (first != second).any()
    assert cli.main(arguments) == 2
    assert "--listen 'heard' exists; choose another folder" in capsys.readouterr().err


def test_a_pipeline_is_checked_with_its_family(folder: Path, capsys):
    tiny_pipeline("stable_audio", folder / "pipe")
    arguments = ["check", "policy", "pipeline", "--options", "{folder: pipe, seconds: 0.1}", "--tuning.rank", "2"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("policy 'stable_audio' keeps its contract; checked on 3 prompts:")
    assert "latents 4 x 16, clips 2 x 80 at 800 Hz (0.1 s)" in text
    arguments[4] = "{folder: pipe, secnds: 0.1}"
    assert cli.main(arguments) == 2
    assert "did you mean 'seconds'" in capsys.readouterr().err


def test_wrong_arguments_for_a_policy_say_what_is_expected(folder: Path, capsys):
    for arguments, message in [
        (["toyy"], "no policy is called 'toyy'; did you mean 'toy'"),
        (["toy", "--options", "{sed: 1}"], "sed: unknown option; did you mean 'seed'?"),
        (["toy", "--prompt", "left"], "expected at least 2 different prompts"),
        (["toy", "--steps", "0"], "--steps is 0"),
        (["pipeline"], "folder: is missing"),
        ([], "no policy given; expected: dragon check policy NAME"),
    ]:
        assert cli.main(["check", "policy", *arguments]) == 2, arguments
        assert message in capsys.readouterr().err


def test_a_reward_may_be_named_as_one(folder: Path, capsys):
    assert cli.main(["check", "reward", "mine.py:Brightness"]) == 0
    assert "reward 'brightness' of clips keeps its contract" in capsys.readouterr().out
