"""What accelerate or torchrun told this process about the launch it belongs to; a process alone was told nothing.

Knows the environment alone, no torch, so that it can be asked before anything is loaded.
"""

from __future__ import annotations

import os


def launched_count() -> int:
    """Processes of the launch; 1 without one."""
    return max(int(os.environ.get("WORLD_SIZE") or 1), 1)


def launched_rank() -> int:
    """This process's number, from 0. A rank without a launch (a scheduler may leave one behind) counts for nothing."""
    return int(os.environ.get("RANK") or 0) if launched_count() > 1 else 0


def local_rank() -> int:
    """Its number among those of this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK") or 0) if launched_count() > 1 else 0


def sharding_asked() -> bool:
    """Whether `accelerate launch` was configured for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
