"""Files as clips: names, hashes, faults, and reading ahead."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dragon import audio
from dragon.audio import Audio
from dragon.errors import AudioError, ConfigError
from dragon.measure.clips import Bad, file_hash, find_clips, read_ahead, read_clip, refuse


def write(path: Path, seconds: float = 1.5, rate: int = 8000, level: float = 0.1, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = level * np.random.default_rng(seed).standard_normal((1, round(seconds * rate)))
    audio.save(path, Audio(samples.astype(np.float32), rate))
    return path


# ---- which files


def test_files_of_a_folder_are_named_from_it_and_sorted(tmp_path):
    for name in ("b.wav", "a/z.flac", "a/m.wav"):
        write(tmp_path / name)
    assert [one.name for one in find_clips(tmp_path)] == ["a/m.wav", "a/z.flac", "b.wav"]
    assert [one.name for one in find_clips(str(tmp_path / "b.wav"))] == ["b.wav"]


def test_given_files_keep_their_order_and_are_named_from_their_common_folder(tmp_path):
    files = [write(tmp_path / name) for name in ("x/b.wav", "x/y/a.wav")]
    assert [(one.name, one.path) for one in find_clips(files)] == [("b.wav", files[0]), ("y/a.wav", files[1])]
    assert [one.name for one in find_clips(files[::-1])] == ["y/a.wav", "b.wav"]


def test_a_source_without_files_or_with_one_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="no such folder"):
        find_clips(tmp_path / "missing")
    with pytest.raises(AudioError, match="no files are given"):
        find_clips([])
    with pytest.raises(ConfigError, match=r"a\.wav is given 2 times"):
        find_clips([path, tmp_path / "." / "a.wav"])


# ---- what is in them


def test_the_hash_is_of_the_bytes_and_not_of_the_name(tmp_path):
    one, same, other = (write(tmp_path / f"{n}.wav", seed=s) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert file_hash(one) == file_hash(same) != file_hash(other)
    with pytest.raises(AudioError, match="cannot be read"):
        file_hash(tmp_path / "missing.wav")


def test_the_reason_says_what_is_wrong_without_the_name(tmp_path):
    (tmp_path / "text.wav").write_bytes(b"no audio")
    np_nan = np.full((1, 16_000), np.nan, np.float32)
    import soundfile

    soundfile.write(tmp_path / "nan.wav", np_nan.T, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 8000)
    write(tmp_path / "silent.wav", level=0)
    write(tmp_path / "short.wav", seconds=0.5)
    expected = {
        "text": "cannot be read as audio",
        "nan": "holds NaN or infinity",
        "empty": "empty",
        "silent": "silent",
        "short": r"too short \(0.50 s, expected at least 1 s\)",
    }
    for name, reason in expected.items():
        path = tmp_path / f"{name}.wav"
        with pytest.raises(AudioError, match=f"^{reason}"):
            read_clip(path, file_hash(path))


def test_a_file_that_changes_while_it_is_read_is_no_clip(tmp_path):
    path = write(tmp_path / "a.wav")
    before = file_hash(path)
    assert read_clip(path, before).seconds == 1.5
    write(path, seed=1)
    with pytest.raises(AudioError, match="^changed while it was read"):
        read_clip(path, before)


def test_bad_files_are_all_listed_and_skipped_only_while_some_are_left():
    bad = [Bad("a.wav", "silent"), Bad("b.wav", "empty")]
    with pytest.raises(
        AudioError, match=r"2 of 3 audio files in songs .*--skip_bad:\n  a\.wav: silent\n  b\.wav: empty"
    ):
        refuse(bad, 3, "songs", skip_bad=False)
    refuse(bad, 3, "songs", skip_bad=True)
    refuse([], 3, "songs", skip_bad=False)
    with pytest.raises(AudioError, match="2 of 2 .* nothing is left"):
        refuse(bad, 2, "songs", skip_bad=True)


# ---- reading ahead


def test_results_come_in_order_and_from_one_other_thread():
    threads = set()

    def job(number: int) -> int:
        threads.add(threading.current_thread())
        return number

    with closing(read_ahead([partial(job, n) for n in range(50)], lambda _: 1, limit=3)) as found:
        assert list(found) == list(range(50))
    assert len(threads) == 1 and threading.current_thread() not in threads
    assert not threads.pop().is_alive()


def test_no_more_waits_than_the_limit_and_one_result():
    """Each result has 10 bytes: with a limit of 25, three may wait before the thread pauses."""
    made = threading.Semaphore(0)
    count = 0

    def job() -> None:
        nonlocal count
        count += 1
        made.release()

    with closing(read_ahead([job] * 20, lambda _: 10, limit=25)) as found:
        next(found)
        for _ in range(4):
            assert made.acquire(timeout=5)
        assert not made.acquire(timeout=0.1)  # the fifth waits for room
        assert count == 4
        assert len(list(found)) == 19


def test_an_error_is_raised_in_its_turn_and_the_thread_ends():
    def fail() -> int:
        raise AudioError("third")

    with (
        closing(read_ahead([lambda: 1, lambda: 2, fail, lambda: 4], lambda _: 1)) as found,
        pytest.raises(AudioError, match="third"),
    ):
        assert [next(found), next(found)] == [1, 2]
        next(found)
    assert not any(t.name == "dragon-read-ahead" for t in threading.enumerate())


def test_closing_stops_a_thread_that_waits_for_room():
    found = read_ahead([lambda: 1] * 100, lambda _: 10, limit=1)
    assert next(found) == 1
    found.close()
    assert not any(t.name == "dragon-read-ahead" for t in threading.enumerate())
