"""Imports point only downwards. Read from the source files, so that rewards/ and exemplars/ at the root count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "commands", "__main__", "__init__"),
    ("run", "steps", "probe", "runfolder", "plan", "estimate", "samples", "measure", "aesthetics", "upsample"),
    ("build", "config", "loading", "prompts"),
    (
        "trainer",
        "scoring",
        "learner",
        "pool",
        "loss_scale",
        "aside",
        "verdicts",
        "rollout",
        "checkpoint",
        "track",
        "evaluate",
        "collect",
        "intervals",
        "report",
        "testing",
        "callbacks",
    ),
    ("rewards",),
    ("exemplars",),
    ("encoders", "policy", "contrast", "objectives", "mini", "synther"),
    ("protocols", "record", "media", "audio", "image", "clips", "registry", "processes", "sharding"),
    ("diffusion",),
    (
        "errors",
        "batching",
        "footprint",
        "launch",
        "faults",
        "files",
        "interrupts",
        "signatures",
        "tables",
        "texts",
        "weights",
    ),
)
"""Top to bottom; parts of one layer may import each other, but not in a circle."""

# The trainer's side speaks to plug-ins through protocols: of the layers below it may name these alone.
TRAINER_KNOWS = {"contrast", "objectives"}


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """(module, file) of everything that is installed."""
    for folder, name in ((root / "dragon", "dragon"), *((root / p, f"dragon.{p}") for p in ("rewards", "exemplars"))):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join([name, *(part for part in parts if part != "__init__")]), file


def imported(module: str, file: Path) -> Iterator[tuple[str, bool]]:
    """(imported module, whether it happens when the module loads) of every import of dragon's own parts."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    at_load = set()
    todo: list[ast.AST] = [tree]
    while todo:
        for child in ast.iter_child_nodes(todo.pop()):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                at_load.add(child)
                todo.append(child)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{module}: relative import; write the whole name"
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "dragon" else [base]
            if base.count(".") >= 1:  # `from dragon.exemplars import sets` names a module, too
                names += [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "dragon":
                yield name, node in at_load


@pytest.fixture(scope="module")
def graph(root: Path) -> dict[str, set[tuple[str, bool]]]:
    return {module: set(imported(module, file)) for module, file in sources(root)}


def part(module: str) -> str:
    return (module.split(".") + ["__init__"])[1]


def test_every_part_has_a_layer(graph) -> None:
    known = {name for layer in LAYERS for name in layer}
    assert {part(module) for module in graph} <= known


def test_imports_point_only_downwards(graph) -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name, _ in names
        if part(module) != "__init__" and part(name) in level and level[part(name)] < level[part(module)]
    ]
    assert not wrong


def test_the_trainers_side_knows_protocols_and_no_plugin(graph) -> None:
    plugins = {"rewards", "exemplars", "encoders", "policy", "mini", "build", "config", *TRAINER_KNOWS} - TRAINER_KNOWS
    trainer = {"trainer", "learner", "checkpoint", "track", "evaluate", "collect", "intervals", "report"}
    wrong = [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name, _ in names
        if part(module) in trainer and part(name) in plugins
    ]
    assert not wrong


def test_diffusion_and_errors_need_nothing_else(graph) -> None:
    for module, names in graph.items():
        if part(module) == "diffusion":
            assert {part(name) for name, _ in names} <= {"diffusion", "errors"}, module
        if part(module) in ("errors", "faults"):
            assert {part(name) for name, _ in names} <= {"errors"}, module


def test_no_import_cycles(graph) -> None:
    """Among imports that run when a module loads."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for module, names in graph.items():
        for name, at_load in names:
            if at_load and name in graph and name != module and not module.startswith(name + "."):
                order.add(module, name)
    assert len(list(order.static_order())) > 20  # raises CycleError, which names the circle


def test_no_module_is_named_after_another_package(root: Path) -> None:
    """Such a file beside a script would shadow the package; inside dragon it confuses readers and tools."""
    taken = set(sys.stdlib_module_names) | {"torch", "numpy", "scipy", "diffusers", "transformers", "peft", "yaml"}
    stems = {file.stem for _, file in sources(root)} - {"__init__", "__main__"}
    assert not stems & taken
    assert not stems & {"utils", "helpers", "util", "helper", "common", "misc"}
