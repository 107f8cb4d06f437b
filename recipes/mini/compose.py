"""Clip -> notes: a small composer of our own, so that no score's licence matters.

A work is a chord progression and a melodic motif drawn from its seed; the style brings the
accompaniment, the metre and the drums. Every clip starts on a downbeat and marks every beat, so
that five seconds are enough to hear the tempo. Knows no audio.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from world import Clip

SECONDS = 5.12
DRUM_CHANNEL = 9

LEAD_PROGRAMS = {  # General MIDI, from 0: (main world, the judge's other timbre)
    "piano": (0, 1),
    "guitar": (24, 25),
    "violin": (40, 41),
    "flute": (73, 74),
    "trumpet": (56, 59),
    "saxophone": (65, 66),
    "organ": (16, 17),
    "synth": (81, 80),
    "marimba": (12, 11),
    "accordion": (21, 23),
}
LEAD_TONIC = {"low": 48, "high": 60}  # the lowest key of a melody in C; low melodies in F and G start below it
SUSTAINED = {"violin", "flute", "trumpet", "saxophone", "organ", "synth", "accordion"}

PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (1, 4, 0, 0), (0, 3, 0, 4), (0, 2, 3, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 4), (0, 3, 6, 2), (0, 5, 3, 4), (0, 4, 0, 3)),
}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# rhythm cells of one bar of four (or three) beats, by density
CELLS = {
    ("sparse", 4): ((2, 2), (2, 1, 1), (1, 1, 2), (3, 1)),
    ("busy", 4): ((0.5,) * 8, (0.5, 0.5, 1, 0.5, 0.5, 1), (1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5), (0.25,) * 4 + (0.5,) * 6),
    ("sparse", 3): ((3,), (2, 1), (1, 2)),
    ("busy", 3): ((0.5,) * 6, (1, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 1, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Note:
    """One note: seconds, MIDI key and velocity."""

    start: float
    end: float
    channel: int
    key: int
    velocity: int


@dataclass(frozen=True)
class Part:
    """An accompaniment part: a loop of (beat, length, what, velocity).

    what: "R" root, "F" fifth, "C" whole chord, or a number: that chord tone, counted upwards.
    """

    program: int
    octave: int
    loop: tuple[tuple[float, float, str, int], ...]


@dataclass(frozen=True)
class Style:
    """The band of a style: metre (beats a bar), parts, and a drum loop (beat, key, velocity) of one bar."""

    metre: int
    parts: tuple[Part, ...]
    drums: tuple[tuple[float, int, int], ...]


def _every(
    step: float, beats: float, what: str, velocity: int, length: float | None = None, offset: float = 0.0
) -> tuple[tuple[float, float, str, int], ...]:
    count = int(round((beats - offset) / step))
    return tuple((offset + i * step, length or step, what, velocity) for i in range(count))


KICK, SNARE, RIM, HAT, OPEN, RIDE, SHAKER, CLAP = 36, 38, 37, 42, 46, 51, 70, 39

STYLES: dict[str, Style] = {
    "ballad": Style(
        4,
        (
            Part(0, 48, tuple((i * 0.5, 0.6, str((0, 1, 2, 3, 4, 3, 2, 1)[i]), 72 if i % 2 else 84) for i in range(8))),
            Part(32, 36, ((0, 2, "R", 90), (2, 2, "F", 80))),
        ),
        ((0, KICK, 90), (1, RIM, 70), (2, KICK, 85), (3, RIM, 75), *((i * 1.0, HAT, 55) for i in range(4))),
    ),
    "jazz": Style(
        4,
        (
            Part(32, 36, ((0, 0.9, "R", 96), (1, 0.9, "1", 88), (2, 0.9, "F", 94), (3, 0.9, "1", 88))),
            Part(4, 48, ((0.66, 0.3, "C", 74), (2.66, 0.3, "C", 78))),
        ),
        (
            (0, RIDE, 88),
            (1, RIDE, 92),
            (1.66, RIDE, 70),
            (2, RIDE, 88),
            (3, RIDE, 92),
            (3.66, RIDE, 70),
            (1, HAT, 70),
            (3, HAT, 70),
        ),
    ),
    "rock": Style(
        4,
        (Part(30, 40, _every(0.5, 4, "P", 92, 0.45)), Part(34, 28, _every(0.5, 4, "R", 98, 0.45))),
        (
            (0, KICK, 112),
            (1, SNARE, 112),
            (2, KICK, 110),
            (2.5, KICK, 100),
            (3, SNARE, 112),
            *((i * 0.5, HAT, 80) for i in range(8)),
        ),
    ),
    "disco": Style(
        4,
        (
            Part(38, 36, tuple((i * 0.5, 0.35, "R" if i % 2 == 0 else "O", 98) for i in range(8))),
            Part(48, 60, ((0, 4, "C", 66),)),
            Part(62, 60, _every(1, 4, "C", 76, 0.3, 0.5)),
        ),
        (
            *((i * 1.0, KICK, 115) for i in range(4)),
            (1, CLAP, 95),
            (3, CLAP, 95),
            *((i + 0.5, OPEN, 82) for i in range(4)),
        ),
    ),
    "bossa": Style(
        4,
        (
            Part(24, 50, ((0, 0.8, "C", 82), (1.5, 0.4, "C", 76), (2.5, 0.4, "C", 80), (3.5, 0.4, "C", 72))),
            Part(32, 36, ((0, 1.4, "R", 92), (1.5, 0.4, "F", 80), (2, 1.4, "F", 90), (3.5, 0.4, "R", 80))),
        ),
        (
            (0, RIM, 88),
            (1.5, RIM, 86),
            (3, RIM, 86),
            *((i * 0.5, SHAKER, 62) for i in range(8)),
            (0, KICK, 80),
            (2, KICK, 80),
        ),
    ),
    "reggae": Style(
        4,
        (
            Part(27, 55, _every(1, 4, "C", 96, 0.25, 0.5)),
            Part(33, 33, ((0, 0.9, "R", 108), (1, 0.4, "R", 96), (2, 0.9, "F", 104), (3, 0.4, "1", 96))),
        ),
        ((2, KICK, 112), (2, RIM, 104), *((i * 0.5, HAT, 68 if i % 2 else 84) for i in range(8))),
    ),
    "classical": Style(
        4,
        (
            Part(48, 55, tuple((i * 0.5, 0.45, str((0, 2, 1, 2, 0, 2, 1, 2)[i]), 78) for i in range(8))),
            Part(42, 40, ((0, 2, "R", 84), (2, 2, "F", 80))),
            Part(45, 60, _every(1, 4, "C", 74, 0.3)),
        ),
        ((0, 47, 92), (1, 47, 60), (2, 47, 80), (3, 47, 60)),
    ),
    "hymn": Style(
        4,
        (
            Part(19, 50, _every(1, 4, "C", 86, 0.8)),
            Part(19, 36, _every(1, 4, "R", 92, 0.8)),
            Part(52, 55, ((0, 4, "C", 70),)),
        ),
        ((0, KICK, 80), (1, 54, 74), (2, KICK, 76), (3, 54, 78)),
    ),
    "march": Style(
        4,
        (
            Part(58, 36, ((0, 0.6, "R", 108), (1, 0.4, "-", 0), (2, 0.6, "F", 104))),
            Part(61, 55, ((1, 0.4, "C", 92), (3, 0.4, "C", 92))),
        ),
        (
            (0, KICK, 108),
            (2, KICK, 104),
            *(
                (b, SNARE, v)
                for b, v in ((0.5, 70), (1, 100), (1.5, 70), (1.75, 70), (2.5, 70), (3, 100), (3.5, 80), (3.75, 70))
            ),
        ),
    ),
    "waltz": Style(
        3,
        (
            Part(32, 36, ((0, 0.9, "R", 104),)),
            Part(48, 55, ((1, 0.45, "C", 82), (2, 0.45, "C", 80))),
            Part(0, 60, ((1, 0.4, "C", 70), (2, 0.4, "C", 68))),
        ),
        ((0, KICK, 98), (1, 42, 76), (2, 42, 72)),
    ),
    "lullaby": Style(
        4,
        (
            Part(10, 72, tuple((i * 0.5, 0.7, str((0, 2, 4, 2, 1, 3, 4, 3)[i]), 84) for i in range(8))),
            Part(46, 48, ((0, 2, "R", 78), (2, 2, "F", 74))),
        ),
        ((0, 81, 76), (1, 80, 66), (2, 80, 72), (3, 80, 66)),
    ),
    "funk": Style(
        4,
        (
            Part(
                36,
                36,
                (
                    (0, 0.4, "R", 112),
                    (0.75, 0.2, "O", 98),
                    (1.5, 0.3, "R", 104),
                    (2.25, 0.2, "F", 98),
                    (2.75, 0.2, "O", 98),
                    (3.5, 0.3, "R", 104),
                ),
            ),
            Part(
                7,
                55,
                (
                    (0.25, 0.15, "C", 84),
                    (0.5, 0.2, "C", 92),
                    (1.25, 0.2, "C", 84),
                    (1.75, 0.15, "C", 92),
                    (2.5, 0.2, "C", 92),
                    (3.25, 0.2, "C", 84),
                    (3.75, 0.15, "C", 84),
                ),
            ),
        ),
        (
            (0, KICK, 112),
            (0.75, KICK, 96),
            (1, SNARE, 112),
            (1.75, SNARE, 70),
            (2.5, KICK, 108),
            (3, SNARE, 112),
            *((i * 0.25, HAT, 62 + 18 * (i % 2 == 0)) for i in range(16)),
        ),
    ),
}


def compose(clip: Clip) -> list[Note]:
    """All notes of a clip, in seconds, from its first downbeat on."""
    rng = random.Random(f"work {clip.work}")
    style, beat = STYLES[clip.style], 60.0 / clip.bpm
    bars = int(SECONDS / beat / style.metre) + 1
    # chords last half a bar where bars are long, so that five seconds hold a progression
    span = style.metre / 2 if style.metre == 4 and clip.tempo != "fast" else float(style.metre)
    degrees = rng.choice(PROGRESSIONS[clip.mode])
    chords = [(i * span, degrees[i % len(degrees)]) for i in range(int(bars * style.metre / span))]

    def chord_at(position: float) -> int:
        return chords[min(int(position / span + 1e-9), len(chords) - 1)][1]

    notes: list[Note] = []
    for channel, part in enumerate(style.parts, start=1):
        for bar in range(bars):
            for offset, length, what, velocity in part.loop:
                position = bar * style.metre + offset
                for key in _keys(clip, chord_at(position), what, part.octave):
                    level = velocity + rng.randint(-5, 5)
                    notes.append(Note(position * beat, (position + length) * beat, channel, key, level))
    notes += _melody(clip, rng, bars, style.metre, beat, chord_at)
    if clip.drums:
        for bar in range(bars):
            for offset, key, velocity in style.drums:
                start = (bar * style.metre + offset) * beat
                notes.append(Note(start, start + 0.1, DRUM_CHANNEL, key, velocity + rng.randint(-4, 4)))
    scale = {"soft": 0.68, "loud": 1.08}[clip.dynamics]
    return [
        Note(n.start, n.end, n.channel, n.key, max(1, min(127, round(n.velocity * scale))))
        for n in notes
        if n.start < SECONDS
    ]


def programs(clip: Clip, world: int = 0) -> dict[int, int]:
    """Channel -> General MIDI program; world 1 takes the judge's other lead timbres."""
    table = {0: LEAD_PROGRAMS[clip.lead][world]}
    table.update({channel: part.program for channel, part in enumerate(STYLES[clip.style].parts, start=1)})
    return table


def _interval(clip: Clip, degree: int, steps: int) -> int:
    """Semitones from a scale degree up to the one `steps` scale steps above it."""
    octaves, end = divmod(degree % 7 + steps, 7)
    scale = SCALES[clip.mode]
    return 12 * octaves + scale[end] - scale[degree % 7]


def _keys(clip: Clip, degree: int, what: str, lowest: int) -> list[int]:
    """Keys of a part of a chord whose root lies in the octave that starts at `lowest`."""
    root = lowest + (clip.tonic + SCALES[clip.mode][degree % 7] - lowest) % 12
    if what == "-":
        return []
    if what == "R":
        return [root]
    if what == "O":
        return [root + 12]
    if what == "F":
        return [root + _interval(clip, degree, 4)]
    if what == "P":
        return [root, root + _interval(clip, degree, 4), root + 12]
    if what == "C":
        return [root + _interval(clip, degree, 2 * i) for i in range(3)]
    third, octave = int(what) % 3, int(what) // 3
    return [root + _interval(clip, degree, 2 * third) + 12 * octave]


def _melody(clip: Clip, rng: random.Random, bars: int, metre: int, beat: float, chord_at) -> list[Note]:
    """A motif of one bar, repeated on each bar's chord: chord tones on the beats, scale steps between."""
    cell = rng.choice(CELLS[clip.density, metre])
    steps = [rng.choice((-2, -1, -1, 1, 1, 2)) for _ in cell]
    tonic = LEAD_TONIC[clip.register] + (clip.tonic if clip.register == "high" or not clip.tonic else clip.tonic - 12)
    notes: list[Note] = []
    degree = rng.choice((2, 4, 7))
    for bar in range(bars):
        position = float(bar * metre)
        varied = bar % 4 == 3
        for i, length in enumerate(cell):
            step = rng.choice((-2, -1, 1, 2)) if varied else steps[i]
            degree = min(max(degree + step, 0), 11)
            if position == int(position):  # on a beat: the nearest chord tone
                root = chord_at(position)
                degree = min(range(12), key=lambda d: (abs(d - degree) + 100 * ((d - root) % 7 not in (0, 2, 4)), d))
            held = 0.95 if clip.lead in SUSTAINED else 1.1
            velocity = 112 if position % metre == 0 else 100
            notes.append(
                Note(
                    position * beat, (position + length * held) * beat, 0, tonic + _interval(clip, 0, degree), velocity
                )
            )
            position += length
    return notes
