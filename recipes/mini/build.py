"""Builds the built-in model from nothing: renders, trains, assembles, measures. Resumable: run it again.

    python recipes/mini/build.py --work /some/large/disk      # 8 GB, three CPU-hours of training

Needs Debian's packages fluidr3mono-gm-soundfont and musescore-general-soundfont-small, and from PyPI,
besides this project: `pip install --no-deps tinysoundfont` (its PyAudio dependency is for live sound).
Every stage is a script of its own beside this file; a finished stage is not repeated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from data import COUNTS, FLUID, MUSESCORE, audio
from features import bands

HERE = Path(__file__).parent
# glibc's allocator gives large blocks back to the system at once; keeping them saves a fifth of the time
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}


def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A stage on one thread, in the background."""
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, str(HERE / script), *arguments], env=environment)


def finish(*stages: subprocess.Popen[bytes]) -> None:
    """Waits for all stages; ends the build if one failed."""
    failed = [" ".join(map(str, stage.args)) for stage in stages if stage.wait()]
    if failed:
        sys.exit("failed, mend it and run build.py again: " + "; ".join(failed))


def build(work: Path, denoiser_minutes: float) -> None:
    """All stages, two at a time."""
    for font in (FLUID, MUSESCORE):
        if not Path(font).exists():
            sys.exit(
                f"{font} is missing; install Debian's fluidr3mono-gm-soundfont and musescore-general-soundfont-small"
            )
    for split in COUNTS:  # made here, once: two stages that start together would each make, and empty, the file
        audio(work, split)
        bands(work, split)
    where = ("--work", str(work))
    for script in ("data.py", "features.py"):
        finish(*(start(script, *where, "--part", str(part), "--parts", "2") for part in range(2)))
    finish(start("features.py", *where, "--fit"))
    denoiser = start("denoise.py", *where, "--minutes", str(denoiser_minutes))
    finish(start("codec.py", *where, "--minutes", "14"))
    finish(start("features.py", *where, "--decode"))
    finish(start("listen.py", *where, "--part", "readers", "--minutes", "8"))
    finish(start("listen.py", *where, "--part", "encoder", "--minutes", "11"))
    finish(start("listen.py", *where, "--part", "judge", "--minutes", "7"))
    finish(denoiser)
    finish(start("assemble.py", *where))
    finish(start("exemplars.py", *where))
    finish(start("quality.py", *where))
    finish(start("card.py", *where))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for audio and training states")
    parser.add_argument("--denoiser-minutes", type=float, default=115.0, help="CPU minutes of the denoiser")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    build(options.work.resolve(), options.denoiser_minutes)
