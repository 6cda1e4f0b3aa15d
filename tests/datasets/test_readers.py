"""Reading the datasets beside MeViS, and every reader on damaged annotation files."""

import json
import math
import sys

import h5py
import mini_datasets as mini
import mini_mevis
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.readers.a2d import A2DSentences
from datasets.readers.davis import RefDAVIS17
from datasets.readers.jhmdb import JHMDBSentences
from datasets.readers.long_rvos import LongRVOS
from datasets.readers.mevis import MeViS
from datasets.readers.refcoco import RefCOCO
from datasets.readers.ytvos import RefYouTubeVOS
from util.errors import MissingFileError, UserError

ALL = [0, 1, 2]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def check_object_masks(split, truth):
    for expression in split.expressions:
        assert split.source_size(expression) == mini.SIZE
        assert expression.frames == ("00000", "00005", "00010")
        expected = truth[expression.video] == int(expression.object_ids[0])
        assert (split.masks(expression, [2, 0, 1], mini.SIZE) == expected[[2, 0, 1]]).all()
        assert [frame.shape for frame in split.read_frames(expression, [0, 2])] == [(*mini.SIZE, 3)] * 2


# -- Refer-YouTube-VOS -------------------------------------------------------------------------------------------


@pytest.fixture
def ytvos(tmp_path):
    return mini.write_ytvos(tmp_path)


def test_ytvos_train_pairs_sorted_frames_with_the_pixels_of_its_object(ytvos):
    split = RefYouTubeVOS(ytvos.root, "train")
    assert [expression.key for expression in split.expressions][:3] == [("v1", "0"), ("v1", "1"), ("v1", "10")]
    assert split.expressions[1].caption == "The  cat"
    assert split.has_masks and split.selection == "2 videos: all of train"
    check_object_masks(split, ytvos.truth)


def test_ytvos_masks_equal_what_pillow_reads(ytvos):
    split = RefYouTubeVOS(ytvos.root, "train")
    expression = split.expressions[1]
    file = ytvos.root / "train" / "Annotations" / expression.video / "00005.png"
    assert (split.masks(expression, [1], mini.SIZE)[0] == (np.array(Image.open(file)) == 2)).all()


def test_ytvos_valid_is_told_from_test_by_the_test_file(ytvos):
    split = RefYouTubeVOS(ytvos.root, "valid")
    assert {expression.video for expression in split.expressions} == {"v1", "v-2"}
    assert split.selection == "2 videos: those of valid without the 1 of test"
    assert not split.has_masks and split.expressions[0].object_ids is None


def test_ytvos_valid_without_the_test_file_keeps_all_and_says_so(ytvos, monkeypatch):
    ytvos.test.unlink()
    assert RefYouTubeVOS(ytvos.root, "valid").selection == "3 videos: all of valid"
    monkeypatch.setattr("datasets.readers.ytvos.NUM_VALID", 2)
    split = RefYouTubeVOS(ytvos.root, "valid")
    assert split.selection.startswith("3 videos: all of valid, with those of test (")
    assert len({expression.video for expression in split.expressions}) == 3


def test_ytvos_reads_a_list_of_videos(ytvos):
    listed = ytvos.root / "listed.txt"
    listed.write_text("t1\n\nv1\n")
    split = RefYouTubeVOS(ytvos.root, "valid", listed)
    assert list(dict.fromkeys(expression.video for expression in split.expressions)) == ["v1", "t1"]
    assert split.selection == f"2 videos listed in {listed}"


@pytest.mark.parametrize(
    ("text", "match"),
    [(b"v1\nv2\n", "'v2' is no video of .*did you mean"), (b"\n", "names no video"), (b"\xff\xfe", "no text")],
)
def test_ytvos_refuses_a_bad_list(ytvos, text, match):
    listed = ytvos.root / "listed.txt"
    listed.write_bytes(text)
    with pytest.raises(UserError, match=match):
        RefYouTubeVOS(ytvos.root, "valid", listed)
    with pytest.raises(MissingFileError):
        RefYouTubeVOS(ytvos.root, "valid", ytvos.root / "none.txt")


def test_ytvos_valid_has_masks_where_both_masks_and_numbers_were_added(ytvos):
    (ytvos.root / "valid" / "Annotations").mkdir()
    assert not RefYouTubeVOS(ytvos.root, "valid").has_masks
    ytvos.valid.write_text(ytvos.train.read_text())
    assert RefYouTubeVOS(ytvos.root, "valid").has_masks
    (ytvos.root / "valid" / "Annotations").rmdir()
    assert not RefYouTubeVOS(ytvos.root, "valid").has_masks


def test_ytvos_test_files_that_leave_nothing_of_valid_are_refused(ytvos):
    ytvos.test.write_text(ytvos.valid.read_text())
    with pytest.raises(UserError, match="every video of valid"):
        RefYouTubeVOS(ytvos.root, "valid")


# -- Ref-DAVIS17 and Long-RVOS -----------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["val", "valid"])
@pytest.mark.parametrize(
    ("folder", "meta", "level"), [("valid", "valid", ""), ("val", "valid", "480p"), ("val", "val", "")]
)
def test_davis_finds_either_name_and_the_level_of_resolution(tmp_path, asked, folder, meta, level):
    davis = mini.write_davis(tmp_path, folder, meta, level)
    split = RefDAVIS17(tmp_path, asked)
    assert split.has_masks and [expression.exp_id for expression in split.expressions[:3]] == ["0", "1", "10"]
    check_object_masks(split, davis.truth)


def test_davis_refuses_void_as_an_object(tmp_path):
    davis = mini.write_davis(tmp_path)
    edit(davis.source, lambda m: m["videos"]["v1"]["expressions"]["0"].update(obj_id="255"))
    with pytest.raises(UserError, match="from 1 to 254, got 255"):
        RefDAVIS17(tmp_path, "valid")


def test_long_rvos_takes_an_absent_file_for_an_absent_object(tmp_path):
    long = mini.write_long_rvos(tmp_path)
    split = LongRVOS(tmp_path, "valid")
    assert {expression.kind for expression in split.expressions} == {"dynamic"}
    check_object_masks(split, long.truth)
    assert not split.masks(split.expressions[0], [1], mini.SIZE).any()


def test_long_rvos_refuses_masks_of_another_kind_and_missing_objects(tmp_path):
    mini.write_long_rvos(tmp_path)
    split = LongRVOS(tmp_path, "valid")
    folder = tmp_path / "valid" / "Annotations" / "v1" / "1"
    Image.fromarray(np.ones(mini.SIZE, np.uint8)).save(folder / "00000.png")
    with pytest.raises(UserError, match="must be 255, the highest is 1"):
        split.masks(split.expressions[0], [0], mini.SIZE)
    folder.rename(folder.with_name("9"))
    with pytest.raises(MissingFileError, match="--long_rvos_path"):
        split.masks(split.expressions[0], [0], mini.SIZE)


# -- damaged videos of PNG masks ---------------------------------------------------------------------------------


def first(document):
    return document["videos"]["v1"]["expressions"]["0"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(videos=[]), "'videos' must be an object"),
        (lambda m: m["videos"].update({"../up": m["videos"]["v1"]}), "is not a valid file name, got '../up'"),
        (lambda m: m["videos"].update({"x" * 300: 1}), "is not a valid file name, got 'xxx"),
        (lambda m: m["videos"].update(v1=None), "lacks the key 'frames'"),
        (lambda m: m["videos"]["v1"].update(frames=[]), "at least one frame"),
        (lambda m: m["videos"]["v1"].update(frames=["0", 1]), "must list texts"),
        (lambda m: m["videos"]["v1"].update(frames=["a\0b"]), "is not a valid file name"),
        (lambda m: m["videos"]["v1"].update(expressions=[1]), "'expressions' must be an object"),
        (lambda m: first(m).pop("exp"), "v1/0: an entry lacks the key 'exp'"),
        (lambda m: first(m).update(exp="\ud800"), "half a surrogate pair"),
        (lambda m: first(m).pop("obj_id"), "v1/0: an entry lacks the key 'obj_id'"),
        (lambda m: first(m).update(obj_id="dog"), "'obj_id' must be a whole number, got 'dog'"),
        (lambda m: first(m).update(obj_id=True), "'obj_id' must be a whole number or a text"),
        (lambda m: first(m).update(obj_id=[1]), "'obj_id' must be"),
        (lambda m: first(m).update(obj_id="-1"), "'obj_id' must be a whole number"),
        (lambda m: first(m).update(obj_id=0), "from 1 to 254, got 0"),
    ],
)
def test_damaged_expressions_name_file_and_rule(ytvos, change, match):
    edit(ytvos.train, change)
    with pytest.raises(UserError, match=match) as error:
        RefYouTubeVOS(ytvos.root, "train")
    assert str(ytvos.train) in str(error.value)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda file: Image.new("RGB", mini.SIZE[::-1]).save(file), "must be a palette or grey image"),
        (lambda file: Image.new("P", (5, 4)).save(file), "must have the size of the frames, 48 x 32, got 5 x 4"),
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "damaged or not an image"),
        (lambda file: file.write_bytes(b""), "damaged or not an image"),
        (lambda file: file.unlink(), "--ytvos_path .* is missing"),
    ],
)
def test_damaged_mask_files_are_named(ytvos, damage, match):
    split = RefYouTubeVOS(ytvos.root, "train")
    file = ytvos.root / "train" / "Annotations" / "v1" / "00005.png"
    damage(file)
    with pytest.raises(UserError, match=match) as error:
        split.masks(split.expressions[0], ALL, mini.SIZE)
    assert str(file) in str(error.value)


def test_missing_frames_files_and_folders_name_the_flag(ytvos):
    split = RefYouTubeVOS(ytvos.root, "train")
    split.frame_file(split.expressions[0], 0).unlink()
    for ask in (lambda: split.read_frames(split.expressions[0], [0]), lambda: split.source_size(split.expressions[0])):
        with pytest.raises(MissingFileError, match=rf"--ytvos_path {ytvos.root}: .*00000\.jpg is missing"):
            ask()
    (ytvos.root / "train" / "Annotations").rename(ytvos.root / "elsewhere")
    with pytest.raises(MissingFileError, match=r"--ytvos_path .*Annotations is missing"):
        RefYouTubeVOS(ytvos.root, "train")


# -- RefCOCO -----------------------------------------------------------------------------------------------------


@pytest.fixture
def refcoco(tmp_path):
    return mini.write_refcoco(tmp_path)


def test_refcoco_decodes_every_form_of_mask(refcoco):
    split = RefCOCO(refcoco.root, "refcoco+", "testA")
    masks = [split.masks(expression, [0], split.source_size(expression)) for expression in split.expressions]
    assert [mask.shape for mask in masks] == [(1, *mini.SIZE)] * 4
    triangle = masks[0][0]
    outline = 36 + 24 + math.hypot(36, 24)
    assert abs(triangle.sum() - 36 * 24 / 2) < outline / 2  # a pixel on the outline counts or not
    assert triangle[5, 38] and not triangle[25, 6]
    boxes = np.zeros(mini.SIZE, bool)
    boxes[2:8, 2:10] = boxes[10:20, 20:30] = True
    assert (masks[1][0] == boxes).all()
    assert (masks[2][0] == refcoco.block).all() and (masks[3][0] == refcoco.block).all()


def test_refcoco_has_one_frame_for_every_sentence(refcoco):
    split = RefCOCO(refcoco.root, "refcoco+", "testA")
    expression = split.expressions[2]
    assert (expression.key, expression.caption, expression.object_ids) == (("2", "0"), "thing 2", ("102",))
    assert expression.frames == ("COCO_train2014_000000000002",)
    assert split.frame_file(expression, 0).is_file() and split.has_masks
    assert split.masks(expression, [0, 0, 0], mini.SIZE).shape == (3, *mini.SIZE)


def segmentation(value):
    return lambda m: m["annotations"][0].update(segmentation=value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.pop("images"), "'images'"),
        (lambda m: m.update(annotations={}), "'annotations' must be a list"),
        (lambda m: m["images"].append(m["images"][0]), "image 0: stands in it twice"),
        (lambda m: m["images"].pop(), "of image 3, which is absent"),
        (lambda m: m["annotations"].pop(), "image 0: must have one annotation, got none"),
        (lambda m: m["annotations"].append(m["annotations"][0]), "image '3' must have one annotation, got several"),
        (lambda m: m["images"][0].update(file_name="../x.jpg"), "is not a valid file name"),
        (lambda m: m["images"][0].update(height="32"), "'height' must be a whole number"),
        (lambda m: m["images"][0].update(width=0), "must be positive"),
        (lambda m: m["images"][0].update(width=10**9), "at most 32768 pixels"),
        (segmentation([]), "at least one polygon"),
        (segmentation([[1, 2, 3]]), "x and y of its points in turn"),
        (segmentation([[1, 2, 3, 4, 5, 1e9]]), "must stay near its image"),
        (segmentation([[1, 2, 3, 4, 5, math.nan]]), "must stay near its image"),
        (segmentation([[1, 2, 3, 4, 5, True]]), "must stay near its image"),
        (segmentation("polygon"), "'segmentation' must be a list or an object"),
        (segmentation({"size": [32, 48], "counts": "0"}), "must fill its 32 x 48 pixels"),
        (segmentation({"size": [32, 48], "counts": [5, 6]}), "must fill its 32 x 48 pixels"),
        (segmentation({"size": [32, 48], "counts": [-1, 32 * 48 + 1]}), "must fill its 32 x 48 pixels"),
        (segmentation({"size": [2, 3], "counts": [6]}), "must be that of its image"),
        (segmentation({"size": [32], "counts": [32]}), "two positive whole numbers"),
        (segmentation({"size": [32, 48], "counts": 7}), "not a compressed RLE"),
        (segmentation({}), "not a compressed RLE"),
    ],
)
def test_refcoco_names_what_is_damaged(refcoco, change, match):
    edit(refcoco.source, change)
    with pytest.raises(UserError, match=match) as error:
        RefCOCO(refcoco.root, "refcoco+", "testA")
    assert str(refcoco.source) in str(error.value)


def test_refcoco_refuses_missing_files_and_other_sizes(refcoco):
    with pytest.raises(MissingFileError, match=r"--coco_path .*instances_refcoco\+_val\.json"):
        RefCOCO(refcoco.root, "refcoco+", "val")
    split = RefCOCO(refcoco.root, "refcoco+", "testA")
    with pytest.raises(UserError, match=r"image 0 is 48 x 32, its file .* is 5 x 4"):
        split.masks(split.expressions[0], [0], (4, 5))


# -- A2D-Sentences -----------------------------------------------------------------------------------------------


@pytest.fixture
def a2d(tmp_path):
    return mini.write_a2d(tmp_path)


def test_a2d_masks_are_turned_and_belong_to_the_instance(a2d, caplog):
    split = A2DSentences(a2d.root, "test")
    assert "its instance is '1 (copy)'" in caplog.text
    assert [expression.exp_id for expression in split.expressions] == list(a2d.samples)
    for expression in split.expressions:
        mask, position = a2d.samples[expression.exp_id]
        assert expression.annotated == (position,)
        assert (split.masks(expression, [position], split.source_size(expression)) == mask).all()


def test_a2d_frames_are_all_those_of_the_clip_in_order(a2d):
    split = A2DSentences(a2d.root, "test")
    expression = split.expressions[0]
    assert expression.frames == ("00001", "00002", "00003", "00004", "00005")
    assert split.frame_file(expression, 3).name == "-clip.mp4"
    pictures = split.read_frames(expression, [4, 0, 2, 2])
    assert [picture.shape for picture in pictures] == [(*mini.SIZE, 3)] * 4
    assert [picture.mean() for picture in pictures] == pytest.approx([180, 20, 100, 100], abs=6)


@pytest.mark.parametrize("reader", ["a2d", "jhmdb"])
def test_masks_exist_at_the_annotated_position_alone(tmp_path, reader):
    split = LOADERS[reader](tmp_path)[0]()
    expression = split.expressions[0]
    with pytest.raises(ValueError, match="exist only at") as error:
        split.masks(expression, [expression.annotated[0], 2], mini.SIZE)
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rows: rows.append("row"), "row 5: must be"),
        (lambda rows: rows[0].pop(), "row 0: must be"),
        (lambda rows: rows[0].__setitem__(0, None), "row 0: must be"),
        (lambda rows: rows[0].__setitem__(1, "a/b"), "is not a valid file name"),
        (lambda rows: rows[0].__setitem__(1, "nowhere"), "--a2d_path .*nowhere.mp4 is missing"),
        (lambda rows: rows[0].__setitem__(2, 0), "frame must be from 1 to 5, got 0"),
        (lambda rows: rows[0].__setitem__(2, 1.5), "must be whole numbers"),
        (lambda rows: rows[0].__setitem__(3, "copy"), "must be whole numbers"),
    ],
)
def test_a2d_rows_are_checked(a2d, change, match):
    edit(a2d.source, change)
    with pytest.raises(UserError, match=match):
        A2DSentences(a2d.root, "test")


def rewrite(file, **content):
    with h5py.File(file, "w") as opened:
        for key, value in content.items():
            opened[key] = value


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda file: file.write_bytes(b"no HDF5"), "damaged or not an annotation"),
        (lambda file: file.write_bytes(file.read_bytes()[:600]), "damaged or not an annotation"),
        (lambda file: file.unlink(), "--a2d_path .* is missing"),
        (lambda file: rewrite(file, instance=[3]), "damaged or not an annotation"),
        (lambda file: rewrite(file, instance=[4], reMask=np.ones((48, 32))), "must hold instance 3, got"),
        (lambda file: rewrite(file, instance=[3, 4], reMask=np.ones((48, 32))), "a mask for each of 2 instances"),
        (lambda file: rewrite(file, instance=[3], reMask=np.ones((32, 48))), "must have the size of the frames"),
    ],
)
def test_a2d_damaged_masks_are_named(a2d, damage, match):
    split = A2DSentences(a2d.root, "test")
    damage(a2d.folder / "-clip" / "00002.h5")
    with pytest.raises(UserError, match=match):
        split.masks(split.expressions[0], [1], mini.SIZE)


def test_a2d_damaged_clips_are_named(a2d):
    split = A2DSentences(a2d.root, "test")
    file = split.frame_file(split.expressions[0], 0)
    short = file.with_name("short.mp4")
    monkey_greys = mini.GREYS
    try:
        mini.GREYS = monkey_greys[:2]
        mini.write_clip(short)
    finally:
        mini.GREYS = monkey_greys
    short.replace(file)
    with pytest.raises(UserError, match="ends after 2 of 5 frames"):
        split.read_frames(split.expressions[0], [4])
    assert len(split.read_frames(split.expressions[0], [0, 1])) == 2
    file.write_bytes(b"no video")
    with pytest.raises(UserError, match="damaged or not a video"):
        A2DSentences(a2d.root, "test")


# -- JHMDB-Sentences ---------------------------------------------------------------------------------------------


@pytest.fixture
def jhmdb(tmp_path):
    return mini.write_jhmdb(tmp_path)


def test_jhmdb_follows_the_layout_not_the_paths_of_the_list(jhmdb):
    split = JHMDBSentences(jhmdb.root)
    assert [expression.key for expression in split.expressions] == [
        ("a_wave", "0"),
        ("a_wave", "1"),
        ("b_jump", "2"),
        ("b_jump", "3"),
    ]
    for expression in split.expressions:
        assert expression.frames == ("00001", "00002", "00003")
        (position,) = expression.annotated
        assert (split.masks(expression, [position], mini.SIZE)[0] == jhmdb.truth[position]).all()
        assert split.read_frames(expression, [position])[0].mean() == 40 * (position + 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rows: rows.append({}), "row 4: must be"),
        (lambda rows: rows[0].__setitem__(1, "00001.png"), "must lie in the folder 'a_wave', got ''"),
        (lambda rows: rows[0].__setitem__(1, "x/a_wave/one.png"), "must be a number from 1"),
        (lambda rows: rows[0].__setitem__(1, "../a_wave/00001.png"), "is not a valid file name"),
        (lambda rows: rows[0].__setitem__(3, 0), "must be a number from 1"),
        (lambda rows: rows[0].__setitem__(3, "many"), "must be a number from 1"),
        (lambda rows: rows[0].__setitem__(3, 10**8), "--jhmdb_path .*100000000.png is missing"),
    ],
)
def test_jhmdb_rows_are_checked(jhmdb, change, match):
    edit(jhmdb.source, change)
    with pytest.raises(UserError, match=match):
        JHMDBSentences(jhmdb.root)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda file: file.write_bytes(b"no MATLAB"), "no masks or damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:200]), "no masks or damaged"),
        (lambda file: file.unlink(), "--jhmdb_path .* is missing"),
        (lambda file: scipy.io.savemat(file, {"mask": 1}), "no masks or damaged"),
        (lambda file: scipy.io.savemat(file, {"part_mask": np.ones((4, 4))}), "of height, width and time"),
        (lambda file: scipy.io.savemat(file, {"part_mask": np.ones((32, 48, 2))}), "at frame 3, got 2 of 48 x 32"),
    ],
)
def test_jhmdb_damaged_masks_are_named(jhmdb, damage, match):
    split = JHMDBSentences(jhmdb.root)
    damage(jhmdb.mat)
    with pytest.raises(UserError, match=match):
        split.masks(split.expressions[3], [2], mini.SIZE)


@pytest.mark.parametrize(("reader", "package"), [("a2d", "h5py"), ("jhmdb", "scipy")])
def test_absent_packages_are_named(tmp_path, monkeypatch, reader, package):
    load = LOADERS[reader](tmp_path)[0]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.io", None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        load()


# -- every reader on damaged annotation files ------------------------------------------------------------------------


def loader(write, load, *names):
    """From a folder to what opens the split, and the files to damage."""

    def prepare(root):
        written = write(root)
        return (lambda: load(root)), [getattr(written, name) for name in names or ("source",)]

    return prepare


def prepare_mevis(root):
    mini_mevis.write(root)
    folder = root / "valid_u"
    return (lambda: MeViS(root, "valid_u")), [folder / "meta_expressions.json", folder / "mask_dict.json"]


LOADERS = {
    "mevis": prepare_mevis,
    "ytvos": loader(mini.write_ytvos, lambda root: RefYouTubeVOS(root, "train"), "train"),
    "ytvos_valid": loader(mini.write_ytvos, lambda root: RefYouTubeVOS(root, "valid"), "valid", "test"),
    "davis": loader(mini.write_davis, lambda root: RefDAVIS17(root, "val")),
    "long_rvos": loader(mini.write_long_rvos, lambda root: LongRVOS(root, "valid")),
    "refcoco": loader(mini.write_refcoco, lambda root: RefCOCO(root, "refcoco+", "testA")),
    "a2d": loader(mini.write_a2d, lambda root: A2DSentences(root, "test")),
    "jhmdb": loader(mini.write_jhmdb, JHMDBSentences),
}

NAMES = st.sampled_from(["", "..", "a/b", "\0", "\ud800", "x" * 300, "1", "255"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | NAMES
    | st.sampled_from([10**15, -1, 1e300, [[]], {}, [1, 2]])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
CHANGES = st.tuples(st.just("replace"), VALUES) | st.tuples(st.just("rename"), NAMES) | st.just(("delete", None))


def places(node, path=()):
    """The paths of all nodes of a JSON document."""
    yield path
    if isinstance(node, list | dict):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from places(node[key], (*path, key))


def damaged(document, path, action, value):
    if not path:
        return value
    document = json.loads(json.dumps(document))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    old = parent.pop(path[-1])
    if action == "rename" and isinstance(parent, dict):
        parent[value] = old
    elif action == "replace" and isinstance(parent, dict):
        parent[path[-1]] = value
    elif action == "replace":
        parent.insert(path[-1], value)
    return document


def ask_everything(load):
    try:
        split = load()
    except UserError:
        return
    for expression in split.expressions:
        positions = list(range(len(expression.frames)) if expression.annotated is None else expression.annotated)
        assert all(split.frame_file(expression, position) for position in positions)
        if split.has_masks:
            try:
                masks = split.masks(expression, positions, mini.SIZE)
            except UserError:
                continue
            assert masks.dtype == bool and masks.shape == (len(positions), *mini.SIZE)


@pytest.mark.parametrize("name", LOADERS)
def test_damaged_json_is_read_or_refused_but_never_a_crash(tmp_path, monkeypatch, name):
    monkeypatch.setattr(mini_mevis, "SIZE", mini.SIZE)
    load, files = LOADERS[name](tmp_path)
    documents = {file: json.loads(file.read_text()) for file in files}
    nodes = [(file, path) for file, document in documents.items() for path in places(document)]
    ask_everything(load)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(node=st.sampled_from(nodes), change=CHANGES)
    def check(node, change):
        file, path = node
        text = file.read_text()
        for store in file.parent.glob("*.store/source.json"):
            store.unlink()  # rewritten within a tick of the clock, at the same length
        file.write_text(json.dumps(damaged(documents[file], path, *change)))
        try:
            ask_everything(load)
        finally:
            file.write_text(text)

    check()
