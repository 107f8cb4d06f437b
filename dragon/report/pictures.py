"""Pictures of a run, drawn from its folder: scores, win rates, the training curve, spectrograms or sampled images.

Knows the run folder's files, not the code that made them. Each picture says in its title what one should see.
Drawn with matplotlib's Agg canvas and without pyplot, so no window, no global figure and no backend is touched.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dragon import audio, image
from dragon.errors import ConfigError
from dragon.files import write_whole
from dragon.report.files import Sample, Score, own_folder, read_samples, read_scores
from dragon.report.spectrogram import draw_spectrogram
from dragon.texts import literal

BASE, TUNED = "#7a869a", "#1f9e77"
_CURVES = ("gap", "implicit_accuracy", "loss", "grad_norm", "beta_gain_median")


def run_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Writes `folder`/pictures/*.png for what the run left: evaluation, log, samples; returns the paths."""
    root = Path(folder)
    drawn: dict[str, Any] = {}
    if (root / "evaluation.json").exists():
        rewards = read_evaluation(root)["rewards"]
        scores = read_scores(root)
        drawn["win_rates"] = win_rates(rewards)
        if scores:
            drawn["scores"] = score_histograms(scores)
    if (root / "log.jsonl").exists() and (log := read_log(root / "log.jsonl")):
        drawn["training"] = training_curves(log)
    pairs = sample_pairs(root)
    if heard := [pair for pair in pairs if not pair[0].is_picture]:
        drawn["spectrograms"] = spectrogram_grid(root, heard[:6])
    if seen := [pair for pair in pairs if pair[0].is_picture]:
        drawn["images"] = image_grid(root, seen[:12])
    pictures = own_folder(root, "pictures")
    return [_save(figure, pictures / f"{name}.png") for name, figure in drawn.items()]


def read_evaluation(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """evaluation.json of a run folder, as written."""
    path = Path(folder) / "evaluation.json"
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; expected a run folder with an evaluation (dragon evaluate writes one)"
        )
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); evaluate again") from error
    if version != 1:
        raise ConfigError(f"{path}: version {version!r}; this release reads version 1")
    return found


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The steps of a log.jsonl in order; of a step logged twice (after a resume) the last one counts."""
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            steps[int(record["step"])] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a step's JSON object ({error}); mend or remove it"
            ) from error
    return [steps[step] for step in sorted(steps)]


def sample_pairs(folder: str | os.PathLike[str]) -> list[tuple[Sample, Sample]]:
    """(base, tuned) samples of the same prompt, in the prompts' order: those that can be heard or seen."""
    sides: dict[str, dict[str, Sample]] = defaultdict(dict)
    for sample in read_samples(folder):
        if sample.rate is not None or sample.is_picture:
            sides[sample.side][Path(sample.file).name] = sample
    return [(sides["base"][name], sides["tuned"][name]) for name in sorted(sides["base"]) if name in sides["tuned"]]


def win_rates(rewards: Mapping[str, Mapping[str, Any]]) -> Any:
    """Each reward's win rate with its 95 % interval, beside the line of chance."""
    figure = _figure(7.0, 1.5 + 0.45 * len(rewards))
    axes = figure.add_subplot()
    for row, result in enumerate(reversed(list(rewards.values()))):
        color = TUNED if result["trained_on"] else BASE
        axes.plot([100 * result["low"], 100 * result["high"]], [row, row], color=color, lw=3, solid_capstyle="round")
        axes.plot([100 * result["win_rate"]], [row], "o", color=color, ms=8)
        axes.annotate(
            f"{100 * result['win_rate']:.1f}", (100 * result["win_rate"], row), (0, 8),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    axes.axvline(50, color="black", lw=0.8, ls="--")
    axes.set(xlim=(0, 100), ylim=(-0.6, len(rewards) - 0.25), xlabel="win rate of tuned over base, %")
    axes.set_yticks(range(len(rewards)), [literal(name) for name in reversed(list(rewards))])
    axes.set_title("Independent samples, 95 % intervals; green: trained on, grey: watched", fontsize=10, loc="left")
    return figure


def score_histograms(scores: Sequence[Score]) -> Any:
    """The scores of all samples, base against tuned, one panel a reward."""
    panels: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        if np.isfinite(score.score):
            panels[score.reward][score.side].append(score.score)
    figure = _figure(4.2 * min(3, len(panels)), 3.0 * -(-len(panels) // 3))
    for place, (reward, sides) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(-(-len(panels) // 3), min(3, len(panels)), place)
        # one set of bins for both sides, else equal counts look different
        edges = np.histogram_bin_edges(np.concatenate([sides["base"], sides["tuned"]]), bins=30)
        for side, color in (("base", BASE), ("tuned", TUNED)):
            values = sides[side]
            label = f"{side}, mean {np.mean(values):.4g}" if values else f"{side}, no scores"
            axes.hist(values, edges, color=color, alpha=0.55, label=label)
            if values:
                axes.axvline(float(np.mean(values)), color=color, lw=1.5)
        axes.set_title(literal(reward), fontsize=10, loc="left")
        axes.set(xlabel="score (higher is better)", ylabel="samples")
        axes.legend(fontsize=8, frameon=False)
    return figure


def training_curves(log: Sequence[Mapping[str, Any]]) -> Any:
    """Rewards of fresh samples and the update's health over the steps, one panel each."""
    series: dict[str, list[float]] = {}
    for name in _reward_names(log):
        series[f"{name} of fresh samples"] = [_number(record.get("rewards", {}).get(name)) for record in log]
    for name in _CURVES:
        values = [_number(record.get(name)) for record in log]
        if np.isfinite(values).any():
            series[name.replace("_", " ")] = values
    steps = [record["step"] for record in log]
    rows = -(-len(series) // 3)
    figure = _figure(4.2 * 3, 2.6 * rows)
    for place, (name, values) in enumerate(series.items(), 1):
        axes = figure.add_subplot(rows, 3, place)
        rewards = name.endswith("fresh samples")
        axes.plot(steps, values, color=TUNED if rewards else BASE, lw=1.0, marker="o", ms=2.5, alpha=0.6)
        window = max(1, len(steps) // 8)
        if window > 1 and np.isfinite(values).all():
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            axes.plot(steps[window - 1 :], smooth, color="black", lw=1.5, label=f"mean of {window} steps")
            axes.legend(fontsize=7, frameon=False)
        if name == "implicit accuracy":
            axes.axhline(0.5, color="black", lw=0.8, ls="--")
        axes.set_title(literal(name), fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8)
    return figure


def spectrogram_grid(folder: str | os.PathLike[str], pairs: Sequence[tuple[Sample, Sample]]) -> Any:
    """Base above tuned for each prompt: brightness is level within 80 dB of the clip's peak."""
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = _figure(4.4 * columns, 3.9 * rows)
    blocks = np.atleast_1d(figure.subfigures(rows, columns)).reshape(-1)
    for block, pair in zip(blocks, pairs, strict=False):
        block.suptitle(literal(shorten(pair[0].prompt, 58)), fontsize=8)
        for axes, sample, side in zip(block.subplots(2, 1), pair, ("base", "tuned"), strict=True):
            clip = audio.load(Path(folder) / "samples" / sample.file)
            draw_spectrogram(axes, clip.samples, clip.rate)
            axes.set_ylabel(side, fontsize=8, color=BASE if side == "base" else TUNED, fontweight="bold")
    return figure


def image_grid(folder: str | os.PathLike[str], pairs: Sequence[tuple[Sample, Sample]]) -> Any:
    """Base beside tuned for each prompt, two prompts a row."""
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    shown = [[image.as_bytes(image.load(Path(folder) / "samples" / side.file)) for side in pair] for pair in pairs]
    height, width = shown[0][0].shape[:2]
    figure = _figure(5.2 * columns, (0.45 + 2.5 * min(height / width, 2)) * rows)
    blocks = np.atleast_1d(figure.subfigures(rows, columns)).reshape(-1)
    for block, pair, pictures in zip(blocks, pairs, shown, strict=False):
        block.suptitle(literal(shorten(pair[0].prompt, 72)), fontsize=8)
        for axes, pixels, side in zip(block.subplots(1, 2), pictures, ("base", "tuned"), strict=True):
            axes.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
            axes.set_axis_off()
            axes.set_title(side, fontsize=8, color=BASE if side == "base" else TUNED, fontweight="bold")
    return figure


def shorten(text: str, length: int) -> str:
    """The text, cut to `length` characters with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _reward_names(log: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for record in log for name in record.get("rewards", {})))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is drawn as a box
        figure.savefig(content, format="png")
    write_whole(path, content.getvalue())
    return path
