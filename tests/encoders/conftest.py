"""What tests of encoders share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def clap_models() -> ModuleType:
    """clap_models.py, by its path: the package laion_clap installs another package that is called tests."""
    spec = importlib.util.spec_from_file_location("clap_models", Path(__file__).parent / "clap_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
