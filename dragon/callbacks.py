"""Callbacks: what looks at every step of a run and may stop it. Two that come with the project, and how all are called.

Knows reports and rewards by their protocols; no trainer, no folder. A callback is a function of the report, or an
object that is called with it; it never changes what is trained.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, variance
from typing import Any

import torch

from dragon.batching import Batching
from dragon.errors import ConfigError, DragonError, PluginError
from dragon.faults import TrainsBadly
from dragon.protocols import Callback, InstanceReward, Report, SetReward
from dragon.record import numbers
from dragon.registry import nearest
from dragon.verdicts import batched, set_scores


def stopping_reason(callbacks: Sequence[Callback], report: Report) -> str:
    """Calls every callback; the first one's reason to stop, empty to go on.

    Raises:
        PluginError: a callback raised something of its own, or returned neither text nor None.
    """
    reasons = []
    for callback in callbacks:
        try:
            reason = callback(report)
        except DragonError:
            raise
        except (Exception, SystemExit) as error:  # a run is left by a reason to stop, not by sys.exit()
            raise PluginError(
                f"callback {_name(callback)} raised {type(error).__name__} at step {report.step}: {error}; mend it, "
                "or go on without it by --callbacks '[]'"
            ) from error
        if not isinstance(reason, str | None):
            raise PluginError(
                f"callback {_name(callback)} returned {reason!r} at step {report.step}; expected None to go on, or "
                "text that says why to stop"
            )
        if reason:
            reasons.append(reason)
    return reasons[0] if reasons else ""


def callbacks_state(callbacks: Sequence[Callback]) -> list[dict[str, Any]]:
    """What each callback remembers, as JSON values: part of a checkpoint.

    Raises:
        PluginError: a callback's `state_dict` raised, or gave something else.
    """
    found = []
    for callback in callbacks:
        with _blamed(callback, "state_dict", "JSON values"):
            state = callback.state_dict() if hasattr(callback, "state_dict") else {}
            found.append({"callback": _name(callback), "state": json.loads(json.dumps(state))})
    return found


def load_callbacks_state(callbacks: Sequence[Callback], states: Sequence[Mapping[str, Any]]) -> None:
    """Gives back what `callbacks_state` took; a callback that was not there, in that place, starts anew.

    Raises:
        PluginError: a callback cannot take it.
    """
    for callback, stored in zip(callbacks, states, strict=False):  # a resumed run may have other callbacks
        if stored["callback"] == _name(callback) and hasattr(callback, "load_state_dict"):
            with _blamed(callback, "load_state_dict", "that it takes what its state_dict gave"):
                callback.load_state_dict(stored["state"])


@contextmanager
def _blamed(callback: Callback, method: str, expected: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise PluginError(
            f"callback {_name(callback)}: {method} failed ({type(error).__name__}: {error}); expected {expected}; mend "
            "it, or go on without it by --callbacks '[]'"
        ) from error


class StopWhen:
    """Stops the run when a figure was above (or below) a bound for `patience` steps in a row.

    figure: a name of `dragon.record.numbers`, which are those in TensorBoard. A step without it, or with NaN, ends the
    row.

    Raises:
        ConfigError: not exactly one bound, or patience below 1; at the first step with an update, an unknown figure.
    """

    def __init__(self, figure: str, above: float | None = None, below: float | None = None, patience: int = 1) -> None:
        if (above is None) == (below is None):
            raise ConfigError(f"above is {above} and below is {below}; expected one of the two")
        if patience < 1:
            raise ConfigError(f"patience is {patience}; expected at least 1")
        self.figure, self.above, self.below, self.patience = figure, above, below, patience
        self._row = 0

    def __call__(self, report: Report) -> str | None:
        found = numbers(report)
        if self.figure not in found and not report.skipped:
            near = nearest(self.figure, found)
            raise ConfigError(
                f"stop_when: no figure of a step is called {self.figure!r}; "
                + (f"did you mean {near}?" if near else f"known: {', '.join(found)}")
            )
        value = found.get(self.figure, math.nan)
        beyond = value > self.above if self.above is not None else value < (self.below or 0.0)
        self._row = self._row + 1 if beyond else 0
        if self._row < self.patience:
            return None
        side = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
        return f"{self.figure} is {value:.4g}, {side} for {self._row} step{'s' if self._row > 1 else ''}"

    def state_dict(self) -> dict[str, Any]:
        """Steps in a row so far."""
        return {"row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting."""
        self._row = int(state["row"])


class RewardHacking:
    """Notices that a reward which is only watched falls while one that is trained on rises: says so, or stops.

    watched: name of a reward in evaluation.watch. Compared are the means of the first and of the last `window` steps;
    a change counts when it is more than `errors` standard errors, estimated from how the steps inside the windows
    differ. With the defaults a steady reward seems to have fallen at about 1 step in 100. It says that the two part,
    not why: a watched reward may itself be wrong.

    Cost: after every step the watched reward scores its prompts_per_step * num_generations clips, while nothing else
    is done. Of several processes the main one scores its own share of them and the others wait: the cost is divided
    by their number, and the watched means are noisier than those of the rewards that are trained on.

    batch_size, reward_timeout: as in training. watch: the rewards of evaluation.watch.

    Raises:
        ConfigError: an unknown watched reward, a window below 2, errors not above 0. When called: what
            `dragon.verdicts.batched` raises, which names the reward.
    """

    def __init__(
        self,
        watched: str,
        window: int = 5,
        errors: float = 3.0,
        stop: bool = False,
        *,
        watch: Mapping[str, InstanceReward | SetReward],
        batch_size: int = 32,
        reward_timeout: float = 0.0,
    ) -> None:
        if watched not in watch:
            near = nearest(watched, watch)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(watch) or 'none'}"
            raise ConfigError(f"watched is {watched!r}, which is no reward of evaluation.watch; {hint}")
        if window < 2 or not errors > 0:
            raise ConfigError(f"window is {window} and errors {errors}; expected at least 2, and above 0")
        self.watched, self.window, self.errors, self.stop = watched, window, errors, stop
        self._reward, self._timeout = watch[watched], reward_timeout
        self._batching = Batching(batch_size, "scoring batch")
        self._seen: list[dict[str, float]] = []  # the first `window` steps and the last
        self._said = False

    def __call__(self, report: Report) -> str | None:
        self._seen.append({**report.rewards, f"watched {self.watched}": self._watched(report)})
        w = self.window
        self._seen = self._seen[:w] + self._seen[w:][-w:]
        if len(self._seen) < 2 * w:
            return None
        changes = {name: self._change([step[name] for step in self._seen]) for name in self._seen[-1]}
        fall = changes.pop(f"watched {self.watched}")
        risen = [name for name, change in changes.items() if change > self.errors]
        if not (risen and fall < -self.errors):
            self._said = False
            return None
        text = (
            f"step {report.step}: {', '.join(risen)} rose while {self.watched!r}, which is only watched, fell "
            f"({-fall:.1f} standard errors over {w} steps): listen whether the reward is being hacked"
        )
        if self.stop:
            return text
        if not self._said:
            warnings.warn(text, TrainsBadly, stacklevel=2)
        self._said = True
        return None

    def state_dict(self) -> dict[str, Any]:
        """Figures of the steps in both windows."""
        return {"seen": [dict(step) for step in self._seen], "said": self._said}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with them."""
        self._seen, self._said = [dict(step) for step in state["seen"]], bool(state["said"])

    def _watched(self, report: Report) -> float:
        """Mean over the clips on which it did not abstain; of a set reward, the score of all of them as one set."""
        rewards = {self.watched: self._reward}
        said = batched(rewards, report.media, report.seeds, self._batching, timeout=self._timeout)
        if isinstance(self._reward, SetReward):
            every = torch.arange(len(report.media))
            return set_scores(self.watched, self._reward, said.features[self.watched], [every])[0]
        return float(said.scores[self.watched].nanmean())

    def _change(self, values: Sequence[float]) -> float:
        """Mean of the later half minus that of the earlier one, in standard errors; NaN where a value is."""
        earlier, later = values[: self.window], values[self.window :]
        if any(map(math.isnan, values)):
            return math.nan
        difference = fmean(later) - fmean(earlier)
        error = math.sqrt((variance(earlier) + variance(later)) / self.window)
        return difference / error if error else math.copysign(math.inf, difference) if difference else 0.0


def _name(callback: Callback) -> str:
    """The class's or function's own name."""
    inner = getattr(callback, "func", callback)  # options are bound by functools.partial
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))
