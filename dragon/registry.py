"""Names -> plug-ins. Knows no plug-in: built-in ones are strings that are imported when asked for.

A name is looked up in this order: what `register` added, the built-in table, the entry points of installed
packages (group "dragon.<kind>"), and else it must be "module:Name" or "path/to/file.py:Name" (relative to the
working directory).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dragon.errors import DragonError, PluginError
from dragon.texts import short

T = TypeVar("T")

BUILT_IN: dict[str, dict[str, str]] = {
    "policy": {
        "mini": "dragon.policy.mini:MiniPolicy",
        "pipeline": "dragon.policy.pipeline:PipelinePolicy",
        "toy": "dragon.policy.toy:ToyPolicy",
        "transitions": "dragon.policy.transitions:TransitionPolicy",
    },
    "family": {
        "AceStepPipeline": "dragon.policy.ace_step:AceStep",
        "AudioLDM2Pipeline": "dragon.policy.audioldm2:AudioLDM2",
        "AudioLDMPipeline": "dragon.policy.musicldm:MusicLDM",
        "LongCatAudioDiTPipeline": "dragon.policy.longcat:LongCat",
        "MusicLDMPipeline": "dragon.policy.musicldm:MusicLDM",
        "StableAudio3Pipeline": "dragon.policy.stable_audio_3:StableAudio3",
        "StableAudioPipeline": "dragon.policy.stable_audio:StableAudio",
        "StableDiffusion3Pipeline": "dragon.policy.stable_diffusion_3:StableDiffusion3",
        "StableDiffusionPipeline": "dragon.policy.stable_diffusion:StableDiffusion",
    },
    "reward": {
        "aesthetics": "dragon.rewards.aesthetics:Aesthetics",
        "clap_score": "dragon.rewards.clap:ClapScore",
        "song_frechet": "dragon.rewards.frechet:SongFrechet",
        "judge_score": "dragon.rewards.judge:JudgeScore",
        "random": "dragon.rewards.control:RandomReward",
        "heard": "dragon.rewards.heard:Heard",
        "set_frechet": "dragon.rewards.set_frechet:SetFrechet",
        "set_mean": "dragon.rewards.set_mean:SetMean",
        "set_kernel": "dragon.rewards.set_kernel:SetKernel",
        "vendi": "dragon.rewards.set_vendi:SetVendi",
        "audiobox": "dragon.rewards.audiobox:Audiobox",
        "centroid": "dragon.rewards.centroid:Centroid",
        "duplicates": "dragon.rewards.duplicates:Duplicates",
        "dynamics": "dragon.rewards.simulator:SimulatorReward",
        "sanity": "dragon.rewards.sanity:AudioSanity",
    },
    "encoder": {
        "clap": "dragon.encoders.clap:Clap",
        "clap-pt": "dragon.encoders.laion:ClapPt",
        "clip": "dragon.encoders.clip:ClipEncoder",
        "dac": "dragon.encoders.dac:DacEncoder",
        "dinov2": "dragon.encoders.dinov2:Dinov2Encoder",
        "encodec": "dragon.encoders.encodec:EncodecEncoder",
        "function": "dragon.encoders.function:FunctionEncoder",
        "hidden": "dragon.encoders.hidden:HiddenEncoder",
        "laion-clap": "dragon.encoders.laion_package:LaionClap",
        "mini": "dragon.encoders.mini:MiniEncoder",
        "mini-codec": "dragon.encoders.codec:CodecEncoder",
        "mini-judge": "dragon.encoders.mini:MiniJudgeEncoder",
        "mini-shared": "dragon.encoders.shared:SharedEncoder",
        "spectral": "dragon.encoders.spectral:Spectral",
        "terminals": "dragon.encoders.transitions:TerminalEncoder",
        "transitions": "dragon.encoders.transitions:TransitionEncoder",
        "vae": "dragon.encoders.vae:VaeEncoder",
        "vggish": "dragon.encoders.vggish:VGGish",
    },
    "contrast": {
        "best_worst": "dragon.contrast.pairs:best_worst",
        "all_pairs": "dragon.contrast.pairs:all_pairs",
        "random_labels": "dragon.contrast.pairs:random_labels",
        "swap": "dragon.contrast.swap:Swap",
    },
    "credit": {
        "influence": "dragon.contrast.credit:Influence",
        "leave_one_out": "dragon.contrast.credit:LeaveOneOut",
    },
    "objective": {
        "dpo": "dragon.objectives.dpo:DPO",
        "kto": "dragon.objectives.kto:KTO",
        "nft": "dragon.objectives.nft:NFT",
        "best_of_k": "dragon.objectives.sft:BestOfK",
    },
    "callback": {
        "reward_hacking": "dragon.callbacks:RewardHacking",
        "stop_when": "dragon.callbacks:StopWhen",
    },
}
"""Kind -> name -> "module:Name"."""

_registered: dict[str, dict[str, object]] = {kind: {} for kind in BUILT_IN}


def register(kind: str, name: str) -> Callable[[T], T]:
    """Decorator that makes a class or function known as `name`.

    Raises:
        PluginError: the kind does not exist, or the name is taken by something else.
    """
    _check_kind(kind)

    def add(plugin: T) -> T:
        if name in BUILT_IN[kind] or _registered[kind].get(name, plugin) is not plugin:
            raise PluginError(f"{kind} {name!r} exists already; register {plugin!r} under another name")
        _registered[kind][name] = plugin
        return plugin

    return add


def resolve(kind: str, name: str) -> Any:
    """The class or function behind a name.

    Raises:
        PluginError: no such name (with the nearest ones), or its module cannot be imported (with the reason).
    """
    _check_kind(kind)
    if name in _registered[kind]:
        return _registered[kind][name]
    if name in BUILT_IN[kind]:
        return _from_text(kind, BUILT_IN[kind][name])
    for point in entry_points(group=f"dragon.{kind}"):
        if point.name == name:
            return _from_text(kind, point.value)
    if ":" in name:
        return _from_text(kind, name)
    near = nearest(name, available(kind))
    raise PluginError(
        f"no {kind} is called {name!r}{f'; did you mean {near}?' if near else ';'} "
        f"known: {', '.join(available(kind))}; or give module:Name, or file.py:Name"
    )


def available(kind: str) -> dict[str, str]:
    """Name -> where it comes from, for every registered, built-in and installed plug-in of a kind, sorted."""
    _check_kind(kind)
    found = {point.name: point.value for point in entry_points(group=f"dragon.{kind}")}
    found |= BUILT_IN[kind]
    for name, plugin in _registered[kind].items():
        found[name] = f"{getattr(plugin, '__module__', '?')}:{getattr(plugin, '__qualname__', plugin)}"
    return dict(sorted(found.items()))


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of `names`, quoted and joined by "or"; empty if none is similar."""
    close = difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)
    return " or ".join(repr(c) for c in close)


def _check_kind(kind: str) -> None:
    if kind not in BUILT_IN:
        near = nearest(kind, BUILT_IN)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(BUILT_IN)}"
        raise PluginError(f"no kind of plug-in is called {kind!r}; {hint}")


def _from_text(kind: str, text: str) -> Any:
    place, _, attribute = text.rpartition(":")
    if not place or not attribute:
        raise PluginError(f"{kind} {text!r} is not module:Name or file.py:Name")
    module = _import_file(kind, place) if place.endswith(".py") else _import_module(kind, place)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = nearest(part, [n for n in vars(module) if not n.startswith("_")])
            raise PluginError(
                f"{kind} {text!r}: {place} holds no {part!r}" + (f"; did you mean {near}?" if near else "")
            )
        found = getattr(found, part)
    return found


def _import_module(kind: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except DragonError:
        raise
    except ModuleNotFoundError as error:
        # a module beside the user: an installed command, unlike `python -m`, does not look there
        file = Path(name.replace(".", "/") + ".py")
        if error.name == name.split(".")[0] and file.is_file():
            return _import_file(kind, str(file))
        raise PluginError(f"{kind} module {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    except (Exception, SystemExit) as error:  # a plug-in's own fault, which its author must read; never swallowed
        raise PluginError(f"{kind} module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _import_file(kind: str, place: str) -> ModuleType:
    if not os.path.isfile(os.path.expanduser(place)):  # pathlib would raise for a name that no file can have
        raise PluginError(f"{kind} file {short(place)} does not exist (looked in {os.getcwd()})")
    path = Path(place).expanduser().resolve()
    # one module a file, under a name that no other module can have: `rewards.py` must not become `rewards`
    name = f"dragon_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{kind} file {place!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except DragonError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"{kind} file {place!r} cannot be imported: {type(error).__name__}: {error}") from error
    return module
