"""Results appear whole or not at all."""

import os
from pathlib import Path

import pytest

from util.errors import UserError
from util.files import move_over, read_json, read_text, staged_folder, write_text_whole


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_moved_out_stays_and_the_staging_folder_goes(tmp_path):
    with staged_folder(tmp_path / "out", "clip") as staging:
        (staging / "kept.txt").write_text("kept")
        (staging / "dropped.txt").write_text("dropped")
        move_over(staging / "kept.txt", tmp_path / "out" / "kept.txt")
    assert everything_in(tmp_path) == ["out", "out/kept.txt"]


def test_a_failure_leaves_nothing_not_even_the_parents_made_for_it(tmp_path):
    with pytest.raises(RuntimeError, match="disk on fire"):
        with staged_folder(tmp_path / "a" / "b", "clip") as staging:
            assert staging.parent == tmp_path / "a" / "b"
            (staging / "deep").mkdir()
            (staging / "deep" / "half.bin").write_bytes(b"half")
            raise RuntimeError("disk on fire")
    assert everything_in(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with staged_folder(tmp_path / "out", "clip"):
            raise KeyboardInterrupt
    assert everything_in(tmp_path) == []


def test_a_failure_leaves_what_was_there_before(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with pytest.raises(RuntimeError):
        with staged_folder(tmp_path / "out", "clip"):
            raise RuntimeError
    assert everything_in(tmp_path) == ["out", "out/old.txt"]


def test_a_failure_leaves_an_empty_parent_that_was_there_before(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError):
        with staged_folder(tmp_path / "out", "clip"):
            raise RuntimeError
    assert everything_in(tmp_path) == ["out"]


def test_what_was_delivered_survives_a_later_failure(tmp_path):
    with pytest.raises(RuntimeError):
        with staged_folder(tmp_path / "out", "clip") as staging:
            (staging / "first").mkdir()
            move_over(staging / "first", tmp_path / "out" / "first")
            raise RuntimeError
    assert everything_in(tmp_path) == ["out", "out/first"]


def test_the_staging_folder_is_hidden_beside_its_target(tmp_path):
    with staged_folder(tmp_path, "clip") as staging:
        assert staging.parent == tmp_path  # a rename within one file system
        assert staging.name.startswith(".clip.")
        assert str(os.getpid()) in staging.name  # two runs at once do not meet


@pytest.mark.parametrize("below", ["out", "out/deeper/still"])
def test_a_place_below_a_file_is_a_user_error(tmp_path, below):
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="cannot be written") as caught:
        with staged_folder(tmp_path / "file" / below, "clip"):
            pytest.fail("the block must not run")
    assert str(tmp_path / "file" / below) in str(caught.value)
    assert everything_in(tmp_path) == ["file"]


def make(path, kind, content):
    if kind == "folder":
        path.mkdir()
        (path / content).write_text(content)
    elif kind == "file":
        path.write_text(content)


@pytest.mark.parametrize("there", ["nothing", "file", "folder"])
@pytest.mark.parametrize("moved", ["file", "folder"])
def test_move_over_replaces_whatever_is_there(tmp_path, moved, there):

    make(tmp_path / "source", moved, "new")
    make(tmp_path / "target", there, "old")
    move_over(tmp_path / "source", tmp_path / "target")
    new = tmp_path / "target" / "new" if moved == "folder" else tmp_path / "target"
    assert new.read_text() == "new"
    assert everything_in(tmp_path) == (["target", "target/new"] if moved == "folder" else ["target"])


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(BYTE_ORDER_MARK + '{"name": "Köln"}'.encode())
    assert read_json(file) == {"name": "Köln"}
    assert read_text(file) == '{"name": "Köln"}'


def test_every_text_file_is_read_by_the_reader_that_knows_byte_order_marks():
    root = Path(__file__).parents[2]
    for package in ("datasets", "engine", "models", "util"):
        for path in (root / package).glob("**/*.py"):
            if path != root / "util" / "files.py":
                assert ".read_text(" not in path.read_text(encoding="utf-8"), path


def test_a_file_that_cannot_be_renamed_leaves_no_half_of_it(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_text_whole(tmp_path / "taken", "text")
    assert everything_in(tmp_path) == ["taken"]
