"""Names -> plug-ins: every way to name one, and what a wrong name says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dragon.errors import PluginError
from dragon.registry import BUILT_IN, available, register, resolve


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in BUILT_IN.items() for name in names])
def test_every_built_in_name_resolves(kind: str, name: str) -> None:
    assert callable(resolve(kind, name))


def test_a_wrong_name_lists_the_nearest() -> None:
    with pytest.raises(PluginError, match="no reward is called 'clap_scor'; did you mean 'clap_score'"):
        resolve("reward", "clap_scor")


def test_a_name_unlike_all_others_lists_what_there_is() -> None:
    with pytest.raises(PluginError, match="known: all_pairs, best_worst, random_labels"):
        resolve("contrast", "zzz")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(PluginError, match="no kind of plug-in is called 'rewards'"):
        resolve("rewards", "clap_score")


def test_a_registered_plugin_is_found_and_listed() -> None:
    @register("contrast", "of_this_test")
    def contrast() -> None: ...

    assert resolve("contrast", "of_this_test") is contrast
    assert available("contrast")["of_this_test"].startswith(__name__)
    with pytest.raises(PluginError, match="exists already"):
        register("contrast", "of_this_test")(lambda: None)
    with pytest.raises(PluginError, match="exists already"):
        register("contrast", "best_worst")(lambda: None)


def test_module_and_name() -> None:
    assert resolve("reward", "os.path:join") is __import__("os").path.join
    with pytest.raises(PluginError, match="holds no 'jion'; did you mean 'join'"):
        resolve("reward", "os.path:jion")
    with pytest.raises(PluginError, match="No module named 'no_such_module'"):
        resolve("reward", "no_such_module:x")


def test_a_file_of_ones_own_is_loaded_once_and_never_as_rewards(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rewards.py").write_text("def loud(audio, prompts):\n    return [0.0 for _ in audio]\n")
    monkeypatch.chdir(tmp_path)
    found = resolve("reward", "rewards.py:loud")
    assert resolve("reward", str(tmp_path / "rewards.py") + ":loud") is found
    assert sys.modules.get("rewards") is None


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"value = '{folder}'\n")
    assert resolve("reward", f"{tmp_path}/a/mine.py:value") == "a"
    assert resolve("reward", f"{tmp_path}/b/mine.py:value") == "b"


def test_a_broken_file_names_its_own_fault_and_can_be_mended(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        resolve("reward", f"{file}:x")
    file.write_text("x = 1  # mended, and longer, so that no cached byte code fits\n")
    assert resolve("reward", f"{file}:x") == 1
    with pytest.raises(PluginError, match="does not exist"):
        resolve("reward", f"{tmp_path}/none.py:x")


def test_an_installed_package_adds_names_by_entry_point(tmp_path: Path, monkeypatch) -> None:
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dragon.reward]\nfrom_afar = plug_of_afar:Reward\n")
    (tmp_path / "plug_of_afar.py").write_text("class Reward: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("reward", "from_afar").__name__ == "Reward"
    assert available("reward")["from_afar"] == "plug_of_afar:Reward"
