"""What a score is asked for, read and checked as a whole before anything is embedded.

Knows names: of metrics, rewards, encoders, exemplar sets and folders. Every problem is in one error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dragon.encoders.lookup import EncoderSpec, get_encoder
from dragon.errors import ConfigError, DragonError
from dragon.exemplars.sets import ExemplarSet, load_with_encoder
from dragon.measure.clips import Source
from dragon.measure.judged import Reward
from dragon.measure.measured import SetMetric
from dragon.measure.metrics import METRICS
from dragon.measure.sources import References, read_references, read_sets
from dragon.protocols import Encoder, InstanceReward, JointEncoder, SetReward
from dragon.registry import available, nearest
from dragon.rewards.clap import PromptCosine

MetricSpec = str | Mapping[str, object] | InstanceReward | SetReward | Callable[..., Any]
"""Name; {"name": ..., "options": {...}}; a reward; or a function (audio, prompts, **columns) -> scores."""

WITH_REFERENCE = ("fad", "kad", "vendi")
WITHOUT = ("vendi",)
ENCODER = "mini"
"""Comes with the package, so that nothing is downloaded, and serves every metric: it gives frames, one vector a clip,
and embeds captions. Small and trained on rendered music: for figures to compare with papers, take theirs."""
CHEAP = "spectral"
"""Where only rewards are asked for, which bring their own encoders: enough to check the files and to draw them."""


@dataclass(frozen=True, eq=False)
class Request:
    """Sets, references, encoders and metrics, ready to use.

    sets, references: by the name that results call them. labels: one an encoder. asked: metrics as they were asked for.
    """

    sets: Mapping[str, Source]
    references: Mapping[str, Source | ExemplarSet]
    encoders: tuple[Encoder, ...]
    labels: tuple[str, ...]
    metrics: tuple[SetMetric, ...]
    rewards: tuple[Reward, ...]
    notes: tuple[str, ...] = ()
    asked: tuple[object, ...] = field(default=(), repr=False)

    def column(self, metric: str, label: str, reference: str) -> str:
        """What the table of songs calls a metric: with encoder and reference only where there are several."""
        parts = [metric]
        if label and len(self.labels) > 1:
            parts.append(label)
        if reference and len(self.references) > 1:
            parts.append(reference)
        return ":".join(parts)


def read_request(
    generated: Source | Mapping[str, Source],
    exemplars: References,
    metrics: Sequence[MetricSpec] | None,
    encoder: EncoderSpec | Sequence[EncoderSpec] | None,
    captions: bool,
    device: str,
) -> Request:
    """Raises ConfigError with every problem of names and options, and every metric that lacks what it needs."""
    from dragon.build import check_device

    check_device(device)
    problems: list[str] = []
    notes: list[str] = []
    named = read_sets(generated, problems)
    before = len(problems)
    references = read_references(exemplars, problems)
    unread = len(problems) > before
    wanted = _metrics(metrics, references, device, problems, notes)
    encoders = _encoders(encoder, references, wanted[0], device, problems, notes)
    _needs(wanted[0], references, encoders, captions, problems, notes, unread=unread)
    problems += [
        f"metric {reward.name!r} compares clips with captions; give --captions file,caption CSV"
        for reward in wanted[1]
        if isinstance(reward, PromptCosine) and not captions
    ]
    if captions and not wanted[1] and not any("captions" in metric.needs for metric in wanted[0]):
        notes.append("the captions are read by no metric; clap does, and rewards of prompt fit (clap_score)")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with what is asked for:\n{listed}"
        )
    return Request(
        named,
        references,
        tuple(encoders),
        _labels(encoders),
        tuple(wanted[0]),
        tuple(wanted[1]),
        notes=tuple(notes),
        asked=tuple(str(m) if not isinstance(m, Mapping) else dict(m) for m in metrics or ()),
    )


def _metrics(
    metrics: Sequence[MetricSpec] | None,
    references: Mapping[str, object],
    device: str,
    problems: list[str],
    notes: list[str],
) -> tuple[list[SetMetric], list[Reward]]:
    if metrics is None:
        metrics = WITH_REFERENCE if references else WITHOUT
        bare = [r.name for r in references.values() if isinstance(r, ExemplarSet) and r.features is None]
        if bare:
            metrics = tuple(metric for metric in metrics if metric != "kad")
            notes.append(f"kad is left out: exemplar set {bare[0]!r} keeps no frames, which it compares")
    elif isinstance(metrics, str):
        metrics = [metrics]
    found: tuple[list[SetMetric], list[Reward]] = ([], [])
    for spec in metrics:
        try:
            made = make_metric(spec, device)
        except DragonError as error:
            first, *rest = str(error).splitlines()
            problems += [line.strip() for line in rest] if first.endswith("in the configuration:") else [str(error)]
            continue
        if made.name in [other.name for other in (*found[0], *found[1])]:
            problems.append(f"metric {made.name!r} is given twice; give it once, or another name among its options")
        elif isinstance(made, SetMetric):
            found[0].append(made)
        else:
            found[1].append(made)
    if not metrics:
        problems.append(f"no metrics; known: {', '.join(METRICS)}, and every reward")
    return found


def make_metric(spec: MetricSpec, device: str = "cpu") -> SetMetric | Reward:
    """A metric by name and options; any other name is a reward's.

    Raises:
        ConfigError, PluginError: no such metric or reward, with the nearest; options that do not fit.
    """
    from dragon.build import build
    from dragon.config import Spec
    from dragon.loading import parse
    from dragon.rewards.function import FunctionReward

    if isinstance(spec, InstanceReward | SetReward):
        return spec
    if callable(spec) and not inspect.isclass(spec):
        return FunctionReward(spec)
    given = {"name": spec} if isinstance(spec, str) else spec
    read, wrong = parse(Spec, given) if isinstance(given, Mapping) else (None, [])
    if read is None or wrong:
        reason = f" ({wrong[0].path}: {wrong[0].text})" if wrong else ""
        raise ConfigError(f"metric {spec!r}; expected a name, or {{name: NAME, options: {{KEY: VALUE}}}}{reason}")
    if read.name in METRICS:
        made, wrong = parse(METRICS[read.name], read.options)
        if wrong or made is None:
            raise ConfigError(f"metric {read.name!r}: " + "; ".join(f"{p.path}: {p.text}" for p in wrong))
        assert isinstance(made, SetMetric)
        return made
    if ":" not in read.name and read.name not in available("reward"):
        near = nearest(read.name, [*METRICS, *available("reward")])
        hint = f"did you mean {near}?" if near else f"there are {', '.join(METRICS)}"
        raise ConfigError(
            f"no metric is called {read.name!r}; {hint}; or any reward: a registered one (dragon plugins reward), or "
            "module:Name"
        )
    made = build("reward", read, device=device)
    if not isinstance(made, InstanceReward | SetReward):
        raise ConfigError(
            f"{read.name!r} is no reward; expected name, abstains and score(media), or of sets name, embed(media) and "
            "score_sets(features, members) (dragon/protocols.py); dragon check says what it lacks"
        )
    return made


def _encoders(
    given: EncoderSpec | Sequence[EncoderSpec] | None,
    references: Mapping[str, object],
    metrics: Sequence[SetMetric],
    device: str,
    problems: list[str],
    notes: list[str],
) -> list[Encoder]:
    exemplar_sets = [source for source in references.values() if isinstance(source, ExemplarSet)]
    found: list[Encoder] = []
    try:
        if given is None:
            for one in exemplar_sets:
                _, made = load_with_encoder(one, None, device)
                if made.fingerprint not in [other.fingerprint for other in found]:
                    found.append(made)
            if not found:
                found = [get_encoder(ENCODER if metrics else CHEAP, device=device)]
                if metrics:
                    notes.append(
                        f"encoder {ENCODER!r}, since none was named: it comes with the package and is small; for "
                        "figures to compare with others', name theirs (--encoder)"
                    )
            return found
        specs = [given] if isinstance(given, str | Mapping | Encoder) else given
        found = [get_encoder(spec, device=device) for spec in specs]
    except DragonError as error:
        problems.append(str(error))
        return []
    prints = [one.fingerprint for one in found]
    problems += [f"encoder {one.name!r} is given twice" for i, one in enumerate(found) if one.fingerprint in prints[:i]]
    for source in exemplar_sets:
        if source.encoder_hash not in prints:
            try:
                source.check_encoder(found[0])
            except ConfigError as error:
                problems.append(str(error))
    return found


def _needs(
    metrics: Sequence[SetMetric],
    references: Mapping[str, object],
    encoders: Sequence[Encoder],
    captions: bool,
    problems: list[str],
    notes: list[str],
    *,
    unread: bool,
) -> None:
    """Metrics that lack what they need, and encoders that a metric passes over. unread: references were given that
    cannot be read, which was said already."""
    folder = any(not isinstance(source, ExemplarSet) for source in references.values())
    joint = [one.name for one in encoders if isinstance(one, JointEncoder)]
    for metric in metrics:
        if "reference" in metric.needs and not references and not unread:
            problems.append(f"metric {metric.name!r} needs exemplars; give --exemplars FOLDER|SET")
        if "reference" in metric.needs and references and not folder:
            prints = [source.encoder_hash for source in references.values() if isinstance(source, ExemplarSet)]
            others = [one.name for one in encoders if one.fingerprint not in prints]
            if others and len(others) < len(encoders):  # where none fits, that is a problem of its own
                notes.append(f"{metric.name} is not computed by {', '.join(others)}: no exemplar set is made by it")
        if "captions" in metric.needs:
            if not captions:
                problems.append(f"metric {metric.name!r} needs captions; give --captions file,caption CSV")
            if encoders and not joint:
                problems.append(
                    f"metric {metric.name!r} needs an encoder that embeds text, and {encoders[0].name!r} does not; "
                    "name a joint one, such as 'mini' or 'clap'"
                )
            elif len(joint) < len(encoders):
                others = [one.name for one in encoders if one.name not in joint]
                notes.append(f"{metric.name} is not computed by {', '.join(others)}, which embed no text")
        for source in references.values():
            if not isinstance(source, ExemplarSet):
                continue
            if "reference frames" in metric.needs and source.features is None:
                problems.append(
                    f"metric {metric.name!r} compares frames, and exemplar set {source.name!r} keeps none; build it "
                    "again (sets keep frames now), or give its folder"
                )
            if "reference clips" in metric.needs:
                problems.append(
                    f"metric {metric.name!r} compares one vector a clip, which exemplar set {source.name!r} does not "
                    "keep; give a folder as reference"
                )


def _labels(encoders: Sequence[Encoder]) -> tuple[str, ...]:
    """Their names, with the fingerprint where two share one."""
    names = [one.name for one in encoders]
    return tuple(f"{o.name}-{o.fingerprint[:6]}" if names.count(o.name) > 1 else o.name for o in encoders)
