"""What is installed: packages, the wheel's contents, import names, and what an import costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


def python(code: str, folder: Path, root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, in `folder`, with the checkout importable."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_package_list_equals_the_folders(project: dict, root: Path) -> None:
    found = {"dragon.rewards", "dragon.exemplars"}
    for file in (root / "dragon").rglob("*.py"):
        found.add(".".join(file.parent.relative_to(root).parts))
    assert set(project["tool"]["setuptools"]["packages"]) == found
    for package in found - {"dragon.rewards", "dragon.exemplars"}:
        assert (root / Path(*package.split(".")) / "__init__.py").is_file(), package
    for package in ("rewards", "exemplars"):
        assert not list((root / package).glob("*/**/*.py")), "a sub-package has to be listed and mapped"


def test_requirements_name_every_package_that_is_imported(project: dict, root: Path) -> None:
    import ast

    names = {"yaml": "pyyaml", "PIL": "pillow"}
    wanted = set()
    for folder in ("dragon", "rewards", "exemplars"):
        for file in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    wanted |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    wanted.add(node.module.split(".")[0])
    wanted -= set(sys.stdlib_module_names) | {"dragon"}
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    stated = {line.split(">")[0].split("=")[0].split("[")[0].lower() for line in lines}
    assert {names.get(name, name.replace("_", "-")) for name in wanted} <= stated


def test_torch_stays_below_the_release_that_torchaudio_refuses(project: dict) -> None:
    assert "torch>=2.11,<2.15" in project["project"]["dependencies"]


def test_the_makefile_looks_for_what_the_project_requires(project: dict, root: Path) -> None:
    line = next(line for line in (root / "Makefile").read_text().splitlines() if line.startswith("RUNTIME :="))
    stated = {item.split(">")[0].split("=")[0].lower() for item in project["project"]["dependencies"]}
    names = {"yaml": "pyyaml", "PIL": "pillow"}
    assert {names.get(name, name.replace("_", "-")) for name in line.split()[2:]} == stated


def test_a_users_rewards_file_beside_the_script_does_not_clash(tmp_path: Path, root: Path) -> None:
    (tmp_path / "rewards.py").write_text("mine = 'the user'\n")
    (tmp_path / "exemplars.py").write_text("mine = 'the user'\n")
    done = python(
        "import rewards, exemplars, dragon.rewards, dragon.exemplars;"
        "assert rewards.mine == exemplars.mine == 'the user';"
        "assert dragon.rewards is not rewards; print(dragon.rewards.__name__)",
        tmp_path,
        root,
    )
    assert done.stdout.strip() == "dragon.rewards", done.stderr


@pytest.mark.parametrize("name", ["rewards", "exemplars"])
def test_a_second_copy_under_the_short_name_is_refused(tmp_path: Path, root: Path, name: str) -> None:
    done = python(f"import {name}", tmp_path, root)
    assert done.returncode == 1 and f"import this package as dragon.{name}" in done.stderr


def test_import_dragon_is_quick_and_light(tmp_path: Path, root: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import dragon; seconds = time.perf_counter() - start;"
        "heavy = {'torch', 'numpy', 'pydantic', 'tyro', 'transformers', 'diffusers'} & set(sys.modules);"
        "print(seconds, sorted(heavy))"
    )
    done = python(code, tmp_path, root)
    seconds, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.5  # measured .01; the rest is for a busy machine


def test_help_needs_no_torch(tmp_path: Path, root: Path) -> None:
    code = (
        "import sys; from dragon.cli import main; assert main(['--help']) == 0;"
        "print(sorted({'torch', 'tyro'} & set(sys.modules)))"
    )
    done = python(code, tmp_path, root)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "dragon COMMAND" in done.stdout


def test_every_public_name_loads(root: Path) -> None:
    import dragon

    assert {name for name in dragon.__all__ if getattr(dragon, name) is not None} == set(dragon.__all__)
    assert set(dragon.__all__) == set(dragon._PUBLIC) and set(dragon.__all__) <= set(dir(dragon))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dragon.nothing  # noqa: B018


@pytest.mark.slow
def test_the_wheel_holds_all_modules_and_data_and_works_alone(tmp_path: Path, root: Path) -> None:
    source = tmp_path / "source"  # a copy: setuptools would leave, and next time pack, a build/lib in the checkout
    for name in ("dragon", "rewards", "exemplars"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "-w", str(tmp_path), str(source)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("dragon_media-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "installed")
    wanted = {"dragon/py.typed"}
    for folder, place in (("dragon", "dragon"), ("rewards", "dragon/rewards"), ("exemplars", "dragon/exemplars")):
        for path in (root / folder).rglob("*"):
            data = path.suffix in (".safetensors", ".json", ".txt", ".model", ".csv") and path.is_file()
            if path.suffix == ".py" or data:
                wanted.add(f"{place}/{path.relative_to(root / folder).as_posix()}")
    assert wanted <= names
    assert {name.split("/")[0] for name in names} == {"dragon", wheel.name.split("-py3")[0] + ".dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "recipes"))]
    done = python(
        "import dragon, dragon.rewards, dragon.exemplars;"
        "assert len(dragon.__path__) == 1, dragon.__path__; from dragon.registry import resolve;"
        "print(resolve('reward', 'random').__module__, dragon.load_prompts('mini:test').prompts[0])",
        tmp_path,
        tmp_path / "installed",
    )
    assert done.stdout.startswith("dragon.rewards."), done.stderr
