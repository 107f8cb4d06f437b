"""What the metrics cost and how exact they are, beside the usual ways to compute them: docs/metrics_speed.md.

    python benchmarks/metrics.py            # some ten minutes of one core; d = 2048 takes most of them
    python benchmarks/metrics.py --quick    # the small cells, under a minute; prints only

Claim: with few frames (n <= d) the Frechet distance by a nuclear norm is exact where other forms lose half their
digits, and many times cheaper. With many frames all forms are exact, and it costs up to about three times the
eigenvalue form, because its factors come from QR, which also holds for singular covariances. Scores of single songs,
and precision, recall, density and coverage, cost less than in the usual way. The Vendi score costs about the same, at
any order.

All methods of a row start from the same features and run in turn in one process, on one thread; a time is the median of
CPU time over the repeats, a slow method (over 10 seconds) runs once. Truth is known by construction: covariances that
commute (turned by reflections), songs by singular values of orthonormal contrasts, repeated orthogonal items for Vendi.
Prints JSON; writes the page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from seeded_runs import ROOT, processor
from threadpoolctl import threadpool_limits

from dragon.rewards.frechet import frechet_distance, per_song_frechet
from dragon.rewards.neighbours import prdc

SIZES = (128, 512, 768, 2048)
FRAMES = (64, 256, 1000, 10_000)
QUICK_NUMBERS = 512 * 1000  # d * n of the largest cell of --quick
SONGS, SONG_FRAMES, SONG_SIZE = 64, 32, 512
REPEATS = 5
SLOW = 10.0  # seconds, beyond which once is enough

Method = Callable[[], object]
"""Computes one result."""


def measure(methods: dict[str, Method], repeats: int) -> dict[str, dict[str, Any]]:
    """Median CPU seconds and the (last) result of each method, in turn; an error instead, where a method stops."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for name, method in methods.items():
            if "error" in found.get(name, {}) or (times[name] and times[name][0] > SLOW):
                continue
            start = time.process_time()
            try:
                with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                    warnings.simplefilter("ignore")  # peers warn of singular matrices; the error column tells
                    result = method()
            except Exception as error:  # a peer may not run with this version of scipy at all; the table says so
                found[name] = {"error": f"{type(error).__name__}: {error}"}
                continue
            times[name].append(time.process_time() - start)
            found[name] = {"result": result, "seconds": float(np.median(times[name])), "repeats": len(times[name])}
    return found


def with_errors(found: dict[str, dict[str, Any]], truth: np.ndarray | float) -> dict[str, dict[str, Any]]:
    """The results replaced by their largest relative error."""
    for figures in found.values():
        if "result" in figures:
            result = np.asarray(figures.pop("result"), np.float64)
            figures["relative_error"] = float(np.abs(result / truth - 1).max())
    return found


# ---- the Frechet distance of two sets


def known_pair(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Two sets (n, d) and their distance: means 1 apart, covariances that commute, overlapping in half of their span.

    Before the reflections set 1 spreads a_j along the coordinates 1 to r, set 2 b_j along r / 2 to 3 r / 2 (mod d).
    """
    rng = np.random.default_rng(seed)
    r = min(n - 1, d)
    where = np.arange(r), (np.arange(r) + r // 2) % d
    spreads = [1 / np.sqrt(1 + rng.permutation(r)) for _ in where]
    sets, wide = [], np.zeros((2, d))
    for axes, spread, line in zip(where, spreads, wide, strict=True):
        table = np.zeros((n, d))
        table[:, axes] = whitened(rng, n, r) * spread
        line[axes] = spread
        sets.append(table)
    sets[0][:, 0] += 1
    truth = 1 + np.square(wide[0] - wide[1]).sum()
    for _ in range(3):
        axis = rng.standard_normal(d)
        axis /= np.linalg.norm(axis)
        sets = [table - 2 * np.outer(table @ axis, axis) for table in sets]
    return sets[0], sets[1], float(truth)


def whitened(rng: np.random.Generator, n: int, r: int) -> np.ndarray:
    """(n, r) of zero mean and unit covariance (ddof 1)."""
    table = rng.standard_normal((n, r))
    if r == n - 1:  # all of the space without the mean: centring would lose the last direction
        table = np.linalg.qr(np.concatenate([np.ones((n, 1)), table], axis=1))[0][:, 1:]
    else:
        table = np.linalg.qr(table - table.mean(axis=0))[0]
    return table * np.sqrt(n - 1)


def by_square_root(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook form: scipy's square root of the product."""
    s1, s2 = np.cov(x.T), np.cov(y.T)
    trace = np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1) + np.trace(s2) - 2 * trace)


def by_eigenvalues(x: np.ndarray, y: np.ndarray) -> float:
    """The best standard form: eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), those below 0 cut."""
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = symmetric_root(s1)
    trace = np.sqrt(scipy.linalg.eigvalsh(root @ s2 @ root).clip(min=0)).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1) + np.trace(s2) - 2 * trace)


def symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = scipy.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def frechet(quick: bool) -> list[dict[str, Any]]:
    """One row for every d and n."""
    rows: list[dict[str, Any]] = []
    for d in SIZES:
        for n in FRAMES:
            if quick and (d * n > QUICK_NUMBERS or d > 512):
                continue
            x, y, truth = known_pair(n, d)
            methods: dict[str, Method] = {
                "ours": lambda x=x, y=y: float(frechet_distance(x, y)),
                "eigenvalues": lambda x=x, y=y: by_eigenvalues(x, y),
                "sqrtm": lambda x=x, y=y: by_square_root(x, y),
            }
            rows.append({"d": d, "n": n} | with_errors(measure(methods, 2 if quick else REPEATS), truth))
            print(json.dumps(rows[-1]), flush=True)
    return rows


# ---- the Frechet distance of each song


def songs_by_contrasts(songs: list[np.ndarray], reference: np.ndarray) -> np.ndarray:
    """By another algorithm than ours: orthonormal contrasts of the frames, a Cholesky factor of the reference."""
    mean, cov = reference.mean(axis=0), np.cov(reference.T)
    lower = np.linalg.cholesky(cov)
    values = []
    for song in songs:
        m = len(song)
        contrasts = scipy.linalg.helmert(m) @ song / np.sqrt(m - 1)
        nuclear = scipy.linalg.svdvals(contrasts @ lower).sum()
        spread = np.square(contrasts).sum() + np.trace(cov) - 2 * nuclear
        values.append(np.square(song.mean(axis=0) - mean).sum() + spread)
    return np.array(values)


def songs_by_eigenvalues(songs: list[np.ndarray], reference: np.ndarray) -> np.ndarray:
    """The best standard form, the reference's root once and the songs in batches of eight."""
    mean, cov = reference.mean(axis=0), torch.tensor(np.cov(reference.T))
    root = torch.tensor(symmetric_root(cov.numpy()))
    values = []
    for start in range(0, len(songs), 8):
        frames = torch.tensor(np.stack(songs[start : start + 8]))
        centred = frames - frames.mean(dim=1, keepdim=True)
        covs = centred.mT @ centred / (frames.shape[1] - 1)
        trace = torch.linalg.eigvalsh(root @ covs @ root).clamp(min=0).sqrt().sum(dim=1)
        spread = covs.diagonal(dim1=1, dim2=2).sum(dim=1) + cov.trace() - 2 * trace
        values.append((frames.mean(dim=1) - torch.tensor(mean)).square().sum(dim=1) + spread)
    return torch.cat(values).numpy()


def songs(quick: bool) -> dict[str, Any]:
    """64 songs of 32 frames against 2,000 frames. By square roots only some are measured, and their time multiplied."""
    rng = np.random.default_rng(0)
    spread = 1 / np.sqrt(1 + np.arange(SONG_SIZE))
    reference = rng.standard_normal((2000, SONG_SIZE)) * spread
    tables = [rng.standard_normal((SONG_FRAMES, SONG_SIZE)) * spread for _ in range(SONGS)]
    some = 1 if quick else 8
    truth = songs_by_contrasts(tables, reference)
    methods: dict[str, Method] = {
        "ours": lambda: per_song_frechet(tables, reference),
        "eigenvalues": lambda: songs_by_eigenvalues(tables, reference),
    }
    found = with_errors(measure(methods, 1 if quick else REPEATS), truth)
    roots: dict[str, Method] = {"sqrtm": lambda: [by_square_root(song, reference) for song in tables[:some]]}
    found |= with_errors(measure(roots, 1), truth[:some])
    found["sqrtm"]["seconds"] = float(found["sqrtm"]["seconds"]) * SONGS / some
    found["sqrtm"]["measured_songs"] = some
    print(json.dumps(found), flush=True)
    return {"songs": SONGS, "frames": SONG_FRAMES, "d": SONG_SIZE} | found


# ---- Vendi score; precision, recall, density, coverage


def vendi(quick: bool) -> list[dict[str, Any]]:
    """Orders 1 and 2 of sets of 40 different, orthogonal items, repeated unequally often: exp of their entropy."""
    from vendi_score import vendi as package

    from dragon.rewards.vendi import vendi_score

    rows: list[dict[str, Any]] = []
    for n, d in ((500, 64), (500, 512)) if quick else ((500, 512), (2000, 512), (2000, 128)):
        counts = 1 + np.arange(40) * (n - 40) // 780
        counts[-1] += n - counts.sum()
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
        table, p = np.repeat(turn[:40], counts, axis=0), counts / n
        for q, truth in ((1.0, np.exp(-np.sum(p * np.log(p)))), (2.0, 1 / np.sum(p**2))):
            methods: dict[str, Method] = {
                "ours": lambda t=table, q=q: float(vendi_score(t, q=q)),
                "score_X": lambda t=table, q=q: package.score_X(t, q=q),
                "score_dual": lambda t=table, q=q: package.score_dual(t, q=q),
            }
            rows.append({"n": n, "d": d, "q": q} | with_errors(measure(methods, 2 if quick else REPEATS), float(truth)))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def neighbours(quick: bool) -> list[dict[str, Any]]:
    """Against the prdc package: random features (no ties), and the same with every row twice."""
    from prdc import compute_prdc

    rows: list[dict[str, Any]] = []
    for n, d in ((500, 64),) if quick else ((1000, 512), (5000, 128), (5000, 512)):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((n, d)), 0.05 + rng.standard_normal((n, d))
        methods: dict[str, Method] = {
            "ours": lambda x=x, y=y: prdc(x, y, 5),
            "prdc": lambda x=x, y=y: compute_prdc(y, x, 5),
        }
        found = measure(methods, 2 if quick else REPEATS)
        ours, theirs = found["ours"].pop("result"), found["prdc"].pop("result")
        names = ("precision", "recall", "density", "coverage")
        difference = max(abs(getattr(ours, name) - float(theirs[name])) for name in names)
        twice = np.repeat(x[: n // 10], 6, axis=0)
        with contextlib.redirect_stdout(io.StringIO()):
            on_duplicates = float(compute_prdc(twice, twice, 5)["coverage"])
        rows.append(
            {"n": n, "d": d, "difference": difference}
            | found
            | {"coverage_of_itself_sixfold": {"ours": prdc(twice, twice, 5).coverage, "prdc": on_duplicates}}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


# ---- the page


def page(found: dict[str, Any]) -> str:
    """docs/metrics_speed.md."""
    speed, song = found["frechet"], found["songs"]
    lines = [
        "# What the metrics cost, and how exact they are",
        "",
        f"Made by `python benchmarks/metrics.py{' --quick' if found['quick'] else ''}` on {found['machine']}, one "
        f"thread; {found['versions']}. A cell is CPU time, the median of up to {found['repeats']} runs (of one, where "
        f"it takes over {SLOW:.0f} seconds), in brackets how many times ours, and the relative error against a known "
        "truth. All methods of a row start "
        "from the same features and run in turn. CPU times of one machine: the ratios tell more than the seconds.",
        "",
        "## Frechet distance of two sets of n frames",
        "",
        "Ours is the nuclear norm of the centred frames (or of their factors); beside it `scipy.linalg.sqrtm` of the "
        "product of the covariances, as most packages do it, and the best standard form, eigenvalues of the symmetric "
        "product. Truth: covariances that commute.",
        "",
        "| d | n | ours | eigenvalues | sqrtm |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {r['d']} | {r['n']} | {cell(r['ours'])} | {cell(r['eigenvalues'], r['ours'])} "
            f"| {cell(r['sqrtm'], r['ours'])} |"
            for r in speed
        ),
        "",
        f"## Frechet distance of each of {song['songs']} songs",
        "",
        f"{song['frames']} frames a song, d = {song['d']}, a reference of 2,000 frames, which is part of the time. "
        "Eigenvalues: the reference's root once, songs in batches. sqrtm: "
        f"{song['sqrtm']['measured_songs']} songs measured, times {SONGS / song['sqrtm']['measured_songs']:.0f}.",
        "",
        "| ours | eigenvalues, batched | sqrtm a song |",
        "| --- | --- | --- |",
        f"| {cell(song['ours'])} | {cell(song['eigenvalues'], song['ours'])} | {cell(song['sqrtm'], song['ours'])} |",
        "",
        "## Vendi score",
        "",
        "Beside the package `vendi_score`: `score_X` takes the n x n Gram and ignores the order q, `score_dual` the "
        "d x d one.",
        "",
        "| n | d | q | ours | score_X | score_dual |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r['n']} | {r['d']} | {r['q']:g} | {cell(r['ours'])} | {cell(r['score_X'], r['ours'])} "
            f"| {cell(r['score_dual'], r['ours'])} |"
            for r in found["vendi"]
        ),
        "",
        "## Precision, recall, density, coverage",
        "",
        "n rows on either side, k = 5, beside the package `prdc` (which takes more threads; CPU time counts them all). "
        "Difference: the largest of the four. Last columns: the coverage of a set by itself where each row is there "
        "six times, which is 1.",
        "",
        "| n | d | ours | prdc | difference | sixfold, ours | sixfold, prdc |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r['n']} | {r['d']} | {cell(r['ours'])} | {cell(r['prdc'], r['ours'])} | {r['difference']:.0e} "
            f"| {r['coverage_of_itself_sixfold']['ours']:g} | {r['coverage_of_itself_sixfold']['prdc']:g} |"
            for r in found["prdc"]
        ),
    ]
    return "\n".join(lines) + "\n"


def cell(figures: dict[str, float | str], ours: dict[str, float | str] | None = None) -> str:
    """Time, how many times ours, and error, for readers."""
    if "error" in figures:
        return f"stops: {str(figures['error'])[:60]}"
    seconds = float(figures["seconds"])
    number, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    text = f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    if ours is not None:
        ratio = seconds / float(ours["seconds"])
        text += f" ({ratio:.1f}x)" if ratio < 10 else f" ({float(f'{ratio:.2g}'):,.0f}x)"
    return f"{text}, {figures['relative_error']:.0e}" if "relative_error" in figures else text


def main(quick: bool, out: Path) -> None:
    """Measures everything, prints it, and writes the page."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        found: dict[str, Any] = {
            "machine": processor(),
            "threads": 1,
            "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy")),
            "repeats": 2 if quick else REPEATS,
            "quick": quick,
            "frechet": frechet(quick),
            "songs": songs(quick),
            "vendi": vendi(quick),
            "prdc": neighbours(quick),
        }
    print(json.dumps(found))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cells only; writes no page unless --out is given")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    place = options.out or (Path("/dev/null") if options.quick else ROOT / "docs" / "metrics_speed.md")
    main(options.quick, place)
