"""The hash of large files is remembered until they change, and whatever happens to the store."""

import hashlib
import json
import multiprocessing
import os
import threading

import pytest

import util.hash_store
from util.hashes import sha256_of

LONG_AGO = 1_600_000_000 * 10**9


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The file of the store; files of any size go into it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(util.hash_store, "STORED_FROM", 1)
    return tmp_path / "cache" / "flowrvs" / "hashes.json"


@pytest.fixture
def weights(tmp_path):
    files = tmp_path / "a.bin", tmp_path / "b.bin"
    for file in files:
        write(file, file.name)
    return files


def write(file, text, changed=LONG_AGO):
    file.write_text(text)
    os.utime(file, ns=(changed, changed))


def true_hash(files):
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def is_read(files, monkeypatch):
    """Whether ``sha256_of`` reads the files."""
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr("util.hashes._sha256", lambda *_: calls.append(1) or "read")
        sha256_of(files)
    return bool(calls)


def test_unchanged_files_are_hashed_once(store, weights, monkeypatch):
    assert sha256_of(weights) == true_hash(weights)
    assert not is_read(weights, monkeypatch)
    assert sha256_of(weights) == true_hash(weights)
    assert is_read(weights[::-1], monkeypatch)
    assert [path.name for path in store.parent.iterdir()] == ["hashes.json"]


@pytest.mark.parametrize(("text", "changed"), [("A.BIN", LONG_AGO + 1), ("longer", LONG_AGO)])
def test_a_file_of_another_time_or_size_is_hashed_again(store, weights, text, changed):
    before = sha256_of(weights)
    write(weights[0], text, changed)
    assert sha256_of(weights) == true_hash(weights) != before


def test_a_file_that_was_written_just_now_is_not_remembered(store, weights, monkeypatch):
    weights[0].write_text("fresh")
    sha256_of(weights)
    assert is_read(weights, monkeypatch)


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(store, weights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("util.hashes._sha256", lambda *_: write(weights[1], "changed") or "half old, half new")
        sha256_of(weights)
    assert sha256_of(weights) == true_hash(weights)


def test_a_stopped_hash_is_not_remembered(store, weights):
    stop = threading.Event()
    stop.set()
    assert sha256_of(weights, stop) == ""
    assert sha256_of(weights) == true_hash(weights)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 3}', "\0\xff", "[" * 100_000, "entry"])
def test_a_damaged_store_is_replaced(store, weights, monkeypatch, content):
    sha256_of(weights)
    if content == "entry":
        content = json.dumps({name: {"files": 3} for name in json.loads(store.read_text())})
    store.write_text(content)
    assert sha256_of(weights) == true_hash(weights)
    assert not is_read(weights, monkeypatch)


@pytest.mark.parametrize("place", ["relative", "file/under", "unset"])
def test_without_a_place_for_the_store_files_are_hashed_all_the_same(store, weights, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if place == "unset":
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative" if place == "relative" else str(tmp_path / place))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert sha256_of(weights) == true_hash(weights)
    assert not (tmp_path / "relative").exists()


def test_the_store_lies_in_the_home_by_default_and_keeps_the_newest(store, weights, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(util.hash_store, "MAX_ENTRIES", 1)
    sha256_of(weights[:1])
    sha256_of(weights[1:])
    entries = json.loads((tmp_path / "home" / ".cache" / "flowrvs" / "hashes.json").read_text())
    assert list(entries) == [str(weights[1])]


def test_small_files_leave_no_trace(store, weights, monkeypatch):
    monkeypatch.setattr(util.hash_store, "STORED_FROM", 1000)
    sha256_of(weights)
    assert not store.exists()


def _hash_all(files):
    util.hash_store.STORED_FROM = 1
    for _ in range(20):
        for file in files:
            assert sha256_of((file,)) == true_hash((file,))


def test_processes_that_store_at_once_never_damage_the_store(store, tmp_path):
    files = [tmp_path / f"{number}.bin" for number in range(4)]
    for file in files:
        write(file, file.name)
    processes = [multiprocessing.get_context("spawn").Process(target=_hash_all, args=(files,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert json.loads(store.read_text()).keys() <= set(map(str, files))
    assert [path.name for path in store.parent.iterdir()] == ["hashes.json"]
