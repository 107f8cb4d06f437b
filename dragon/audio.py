"""Audio files and samples: load, save, resample, mix to mono, and tell what is wrong with a clip.

The only file that touches soundfile and soxr (both imported where they are used). Knows no model and no reward.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dragon.errors import AudioError, NotFinite, ShapeError
from dragon.media import Media

if TYPE_CHECKING:
    from soundfile import SoundFile

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
SILENT_PEAK = 1e-4
"""A clip whose largest sample is below this (-80 dB of full scale) counts as silent."""

_HEAD_BYTES = 1 << 12  # of a file: an MP3's first frame
_UNKNOWN_BYTES = 0x7FFF0000  # sizes from here on stand in WAV files whose writer could not know them (a pipe)
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 2_000_000  # Hz; outside, a header is damaged: 1 Hz would be resampled to years
_SOXR_CHANNELS = 1024  # soxr takes many channels in one call, though not arbitrarily many


@dataclass(frozen=True, eq=False)
class Audio:
    """One clip: samples (c, t) float32, nominally in [-1, 1], and its rate in Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return self.samples.shape[-1] / self.rate

    def mono(self) -> np.ndarray:
        """(t,) the mean of the channels."""
        return self.samples.mean(axis=0)


def load(path: str | os.PathLike[str]) -> Audio:
    """The whole file, channels kept, at its own rate.

    Raises:
        AudioError: there is no such file, it is not audio that libsndfile reads, or it ends before its own header says;
            its rate is none of sound, or it does not fit into memory.
    """
    import soundfile

    name = os.fspath(path)
    if not os.path.isfile(path):
        raise AudioError(f"{name}: no such file; expected one of {', '.join(EXTENSIONS)}")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        if not head:
            raise AudioError(f"{name}: empty (0 bytes); write it again")
        # bytes where names are bytes: soundfile encodes text strictly, and a name need not be UTF-8
        with soundfile.SoundFile(path if os.name == "nt" else os.fsencode(path)) as sound:
            rate = int(sound.samplerate)
            if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
                raise AudioError(f"{name}: has a rate of {rate} Hz, so its header is damaged; write it again")
            # in one call, which makes room for what the header announces: of an MP3, soundfile reads other samples in
            # blocks than in one. Room that is not filled costs nothing
            announced = sound.frames / rate
            samples = sound.read(dtype="float32", always_2d=True)
            missing = _cut_short(sound, len(samples), head)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").strip(". ")
        if "not a regular file" in reason:  # what libsndfile says of an MP3 without one whole frame
            reason = "No audio in it"
        raise AudioError(
            f"{name}: cannot be read as audio ({reason}); write it again, or convert it to WAV or FLAC"
        ) from error
    except MemoryError as error:
        raise AudioError(
            f"{name}: announces {announced:,.0f} s, which do not fit into memory; write it again, or cut it"
        ) from error
    except TypeError as error:  # soundfile, of a name that ends in .raw
        raise AudioError(f"{name}: cannot be read as audio (raw samples without a header); write it as WAV") from error
    except (soundfile.SoundFileError, OSError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise AudioError(f"{name}: cannot be read ({told}); check its permissions, or write it again") from error
    if missing:
        raise AudioError(f"{name}: cut short ({missing}); write it again")
    return Audio(np.ascontiguousarray(samples.T), rate)


def _cut_short(sound: SoundFile, read: int, head: bytes) -> str:
    """How much a WAV or MP3 lacks of what its header announces; "" for nothing.

    A FLAC that was cut fails to decode; of an Ogg nothing tells.
    """
    announced = 0
    told = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if told and int(told[1]) < _UNKNOWN_BYTES and int(told[2]) > 0:
        announced = read * int(told[1]) // int(told[2])
    elif b"Xing" in head or b"Info" in head:  # without them the number of an MP3's samples is a guess
        announced = sound.frames if sound.format == "MP3" else 0
    if announced - read < max(1, 0.01 * announced):
        return ""
    return f"{read / sound.samplerate:.2f} s of {announced / sound.samplerate:.2f} s"


def save(path: str | os.PathLike[str], audio: Audio, subtype: str = "PCM_16") -> None:
    """Writes the clip; the extension names the format. Integer subtypes clip what lies outside [-1, 1].

    Raises:
        ShapeError: samples are not (c, t). NotFinite: NaN or infinity. AudioError: the file cannot be written.
    """
    import soundfile

    if audio.samples.ndim != 2:
        raise ShapeError(f"samples of shape {audio.samples.shape} for {os.fspath(path)}; expected (channels, samples)")
    if not np.isfinite(audio.samples).all():
        raise NotFinite(f"{os.fspath(path)}: the samples to write hold NaN or infinity; find the part that made them")
    try:
        soundfile.write(path, audio.samples.T, audio.rate, subtype=subtype)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        raise AudioError(f"{os.fspath(path)}: cannot be written as {subtype} ({error})") from error


def resample(samples: Tensor, rate: int, to_rate: int) -> Tensor:
    """(..., t) at `rate` -> (..., round(t * to_rate / rate)) at `to_rate`, float32, by soxr's HQ filter.

    Each row is resampled by itself, so the result does not depend on its batch. Runs on the CPU and returns to the
    tensor's device; equal rates return the tensor as it is.
    """
    if rate <= 0 or to_rate <= 0:
        raise AudioError(f"cannot resample from {rate} to {to_rate} Hz; expected positive rates")
    if rate == to_rate:
        return samples
    import soxr

    length = max(1, round(samples.shape[-1] * to_rate / rate))
    rows = samples.detach().to("cpu", torch.float32).reshape(-1, samples.shape[-1]).numpy()
    out = np.zeros((len(rows), length), np.float32)
    for start in range(0, len(rows), _SOXR_CHANNELS):
        block = soxr.resample(rows[start : start + _SOXR_CHANNELS].T, rate, to_rate, quality="HQ").T
        # soxr rounds the length down, which loses up to one sample
        out[start : start + len(block), : block.shape[1]] = block[:, :length]
    return torch.from_numpy(out).reshape(*samples.shape[:-1], length).to(samples.device)


def to_mono(tensor: Tensor) -> Tensor:
    """(b, c, t) -> (b, t), the mean of the channels."""
    if tensor.ndim != 3:
        raise ShapeError(f"audio of shape {tuple(tensor.shape)}; expected (b, channels, samples)")
    return tensor.mean(dim=1)


def to_audio(media: Media) -> list[Audio]:
    """The clips of a batch, one by one, on the CPU.

    Raises:
        AudioError: the media has no rate, so it is not audio. ShapeError: it is not (b, c, t).
    """
    if media.rate is None:
        raise AudioError("media without a rate is not audio; expected (b, channels, samples) with a rate in Hz")
    if media.tensor.ndim != 3:
        raise ShapeError(f"audio of shape {tuple(media.tensor.shape)}; expected (b, channels, samples)")
    return [Audio(row, media.rate) for row in media.tensor.detach().to("cpu", torch.float32).numpy()]


def check_finite(media: Media) -> None:
    """Raises NotFinite with the row and prompt of the first clip that holds NaN or infinity."""
    finite = torch.isfinite(media.tensor).flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"clip {row} (prompt {media.prompts[row]!r}) holds NaN or infinity; expected finite samples")


def fault(audio: Audio, min_seconds: float = 0.0) -> str | None:
    """What makes the clip unusable: "empty", "holds NaN or infinity", "silent", "too short"; None if nothing does."""
    if audio.samples.size == 0:
        return "empty"
    if not np.isfinite(audio.samples).all():
        return "holds NaN or infinity"
    if float(np.abs(audio.samples).max()) < SILENT_PEAK:
        return f"silent (no sample above {SILENT_PEAK:g})"
    if audio.seconds < min_seconds:
        # rounded down: 0.999 s must not read as the 1.00 s that were expected
        return f"too short ({math.floor(100 * audio.seconds) / 100:.2f} s, expected at least {min_seconds:g} s)"
    return None


def check(audio: Audio, name: str, min_seconds: float = 0.0) -> None:
    """Raises AudioError with `name` and the fault, if the clip has one."""
    reason = fault(audio, min_seconds)
    if reason is not None:
        raise AudioError(f"{name}: {reason}; replace or remove this clip")


def list_audio(folder: str | os.PathLike[str]) -> list[Path]:
    """All wav, flac, ogg and mp3 files below `folder`, sorted; hidden files and folders are left out.

    Raises:
        AudioError: there is no such folder, or no audio in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise AudioError(f"{root}: no such folder; expected a folder of audio files")
    found = sorted(_walk(root))
    if not found:
        raise AudioError(f"{root}: no audio files; expected at least one of {', '.join(EXTENSIONS)}")
    return found


def _walk(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.suffix.lower() in EXTENSIONS and path.is_file():
            yield path
