"""How good new transitions are beside held-out ones, with real rows as the ceiling and a Gaussian as the floor.

Knows arrays, the layout of columns and (where an environment is given) its simulator. Three sides are compared with the
same held-out rows: the new rows; as many rows of the fit (the ceiling: what real rows of that number get); and as many
of a Gaussian with the mean and covariance of the rows of the fit (the floor: what no learning beyond two moments gets).

One-hot columns of discrete actions count as columns of their own. Columns that never change are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragon.errors import ShapeError
from dragon.synther.columns import Layout
from dragon.synther.dynamics import dynamics
from dragon.synther.kinds import Group, wide
from dragon.synther.transitions import KEYS, Transitions

Floats = NDArray[np.float64]
SIDES = ("new", "real", "gaussian")
ROWS = 20_000
QUERIES = 5_000
SIMULATED = 2_000
DRAWN = 3_000
BLOCK = 1 << 24  # distances at once: 64 MB

# What a verdict asks. Differences to the ceiling, because a figure of few held-out rows is far from its limit even for
# real rows: at 1,000 of them 1 - KS averages .97.
MARGINAL_GAP = 0.03
COLUMN_GAP = 0.10
WASSERSTEIN_GAP = 0.05
CORRELATION_GAP = 0.05
RATE_FACTOR = 0.10
RECALL = 0.8
DYNAMICS, OF_GAUSSIAN = 0.2, 0.25
NEAREST = 0.5
COPIES = 0.05
COVERED = 1.5


@dataclass(frozen=True)
class Verdict:
    """One aspect: the figure of the new rows beside those of real rows and of the Gaussian, and what is asked."""

    aspect: str
    new: float
    real: float
    gaussian: float
    asked: str
    passed: bool
    words: str


@dataclass(frozen=True)
class Column:
    """One column: 1 - KS and W1 over the standard deviation, by side; mean and deviation of the fit's rows and new."""

    name: str
    kind: str
    similarity: Mapping[str, float]
    wasserstein: Mapping[str, float]
    mean: Mapping[str, float]
    std: Mapping[str, float]


@dataclass(frozen=True)
class Quality:
    """What was found. rows: how many of each kind were compared. figures: JSON values by aspect.

    drawn: arrays that pictures show: values of the columns and correlations by side, nearest distances, two principal
    components. notes: what a reader must know to judge.
    """

    rows: Mapping[str, int]
    columns: tuple[Column, ...]
    figures: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    drawn: Mapping[str, Floats] = field(default_factory=dict, repr=False)

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """All but what is drawn; NaN is null."""
        found = {
            "version": 1,
            "rows": dict(self.rows),
            "passed": self.passed,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "figures": self.figures,
            "columns": [asdict(column) for column in self.columns],
            "notes": list(self.notes),
        }
        result: dict[str, Any] = _plain(found)
        return result


def quality(
    new: Transitions,
    train: Transitions,
    held_out: Transitions,
    layout: Layout,
    *,
    environment: str | None = None,
    seed: int = 0,
) -> Quality:
    """How the first 20,000 of `new` compare with `held_out`, which the fit on `train` has not seen.

    layout: of the fit; its kinds and bounds. environment: a MuJoCo task of gymnasium, for errors of the dynamics.
    seed: of the rows that are compared, where there are more than are needed, and of the Gaussian.

    Raises:
        ShapeError: fewer than 2 rows of a kind. What `dynamics` raises.
    """
    for name, part in (("new", new), ("train", train), ("held_out", held_out)):
        if len(part) < 2:
            raise ShapeError(f"{name} has {len(part)} rows; expected at least 2, and hundreds to say anything")
    random = np.random.default_rng(seed)
    new = new.rows(slice(0, ROWS))
    ceiling = train.rows(np.sort(random.choice(len(train), min(len(train), len(new)), replace=False)))
    names, every = _varying(train, layout)
    tables = {"train": every, "held_out": layout.table(held_out), "new": layout.table(new)}
    tables = {side: table[:, [i for i, _, _ in names]] for side, table in tables.items()}
    tables["real"] = layout.table(ceiling)[:, [i for i, _, _ in names]]
    tables["gaussian"] = _gaussian(tables["train"], len(new), random)
    columns = _columns(tables, names)
    figures: dict[str, Any] = {
        "similarity": {side: _mean(c.similarity[side] for c in columns) for side in SIDES},
        "wasserstein": {side: _mean(c.wasserstein[side] for c in columns) for side in SIDES},
    }
    drawn: dict[str, Floats] = {side: tables[side] for side in ("held_out", *SIDES)}
    figures["correlation"], pictures = _correlations(tables)
    figures["flags"] = _flags(new, train, layout)
    figures["bounds"] = _bounds(new, layout)
    figures["nearest"], distances = _nearest(tables, random)
    figures["coverage"] = _coverage(tables, random)
    if environment is not None:
        figures["dynamics"] = _dynamics(new, held_out, tables["gaussian"], names, environment)
    verdicts = tuple(_verdicts(columns, figures))
    rows = {"new": len(new), "train": len(train), "held_out": len(held_out)}
    notes = () if len(held_out) >= 500 else (f"only {len(held_out)} rows were held out: figures are rough",)
    drawn |= pictures | distances | _components(tables)
    return Quality(rows, columns, figures, verdicts, notes, drawn)


# ---- tables


def _varying(train: Transitions, layout: Layout) -> tuple[list[tuple[int, str, str]], Floats]:
    """(place, name, kind) of the columns that are compared, and the table of all."""
    every = layout.table(train)
    kinds = [kind for g in layout.groups for kind in g.kinds]
    named = zip(layout.names, kinds, strict=True)
    return [(i, name, kind) for i, (name, kind) in enumerate(named) if every[:, i].std() > 0], every


def _gaussian(train: Floats, n: int, random: np.random.Generator) -> Floats:
    """(n, d) rows with the mean and covariance of `train`."""
    values, vectors = np.linalg.eigh(np.cov(train, rowvar=False).reshape(train.shape[1], -1))
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return np.asarray(train.mean(0) + random.standard_normal((n, train.shape[1])) @ root.T, dtype=np.float64)


# ---- aspects


def _columns(tables: Mapping[str, Floats], names: list[tuple[int, str, str]]) -> tuple[Column, ...]:
    found = []
    spread = tables["train"].std(0)
    for j, (_, name, kind) in enumerate(names):
        pairs = {side: distances_of_samples(tables[side][:, j], tables["held_out"][:, j]) for side in SIDES}
        found.append(
            Column(
                name,
                kind,
                {side: 1 - ks for side, (ks, _) in pairs.items()},
                {side: w1 / float(spread[j]) for side, (_, w1) in pairs.items()},
                {side: float(tables[side][:, j].mean()) for side in ("train", "new")},
                {side: float(tables[side][:, j].std()) for side in ("train", "new")},
            )
        )
    return tuple(found)


def distances_of_samples(a: Floats, b: Floats) -> tuple[float, float]:
    """Largest difference of the two distribution functions (KS), and the area between them (Wasserstein-1)."""
    both = np.sort(np.concatenate([a, b]))
    difference = np.abs(
        np.searchsorted(np.sort(a), both, side="right") / len(a)
        - np.searchsorted(np.sort(b), both, side="right") / len(b)
    )
    return float(difference.max()), float((difference[:-1] * np.diff(both)).sum())


def _correlations(tables: Mapping[str, Floats]) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Mean and largest difference of correlations to those of the held-out rows, over pairs of columns."""
    reference = _correlation(tables["held_out"])
    off = ~np.eye(len(reference), dtype=bool)
    figures, pictures = {}, {}
    for side in SIDES:
        difference = np.where(off, _correlation(tables[side]) - reference, 0.0)
        pairs = np.abs(difference[off]) if off.any() else np.zeros(1)
        figures[side] = {"mean": float(pairs.mean()), "largest": float(pairs.max())}
        pictures[f"correlation_{side}"] = difference
    return figures, pictures


def _correlation(table: Floats) -> Floats:
    """0 where a column does not vary."""
    centred = table - table.mean(0)
    norm = np.sqrt(np.square(centred).sum(0))
    norm[norm == 0] = 1.0
    return np.asarray((centred / norm).T @ (centred / norm), dtype=np.float64)


def _flags(new: Transitions, train: Transitions, layout: Layout) -> dict[str, Any]:
    """Rates of every flag in the rows of the fit and in the new ones, each with its 95 % interval."""
    found: dict[str, Any] = {}
    for g in layout.groups:
        for i, kind in enumerate(g.kinds):
            if kind == "flag":
                ours, data = (wide(t.arrays()[g.name], g)[:, i] - g.mean[i] >= 0.5 * g.scale[i] for t in (new, train))
                low, high = wilson(int(ours.sum()), len(ours))
                data_low, data_high = wilson(int(data.sum()), len(data))
                found[g.name if g.flat else f"{g.name}.{i}"] = {
                    "new": float(ours.mean()),
                    "low": low,
                    "high": high,
                    "data": float(data.mean()),
                    "data_low": data_low,
                    "data_high": data_high,
                }
    return found


def wilson(count: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Ends of the 95 % interval of a rate. Source: Wilson (1927)."""
    rate = count / n
    middle, half = rate + z * z / (2 * n), z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return float((middle - half) / (1 + z * z / n)), float((middle + half) / (1 + z * z / n))


def _bounds(new: Transitions, layout: Layout) -> dict[str, Any]:
    """Share of actions inside their box, and of whole numbers that are whole; None where there are none."""
    arrays = new.arrays()
    actions = next(g for g in layout.groups if g.name == "actions")
    inside = None
    if not actions.discrete:
        # the box in the precision of the data, as an action at its edge was stored
        low, high = (np.asarray(ends, dtype=np.dtype(actions.dtype)) for ends in (actions.low, actions.high))
        inside = float(((arrays["actions"] >= low) & (arrays["actions"] <= high)).mean())
    whole = [
        _is_whole(wide(arrays[g.name], g)[:, i], g, i)
        for g in layout.groups
        for i, kind in enumerate(g.kinds)
        if kind in ("integer", "flag", "one_hot")
    ]
    return {"inside_box": inside, "whole": float(np.mean(whole)) if whole else None}


def _is_whole(column: Floats, of: Group, i: int) -> float:
    """Share of the numbers that a column of this kind can hold."""
    ends = {"flag": (of.mean[i], of.mean[i] + of.scale[i]), "one_hot": (0.0, 1.0)}.get(of.kinds[i])
    return float((column == np.round(column) if ends is None else np.isin(column, ends)).mean())


def _nearest(tables: Mapping[str, Floats], random: np.random.Generator) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Distances to the nearest row of the fit, in standard deviations of its columns, of new and of held-out rows."""
    spread = tables["train"].std(0)
    train = tables["train"] / spread
    found = {
        side: nearest_distances(_some(tables[side], random) / spread, train) for side in ("new", "held_out", "gaussian")
    }
    close = float(np.quantile(found["held_out"], 0.01))
    middle = float(np.median(found["held_out"]))
    figures = {
        "median": {side: float(np.median(d)) for side, d in found.items()},
        "ratio": {side: float(np.median(d)) / middle if middle > 0 else float("nan") for side, d in found.items()},
        # nearer than all but one in a hundred real rows come
        "copies": {side: float((d < close).mean()) for side, d in found.items()},
        "queries": {side: len(d) for side, d in found.items()},
    }
    return figures, {f"nearest_{side}": d for side, d in found.items()}


def _coverage(tables: Mapping[str, Floats], random: np.random.Generator) -> dict[str, Any]:
    """Distance of held-out rows to the nearest of each side over that to as many real ones: large if some are lost."""
    spread = tables["train"].std(0)
    queries = _some(tables["held_out"], random) / spread
    count = min(len(tables[side]) for side in SIDES)
    middle = {side: float(np.median(nearest_distances(queries, tables[side][:count] / spread))) for side in SIDES}
    return {side: d / middle["real"] if middle["real"] > 0 else float("nan") for side, d in middle.items()}


def nearest_distances(queries: Floats, rows: Floats) -> Floats:
    """(q,) Euclidean distance of each query to the nearest of `rows`, exact for the row that is found.

    Rows are searched in float32 by |a|^2 - 2 a b, block by block, and the winner's distance is computed anew.
    """
    a, squares = queries.astype(np.float32), np.full(len(queries), np.inf, dtype=np.float32)
    winner = np.zeros(len(queries), dtype=np.int64)
    step = max(1, BLOCK // max(1, len(queries)))
    for start in range(0, len(rows), step):
        b = rows[start : start + step].astype(np.float32)
        found = a @ b.T
        found *= -2
        found += np.square(b).sum(1)
        place = found.argmin(1)
        best = found[np.arange(len(a)), place]
        better = best < squares
        squares[better], winner[better] = best[better], start + place[better]
    return np.asarray(np.sqrt(np.square(queries - rows[winner]).sum(1)), dtype=np.float64)


def _components(tables: Mapping[str, Floats]) -> dict[str, Floats]:
    """(n, 2) of up to 3,000 rows a side on the two principal components of the rows of the fit, and their shares."""
    centre, spread = tables["train"].mean(0), tables["train"].std(0)
    values, vectors = np.linalg.eigh(_correlation(tables["train"]))
    axes = vectors[:, ::-1][:, :2]
    found = {f"components_{side}": (tables[side][:DRAWN] - centre) / spread @ axes for side in SIDES}
    return found | {"component_shares": values[::-1][:2] / values.sum()}


def _some(table: Floats, random: np.random.Generator) -> Floats:
    if len(table) <= QUERIES:
        return table
    return table[np.sort(random.choice(len(table), QUERIES, replace=False))]


def _dynamics(
    new: Transitions, held_out: Transitions, gaussian: Floats, names: list[tuple[int, str, str]], environment: str
) -> dict[str, Any]:
    found = {
        "new": dynamics(new, environment, rows=SIMULATED, like=held_out),
        "real": dynamics(held_out, environment, rows=SIMULATED, like=held_out),
        "gaussian": dynamics(_as_transitions(gaussian[:SIMULATED], held_out, names), environment, like=held_out),
    }
    return {
        key: {side: getattr(one, key) for side, one in found.items()}
        for key in ("n", "error", "reward_error", "true_terminal_rate", "terminal_recall", "terminal_precision")
    }


def _as_transitions(table: Floats, like: Transitions, names: list[tuple[int, str, str]]) -> Transitions:
    """Rows of a table as transitions; columns that never change are those of `like`."""
    place = {name: j for j, (_, name, _) in enumerate(names)}
    made = {}
    for key in KEYS:
        value = getattr(like, key)
        wide = np.repeat(value[:1].reshape(1, -1), len(table), 0).astype(np.float64)
        for i in range(wide.shape[1]):
            j = place.get(key if value.ndim == 1 else f"{key}.{i}")
            if j is not None:
                wide[:, i] = table[:, j]
        made[key] = wide[:, 0] if value.ndim == 1 else wide
    return replace(like, **(made | {"terminals": made["terminals"] > 0.5}), blocks={})


# ---- verdicts


def _verdicts(columns: tuple[Column, ...], figures: Mapping[str, Any]) -> list[Verdict]:
    return [
        *_marginals(columns, figures),
        _correlation_verdict(figures["correlation"]),
        *(_rate(name, rates) for name, rates in figures["flags"].items()),
        *_bound_verdicts(figures["bounds"]),
        *_memory(figures["nearest"], figures["coverage"]),
        *(_dynamics_verdicts(figures["dynamics"]) if "dynamics" in figures else []),
    ]


def _marginals(columns: tuple[Column, ...], figures: Mapping[str, Any]) -> list[Verdict]:
    mean, area = figures["similarity"], figures["wasserstein"]
    worst = min(columns, key=lambda c: c.similarity["new"] - c.similarity["real"])
    gap = worst.similarity["real"] - worst.similarity["new"]
    ok, fits = mean["new"] >= mean["real"] - MARGINAL_GAP, gap <= COLUMN_GAP
    near = area["new"] <= area["real"] + WASSERSTEIN_GAP
    return [
        Verdict(
            "columns, 1 - KS (mean)",
            *_by_side(mean),
            f"at least real - {MARGINAL_GAP}",
            ok,
            f"each column alone {'looks like' if ok else 'differs from'} the data's, on average",
        ),
        Verdict(
            "worst column, 1 - KS",
            *_by_side(worst.similarity),
            f"at least real - {COLUMN_GAP}",
            fits,
            f"the column that is furthest off is {worst.name}{'' if fits else ': look at its histogram'}",
        ),
        Verdict(
            "columns, W1 / std (mean)",
            *_by_side(area),
            f"at most real + {WASSERSTEIN_GAP}",
            near,
            f"values lie on average {area['new']:.3f} standard deviations from where the data's lie",
        ),
    ]


def _correlation_verdict(found: Mapping[str, Mapping[str, float]]) -> Verdict:
    ok = found["new"]["mean"] <= found["real"]["mean"] + CORRELATION_GAP
    return Verdict(
        "correlations, mean difference",
        *_by_side({side: figures["mean"] for side, figures in found.items()}),
        f"at most real + {CORRELATION_GAP}",
        ok,
        f"columns {'move together as in the data' if ok else 'do not move together as in the data'}; a Gaussian gets "
        "this right too",
    )


def _rate(name: str, rates: Mapping[str, float]) -> Verdict:
    near = abs(rates["new"] - rates["data"]) <= RATE_FACTOR * rates["data"]
    ok = near or rates["low"] <= rates["data"] <= rates["high"]
    often = "as often as" if ok else "less often than" if rates["new"] < rates["data"] else "more often than"
    return Verdict(
        f"rate of {name}",
        rates["new"],
        rates["data"],
        float("nan"),
        f"within {100 * RATE_FACTOR:.0f} %, or {rates['low']:.4f} to {rates['high']:.4f} holds it",
        ok,
        f"{name} comes {often} in the data",
    )


def _bound_verdicts(found: Mapping[str, float | None]) -> list[Verdict]:
    said = []
    for key, aspect, words in (
        ("inside_box", "actions inside their box", "every action can be taken"),
        ("whole", "whole numbers that are whole", "whole numbers, flags and one-hot columns are whole"),
    ):
        share = found[key]
        if share is not None:
            bad = f"{100 * (1 - share):.2g} % are not: these rows were not made by this program, or changed since"
            said.append(Verdict(aspect, share, 1.0, float("nan"), "all", share == 1, words if share == 1 else bad))
    return said


def _memory(nearest: Mapping[str, Any], coverage: Mapping[str, float]) -> list[Verdict]:
    ratio, copies = nearest["ratio"], nearest["copies"]
    known = np.isfinite(ratio["new"])
    apart, few = not known or ratio["new"] >= NEAREST, copies["new"] <= COPIES
    wide = not np.isfinite(coverage["new"]) or coverage["new"] <= COVERED
    return [
        Verdict(
            "nearest row of the fit, median distance over held-out rows'",
            ratio["new"],
            ratio["held_out"],
            ratio["gaussian"],
            f"at least {NEAREST}",
            apart,
            "new rows keep a distance from the rows of the fit as real rows do"
            if apart
            else "new rows are memorised: they lie much nearer to rows of the fit than other real rows do",
        ),
        Verdict(
            "rows nearer than 99 in 100 real ones",
            copies["new"],
            copies["held_out"],
            copies["gaussian"],
            f"at most {COPIES}",
            few,
            "few rows are close copies" if few else "many rows are close copies of rows of the fit",
        ),
        Verdict(
            "held-out rows' distance to the nearest new row, over that to real ones",
            *_by_side(coverage),
            f"at most {COVERED}",
            wide,
            "new rows are found wherever real ones are"
            if wide
            else "some kinds of real rows have no new ones near them",
        ),
    ]


def _dynamics_verdicts(found: Mapping[str, Mapping[str, float]]) -> list[Verdict]:
    said = []
    for key, aspect, what in (
        ("error", "dynamics error / variance", "next observations"),
        ("reward_error", "reward error / variance", "rewards"),
    ):
        value = found[key]
        # a Gaussian's error says how hard the task's next observations are: Hopper's move little in a step
        most = min(DYNAMICS, OF_GAUSSIAN * value["gaussian"]) if key == "error" else DYNAMICS
        ok = value["new"] <= most
        said.append(
            Verdict(
                aspect,
                *_by_side(value),
                f"at most {most:.3g}",
                ok,
                f"{what} are {'close to' if ok else 'not'} what the simulator answers",
            )
        )
    recall = found["terminal_recall"]
    if np.isfinite(recall["new"]):
        ok = recall["new"] >= RECALL
        said.append(
            Verdict(
                "terminal recall",
                *_by_side(recall),
                f"at least {RECALL}",
                ok,
                f"of rows that end an episode in the simulator {100 * recall['new']:.0f} % are marked so",
            )
        )
    return said


def _by_side(figures: Mapping[str, float]) -> tuple[float, float, float]:
    return figures["new"], figures["real"], figures["gaussian"]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.generic):
        return value.item()
    return value
