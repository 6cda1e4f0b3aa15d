"""Reading MeViS."""

import json

import mini_mevis
import pytest

from datasets.readers.mevis import MeViS
from util.errors import UserError


@pytest.fixture
def root(tmp_path):
    mini_mevis.write(tmp_path)
    return tmp_path


def edit(root, name, change):
    path = root / "valid_u" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_frames_and_masks_are_sorted_together(tmp_path):
    truth = mini_mevis.write(tmp_path)
    split = MeViS(tmp_path, "valid_u")
    assert {expression.key for expression in split.expressions} == set(truth)
    for expression in split.expressions:
        assert expression.frames == ("00000", "00001", "00002")
        assert (split.masks(expression, [0, 1, 2], mini_mevis.SIZE) == truth[expression.key]).all()
        assert split.frame_file(expression, 2).name == "00002.jpg"


def test_an_expression_without_targets_has_empty_masks_and_a_hidden_one_has_none(root):
    split = MeViS(root, "valid_u")
    empty = next(expression for expression in split.expressions if expression.exp_id == "10")
    assert empty.object_ids == ()
    assert not split.masks(empty, [0, 1, 2], mini_mevis.SIZE).any()
    (root / "valid_u" / "mask_dict.json").unlink()
    edit(
        root,
        "meta_expressions.json",
        lambda m: [e.pop("anno_id") for v in m["videos"].values() for e in v["expressions"].values()],
    )
    hidden = MeViS(root, "valid_u")
    assert not hidden.has_masks
    assert hidden.expressions[0].object_ids is None


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("meta_expressions.json", lambda m: m.pop("videos"), "'videos'"),
        ("meta_expressions.json", lambda m: m["videos"]["a"].pop("frames"), "'frames'"),
        ("meta_expressions.json", lambda m: m["videos"]["a"].pop("expressions"), "'expressions'"),
        ("meta_expressions.json", lambda m: m["videos"]["a"]["expressions"]["0"].pop("exp"), "'exp'"),
        ("mask_dict.json", lambda m: m.pop("0"), "annotation 0"),
        ("mask_dict.json", lambda m: m["0"].pop(), "must list 3 masks"),
    ],
)
def test_damaged_annotations_name_file_and_rule(root, name, change, match):
    edit(root, name, change)
    with pytest.raises(UserError, match=match) as error:
        split = MeViS(root, "valid_u")
        [split.masks(expression, [0], mini_mevis.SIZE) for expression in split.expressions]
    assert name in str(error.value)


def test_masks_of_another_size_than_the_frames_are_refused(root):
    split = MeViS(root, "valid_u")
    with pytest.raises(UserError, match="size"):
        split.masks(split.expressions[0], [0], (10, 10))


def test_broken_json_a_doubled_key_and_a_missing_file_are_refused(root):
    path = root / "valid_u" / "meta_expressions.json"
    path.write_text('{"videos": {')
    with pytest.raises(UserError, match="not valid JSON"):
        MeViS(root, "valid_u")
    path.write_text('{"videos": {"a": {}, "a": {}}}')
    with pytest.raises(UserError, match="twice"):
        MeViS(root, "valid_u")
    with pytest.raises(UserError, match=r"train/meta_expressions\.json"):
        MeViS(root, "train")


def test_files_saved_with_a_byte_order_mark_are_read(root):
    expected = [expression.caption for expression in MeViS(root, "valid_u").expressions]
    for name in ("meta_expressions.json", "mask_dict.json"):
        file = root / "valid_u" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    split = MeViS(root, "valid_u")
    assert [expression.caption for expression in split.expressions] == expected
    assert split.masks(split.expressions[0], [0], mini_mevis.SIZE).any()
