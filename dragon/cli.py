"""The command line: arguments to one call of the library, and errors to one message and an exit status.

    0 done   2 the user's mistake, one message on standard error   130 interrupted after saving
    141 nobody reads the output any more   1 anything else

Nothing heavy is imported before a command is known; each command imports what it needs. Of several processes that
share a run the main one speaks; another says only what the main one cannot know.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from dragon.errors import ConfigError, DragonError, OtherProcess
from dragon.launch import launched_count, launched_rank, local_rank
from dragon.texts import short, shown

COMMANDS = {
    "train": "Tune a model toward rewards: dragon train CONFIG.yaml [--key value ...]",
    "plan": "What will a run take? Samples, time, memory, disk: dragon plan CONFIG.yaml [--hours N] [--json]",
    "sample": "Hear a model: dragon sample RUN|POLICY --prompt TEXT ...",
    "evaluate": "Measure a run's tuned weights again: dragon evaluate RUN [--evaluation.prompts 64 ...]",
    "score": "Measure folders of audio: dragon score FOLDER... --exemplars FOLDER|SET [--metrics fad kad ...]",
    "exemplars": "Reference sets of audio or captions: dragon exemplars build|split|list|show|compare ...",
    "check": "Does a reward or a model keep its contract? dragon check [policy] NAME|file.py:Name [--options YAML]",
    "upsample": "More transitions for RL: dragon upsample IN --out OUT.npz --samples N [--preset tiny] [--env ID]",
    "aesthetics": "Learn what people like from ratings or votes: dragon aesthetics fit RATINGS.csv | show HEAD",
    "plugins": "List policies, rewards, encoders, contrasts and objectives by name: dragon plugins [KIND]",
}
"""Name -> what it is for; `run` of dragon/commands/NAME.py does it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from dragon import __version__

        print(f"dragon {__version__}")
        return 0
    command, *rest = arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text, a terminal know few letters
    warnings.showwarning = _show_warning
    try:
        if command not in COMMANDS:
            from dragon.registry import nearest

            near = nearest(command, COMMANDS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(COMMANDS)}"
            raise ConfigError(f"no command is called {short(command)}; {hint}")
        _stop_on_sigterm()
        import_module(f"dragon.commands.{command}").run(rest)
        sys.stdout.flush()
    except OtherProcess as error:
        if launched_rank() == 0:  # the others have nothing to add
            print(f"dragon {command}: {shown(error)}", file=sys.stderr)
        return 1
    except DragonError as error:
        if not _said_elsewhere(error):
            print(f"dragon {command}: {_by_whom()}{shown(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read the output has gone, as in `dragon plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its exit
        return 141  # as the shell calls a process that SIGPIPE ended
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        text = f"{error.strerror}: {short(error.filename)}; make room, or choose a place that you may use"
        print(f"dragon {command}: {_by_whom()}{text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        if launched_count() > 1:  # a launcher sends a second signal while this process ends
            _ignore_signals()
        if launched_rank() == 0:
            print(f"dragon {command}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


_REFUSED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
)
"""What the system says where there is no room, no permission, or no such name to be had."""


def _by_whom() -> str:
    return f"process {launched_rank()}: " if launched_rank() else ""


def _said_elsewhere(error: DragonError) -> bool:
    """Whether another process says it: a mistake in a configuration is read by all of a machine."""
    return isinstance(error, ConfigError) and local_rank() > 0


def _usage() -> str:
    lines = [f"  {name:10} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dragon COMMAND ...   (dragon COMMAND --help tells more; dragon --version)",
            "",
            "Tune media diffusion models toward rewards of clips and of whole sets of clips.",
            "",
            *lines,
        ]
    )


def _stop_on_sigterm() -> None:
    """A cluster's notice to stop is handled like Ctrl-C: the last whole step is saved."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _ignore_signals() -> None:
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """One line, without the source line that Python adds."""
    if issubclass(category, UserWarning):
        print(f"warning: {shown(message)}", file=sys.stderr)
