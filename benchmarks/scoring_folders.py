"""What scoring a folder of audio costs, and where the time goes: docs/scoring_folders.md.

    python benchmarks/scoring_folders.py                 # 200 and 2,000 clips with HTSAT-base: some 25 CPU minutes
    python benchmarks/scoring_folders.py --runs base:50 base:200 tiny:200 tiny:2000
    python benchmarks/scoring_folders.py --compare       # also beside the package frechet-audio-distance

Claim: at least 80 % of the CPU time of `score` is the encoder's, and its memory does not grow with the number of clips.

Each run is a process of its own that scores synthetic clips (WAV, 10 s, 44.1 kHz, stereo) against a reference, by a
CLAP of real size and random weights, with nothing in the cache. CPU times are taken on one thread: those of the thread
that embeds, and of the one that reads ahead. Finished parts lie as JSON in benchmarks/results/scoring_folders; the page
is made of all that are there, and --runs and --compare measure anew.

The comparison needs frechet-audio-distance and numpy below 2, so an environment of its own; it is left out, with a line
that says so, where the package cannot be imported. Its CLAP asks a hub for three tokenizers when it is imported: it
gets a cache with tiny ones, and the weights that ours has.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fad_package
import numpy as np
from seeded_runs import ROOT, processor

from dragon.audio import Audio, save
from dragon.protocols import Encoder

RUNS = ("base:200", "base:2000")
REFERENCE = 100  # clips
SECONDS, RATE = 10, 44_100
METRICS = ("fad", "kad", "vendi", "prdc")
RESULTS = ROOT / "benchmarks" / "results" / "scoring_folders"
PARTS = {
    "network": "network",
    "mel": "mel front end",
    "resample": "mono, resampling, windows",
    "read": "hashing and decoding",
    "store": "store and batches",
    "metrics": "metrics and intervals",
}


NAMES = {"base": "CLAP, HTSAT-base", "tiny": "CLAP, HTSAT-tiny", "spectral": "spectral"}


# ---- what is scored


def write_clips(folder: Path, count: int, seed: int, brightness: float) -> None:
    """Plucked chords and some noise, each clip of its own: none is silent, none repeats another."""
    folder.mkdir(parents=True)
    t = np.arange(SECONDS * RATE, dtype=np.float32) / RATE
    pitches = 110 * 2 ** (np.arange(36, dtype=np.float32) / 12)
    notes = [np.sin(2 * np.pi * p * t) + brightness * np.sin(6 * np.pi * p * t) for p in pitches]
    notes = [0.08 * note * np.exp(-4 * (t % (0.3 + 0.02 * i))) for i, note in enumerate(notes)]
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(t), dtype=np.float32)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        samples = np.stack([np.roll(noise, int(shift)) for shift in rng.integers(len(t), size=2)])
        for pitch, shift, pan in zip(
            rng.integers(36, size=4), rng.integers(len(t), size=4), rng.random(4), strict=True
        ):
            samples += np.array([[pan], [1 - pan]], np.float32) * np.roll(notes[pitch], int(shift))
        save(folder / f"{number:05d}.wav", Audio(samples, RATE))


def random_clap(size: str) -> Any:
    """A transformers.ClapModel of HTSAT-base (as laion/larger_clap_music) or -tiny (clap-htsat-unfused), drawn anew.

    Weights keep the size of what goes through them, so that different clips get different vectors.
    """
    import torch
    from transformers import ClapConfig, ClapModel

    width, depths = {"tiny": (96, [2, 2, 6, 2]), "base": (128, [2, 2, 12, 2])}[size]
    audio = {
        "patch_embeds_hidden_size": width,
        "depths": depths,
        "num_attention_heads": [4, 8, 16, 32],
        "hidden_size": 8 * width,
    }
    model = ClapModel(ClapConfig(audio_config=audio, projection_dim=512)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
        norm = model.audio_model.audio_encoder.batch_norm  # levels in dB, as a trained model has them
        norm.running_mean.fill_(-40.0)
        norm.running_var.fill_(400.0)
    return model


# ---- one run, in a process of its own


def prepare(place: Path, size: str, clips: int) -> None:
    """Model and clips; not part of what is measured."""
    if size != "spectral":
        random_clap(size).save_pretrained(place / "model")
    write_clips(place / "generated", clips, 0, brightness=0.5)
    write_clips(place / "reference", REFERENCE, 1, brightness=0.3)


class Clock:
    """CPU seconds of this thread that the encoder takes, in parts, and when everything was embedded."""

    def __init__(self) -> None:
        self.spent = {"encoder": 0.0, "network": 0.0, "mel": 0.0}
        self.embedded = 0.0
        self._call = 0.0

    def timed(self, part: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The function, whose time is counted."""

        def run(given: Any) -> Any:
            start = self._call = time.thread_time()
            found = function(given)
            self.spent[part] += time.thread_time() - start
            return found

        return run

    def after_mel(self, *_: object) -> None:
        """A hook in front of the network's layers: what the call took so far is the front end's."""
        self.spent["mel"] += time.thread_time() - self._call

    def progress(self, *_: object) -> None:
        self.embedded = time.thread_time()  # what the last call leaves


class Timed:
    """An encoder whose calls are timed."""

    def __init__(self, encoder: Encoder, clock: Clock) -> None:
        self.name, self.fingerprint, self.features = encoder.name, encoder.fingerprint, encoder.features
        self.embed_media = clock.timed("encoder", encoder.embed_media)


def make_encoder(place: Path, size: str, clock: Clock) -> Any:
    """The encoder, with its calls timed."""
    import torch
    from transformers import ClapModel

    from dragon.encoders import get_encoder
    from dragon.encoders.clap import TransformersClap, WindowedClap

    if size == "spectral":
        return Timed(get_encoder("spectral"), clock)
    model = ClapModel.from_pretrained(place / "model", dtype=torch.float32)
    model.audio_model.register_forward_pre_hook(clock.after_mel)
    network: Any = TransformersClap(model, lambda: None, "random weights", "clap", "cpu")
    network.embed_audio = clock.timed("network", network.embed_audio)
    encoder: Any = WindowedClap("clap", network, None, "cpu")
    encoder.embed_both = clock.timed("encoder", encoder.embed_both)
    return encoder


def one(place: Path, size: str, clips: int) -> dict[str, Any]:
    """CPU seconds of each part, wall-clock seconds and memory of one call of `score`."""
    import torch
    from threadpoolctl import threadpool_limits

    from dragon.measure.scores import score

    torch.set_num_threads(1)
    clock = Clock()
    encoder = make_encoder(place, size, clock)
    at_start = peak_mb()
    with threadpool_limits(1):
        thread, process, wall = time.thread_time(), time.process_time(), time.perf_counter()
        result = score(
            place / "generated",
            place / "reference",
            METRICS,
            encoder=encoder,
            cache=None,
            progress=clock.progress,
        )
        end = time.thread_time()
        total, wall = time.process_time() - process, time.perf_counter() - wall
    spent = clock.spent
    parts = {
        "network": spent["network"] - spent["mel"],
        "mel": spent["mel"],
        "resample": spent["encoder"] - spent["network"],
        "store": clock.embedded - thread - spent["encoder"],
        "metrics": end - clock.embedded,
        "read": total - (end - thread),
    }
    return {
        "size": size,
        "clips": clips,
        "reference": REFERENCE,
        "cpu_seconds": total,
        "wall_seconds": wall,
        "parts": parts,
        "share": spent["network"] / total if spent["network"] else None,
        "clips_per_cpu_second": (clips + REFERENCE) / total,
        "start_mb": at_start,
        "peak_mb": peak_mb(),
        "values": {value.metric: float(value) for value in result.values},
    } | settings()


def peak_mb() -> float:
    """The largest memory this process has held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def settings() -> dict[str, str]:
    names = ("torch", "transformers", "numpy", "scipy", "soxr")
    return {"machine": processor(), "versions": ", ".join(f"{name} {version(name)}" for name in names)}


def measure(size: str, clips: int) -> None:
    """Makes model and clips in one process and scores them in another, with the system's own memory settings."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory(prefix="scoring-") as place:
        for step in ("prepare", "score"):
            call = [sys.executable, __file__, "--step", step, "--place", place, "--runs", f"{size}:{clips}"]
            subprocess.run(call, env=env, check=True)


def measure_package() -> None:
    """The comparison, in a process whose hub cache is a temporary one."""
    if not all(importlib.util.find_spec(name) for name in ("frechet_audio_distance", "laion_clap")):
        print("no comparison: frechet-audio-distance cannot be imported here (it needs numpy below 2)")
        return
    with tempfile.TemporaryDirectory(prefix="scoring-") as place:
        fad_package.local_hub(Path(place) / "hub")
        env = os.environ | {"HF_HUB_CACHE": f"{place}/hub", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        subprocess.run([sys.executable, __file__, "--step", "compare", "--place", place], env=env, check=True)


def beside_package(place: Path) -> dict[str, Any]:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        found = fad_package.compare(place, write_clips)
    return found | settings() | {"package": version("frechet-audio-distance")}


def keep(name: str, found: dict[str, Any]) -> None:
    """Prints a finished part and keeps it."""
    print(json.dumps(found), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# ---- the page


def page() -> str:
    """docs/scoring_folders.md, of all that is kept."""
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    package = kept.pop("package", None)
    order = list(NAMES)
    rows = sorted(kept.values(), key=lambda row: (order.index(row["size"]), row["clips"]))
    if not rows:
        raise SystemExit(f"nothing is kept in {RESULTS}; give --runs")
    claps = [row for row in rows if row["share"] is not None]
    lines = [
        "# What scoring a folder costs",
        "",
        f"Made by `{made_by(rows, package is not None)}` on {rows[-1]['machine']}, one thread, while other work shared "
        f"the machine; {rows[-1]['versions']}. Synthetic clips (WAV, {SECONDS} s, {RATE / 1000:g} kHz, stereo) are "
        f"scored against a reference of {REFERENCE} others by {', '.join(METRICS)}, with nothing in the cache. Each "
        "row is one run, in a process of its own; times are CPU seconds, embedding and reading-ahead threads together, "
        "and clips a CPU second count the reference's too. Weights are random, of the real sizes. Peak memory is that "
        "of the whole process: libraries and the model, its text half included, are the start.",
        "",
        "| encoder | clips | encoder's share | clips a CPU second | CPU seconds | memory at start | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {NAMES[r['size']]} | {r['clips']} | {percent(r['share'], 0)} "
            f"| {r['clips_per_cpu_second']:.2g} | {r['cpu_seconds']:.0f} | {r['start_mb']:.0f} MB "
            f"| {r['peak_mb']:.0f} MB |"
            for r in rows
        ),
        "",
        *not_run(rows),
        *(["## Where the time goes", ""] if claps else []),
        *(["The encoder's share is that of its mel front end and network.", ""] if claps else []),
        *(table_of_parts(claps) if claps else []),
        *(beside(package) if package else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def made_by(rows: list[dict[str, Any]], compared: bool) -> str:
    listed = " ".join(f"{row['size']}:{row['clips']}" for row in rows)
    runs = "" if listed == " ".join(RUNS) else f" --runs {listed}"
    return f"python benchmarks/scoring_folders.py{runs}{' --compare' if compared else ''}"


def not_run(rows: list[dict[str, Any]]) -> list[str]:
    """What the default form would have measured and this page has not."""
    names = {f"{row['size']}:{row['clips']}" for row in rows}
    lacking = [run.split(":") for run in RUNS if run not in names]
    listed = ", ".join(f"{count} clips with {NAMES[size]}" for size, count in lacking)
    if not lacking:
        return []
    text = f"Not run here, though the default of the script: {listed}."
    if any(row["size"] == "spectral" for row in rows):
        text += (
            " Whether memory is flat, the rows of `spectral` (no weights) tell: reading, store, metrics are the same. "
            "A peak differs by some hundred MB from run to run, with how many clips wait to be embedded (270 MB at "
            "most); vectors and distances of clips, which some metrics hold, grow with the clips."
        )
    return [text, ""]


def table_of_parts(rows: list[dict[str, Any]]) -> list[str]:
    heads = [f"{NAMES[row['size']]}, {row['clips']}" for row in rows]
    return [
        f"| | {' | '.join(heads)} |",
        f"| --- |{' --- |' * len(rows)}",
        *(
            f"| {text} | {' | '.join(percent(r['parts'][part] / r['cpu_seconds'], 1) for r in rows)} |"
            for part, text in PARTS.items()
        ),
        "",
    ]


def beside(found: dict[str, Any]) -> list[str]:
    """The comparison's section."""
    both, name = found["folders"], f"frechet-audio-distance {found['package']}"
    ours, theirs = both["ours"], both["package"]
    gap = abs(theirs["value"] / ours["value"] - 1)
    return [
        f"## Beside {name}",
        "",
        f"{found['versions']}. The same frames, d = {fad_package.D}: relative error of either against singular values "
        "of the centred frames, and CPU time. Factor: all features times it; level: added to all features before. An "
        "error is one at which the package's `score` prints it and returns -1; whether it comes turns on rounding.",
        "",
        "| n | factor | level | type | ours | package |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r['n']} | {r['factor']:g} | {r['level']:g} | {r['dtype']} | {cell(r['ours'])} | {cell(r['package'])} |"
            for r in found["values"]
        ),
        "",
        f"From files, {both['clips']} clips a side, the same HTSAT-base weights: ours {ours['seconds']:.1f} CPU "
        f"seconds, the package {theirs['seconds']:.1f} ({theirs['seconds'] / ours['seconds']:.2f} times ours); "
        f"distances {ours['value']:.5g} and {theirs['value']:.5g}, {gap:.0e} apart. No number of a clip's "
        f"vector differs by more than {both['largest_gap']:.0e} (spread over clips up to {both['spread']:.0e}); "
        "the resamplers differ. Ours includes intervals and each song's distance.",
    ]


def percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def cell(figures: dict[str, Any]) -> str:
    """Error and time, for readers."""
    seconds = figures["seconds"]
    text = f"stops: {figures['error'][:26]}" if "error" in figures else f"{figures['relative_error']:.0e}"
    return f"{text}, {1000 * seconds:.0f} ms"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", help=f"SIZE:CLIPS, of base, tiny and spectral; default {' '.join(RUNS)}")
    parser.add_argument("--compare", action="store_true", help="beside frechet-audio-distance")
    parser.add_argument("--page", action="store_true", help="only the page, from what is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "scoring_folders.md")
    parser.add_argument("--step", choices=["prepare", "score", "compare"], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = options.runs if options.runs is not None else () if options.compare or options.page else RUNS
    runs = [(size, int(count)) for size, count in (run.split(":") for run in chosen)]
    if options.step == "prepare":
        prepare(options.place, *runs[0])
    elif options.step == "score":
        keep("{}-{}".format(*runs[0]), one(options.place, *runs[0]))
    elif options.step == "compare":
        keep("package", beside_package(options.place))
    else:
        for run in runs:
            measure(*run)
        if options.compare:
            measure_package()
        options.out.write_text(page(), encoding="utf-8")
