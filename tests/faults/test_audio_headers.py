"""Audio whose bytes were changed, most of them in the header: a clip or an AudioError, whatever it announces."""

from __future__ import annotations

import io
import resource
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dragon import audio
from dragon.errors import AudioError, NotFinite

RATE, FRAMES = 16_000, 1600
HEADER = 128
MOST_SAMPLES = 10_000_000
"""No file of this length holds as much: a 16-bit FLAC block of 65,535 equal samples takes about 10 bytes."""


def encoded(kind: str, subtype: str | None) -> bytes:
    samples = 0.3 * np.random.default_rng(0).standard_normal((FRAMES, 2))
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=kind, subtype=subtype)
    return file.getvalue()


FILES = {
    "pcm.wav": encoded("WAV", "PCM_16"),
    "float.wav": encoded("WAV", "FLOAT"),
    "adpcm.wav": encoded("WAV", "IMA_ADPCM"),
    "flac.flac": encoded("FLAC", "PCM_16"),
    "vorbis.ogg": encoded("OGG", "VORBIS"),
    "opus.ogg": encoded("OGG", "OPUS"),
}
WORDS = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"data", b"fmt ", b"OggS"]
PLACES = st.one_of(st.integers(0, HEADER), st.integers(0, 8000))
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), PLACES, st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=4))),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("cut"), PLACES, st.just(b"")),
        st.tuples(st.just("drop"), PLACES, st.binary(min_size=1, max_size=16)),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, new in changes:
        rest = {"put": place + len(new), "insert": place, "cut": len(content), "drop": place + len(new)}[kind]
        content = content[:place] + (new if kind in ("put", "insert") else b"") + content[rest:]
    return content


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_changed_bytes_give_a_clip_or_an_audio_error(tmp_path, name, changes):
    place = tmp_path / name
    place.write_bytes(changed(FILES[name], changes))
    try:
        clip = audio.load(place)
        audio.check(clip, name)
        audio.save(tmp_path / "again.wav", clip)
    except (AudioError, NotFinite) as error:
        assert name in str(error)
        return
    assert clip.samples.dtype == np.float32 and clip.samples.ndim == 2
    assert 0 < clip.samples.size <= MOST_SAMPLES
    assert 1_000 <= clip.rate <= 2_000_000


def test_an_untouched_file_is_a_clip(tmp_path):
    """Else the claim above would hold of a loader that refuses everything."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
        assert audio.load(tmp_path / name).samples.shape[0] == 2


def test_what_a_header_announces_costs_no_memory(tmp_path):
    """A FLAC of 9 kB that announces 2^36 - 1 samples of two channels: 512 GiB."""
    content = bytearray(FILES["flac.flac"])
    assert content[:4] == b"fLaC" and content[4] & 0x7F == 0  # the first block describes the stream
    packed = int.from_bytes(content[18:26], "big") | (2**36 - 1)  # rate, channels, bits, and 36 bits of samples
    content[18:26] = packed.to_bytes(8, "big")
    (tmp_path / "a.flac").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert audio.load(tmp_path / "a.flac").samples.shape == (2, FRAMES)
    except AudioError as error:
        assert "a.flac" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB on Linux


@pytest.mark.parametrize("rate", [1, 999, 2_000_001, 2**31 - 1])
def test_a_rate_that_no_sound_has_is_a_damaged_header(tmp_path, rate):
    """Resampled from 1 Hz, a megabyte would become a month of music."""
    content = bytearray(FILES["pcm.wav"])
    place = content.index(b"fmt ") + 12
    assert struct.unpack("<I", content[place : place + 4]) == (RATE,)
    content[place : place + 4] = struct.pack("<I", rate)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=f"a.wav: has a rate of {rate} Hz"):
        audio.load(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.raw", "x" * 5000 + ".wav", "a\0.wav", "."])
def test_names_that_are_no_audio_are_told(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.raw").write_bytes(b"\0" * 100)
    with pytest.raises(AudioError):
        audio.load(name)
