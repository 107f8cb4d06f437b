"""Whether captions can stand for clips as a reference: docs/text_exemplars.md.

    python benchmarks/text_exemplars.py               # about 5 CPU-minutes

Claim: in the space that clips and captions share (dragon.encoders.shared), the distance to captions of one style
ranks clips as the distance to clips of that style does, and the modality gap has little part in it.

Sixteen samples of the untuned built-in model for each of its 12 styles answer held-out prompts that name the style.
References are the shipped sets of disco clips and disco captions (half of which say disco), their control with redrawn
values, and for every style the training prompts that name it. The gap of the built-in encoder is small, so the raw
encoder is measured a second time with a gap of .8 put into it by hand (a choice of ours; its vectors have length 1).
The shared space, fitted anew, would not change by it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dragon.encoders.mini import MiniEncoder
from dragon.encoders.shared import SharedEncoder, SharedSpace
from dragon.exemplars import load
from dragon.media import Media
from dragon.mini import load_pipeline, prompts
from dragon.rewards.frechet import frechet_distance

ROOT = Path(__file__).parents[1]
STYLES = {  # what a caption says of each; recipes/mini/world.py
    "ballad": ("ballad",),
    "jazz": ("jazz",),
    "rock": ("rock",),
    "disco": ("disco", "dance music"),
    "bossa": ("bossa",),
    "reggae": ("reggae",),
    "classical": ("classical", "string quartet"),
    "hymn": ("hymn",),
    "march": ("march", "marching"),
    "waltz": ("waltz",),
    "lullaby": ("lullaby",),
    "funk": ("funk",),
}
NAMES = tuple(STYLES)
BATCH = 32


@dataclass(frozen=True)
class View:
    """Clips (n, f) and references as one encoder embeds them; gap (f,) is a unit vector or zero."""

    clips: Tensor
    audio: Tensor
    text: Tensor
    gap: Tensor


def naming(texts: list[str], style: str) -> list[str]:
    """The texts that name a style."""
    return [text for text in texts if any(word in text for word in STYLES[style])]


def samples(count: int) -> Media:
    """count clips of each style, style after style."""
    pipeline, held_out = load_pipeline(), prompts("test") + prompts("dev")
    asked = [text for style in NAMES for text in naming(held_out, style)[:count]]
    if len(asked) != count * len(NAMES):
        raise SystemExit(f"{len(asked)} prompts for {len(NAMES)} x {count} clips; ask for fewer")
    made = []
    for i in range(0, len(asked), BATCH):
        rows = asked[i : i + BATCH]
        generators = [torch.Generator().manual_seed(91_000_000 + j) for j in range(i, i + len(rows))]
        made.append(pipeline(rows, 8, 2.0, generators, output_type="pt").audios)
    return Media(torch.cat(made)[:, None], tuple(asked), 16_000)


def ranking(clips: Tensor, reference: Tensor) -> dict[str, list[float]]:
    """Frechet distance and squared mean difference of each style's clips to a reference."""
    found = [frechet_distance(part, reference) for part in clips.chunk(len(NAMES))]
    return {"frechet": [float(f) for f in found], "mean": [f.mean_part for f in found]}


def rank_of(values: list[float], style: str) -> int:
    """1: the nearest of all."""
    return 1 + sum(value < values[NAMES.index(style)] for value in values)


def margin(values: list[float], style: str) -> float:
    """How much farther the nearest other style is, as a factor."""
    own = NAMES.index(style)
    return min(v for i, v in enumerate(values) if i != own) / values[own]


def credits(clips: Tensor, reference: Tensor) -> np.ndarray:
    """(n,): by how much the Frechet distance of all clips grows when one is left out; high is good."""
    whole = float(frechet_distance(clips, reference))
    keep = ~torch.eye(len(clips), dtype=torch.bool)
    return np.array([float(frechet_distance(clips[rows], reference)) - whole for rows in keep])


def pull(clips: Tensor, reference: Tensor) -> np.ndarray:
    """(n,): coordinate along the way from the clips' mean to the reference's: what the mean part of a credit pays."""
    centre = clips.mean(dim=0)
    return ((clips - centre) @ torch.nn.functional.normalize(reference.mean(dim=0) - centre, dim=0)).numpy()


def auc(scores: np.ndarray, style: str) -> float:
    """Probability that a sample of the style scores above one of another style; .5 by chance."""
    own = np.repeat(np.arange(len(NAMES)) == NAMES.index(style), len(scores) // len(NAMES))
    return float((scores[own][:, None] > scores[~own]).mean())


def nearness(clips: Tensor, reference: Tensor) -> np.ndarray:
    """(n,): minus the squared distance to the reference's mean; high is good."""
    return -(clips - reference.mean(dim=0)).square().sum(dim=1).numpy()


def place(rows: Tensor, clips: Tensor) -> tuple[float, float, float]:
    """Length of the rows' mean, cosine of it with the clips' mean, and variance a direction."""
    mean, other = rows.mean(dim=0), clips.mean(dim=0)
    return float(mean.norm()), float(torch.cosine_similarity(mean, other, dim=0)), float(rows.var(dim=0).mean())


def share_along(values: np.ndarray, clips: Tensor, gap: Tensor) -> float:
    """R^2 of scores explained by the coordinate along the gap."""
    along = (clips @ gap).numpy()
    return float(np.corrcoef(values, along)[0, 1] ** 2) if along.std() > 0 else 0.0


def figures(view: View) -> dict[str, float]:
    """All that is said of one view: clips against disco captions, beside clips against disco clips."""
    by_text, by_clips = credits(view.clips, view.text), credits(view.clips, view.audio)
    difference = view.clips.mean(dim=0) - view.text.mean(dim=0)
    ranks = ranking(view.clips, view.text)
    return {
        "rank of disco, frechet": rank_of(ranks["frechet"], "disco"),
        "rank of disco, mean": rank_of(ranks["mean"], "disco"),
        "next style farther by, frechet": margin(ranks["frechet"], "disco"),
        "next style farther by, mean": margin(ranks["mean"], "disco"),
        "correlation of nearness, captions and clips": float(
            np.corrcoef(nearness(view.clips, view.text), nearness(view.clips, view.audio))[0, 1]
        ),
        "correlation of credit, captions and clips": float(np.corrcoef(by_text, by_clips)[0, 1]),
        "correlation of pull, captions and clips": float(
            np.corrcoef(pull(view.clips, view.text), pull(view.clips, view.audio))[0, 1]
        ),
        "disco above other samples by credit (AUC)": auc(by_text, "disco"),
        "disco above other samples by pull (AUC)": auc(pull(view.clips, view.text), "disco"),
        "gap's share of the squared mean difference": float((difference @ view.gap) ** 2 / difference.square().sum()),
        "gap's share of the credit's variance": share_along(by_text, view.clips, view.gap),
    }


def main(count: int, out: Path) -> None:
    """Measures all views and writes the page."""
    shared, raw = SharedEncoder(), MiniEncoder()
    space, media = shared.space, samples(count)
    clips, raw_clips = shared.embed_clips(media).double(), raw.embed_clips(media).double()
    kept = {name: load(name).features for name in ("mini_disco_shared", "mini_disco_text", "mini_shuffled_text")}
    disco_clips, half, shuffled = (f.double() for f in kept.values() if f is not None)
    named = {style: shared.embed_text(naming(prompts("train"), style)).double() for style in NAMES}
    by_style = {style: ranking(clips, reference) for style, reference in named.items()}

    raw_text = raw.embed_text(naming(prompts("train"), "disco")).double()
    # the raw encoder's clips: those of the shared space, put back where they came from (all but 1 % of the variance)
    raw_disco = disco_clips * space.audio_sd @ space.basis.mT + space.audio_mean
    raw_gap = torch.nn.functional.normalize(space.audio_mean - space.text_mean, dim=0)
    by_hand = torch.nn.functional.normalize(torch.ones_like(raw_gap), dim=0)
    wide = 0.8 * by_hand
    wide_gap = torch.nn.functional.normalize(space.audio_mean + wide - space.text_mean, dim=0)
    views = {
        "shared, captions of disco works (half say disco)": View(clips, disco_clips, half, space.gap),
        "shared, prompts that say disco": View(clips, disco_clips, named["disco"], space.gap),
        "shared, control: redrawn values": View(clips, disco_clips, shuffled, space.gap),
        "raw encoder, prompts that say disco": View(raw_clips, raw_disco, raw_text, raw_gap),
        "the same, gap of .8 put in by hand": View(raw_clips + wide, raw_disco + wide, raw_text, wide_gap),
    }
    table = {name: figures(view) for name, view in views.items()}
    to_clips = ranking(clips, disco_clips)
    sets = {
        "disco clips": disco_clips,
        "captions, half say disco": half,
        "prompts, all say disco": named["disco"],
        "control: redrawn values": shuffled,
        "samples for disco": clips.chunk(len(NAMES))[NAMES.index("disco")],
        "samples for all styles": clips,
    }
    places = {
        name: (*place(rows, disco_clips), auc((clips @ rows.mean(dim=0)).numpy(), "disco"))
        for name, rows in sets.items()
    }
    own = {kind: [rank_of(by_style[style][kind], style) for style in NAMES] for kind in ("frechet", "mean")}
    print(
        json.dumps(
            {
                "clips_per_style": count,
                "views": table,
                "disco_clips_as_reference": {kind: rank_of(values, "disco") for kind, values in to_clips.items()},
                "rank_of_own_style": own,
                "places": places,
                "space": {"rank": space.rank, "gap_size": space.gap_size, "gap_share": space.gap_share},
            }
        )
    )
    write(out, count, table, to_clips, by_style["disco"], ranking(clips, half), own, places, space)


def write(
    out: Path,
    count: int,
    table: dict[str, dict[str, float]],
    to_clips: dict[str, list[float]],
    to_named: dict[str, list[float]],
    to_half: dict[str, list[float]],
    own: dict[str, list[int]],
    places: dict[str, tuple[float, ...]],
    space: SharedSpace,
) -> None:
    """docs/text_exemplars.md."""
    lines = [
        "# Captions as a reference",
        "",
        f"Made by `python benchmarks/text_exemplars.py`: {count} samples of the untuned built-in model for each of 12",
        "styles (held-out prompts that name the style, 8 steps, guidance 2), embedded by `mini-shared`: the space that",
        f"clips and captions share, of {space.rank} directions, fitted on {space.pairs} works the encoder never heard.",
        "",
        "## How far each style's samples are from disco",
        "",
        "Squared Frechet distance in the shared space, by reference.",
        "",
        "| reference | " + " | ".join(NAMES) + " |",
        "| --- |" + " --- |" * len(NAMES),
    ]
    for name, values in (
        ("400 disco clips", to_clips),
        ("captions of their works, half say disco", to_half),
        ("training prompts that say disco", to_named),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{v:.1f}" for v in values["frechet"]) + " |")
    firsts = {kind: sum(rank == 1 for rank in ranks) for kind, ranks in own.items()}
    lines += [
        "",
        "With the training prompts that name a style as reference, that style's own samples are nearest for",
        f"{firsts['frechet']} of 12 styles by Frechet distance, for {firsts['mean']} by the difference of means alone.",
        "",
        "## Captions beside clips, and the gap",
        "",
        "Nearness: minus the squared distance to the reference's mean. Credit: by how much the Frechet distance of all",
        "samples to the reference grows without the sample. Pull: the sample's coordinate along the way from the mean",
        "of all samples to the reference's. Correlations are over all samples, between a caption reference and the",
        "disco clips (for the raw encoder put back from the shared space). The gap's share of the credit's variance is",
        "an R^2 over samples; the share of a squared difference that falls on any one direction of the shared space by",
        f"chance is {1 / space.rank:.2f}.",
        "",
        "Read every column against the control. Its captions do not point to disco, yet its credit agrees in part with",
        "that of disco clips: the untuned model's samples lie apart from real clips (last table), so that every",
        "reference pulls them back to the generic clip. The factor to the next style, and the 12 styles above, tell",
        "more than ranks of one style and correlations.",
        "",
        "| | " + " | ".join(table) + " |",
        "| --- |" + " --- |" * len(table),
    ]
    for key in next(iter(table.values())):
        lines.append(f"| {key} | " + " | ".join(f"{row[key]:.2f}" for row in table.values()) + " |")
    lines += [
        "",
        f"The gap of the built-in encoder is {space.gap_size:.2f} long, beside clips that spread by 1; "
        f"{space.gap_share:.2f} of its square lies in the shared space.",
        "",
        "## Where the sets lie",
        "",
        "In the shared space, 0 is the generic clip or caption, and 1 the variance of generic ones along a direction.",
        "AUC: probability that a disco sample lies farther along the set's mean, seen from 0, than another sample.",
        "",
        "| set | length of its mean | cosine with the disco clips' mean | variance a direction | AUC of disco |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |" for name, values in places.items()),
        "",
        "Half of the generic captions name a style, so that a caption with one stands out more than a clip in it: by",
        "about the square root of two where all captions of a set name theirs, and by the inverse of that where half",
        "of them do.",
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16, help="of each style")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "text_exemplars.md")
    options = parser.parse_args()
    main(options.clips, options.out)
