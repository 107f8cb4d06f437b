"""The report of a step in plain values: a line of JSON, and its numbers by name. Knows reports; no file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from dragon.protocols import Report


def record(report: Report) -> dict[str, object]:
    """The report without its clips, as JSON values: one line of a run's log.jsonl. NaN becomes null."""
    return {name: _json(value) for name, value in {"step": report.step, **_fields(report)}.items()}


def numbers(report: Report) -> dict[str, float]:
    """Every number of the report but the step, by name: "loss", "rewards/clap_score"; NaN where it has no value.

    These are the names in TensorBoard and Weights & Biases, which leave NaN and infinity out.
    """
    return dict(_numbers(_fields(report)))


def _fields(report: Report) -> dict[str, object]:
    return {
        "reward": report.reward,
        "rewards": report.rewards,
        "figures": report.figures,
        "gap": report.gap,
        "loss": report.loss,
        "implicit_accuracy": report.implicit_accuracy,
        "gain_positive": report.gain_positive,
        "gain_negative": report.gain_negative,
        "z0": report.z0,
        "beta": report.beta,
        "beta_gain_median": report.beta_gain_median,
        "grad_norm": report.grad_norm,
        "learning_rate": report.learning_rate,
        "pairs": report.pairs,
        "ties_dropped": report.ties_dropped,
        "seconds": report.seconds,
        "reward_seconds": report.reward_seconds,
        "whole_seconds": report.whole_seconds,
        "skipped": report.skipped,
        "skipped_updates": report.skipped_updates,
    }


def _json(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _json(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif value is None:  # beta before it is known
            yield prefix + name, math.nan
        elif isinstance(value, int | float):
            yield prefix + name, float(value)
