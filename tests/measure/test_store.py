"""The store gives back what was put there, for the same bytes and encoder only, or nothing."""

from __future__ import annotations

import errno
import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dragon.encoders.spectral import Spectral
from dragon.errors import ConfigError
from dragon.measure.store import EmbeddingStore, Stored, default_folder

CONTENT = "ab" * 16


def some(frames: int = 7, seed: int = 0) -> Stored:
    rows = torch.randn(frames, 64, generator=torch.Generator().manual_seed(seed))
    return Stored(rows, rows.mean(dim=0), 12_345, 44_100, 2)


def same(first: Stored | None, second: Stored) -> bool:
    return (
        first is not None
        and torch.equal(first.frames, second.frames)
        and torch.equal(first.clip, second.clip)
        and (first.samples, first.rate, first.channels) == (second.samples, second.rate, second.channels)
    )


def test_what_is_read_is_what_was_written_bit_by_bit(tmp_path):
    shelf = EmbeddingStore(tmp_path).shelf(Spectral())
    assert shelf.read(CONTENT) is None
    shelf.write(CONTENT, some())
    assert same(EmbeddingStore(tmp_path).shelf(Spectral()).read(CONTENT), some())
    shelf.write(CONTENT, some(seed=1))
    assert same(shelf.read(CONTENT), some(seed=1))
    assert some().seconds == 12_345 / 44_100


def test_another_file_another_setting_or_another_name_finds_nothing(tmp_path):
    class Renamed(Spectral):
        name = "other/one: two"

    store = EmbeddingStore(tmp_path)
    store.shelf(Spectral()).write(CONTENT, some())
    assert store.shelf(Spectral()).read("cd" * 16) is None
    assert store.shelf(Spectral(floor=1e-5)).read(CONTENT) is None
    assert store.shelf(Renamed()).read(CONTENT) is None
    assert store.shelf(Renamed()).folder.parent == tmp_path  # a name cannot lead out of the store
    Renamed.name = "spectral!"  # whose folder is called spectral, too
    assert store.shelf(Renamed()).read(CONTENT) is None

    class Wider(Spectral):
        features = 65

    assert store.shelf(Wider()).folder != store.shelf(Spectral()).folder
    assert same(store.shelf(Spectral(device="cuda")).read(CONTENT), some())


@pytest.mark.parametrize("fault", ["cut", "empty", "flipped", "zeros", "other"])
def test_a_broken_file_is_told_of_and_counts_as_none(tmp_path, fault):
    from safetensors.torch import save

    shelf = EmbeddingStore(tmp_path).shelf(Spectral())
    shelf.write(CONTENT, some())
    data = bytearray(shelf.place(CONTENT).read_bytes())
    if fault == "flipped":
        data[-100] ^= 1
    elif fault == "zeros":
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    changed = {"cut": bytes(data[:-1]), "empty": b"", "other": save({"frames": torch.zeros(2, 64)})}
    shelf.place(CONTENT).write_bytes(changed.get(fault, bytes(data)))
    with pytest.warns(UserWarning, match=r"abab.*\.safetensors is broken .* embedded again"):
        assert shelf.read(CONTENT) is None
    shelf.write(CONTENT, some())
    assert same(shelf.read(CONTENT), some())


def test_features_of_another_size_are_broken(tmp_path):
    shelf = EmbeddingStore(tmp_path).shelf(Spectral())
    shelf.write(CONTENT, some())
    with pytest.warns(UserWarning, match=r"frames \(7, 64\), clip \(64,\) for 32 features"):
        assert replace(shelf, features=32).read(CONTENT) is None


def test_a_full_disk_is_one_error_and_leaves_what_was_there(tmp_path, monkeypatch):
    shelf = EmbeddingStore(tmp_path).shelf(Spectral())
    shelf.write(CONTENT, some())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for content in (CONTENT, "cd" * 16):
            with pytest.raises(ConfigError, match="cannot be written .No space left.*what was stored is kept.*--cache"):
                shelf.write(content, some(seed=1))
    assert same(shelf.read(CONTENT), some())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{CONTENT}.safetensors"]


def test_a_folder_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "taken").touch()
    shelf = EmbeddingStore(tmp_path / "taken").shelf(Spectral())
    with pytest.raises(ConfigError, match="taken"):
        shelf.write(CONTENT, some())
    with pytest.raises(ConfigError, match="cannot be read .Not a directory"):
        shelf.read(CONTENT)


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    shelf = EmbeddingStore(tmp_path).shelf(Spectral())
    seen: list[bool] = []

    def work(seed: int) -> None:
        for _ in range(10):
            shelf.write(CONTENT, some(200, seed))
            found = shelf.read(CONTENT)
            seen.append(any(same(found, some(200, s)) for s in range(3)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 30
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{CONTENT}.safetensors"]


def test_without_a_folder_the_features_go_with_their_last_user():
    store = EmbeddingStore(None)
    assert not store.kept and EmbeddingStore(".").kept
    shelf, folder = store.shelf(Spectral()), store.folder
    shelf.write(CONTENT, some())
    del store
    gc.collect()
    assert same(shelf.read(CONTENT), some())  # the shelf still needs it
    del shelf
    gc.collect()
    assert not folder.exists()


def test_a_cache_is_a_folder_the_default_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DRAGON_CACHE", str(tmp_path / "all"))
    assert EmbeddingStore.named("default").folder == tmp_path / "all" / "embeddings"
    assert EmbeddingStore.named("~/mine").folder == tmp_path / "mine" and EmbeddingStore.named("~/mine").kept
    assert not EmbeddingStore.named("none").kept and not EmbeddingStore.named(None).kept


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DRAGON_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "embeddings"
    monkeypatch.delenv("DRAGON_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == Path(tmp_path, ".cache", "dragon", "embeddings")
