"""Notes -> audio, with a sound font; 16 kHz mono, 5.12 s.

Rendered at 32 kHz and decimated with soxr: the synthesiser interpolates its samples without a
low-pass, so rendering straight at 16 kHz would alias.
"""

from __future__ import annotations

import numpy as np
import soxr
from compose import DRUM_CHANNEL, SECONDS, Note, compose, programs
from scipy.signal import lfilter
from world import Clip

RATE = 16_000
SAMPLES = round(SECONDS * RATE)
_INNER_RATE = 32_000
LEAD_LEVEL, BAND_LEVEL, DRUM_LEVEL = 1.0, 0.75, 0.6  # of each stem before mixing: the lead is always heard
LEVEL = {"soft": 0.05, "loud": 0.14}  # root mean square, after everything else


class Renderer:
    """Renders clips with one sound font; world 1 uses other lead timbres (the judge's)."""

    def __init__(self, sound_font: str, world: int = 0) -> None:
        import tinysoundfont

        self._synth = tinysoundfont.Synth(samplerate=_INNER_RATE, gain=-6.0)
        self._font = self._synth.sfload(sound_font)
        self._world = world

    def render(self, clip: Clip) -> np.ndarray:
        """(81920,) float32 in [-1, 1]."""
        table = programs(clip, self._world)
        notes = compose(clip)
        stems = []
        for weight, channels in ((LEAD_LEVEL, {0}), (BAND_LEVEL, set(table) - {0}), (DRUM_LEVEL, {DRUM_CHANNEL})):
            played = [n for n in notes if n.channel in channels]
            if played:
                stem = self._stem(played, table)
                stems.append(stem * (weight / max(float(np.sqrt(np.mean(stem**2))), 1e-6)))
        # detuning by playing the whole clip a little faster or slower: at most 0.5 % of tempo
        inner_rate = _INNER_RATE * 2.0 ** (clip.cents / 1200.0)
        wave = soxr.resample(np.sum(stems, axis=0), inner_rate, RATE, quality="HQ")[:SAMPLES]
        return _finish(wave.astype(np.float64), clip)

    def _stem(self, notes: list[Note], table: dict[int, int]) -> np.ndarray:
        synth = self._synth
        synth.sounds_off()
        self._generate(64)
        for channel, program in table.items():
            synth.program_select(channel, self._font, 0, program)
        synth.program_select(DRUM_CHANNEL, self._font, 128, 0, True)
        events = [(n.start, 1, n) for n in notes]
        events += [(n.end - 0.004, 0, n) for n in notes]  # released just before the same key sounds again
        total = round((SECONDS + 0.1) * _INNER_RATE)
        out, at = np.zeros(total, np.float32), 0
        for time, kind, note in sorted(events, key=lambda e: (e[0], e[1])):
            upto = min(round(time * _INNER_RATE), total)
            if upto > at:
                out[at:upto] = self._generate(upto - at)
                at = upto
            if kind:
                synth.noteon(note.channel, note.key, note.velocity)
            else:
                synth.noteoff(note.channel, note.key)
        if at < total:
            out[at:] = self._generate(total - at)
        return out

    def _generate(self, samples: int) -> np.ndarray:
        stereo = np.frombuffer(bytes(self._synth.generate(samples)), np.float32)
        return stereo.reshape(-1, 2).mean(axis=1)


def _finish(wave: np.ndarray, clip: Clip) -> np.ndarray:
    """Brightness by a gentle shelf, then the clip's level, then a soft limit below 1."""
    pole = np.exp(-2 * np.pi * 900.0 / RATE)
    low = lfilter([1 - pole], [1, -pole], wave)
    wave = low + 0.25 * (wave - low) if clip.brightness == "dark" else low + 1.8 * (wave - low)
    wave = wave * (LEVEL[clip.dynamics] / max(float(np.sqrt(np.mean(wave**2))), 1e-6))
    return np.tanh(wave).astype(np.float32)
