"""The toy MeViS: its layout, its difficulty, and that motion sentences need the motion."""

import json
from collections import Counter

import numpy as np
import pytest

from datasets.readers.mevis import MeViS
from datasets.toy import COLOURS, MOTION_CLAUSES, PLURALS, SHAPES, make_video, write_toy_mevis
from models.toy_wan import WORDS, build_toy_wan
from util.errors import UserError
from util.images import read_image


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    write_toy_mevis(root, 5, num_train=30, num_valid_u=4, num_valid=3)
    return root


def meta(root, split):
    return json.loads((root / split / "meta_expressions.json").read_text())["videos"]


def test_splits_have_the_layout_of_mevis(toy_root):
    for split, number in (("train", 30), ("valid_u", 4), ("valid", 3)):
        videos = meta(toy_root, split)
        assert len(videos) == number
        for name, video in videos.items():
            files = sorted(path.name for path in (toy_root / split / "JPEGImages" / name).iterdir())
            assert files == [f"{frame}.jpg" for frame in video["frames"]]
            assert all(isinstance(exp_id, str) for exp_id in video["expressions"])
    assert not (toy_root / "valid" / "mask_dict.json").exists()
    assert all(set(e) == {"exp"} for v in meta(toy_root, "valid").values() for e in v["expressions"].values())


def test_every_mask_list_has_an_entry_per_frame_and_null_where_nothing_is_seen(toy_root):
    mask_dict = json.loads((toy_root / "train" / "mask_dict.json").read_text())
    videos = meta(toy_root, "train")
    lengths = {str(thing["anno_id"]): len(video["frames"]) for video in videos.values() for thing in video["objects"]}
    assert {key: len(entries) for key, entries in mask_dict.items()} == lengths
    assert all(entry is None or set(entry) == {"size", "counts"} for entries in mask_dict.values() for entry in entries)


def test_every_motion_sentence_has_a_look_alike_that_moves_otherwise(toy_root):
    checked = 0
    for video in meta(toy_root, "train").values():
        things = {thing["anno_id"]: thing for thing in video["objects"]}
        for expression in video["expressions"].values():
            if expression["kind"] != "motion":
                continue
            (target,) = (things.pop(number) for number in expression["anno_id"])
            look = ("shape", "colour", "area", "texture")
            twins = [other for other in things.values() if all(other[key] == target[key] for key in look)]
            assert twins
            assert all(twin["motion"] != target["motion"] for twin in twins)
            things[target["anno_id"]] = target
            checked += 1
    assert checked > 20


def test_sentences_name_exactly_their_targets(toy_root):
    """Read back by a grammar of our own from the annotations."""
    for video in meta(toy_root, "train").values():
        things = video["objects"]
        for expression in video["expressions"].values():
            if expression["kind"] != "relation":
                named = [index for index, thing in enumerate(things) if means(expression["exp"], thing)]
                assert named == sorted(expression["obj_id"]), (expression, things)


def means(caption, thing):
    words = caption.split()
    singular = {plural: noun for noun, plural in PLURALS.items()}
    nouns = [singular.get(word, word) for word in words]
    shapes = [word for word in nouns if word in SHAPES]
    colours = [word for word in words if word in COLOURS]
    clauses = [motion for motion, clause in MOTION_CLAUSES.items() if caption.endswith(clause)]
    return (
        (not shapes or thing["shape"] == shapes[0])
        and (not colours or thing["colour"] == colours[0])
        and (not clauses or thing["motion"] == clauses[0])
        and (not caption.startswith("all moving") or thing["motion"] != "still")
    )


def test_world_is_as_hard_as_agreed():
    videos = [make_video(np.random.default_rng(seed)) for seed in range(60)]
    kinds = Counter(sentence.kind for video in videos for sentence in video.sentences)
    assert set(kinds) == {"look", "motion", "several", "relation"}
    assert {len(video.things) for video in videos} == {2, 3, 4}
    assert all(0.02 <= thing.look.area <= 0.15 for video in videos for thing in video.things)
    assert len({thing.look.colour for video in videos for thing in video.things}) >= 4
    areas = np.stack([video.masks[:2].mean((2, 3)) for video in videos])  # [video, object, frame]
    assert (areas.min(2) < 0.5 * areas.max(2)).any(), "some are hidden or outside for a while"
    speeds = {round(float(np.ptp(thing.path, axis=0).max()), 2) for video in videos for thing in video.things}
    assert len(speeds) > 20


def test_masks_lie_on_the_object_s_colour():
    video = make_video(np.random.default_rng(0))
    for thing, masks in zip(video.things, video.masks, strict=True):
        seen = video.frames[masks].mean(0)
        assert np.abs(seen - COLOURS[thing.look.colour]).max() < 30


def test_same_seed_same_world_whatever_its_size(tmp_path, toy_root):
    write_toy_mevis(tmp_path / "again", 5, num_train=3, num_valid_u=1, num_valid=1)
    again, first = meta(tmp_path / "again", "train"), meta(toy_root, "train")
    assert again == {name: first[name] for name in again}
    write_toy_mevis(tmp_path / "other", 6, num_train=3, num_valid_u=1, num_valid=1)
    assert meta(tmp_path / "other", "train") != again
    with pytest.raises(UserError, match="already exists"):
        write_toy_mevis(tmp_path / "other", 6, num_train=1, num_valid_u=1, num_valid=1)


def test_reader_gives_the_union_of_the_targets_in_frame_order(toy_root):
    split = MeViS(toy_root, "train")
    expression = next(e for e in split.expressions if len(e.object_ids) > 1)
    size = read_image(split.frame_file(expression, 0)).shape[:2]
    number = int(expression.video.removeprefix("toy"))
    video = make_video(np.random.default_rng([5, 0, number]))
    targets = video.sentences[int(expression.exp_id)].targets
    expected = video.masks[list(targets)].any(0)
    assert (split.masks(expression, list(range(9)), size) == expected).all()
    assert (split.masks(expression, [7, 2], size) == expected[[7, 2]]).all()


def test_toy_tokenizer_knows_every_word_of_the_toy_sentences_whole(toy_root):
    tokenizer = build_toy_wan().tokenizer
    words = {
        word
        for video in meta(toy_root, "train").values()
        for e in video["expressions"].values()
        for word in e["exp"].split()
    }
    assert words <= set(WORDS.split())
    assert all(len(tokenizer(word).input_ids) == 2 for word in words)  # the word and the end
