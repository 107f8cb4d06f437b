"""What a run leaves for people: files, pictures and a page to listen to, all made from the run folder.

`write_evaluation` writes the numbers and clips of an evaluation into a run folder; `write_report` reads such a
folder, and nothing else, so that pictures and page can be made again at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

from dragon.report.files import write_evaluation
from dragon.report.listen import listen_page
from dragon.report.page import Page
from dragon.report.pictures import run_pictures

__all__ = ["Page", "listen_page", "run_pictures", "write_evaluation", "write_report"]


def write_report(folder: str | os.PathLike[str]) -> list[Path]:
    """Pictures of the run in `folder`/pictures and, where clips were kept, `folder`/listen.html; what was written."""
    written = run_pictures(folder)
    page = listen_page(folder)
    return [*written, page] if page is not None else written
