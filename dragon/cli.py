"""The command line: arguments to one call of the library, and errors to one message and an exit status.

    0 done   2 the user's mistake, one message on standard error   130 interrupted after saving   1 anything else

Nothing heavy is imported before a command is known; each command imports what it needs.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from dragon.errors import ConfigError, DragonError

if TYPE_CHECKING:
    from dragon.config import TrainConfig


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
    warnings.showwarning = _show_warning
    try:
        if command not in _COMMANDS:
            from dragon.registry import nearest

            near = nearest(command, _COMMANDS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(_COMMANDS)}"
            raise ConfigError(f"no command is called {command!r}; {hint}")
        _stop_on_sigterm()
        _COMMANDS[command](rest)
    except DragonError as error:
        print(f"dragon {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"dragon {command}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _train(arguments: list[str]) -> None:
    """Tune a model toward rewards: dragon train CONFIG.yaml [--key value ...]"""
    place, flags = _positional(arguments, "configuration", "dragon train CONFIG.yaml [--key value ...]")
    from dragon.config import TrainConfig, from_dict, read_yaml, to_yaml
    from dragon.loading import parse

    values = read_yaml(place) if place else {}  # to ask for help none is needed
    given, problems = parse(TrainConfig, values)
    if problems or given is None:
        from dragon.build import plugin_problems

        from_dict(values, [plugin_problems], place)  # says these problems, and all others
    config = _with_flags(given or TrainConfig(), flags, "dragon train CONFIG.yaml")

    from dragon import build, run, runfolder

    config = from_dict(dataclasses.asdict(config), [build.plugin_problems], place)
    if config.dry_run:
        runfolder.check_folder(config, print)
        for line in run.notices(build.build_run(config)):
            print(line)
        print(to_yaml(config), end="")
        return
    with _Progress() as progress:
        result = run.train(config, say=progress.say, progress=progress)
    _print_evaluation(result, Path(config.output_dir))


def _sample(arguments: list[str]) -> None:
    """Hear a model: dragon sample RUN|POLICY --prompt TEXT ..."""
    model, flags = _positional(arguments, "model", "dragon sample RUN_FOLDER_OR_POLICY --prompt TEXT")
    from dragon import samples

    wanted = _parsed(samples.SampleRequest, flags, "dragon sample RUN|POLICY")
    for path in samples.write_samples(model, wanted):
        print(path, flush=True)


def _evaluate(arguments: list[str]) -> None:
    """Measure a run's tuned weights again: dragon evaluate RUN [--evaluation.prompts 64 ...]"""
    place, flags = _positional(arguments, "run folder", "dragon evaluate RUN [--evaluation.prompts 64 ...]")
    from dragon import build, run
    from dragon.config import TrainConfig, from_dict

    # to ask for help no run is needed
    given = dataclasses.replace(run.read_run(Path(place)), output_dir=place) if place else TrainConfig()
    config = _with_flags(given, flags, "dragon evaluate RUN")
    config = from_dict(dataclasses.asdict(config), [build.plugin_problems], place)
    folder = Path(place)
    with _Progress() as progress:
        result = run.reevaluate(config, folder, say=progress.say, progress=progress)
    _print_evaluation(result, Path(config.output_dir))


@dataclass(frozen=True)
class BuildExemplars:
    """Make an exemplar set of the audio files below a folder, or of the captions in a .txt, .csv or .jsonl file."""

    name: str = ""
    """Name of the set; default: that of the folder or file."""
    out: str = ""
    """File to write; default: NAME.safetensors here. One that exists is refused."""
    encoder: str = ""
    """Whose frames: a registered name, or module:Name; default: mini-codec for audio, mini-shared for captions."""
    seconds: float = 5.12
    """Audio files are cut into windows of this length."""
    skip_bad: bool = False
    """Leave out audio files that cannot be used instead of stopping."""
    source: str = ""
    """Where the audio or the captions come from; kept in the set."""
    licence: str = ""
    """Its licence; kept in the set."""
    device: str = "cpu"


def _exemplars(arguments: list[str]) -> None:
    """Reference sets of audio or captions: dragon exemplars build FOLDER|CAPTIONS | list | show NAME"""
    action, *rest = arguments or [""]
    if action == "build":
        _build_exemplars(rest)
    elif action == "list" and not rest:
        from dragon.exemplars import sets

        for name in sets.available():
            found = sets.load(name)
            what = "captions" if found.modality == "text" else "clips"
            print(f"{name:28} {found.encoder:12} {found.count:6} {what:9} {found.licence}  {found.source}")
    elif action == "show" and len(rest) == 1:
        from dragon.exemplars import sets

        found = sets.load(rest[0])
        for key in ("name", "version", "modality", "encoder", "encoder_hash", "count", "frames", "size"):
            print(f"{key:14} {getattr(found, key)}")
        print(f"{'kept frames':14} {0 if found.features is None else len(found.features)}")
        for key in ("source", "licence", "bandwidth", "self_distance", "settings"):
            print(f"{key:14} {getattr(found, key)}")
    else:
        raise ConfigError(
            f"{' '.join(arguments) or 'no action'!r}; expected: dragon exemplars build FOLDER|CAPTIONS.txt "
            "[--encoder NAME ...], "
            "dragon exemplars list, or dragon exemplars show NAME"
        )


def _build_exemplars(arguments: list[str]) -> None:
    usage = "dragon exemplars build FOLDER|CAPTIONS.txt [--name NAME --encoder NAME ...]"
    place, flags = _positional(arguments, "folder or file of captions", usage)
    wanted = _parsed(BuildExemplars, flags, "dragon exemplars build FOLDER|CAPTIONS.txt")
    of_text = Path(place).suffix in (".txt", ".csv", ".jsonl") and not Path(place).is_dir()
    name = wanted.name or (Path(place).stem if of_text else Path(place).resolve().name)
    target = Path(wanted.out or f"{name}.safetensors")
    if target.exists():
        raise ConfigError(f"{str(target)!r} exists already; remove it, or give another --out")
    if not of_text and not Path(place).is_dir():
        raise ConfigError(f"no folder {place!r}; give one with audio files, or a .txt, .csv or .jsonl file of captions")
    captions = _captions(place) if of_text else []
    from dragon.build import build
    from dragon.config import Spec
    from dragon.exemplars.collect import build_from_captions, build_from_folder

    encoder_name = wanted.encoder or ("mini-shared" if of_text else "mini-codec")
    encoder = build("encoder", Spec(encoder_name), device=wanted.device)
    if of_text:
        source = wanted.source or Path(place).name
        made = build_from_captions(captions, encoder, name, source=source, licence=wanted.licence)
    else:
        made = build_from_folder(
            place,
            encoder,
            name,
            seconds=wanted.seconds,
            skip_bad=wanted.skip_bad,
            source=wanted.source,
            licence=wanted.licence,
        )
    made.save(target)
    what = "captions" if of_text else "clips"
    print(f"wrote {target}: {made.count} {what}, {made.frames} frames of {made.encoder}")


def _captions(place: str) -> list[str]:
    """The captions of a file: its column `caption`, or else what a prompt file holds."""
    import csv
    import io
    import json

    from dragon.prompts import load_prompts

    path = Path(place)
    if path.suffix != ".txt" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix == ".csv":
                rows = list(csv.DictReader(io.StringIO(text, newline="")))
            else:
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ConfigError(
                f"captions {place!r} cannot be read ({error}); expected UTF-8 text, in .jsonl one object a line"
            ) from error
        if rows and all(isinstance(row, dict) and "caption" in row for row in rows):
            return [str(row["caption"] or "") for row in rows]
    return list(load_prompts(place).prompts)


def _plugins(arguments: list[str]) -> None:
    """List policies, rewards, encoders, contrasts and objectives by name: dragon plugins [KIND]"""
    from dragon.registry import BUILT_IN, available

    for kind in arguments or BUILT_IN:
        names = available(kind)
        print(f"{kind}")
        for name, place in names.items():
            print(f"  {name:20} {place}")


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "exemplars": _exemplars,
    "plugins": _plugins,
}


def _usage() -> str:
    lines = [f"  {name:10} {command.__doc__}" for name, command in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: dragon COMMAND ...   (dragon COMMAND --help tells more; dragon --version)",
            "",
            "Tune media diffusion models toward rewards of clips and of whole sets of clips.",
            "",
            *lines,
        ]
    )


def _positional(arguments: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """The one argument without a flag, which stands first or (for a YAML file) last, and the others."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if len(arguments) > 1 and arguments[-1].endswith((".yaml", ".yml")):
        return arguments[-1], arguments[:-1]
    if any(flag in ("-h", "--help") for flag in arguments):
        return "", arguments
    raise ConfigError(f"no {what} given; expected: {usage}")


def _with_flags(config: TrainConfig, flags: list[str], program: str) -> TrainConfig:
    """The configuration with flags winning over it; lists and options are given as YAML."""
    return _parsed(type(config), _flags_of_bools(flags), program, default=config)


def _parsed(schema: type[Any], arguments: list[str], program: str, default: Any = None) -> Any:
    """An instance of a dataclass from flags, by tyro; its own message and exit status 2 for a wrong flag."""
    import tyro
    import yaml

    from dragon.config import RewardSpec, Spec
    from dragon.loading import plain

    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def as_yaml(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        """Options and lists of plug-ins have no flags of their own: they are written as in the file."""
        # tyro hands over typing.Tuple[...] for some defaults, which does not equal tuple[...]
        of_specs = get_origin(info.type) is tuple and get_args(info.type) in ((RewardSpec, ...), (Spec, ...))
        if not of_specs and info.type not in (dict[str, object], Spec | None):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="YAML",
            instance_from_str=lambda words: yaml.safe_load(words[0]),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [yaml.safe_dump(plain(value), default_flow_style=True).strip()],
        )

    keywords = {} if default is None else {"default": default}
    with rules:
        return tyro.cli(schema, args=arguments, prog=program, use_underscores=True, **keywords)


def _flags_of_bools(flags: list[str]) -> list[str]:
    """`--dry_run true` as `--dry_run`, which is the only form that tyro takes."""
    if "--dry_run" in flags:
        place = flags.index("--dry_run")
        if flags[place + 1 : place + 2] in (["true"], ["True"]):
            return [*flags[: place + 1], *flags[place + 2 :]]
        if flags[place + 1 : place + 2] in (["false"], ["False"]):
            return [*flags[:place], "--no_dry_run", *flags[place + 2 :]]
    return flags


class _Progress:
    """Messages, and one line that tells how far an evaluation is."""

    def __enter__(self) -> _Progress:
        self._open = False
        return self

    def __exit__(self, *error: object) -> None:
        self._end_line()

    def say(self, text: str) -> None:
        self._end_line()
        print(text, flush=True)

    def __call__(self, side: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r  {side}: {done} of {total} samples", end="", file=sys.stderr, flush=True)
            self._open = True
            if done == total:
                self._end_line()

    def _end_line(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False


def _print_evaluation(result: Any, folder: Path) -> None:
    """The table of an evaluation, and where to look and listen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.prompts} held-out prompts, {result.samples_per_prompt} independent samples a side")
    for column in ("reward", "base", "tuned", "gain / sd", "win rate", "95 % interval"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, found in result.rewards.items():
        table.add_row(
            name if found.trained_on else f"{name} (only watched)",
            f"{found.base:.4g}",
            f"{found.tuned:.4g}",
            "" if found.gain_sd is None else f"{found.gain_sd:+.2f}",
            f"{100 * found.win_rate:.1f} %",
            f"{100 * found.low:.1f} - {100 * found.high:.1f} %",
        )
    if result.diversity:
        table.add_row("diversity", f"{result.diversity['base']:.4g}", f"{result.diversity['tuned']:.4g}", "", "", "")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    page = folder / "listen.html"
    print(f"listen:  {page if page.exists() else folder / 'samples'}")
    print(f"numbers: {folder / 'evaluation.json'}")
    print(f"weights: {folder / 'final'}")


def _stop_on_sigterm() -> None:
    """A cluster's notice to stop is handled like Ctrl-C: the last whole step is saved."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """One line, without the source line that Python adds."""
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)
