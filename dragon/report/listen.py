"""A page to listen to, or to look at: base beside tuned for the same prompt, with scores; sounds with spectrograms.

Reads a run folder and writes `listen.html` into it; opens from disk in any browser, without a network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dragon import audio
from dragon.report.files import Sample, read_scores
from dragon.report.page import Page, picture, picture_file, player, small
from dragon.report.pictures import read_evaluation, sample_pairs, shorten
from dragon.report.spectrogram import spectrogram_png

_PROMPT_LETTERS = 500  # of a prompt that are shown: a page of 100 kB headings cannot be read


def listen_page(
    folder: str | os.PathLike[str], *, embed: bool = False, title: str = "Base beside tuned"
) -> Path | None:
    """Writes `folder`/listen.html and returns its path; None where the run kept neither audio nor images.

    embed: put the sounds or images into the page (one file to send around) instead of naming the files beside it.
    """
    root = Path(folder)
    pairs = sample_pairs(root)
    if not pairs:
        return None
    evaluation = read_evaluation(root)
    # a kept clip is known by side, prompt and seed
    scores = {(s.side, s.prompt, s.seed, s.reward): s.score for s in read_scores(root)}
    page = Page(title)
    page.note(
        f"{len(pairs)} of {evaluation['prompts']} held-out prompts. The two clips of a prompt are independent samples "
        "(different seeds), so single pairs may go either way; the table counts all of them."
    )
    page.table(("reward", "base", "tuned", "win rate", "95 % interval", "same seed", "trained on"), _lines(evaluation))
    if evaluation["diversity"]:
        spread = evaluation["diversity"]
        page.note(
            f"Diversity (mean cosine distance between clips): base {spread['base']:.4f}, tuned {spread['tuned']:.4f}."
        )
    for base, tuned in pairs:
        page.heading(shorten(base.prompt, _PROMPT_LETTERS))
        page.columns(
            [(side, _card(root, sample, scores, embed)) for side, sample in (("base", base), ("tuned", tuned))]
        )
    return page.write(root / "listen.html")


def _lines(evaluation: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            f"{result['base']:.4g}",
            f"{result['tuned']:.4g}",
            f"{100 * result['win_rate']:.1f} %",
            f"{100 * result['low']:.1f} to {100 * result['high']:.1f} %",
            "" if result["same_seed_win_rate"] is None else f"{100 * result['same_seed_win_rate']:.1f} %",
            "yes" if result["trained_on"] else "no",
        ]
        for name, result in evaluation["rewards"].items()
    ]


def _card(root: Path, sample: Sample, scores: Mapping[tuple[str, str, int, str], float], embed: bool) -> list[str]:
    """One clip: player, spectrogram and scores, or image and scores."""
    path = root / "samples" / sample.file
    of_clip = {
        reward: score
        for (side, prompt, seed, reward), score in scores.items()
        if (side, prompt, seed) == (sample.side, sample.prompt, sample.seed)
    }
    text = ", ".join(
        f"{name} {'no opinion' if math.isnan(score) else f'{score:.4g}'}" for name, score in of_clip.items()
    )
    label = f"{sample.side}: {shorten(sample.prompt, _PROMPT_LETTERS)}"
    if sample.is_picture:
        shown = [picture_file(path, page_folder=root, embed=embed, label=label)]
        return [*shown, small(text), small(f"seed {sample.seed}")]
    clip = audio.load(path)
    return [
        player(path, page_folder=root, embed=embed, label=label),
        picture(spectrogram_png(clip.samples, clip.rate), f"spectrogram, {label}"),
        small(text),
        small(f"{sample.seconds:.1f} s, seed {sample.seed}"),
    ]
