"""Configuration -> objects: everything wrong is found before weights load, and all of it is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dragon.build import build, build_run, check_device, plugin_problems, train_settings
from dragon.config import RewardSpec, Spec, TrainConfig, from_dict, load
from dragon.errors import ConfigError, PluginError
from dragon.media import Media
from dragon.protocols import InstanceReward, SetReward
from dragon.registry import BUILT_IN

POINTS = """
from typing import Literal

class Right:
    abstains = False

    def __init__(self, scale: float = 1.0, name: str = "right", side: Literal["x", "y"] = "x"):
        self.scale, self.name = scale, name
        self.axis = "xy".index(side)

    def score(self, media):
        return self.scale * media.tensor[:, self.axis, 0].double()

class NoReward:
    pass

def loud(audio, prompts, tempo, floor: float = 0.5):
    return [float(t) + floor for t in tempo]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "points.py").write_text(POINTS)
    (tmp_path / "train.txt").write_text("left\nright\n")
    (tmp_path / "test.txt").write_text("up\ndown\n")
    (tmp_path / "tempo.csv").write_text("prompt,tempo\nleft,60\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**values: object) -> TrainConfig:
    least = {
        "prompts": "train.txt",
        "eval_prompts": "test.txt",
        "policy": {"name": "toy"},
        "rewards": [{"name": "points.py:Right"}],
    }
    return from_dict(least | values)


def test_a_run_is_built_whole(folder: Path) -> None:
    run = build_run(
        config(
            rewards=[{"name": "points.py:Right", "options": {"scale": "2e0"}, "weight": 3}],
            evaluation={"watch": [{"name": "random"}], "prompts": 2},
            rollout={"steps": 5, "guidance": 1.5},
            update={"old_decay": 0.5},
            learning_rate=0.01,
            objective={"name": "dpo", "options": {"beta": 7}},
        )
    )
    assert run.rewards[0].weight == 3 and vars(run.rewards[0].reward)["scale"] == 2.0
    assert list(run.evaluated()) == ["right", "random"]
    assert run.prompts.prompts == ("left", "right") and run.eval_prompts.prompts == ("up", "down")
    assert run.objective.beta == 7
    s = run.settings
    assert (s.rollout_steps, s.guidance, s.old_decay, s.learning_rate) == (5, 1.5, 0.5, 0.01)
    trainer = run.trainer()
    assert next(iter(trainer.run(1))).step == 1


def test_training_settings_have_the_configurations_defaults(folder: Path) -> None:
    """Two places state defaults; they must not part."""
    from dragon.trainer import TrainSettings

    assert train_settings(TrainConfig()) == TrainSettings()


def test_everything_wrong_stands_in_one_message(folder: Path) -> None:
    broken = config(
        prompts="none.txt",
        policy={"name": "toy", "options": {"sede": 1}},
        rewards=[
            {"name": "clap_scor"},
            {"name": "points.py:Right", "options": {"scale": "big", "side": "z"}},
            {"name": "points.py:Rihgt"},
            {"name": "no_such_package:Reward"},
        ],
        contrast={"name": "best_wurst"},
        objective={"name": "nft", "options": {"anchor": [1]}},
        evaluation={"watch": [{"name": "random", "options": {"sed": 1}}], "diversity": {"name": "minni"}},
    )
    with pytest.raises(ConfigError) as error:
        build_run(broken)
    text = str(error.value)
    for line in (
        "prompts: prompts 'none.txt': no such file",
        "policy.options.sede: unknown option; did you mean 'seed'?",
        "rewards.0.name: no reward is called 'clap_scor'; did you mean 'clap_score'?",
        "rewards.1.options.scale: 'big' does not fit float",
        "rewards.1.options.side: 'z' does not fit",
        "rewards.2.name: reward 'points.py:Rihgt': points.py holds no 'Rihgt'; did you mean 'Right'?",
        "rewards.3.name: reward module 'no_such_package' cannot be imported",
        "contrast.name: no contrast is called 'best_wurst'; did you mean 'best_worst'?",
        "objective.options.anchor: [1] does not fit float",
        "evaluation.watch.0.options.sed: unknown option; did you mean 'seed'?",
        "evaluation.diversity.name: no encoder is called 'minni'; did you mean 'mini'",
    ):
        assert f"  {line}" in text
    assert text.startswith("11 problems")


def test_the_checks_load_no_weights(folder: Path, monkeypatch) -> None:
    import dragon.mini

    def refuse(*_: object) -> None:
        raise AssertionError("weights were loaded")

    for name in ("load_pipeline", "load_encoder", "load_judge"):
        monkeypatch.setattr(dragon.mini, name, refuse)
    names = [{"name": name} for name in ("clap_score", "judge_score")]
    assert plugin_problems(config(policy={"name": "mini"}, rewards=names)) == []


def test_what_the_parts_find_themselves_is_said_together(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        build_run(
            config(
                rewards=[{"name": "song_frechet", "options": {"exemplars": "no_such_set", "encoder": "spectral"}}],
                objective={"name": "nft", "options": {"anchor": -1}},
                contrast={"name": "all_pairs", "options": {"max_per_prompt": 0}},
            )
        )
    text = str(error.value)
    assert "rewards.0: no exemplar set 'no_such_set'" in text and "dragon exemplars build" in text
    assert "objective: " in text and "contrast: max_per_prompt is 0" in text


def test_tuning_options_are_set_in_one_place_only(folder: Path) -> None:
    paths = [p.path for p in plugin_problems(config(policy={"name": "toy", "options": {"rank": 3, "device": "cpu"}}))]
    assert paths == ["policy.options.rank", "policy.options.device"]


def test_a_function_becomes_a_reward_with_its_options_and_columns(folder: Path) -> None:
    reward = build("reward", RewardSpec("points.py:loud", {"floor": 1}), device="cpu")
    assert isinstance(reward, InstanceReward) and reward.name == "loud"
    media = Media(torch.zeros(2, 1, 8), ("a", "b"), 16000, {"tempo": ("1", "2"), "other": (0, 0)})
    assert reward.score(media).tolist() == [2.0, 3.0]


def test_a_column_that_a_function_needs_is_missed_before_the_run(folder: Path) -> None:
    spec = [{"name": "points.py:loud"}]
    (problem,) = plugin_problems(config(rewards=spec))
    assert problem.path == "rewards.0.options.tempo" and "column of both prompt files" in problem.text
    assert plugin_problems(config(rewards=spec, prompts="tempo.csv", eval_prompts="tempo.csv")) == []
    doubled = [{"name": "points.py:loud", "options": {"tempo": 3}}]
    (problem,) = plugin_problems(config(rewards=doubled, prompts="tempo.csv", eval_prompts="tempo.csv"))
    assert "is a column of the prompt files" in problem.text


def test_rewards_of_one_name_and_things_that_are_none_are_refused(folder: Path) -> None:
    right = {"name": "points.py:Right"}
    with pytest.raises(ConfigError) as error:
        build_run(config(rewards=[right, right, {"name": "points.py:NoReward"}], evaluation={"watch": [right]}))
    text = str(error.value)
    assert "rewards.1: is called 'right' like rewards.0; give one another name" in text
    assert "rewards.2: NoReward is no reward" in text
    assert "evaluation.watch.0: is called 'right' like rewards.0; every reward that is trained on" in text
    named = {"name": "points.py:Right", "options": {"name": "again"}}
    assert len(build_run(config(rewards=[right, named])).rewards) == 2


def test_a_device_that_is_not_there(folder: Path) -> None:
    (problem,) = plugin_problems(config(device="cuda:77"))
    assert problem.path == "device" and "CUDA devices" in problem.text
    check_device("cpu")
    with pytest.raises(ConfigError, match="'gpu' is none; expected cpu, cuda"):
        check_device("gpu")


def test_what_is_no_class_and_no_function_is_no_plugin(folder: Path) -> None:
    (folder / "values.py").write_text("answer = 3\n")
    with pytest.raises(PluginError, match="'values.py:answer' is 3; expected a class or a function"):
        build("reward", Spec("values.py:answer"))


def test_diversity_wants_one_vector_a_clip(folder: Path) -> None:
    with pytest.raises(ConfigError, match="evaluation.diversity: 'spectral' gives no unit vector"):
        build_run(config(evaluation={"diversity": {"name": "spectral"}}))


def test_build_says_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="random.sede: unknown option; did you mean 'seed'"):
        build("reward", Spec("random", {"sede": 1}))
    with pytest.raises(PluginError, match="did you mean 'random'"):
        build("reward", Spec("randon"))


def test_a_constructor_that_raises_is_one_message_with_its_place(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "boom.py").write_text(
        "class Boom:\n    def __init__(self, path: str = 'x'):\n        raise RuntimeError('no weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    message = r"reward 'boom.py:Boom' cannot be made: RuntimeError: no weights \(boom.py, line 3\)"
    with pytest.raises(PluginError, match=message):
        build("reward", Spec("boom.py:Boom"))


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in ("contrast", "objective") for n in BUILT_IN[k]])
def test_every_contrast_and_objective_builds_with_its_defaults(folder: Path, kind: str, name: str) -> None:
    options = {"beta": 100.0} if name in ("dpo", "kto") else {}
    values = {kind: {"name": name, "options": options}}
    assert plugin_problems(config(**values)) == []
    run = build_run(config(**values, max_steps=1, rollout={"prompts_per_step": 2, "steps": 2}))
    assert [report.step for report in run.trainer().run()] == [1]


SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize(  # those of published models need a GPU, weights and exemplars: tests/recipes
    "path", [path for path in SHIPPED if not path.stem.endswith("gb")], ids=lambda path: path.stem
)
def test_every_configuration_of_the_built_in_model_is_right_and_its_rewards_build(path: Path) -> None:
    shipped = load(path, checks=[plugin_problems])
    specs: list[Spec | RewardSpec] = [*shipped.rewards, *shipped.evaluation.watch]
    for spec in specs:
        assert isinstance(build("reward", spec), InstanceReward | SetReward)
    for kind, part in (("contrast", shipped.contrast), ("credit", shipped.credit), ("objective", shipped.objective)):
        build(kind, part)


def test_a_set_reward_with_too_few_held_out_prompts_is_refused_before_training(folder: Path) -> None:
    with pytest.raises(ConfigError, match="evaluation.set_size: 16 is too large for 2 held-out prompts: .* 'vendi'"):
        build_run(config(rewards=[{"name": "vendi"}], evaluation={"prompts": 2}))


def test_a_queue_that_the_whole_run_cannot_fill_is_refused(folder: Path) -> None:
    short: dict[str, object] = {"rewards": [{"name": "vendi"}], "evaluation": {"prompts": 2, "set_size": 2}}
    with pytest.raises(
        ConfigError, match="credit: needs 256 clips .* and the whole run draws 128; lower credit.options"
    ):
        build_run(config(**short, max_steps=2))


def test_a_tracker_that_is_not_installed_is_told_before_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragon.build.importlib.util.find_spec", lambda name: None)
    (problem,) = plugin_problems(config(report_to="tensorboard,wandb"))
    assert problem == ("report_to", "wandb is not installed: pip install 'dragon-media[wandb]'")
    assert plugin_problems(config(report_to="tensorboard")) == []
