"""The world of the built-in model: what a clip can be, and what a caption says of it.

Every clip is drawn from these attributes, and they are kept with it, so every claim about a model
trained here can be checked against the truth. Captions reveal a random part of the attributes;
what they hide, a reward may move. Knows no audio.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

STYLES = (
    "ballad",
    "jazz",
    "rock",
    "disco",
    "bossa",
    "reggae",
    "classical",
    "hymn",
    "march",
    "waltz",
    "lullaby",
    "funk",
)
LEADS = ("piano", "guitar", "violin", "flute", "trumpet", "saxophone", "organ", "synth", "marimba", "accordion")
BPM = {"slow": 80.0, "medium": 110.0, "fast": 150.0}
MODES = ("major", "minor")
DENSITIES = ("sparse", "busy")
REGISTERS = ("low", "high")
DYNAMICS = ("soft", "loud")
BRIGHTNESS = ("dark", "bright")
TONICS = (0, 5, 7)  # C, F, G: few keys, since five seconds cannot show many

# One caption part in ten of all (style, lead) pairs is never trained on: whether the model composes
# what it knows can then be measured. Spread so that every style and lead loses about one pair.
HELD_OUT_PAIRS = frozenset((STYLES[i], LEADS[(3 * i + 1) % len(LEADS)]) for i in range(len(STYLES)))

# Works are composer seeds. A split never shares a work with another.
WORKS = {"train": range(0, 1_000_000), "test": range(2_000_000, 3_000_000), "judge": range(4_000_000, 5_000_000)}


@dataclass(frozen=True)
class Clip:
    """Everything the renderer decides about one clip."""

    work: int
    style: str
    lead: str
    tempo: str
    bpm: float
    mode: str
    tonic: int
    drums: bool
    density: str
    register: str
    dynamics: str
    brightness: str
    cents: float

    def attributes(self) -> dict[str, str]:
        """The attributes a caption can name."""
        values = asdict(self)
        values["drums"] = "drums" if self.drums else "none"
        return {name: values[name] for name in PHRASES}


def draw_clip(work: int, *, held_out: bool = False) -> Clip:
    """The clip of a work; held_out draws its (style, lead) from the pairs training never sees."""
    rng = random.Random(f"clip {work}")
    style, lead = rng.choice(STYLES), rng.choice(LEADS)
    while ((style, lead) in HELD_OUT_PAIRS) != held_out:
        style, lead = rng.choice(STYLES), rng.choice(LEADS)
    tempo = rng.choice(tuple(BPM))
    return Clip(
        work=work,
        style=style,
        lead=lead,
        tempo=tempo,
        bpm=BPM[tempo] * rng.uniform(0.98, 1.02),
        mode=rng.choice(MODES),
        tonic=rng.choice(TONICS),
        drums=rng.random() < 0.6,
        density=rng.choice(DENSITIES),
        register=rng.choice(REGISTERS),
        dynamics=rng.choice(DYNAMICS),
        brightness=rng.choice(BRIGHTNESS),
        cents=rng.uniform(-8.0, 8.0),
    )


# attribute -> value -> ways to say it. Order of the attributes is the order in a fixed caption.
PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "style": {
        "ballad": ("a ballad", "pop ballad", "ballad music"),
        "jazz": ("jazz", "a jazz trio", "swinging jazz"),
        "rock": ("rock", "a rock band", "rock music"),
        "disco": ("disco", "dance music", "a disco groove"),
        "bossa": ("bossa nova", "a bossa nova", "latin bossa"),
        "reggae": ("reggae", "a reggae band", "reggae groove"),
        "classical": ("classical strings", "a string quartet", "classical music"),
        "hymn": ("a hymn", "church hymn", "solemn hymn"),
        "march": ("a march", "brass band march", "marching band"),
        "waltz": ("a waltz", "waltz in three", "a waltz dance"),
        "lullaby": ("a lullaby", "music box lullaby", "gentle lullaby"),
        "funk": ("funk", "a funk groove", "funk band"),
    },
    "lead": {lead: (f"{lead} melody", f"{lead} lead", f"featuring {lead}", f"with {lead}") for lead in LEADS},
    "tempo": {
        "slow": ("slow", "slow tempo", "at a slow pace"),
        "medium": ("medium tempo", "moderate tempo", "at a moderate pace"),
        "fast": ("fast", "fast tempo", "at a fast pace"),
    },
    "mode": {"major": ("in a major key", "happy", "major mode"), "minor": ("in a minor key", "sad", "minor mode")},
    "drums": {"drums": ("with drums", "drum beat", "drums"), "none": ("without drums", "no drums", "no percussion")},
    "density": {
        "sparse": ("sparse melody", "few notes", "calm melody"),
        "busy": ("busy melody", "many notes", "lively melody"),
    },
    "register": {"low": ("low register", "low notes", "deep"), "high": ("high register", "high notes", "high pitched")},
    "dynamics": {"soft": ("soft", "quiet", "softly played"), "loud": ("loud", "powerful", "strongly played")},
    "brightness": {
        "dark": ("dark sound", "muffled", "warm tone"),
        "bright": ("bright sound", "crisp", "brilliant tone"),
    },
}


def caption(clip: Clip, rng: random.Random, *, reveal: tuple[str, ...] | None = None) -> tuple[str, tuple[str, ...]]:
    """A caption and the attributes it reveals: a random half of them unless `reveal` names them."""
    if reveal is None:
        names = list(PHRASES)
        reveal = tuple(rng.sample(names, rng.choice((4, 5))))
    values = clip.attributes()
    parts = [rng.choice(PHRASES[name][values[name]]) for name in reveal]
    rng.shuffle(parts)
    return ", ".join(parts), tuple(name for name in PHRASES if name in reveal)


def full_caption(clip: Clip, rng: random.Random) -> str:
    """A caption that reveals everything."""
    return caption(clip, rng, reveal=tuple(PHRASES))[0]


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted."""
    words = {w for values in PHRASES.values() for ways in values.values() for way in ways for w in way.split()}
    return sorted(words)
