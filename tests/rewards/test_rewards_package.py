"""The package as a whole: what it imports, and what its names resolve to."""

from __future__ import annotations

import subprocess
import sys

import dragon.rewards
from dragon import registry


def test_importing_rewards_loads_no_heavy_package():
    code = (
        "import sys, dragon.rewards, dragon.exemplars, dragon.encoders, dragon.audio\n"
        "heavy = {'diffusers', 'peft', 'accelerate', 'transformers', 'soundfile', 'soxr', 'matplotlib', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_exists():
    for name in dragon.rewards.__all__:
        assert hasattr(dragon.rewards, name)


def test_built_in_names_resolve():
    for kind in ("reward", "encoder"):
        for name in registry.BUILT_IN[kind]:
            assert callable(registry.resolve(kind, name))
