"""SOURCES.md names only files and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path


def rows(root: Path) -> list[list[str]]:
    lines = (root / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in table if row[0] not in ("what", "---")]


def test_every_row_has_what_source_file_and_test(root: Path) -> None:
    found = rows(root)
    assert len(found) > 40
    assert not [row for row in found if len(row) != 4 or not all(row)]


def test_files_and_tests_exist(root: Path) -> None:
    missing = []
    for row in rows(root):
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row[2] + row[3])
        assert named, row[0]
        for path, test in named:
            file = root / path
            if not file.is_file() or (test and test not in functions(file)):
                missing.append(f"{path}::{test}" if test else path)
    assert not missing


def test_every_row_is_tested_or_says_why_not(root: Path) -> None:
    assert not [row[0] for row in rows(root) if "::test_" not in row[3] and not row[3].startswith("not tested:")]


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
