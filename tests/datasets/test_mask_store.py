"""The masks of MeViS as mapped arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import datasets.readers.mask_store
from datasets.readers.mask_store import MaskStore, store_folder
from util.errors import UserError

SIZE = (30, 40)


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def masks(seed):
    """[3, H, W] of noise, the second absent."""
    drawn = np.random.default_rng(seed).random((3, *SIZE)) > 0.6
    drawn[1] = False
    return drawn


def document(*seeds):
    return {str(7 * seed): [encode(mask) if mask.any() else None for mask in masks(seed)] for seed in seeds}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "train" / "mask_dict.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document(0, 1, 2)))
    return path


def painted(store, *places):
    columns = np.zeros(SIZE[::-1], np.uint8)
    for annotation, position in zip(places[::2], places[1::2], strict=True):
        store.paint(annotation, position, columns)
    return columns.T


def check(store, *seeds):
    assert store.annotations == [str(7 * seed) for seed in seeds]
    for seed in seeds:
        annotation = str(7 * seed)
        assert annotation in store and store.num_masks(annotation) == 3
        for position, rle in enumerate(document(seed)[annotation]):
            decoded = painted(store, annotation, position)
            if rle is None:
                assert not decoded.any() and store.size(annotation, position) is None
            else:
                assert (decoded == coco_mask.decode(rle)).all() and store.size(annotation, position) == SIZE


@pytest.mark.parametrize("many_runs", [0, 2000])  # each way of painting
def test_masks_equal_those_of_pycocotools(source, monkeypatch, many_runs):
    monkeypatch.setattr(datasets.readers.mask_store, "MANY_RUNS", many_runs)
    store = MaskStore(source)
    check(store, 0, 1, 2)
    assert "1" not in store
    assert (painted(store, "7", 2).astype(bool) == masks(1)[2]).all()


def test_objects_painted_on_one_picture_are_joined(source):
    store = MaskStore(source)
    assert (painted(store, "0", 0, "7", 2, "14", 1).astype(bool) == masks(0)[0] | masks(1)[2]).all()


@pytest.mark.parametrize("many_runs", [0, 2000])
@pytest.mark.parametrize("filled", ["nothing but the last pixel", "all", "all but the first pixel"])
def test_runs_may_begin_and_end_anywhere(source, filled, monkeypatch, many_runs):
    monkeypatch.setattr(datasets.readers.mask_store, "MANY_RUNS", many_runs)
    mask = np.full(SIZE, filled != "nothing but the last pixel")
    mask.T.reshape(-1)[-1] = True
    mask[0, 0] = filled == "all"
    source.write_text(json.dumps({"5": [encode(mask)]}))
    assert (painted(MaskStore(source), "5", 0).astype(bool) == mask).all()


def test_annotations_may_be_empty_or_without_masks(source):
    source.write_text('{ "5" : [] , "6" : [null] }')
    store = MaskStore(source)
    assert store.num_masks("5") == 0 and not painted(store, "6", 0).any()
    source.write_text(" { } ")
    assert MaskStore(source).annotations == []


def test_a_second_opening_does_not_read_the_json(source):
    MaskStore(source)
    status = source.stat()
    source.write_bytes(b"x" * status.st_size)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    check(MaskStore(source), 0, 1, 2)


def test_a_changed_source_is_converted_anew(source):
    MaskStore(source)
    source.write_text(json.dumps(document(3)))  # of another size
    check(MaskStore(source), 3)
    length = source.stat().st_size
    text = json.dumps(document(3)).replace('"21"', '"28"')
    source.write_text(text)
    assert source.stat().st_size == length
    os.utime(source, (1, 1))  # of the same size, at another time
    assert MaskStore(source).annotations == ["28"]


def test_cache_dir_takes_the_arrays(source, tmp_path):
    cache = tmp_path / "deep" / "cache"
    check(MaskStore(source, cache), 0, 1, 2)
    assert store_folder(source, cache).is_dir() and store_folder(source, cache).parent == cache
    assert [path.name for path in source.parent.iterdir()] == ["mask_dict.json"]


def test_two_splits_share_a_cache(source, tmp_path):
    other = tmp_path / "valid_u" / "mask_dict.json"
    other.parent.mkdir()
    other.write_text(json.dumps(document(5)))
    cache = tmp_path / "cache"
    check(MaskStore(source, cache), 0, 1, 2)
    check(MaskStore(other, cache), 5)
    check(MaskStore(source, cache), 0, 1, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_names_the_option(source):
    source.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="--cache_dir"):
            MaskStore(source)
    finally:
        source.parent.chmod(0o700)


def test_a_cache_dir_that_cannot_be_made_names_the_option(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache_dir"):
        MaskStore(source, tmp_path / "file" / "cache")


def test_two_processes_at_once_convert_once(source):
    script = (
        "import sys; from pathlib import Path; import numpy as np; from datasets.readers.mask_store import MaskStore\n"
        "columns = np.zeros((40, 30), np.uint8); sys.stdin.read(1)\n"
        "MaskStore(Path(sys.argv[1])).paint('7', 0, columns); print(columns.sum())"
    )
    command = [sys.executable, "-c", script, str(source)]
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in started:
        process.stdin.write("g")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in started]
    assert [int(output) for output, _ in outputs] == [masks(1)[0].sum()] * 2, outputs
    assert sum("convert train/mask_dict.json" in progress for _, progress in outputs) == 1


def test_an_interrupted_conversion_leaves_nothing_half(source, monkeypatch):
    def write_and_stop(arrays, folder):
        (folder / "counts.bin").write_bytes(arrays.counts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(datasets.readers.mask_store, "_write", write_and_stop)
        MaskStore(source)
    assert not store_folder(source, None).exists()
    assert not list(source.parent.glob("*partial*")) and not list(source.parent.glob(".*partial*"))
    check(MaskStore(source), 0, 1, 2)


def test_what_a_killed_process_of_the_same_number_left_is_removed(source):
    leftover = source.parent / f".mask_dict.json.store.partial-{os.getpid()}"
    leftover.mkdir()
    (leftover / "counts.bin").write_bytes(b"half")
    check(MaskStore(source), 0, 1, 2)
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["counts.bin", "ends.npy", "sizes.npy", "objects.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_damaged_arrays_say_what_to_remove(source, name, content):
    MaskStore(source)
    file = store_folder(source, None) / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"\.json\.store: the converted masks are damaged .* remove the folder"):
        MaskStore(source)


def characters(*numbers):
    """A compressed RLE of numbers as they stand in it, after the differences; one character each."""
    return "".join(chr(48 + (number & 31)) for number in numbers)


@pytest.mark.parametrize(
    ("rle", "match"),
    [
        ({"size": [2, 3], "counts": characters(2, 2)}, "must fill its 2 x 3 pixels"),  # short
        ({"size": [2, 3], "counts": characters(4, 4)}, "must fill its 2 x 3 pixels"),  # overlong
        ({"size": [2, 3], "counts": characters(7, -1)}, "is negative"),
        ({"size": [2, 3], "counts": characters(3, 2, 3, -5)}, "is negative"),
        ({"size": [2, 3], "counts": "P" * 14 + "1"}, "too long"),
        ({"size": [2, 3], "counts": "o" * 6 + "?"}, "longer than any image|must fill"),
        ({"size": [2, 3], "counts": "P"}, "not the characters"),
        ({"size": [2, 3], "counts": "é"}, "not a compressed RLE"),
        ({"size": [2, 3], "counts": ""}, "not the characters"),
        ({"size": [2, 3], "counts": [6]}, "not a compressed RLE"),
        ({"size": [2, 3], "counts": 10**15}, "not a compressed RLE"),
        ({"size": [0, 3], "counts": "0"}, "two positive whole numbers"),
        ({"size": [10**12, 3], "counts": "0"}, "at most 32768 pixels"),
        ({"size": 6, "counts": "6"}, "not a compressed RLE"),
        ({"counts": "6"}, "not a compressed RLE"),
        ("6", "not a compressed RLE"),
    ],
)
def test_a_damaged_rle_is_refused_with_its_annotation(source, rle, match):
    source.write_text(json.dumps({"3": [None], "41": [None, rle]}))
    with pytest.raises(UserError, match=match) as error:
        MaskStore(source)
    assert "annotation 41, mask 1" in str(error.value) and str(source) in str(error.value)
    assert not store_folder(source, None).exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"1": [null], "1": [null]}', "annotation 1 stands in it twice"),
        ('{"1": [null],}', "not valid JSON"),
        ('{"1": [null]} {}', "text after its end"),
        ('{"1": [null]', "'}' expected|',' expected"),
        ('{"1": [null', "not valid JSON"),
        ('{"1"', "':' expected"),
        ('{"1": ', "not valid JSON"),
        ('{"1": [null], ', "not valid JSON"),
        ('{"1": [null] "2": [null]}', "',' expected"),
        ("{1: [null]}", "a key is '1', no text"),
        ('{"1": {}}', "annotation 1 must list its masks"),
        ("[]", "'{' expected"),
        ("", "'{' expected"),
        ('{"1": ' + "[" * 100_000, "not valid JSON"),
        ('{"1": [' + "1" * 5000 + "]}", "not valid JSON"),
    ],
)
def test_damaged_json_is_refused(source, text, match):
    source.write_text(text)
    with pytest.raises(UserError, match=match):
        MaskStore(source)
    source.write_bytes(b'{"1": [null]}\xff')
    with pytest.raises(UserError, match="not valid JSON"):
        MaskStore(source)
