"""The study's prompts: `python recipes/stable_audio_study/prompts.py` writes prompts_train.txt and prompts_test.txt.

Each is a style, an instrument in the lead, a mood and a tempo. A (style, instrument) pair of the test never stands in
training, so what is measured is no memory of prompts.
"""

from __future__ import annotations

import random
from pathlib import Path

HERE = Path(__file__).parent
STYLES = (
    "ambient", "baroque", "blues", "bossa nova", "country", "disco", "drum and bass", "dub", "flamenco", "folk",
    "funk", "gospel", "hip hop", "house", "jazz", "klezmer", "latin", "lo-fi", "metal", "minimal techno", "orchestral",
    "reggae", "rock", "romantic classical", "soul", "synthwave", "trance", "waltz",
)  # fmt: skip
LEADS = (
    "piano", "acoustic guitar", "electric guitar", "violin", "cello", "flute", "clarinet", "saxophone", "trumpet",
    "harp", "marimba", "accordion", "organ", "analog synthesizer", "string section", "brass section",
)  # fmt: skip
MOODS = ("calm", "bright", "dark", "tense", "playful", "melancholic", "heroic", "dreamy")
TEMPI = ("slow, 70 BPM", "medium tempo, 100 BPM", "fast, 130 BPM", "very fast, 160 BPM")
TRAIN, TEST, SEED = 256, 128, 20_261


def prompts() -> tuple[list[str], list[str]]:
    """Training and test prompts; the same at every call."""
    draw = random.Random(SEED)
    pairs = [(style, lead) for style in STYLES for lead in LEADS]
    draw.shuffle(pairs)
    lines = [f"{style}, {lead} lead, {draw.choice(MOODS)}, {draw.choice(TEMPI)}" for style, lead in pairs]
    return lines[:TRAIN], lines[TRAIN : TRAIN + TEST]


if __name__ == "__main__":
    for name, lines in zip(("train", "test"), prompts(), strict=True):
        (HERE / f"prompts_{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
