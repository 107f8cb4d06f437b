"""`python -m dragon ...` is `dragon ...`, so that `accelerate launch -m dragon train ...` works."""

from __future__ import annotations

import sys

from dragon.cli import main

if __name__ == "__main__":
    sys.exit(main())
