"""Conversion of other datasets: every key of what is written, and every mistake in what is read."""

import copyreg
import json
import os
import pickle
import struct
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.convert.__main__ import main
from datasets.convert.davis import convert_davis
from datasets.convert.folder import convert_folder
from datasets.convert.folder_sentences import Row, splits_of
from datasets.convert.plain_pickle import read_plain_pickle
from datasets.convert.refcoco import convert_refcoco
from datasets.readers.davis import RefDAVIS17
from datasets.readers.mevis import MeViS
from datasets.readers.refcoco import RefCOCO
from util.errors import UserError
from util.files import new_folders
from util.images import read_image
from util.video import open_frames
from util.video_writer import VideoWriter


def nothing_was_left(folder):
    return not folder.exists() or not list(folder.iterdir())


# -- RefCOCO -----------------------------------------------------------------------------------------------------

PICTURE = {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "height": 30, "width": 40, "license": 1}
BOX = {
    "id": 1719310, "image_id": 581857, "category_id": 18, "iscrowd": 0, "area": 50.5,
    "bbox": [1.0, 2.0, 10.0, 5.05], "segmentation": [[1.0, 2.0, 11.0, 2.0, 11.0, 7.05, 1.0, 7.05]],
}  # fmt: skip
CROWD = {**BOX, "id": 7, "iscrowd": 1, "segmentation": {"size": [30, 40], "counts": [100, 20, 1080]}}


def ref(annotation, split, *sentences, image=581857):
    return {
        "ref_id": 3, "ann_id": annotation, "image_id": image, "category_id": 18, "split": split,
        "file_name": f"COCO_train2014_000000581857_{annotation}.jpg", "sent_ids": list(range(len(sentences))),
        "sentences": [
            {"tokens": text.split(), "raw": text.upper(), "sent": text, "sent_id": number}
            for number, text in enumerate(sentences)
        ],
    }  # fmt: skip


REFS = [ref(1719310, "train", "the dog", "dog left"), ref(7, "val", "caf\u00e9 crowd"), ref(7, "train", "the others")]


def write_refer(root, refs=REFS, name="refcoco", by="unc", protocol=2, annotations=(BOX, CROWD)):
    folder = root / name
    folder.mkdir(parents=True)
    data = refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol)
    (folder / f"refs({by}).p").write_bytes(data)
    (folder / "instances.json").write_text(json.dumps({"images": [PICTURE], "annotations": list(annotations)}))
    return root


@pytest.mark.parametrize("protocol", [0, 2])
def test_refcoco_has_an_image_entry_per_sentence_with_one_annotation(tmp_path, protocol):
    convert_refcoco(write_refer(tmp_path / "refer", protocol=protocol), tmp_path / "coco", ["refcoco"])
    folder = tmp_path / "coco" / "refcoco"
    assert sorted(file.name for file in folder.iterdir()) == [
        "instances_refcoco_train.json",
        "instances_refcoco_val.json",
    ]
    picture = {
        "file_name": "COCO_train2014_000000581857.jpg",
        "height": 30,
        "width": 40,
        "original_id": 581857,
        "dataset_name": "refcoco",
    }
    box = {
        "bbox": [1.0, 2.0, 10.0, 5.05],
        "segmentation": [[1.0, 2.0, 11.0, 2.0, 11.0, 7.05, 1.0, 7.05]],
        "area": 50.5,
        "iscrowd": 0,
        "category_id": 18,
        "original_id": 1719310,
    }
    crowd = {**box, "segmentation": CROWD["segmentation"], "iscrowd": 1, "original_id": 7}
    assert json.loads((folder / "instances_refcoco_train.json").read_text()) == {
        "images": [
            {"id": 0, "caption": "the dog", **picture},
            {"id": 1, "caption": "dog left", **picture},
            {"id": 2, "caption": "the others", **picture},
        ],
        "annotations": [
            {"id": 0, "image_id": 0, **box},
            {"id": 1, "image_id": 1, **box},
            {"id": 2, "image_id": 2, **crowd},
        ],
    }
    assert json.loads((folder / "instances_refcoco_val.json").read_text()) == {
        "images": [{"id": 0, "caption": "caf\u00e9 crowd", **picture}],
        "annotations": [{"id": 0, "image_id": 0, **crowd}],
    }


def test_texts_of_python_2_are_read_as_latin_1(tmp_path):
    (tmp_path / "old.p").write_bytes(b"\x80\x02]q\x00U\x04caf\xe9q\x01a.")
    assert read_plain_pickle(tmp_path / "old.p") == ["caf\u00e9"]


def test_all_three_by_default_and_the_other_split_of_refcocog(tmp_path, capsys):
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        write_refer(tmp_path / "refer", [ref(7, "test" if by == "umd" else "testB", "a")], name, by)
    main(["refcoco", "--refer_path", str(tmp_path / "refer"), "--out", str(tmp_path / "coco")])
    written = sorted(str(file.relative_to(tmp_path / "coco")) for file in (tmp_path / "coco").glob("*/*"))
    assert written == [
        "refcoco+/instances_refcoco+_testB.json",
        "refcoco/instances_refcoco_testB.json",
        "refcocog/instances_refcocog_test.json",
    ]
    assert f"ln -s COCO/train2014 {tmp_path / 'coco' / 'train2014'}" in capsys.readouterr().out


def test_the_reader_of_refcoco_reads_it(tmp_path):
    convert_refcoco(write_refer(tmp_path / "refer"), tmp_path, ["refcoco"])
    (tmp_path / "train2014").mkdir()
    cv2.imwrite(str(tmp_path / "train2014" / PICTURE["file_name"]), np.zeros((30, 40, 3), np.uint8))
    split = RefCOCO(tmp_path, "refcoco", "train")
    assert [expression.caption for expression in split.expressions] == ["the dog", "dog left", "the others"]
    crowd = split.masks(split.expressions[2], [0], (30, 40))
    assert crowd.sum() == 20


class Attack:
    def __reduce__(self):
        return os.system, ("touch hacked",)


class Ignored:
    def __reduce__(self):
        return os.getpid, ()


def hostile_pickles():
    yield "reduce 0", pickle.dumps([Attack()], 0)
    yield "reduce 2", pickle.dumps([Attack()], 2)
    yield "reduce 4", pickle.dumps([Attack()], 4)
    yield "instance", b"(S'touch hacked'\nios\nsystem\n."
    yield "object", b"(cos\nsystem\nS'touch hacked'\no."
    yield "harmless class", pickle.dumps([Fraction(1, 2)], 2)
    yield "persistent id", b"Psome id\n."
    yield "binary persistent id", b"\x80\x02U\x02idQ."
    yield "extension", b"\x80\x02\x82\x05(U\x0ctouch hackedtR."
    yield "wide extension", b"\x80\x02\x84" + struct.pack("<i", 70000) + b"(U\x0ctouch hackedtR."
    yield "state", b"\x80\x02]}b."


@pytest.mark.parametrize(("name", "data"), list(hostile_pickles()))
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, monkeypatch, name, data):
    monkeypatch.chdir(tmp_path)
    write_refer(tmp_path / "refer", data)
    with pytest.raises(UserError, match=r"refs\(unc\).p: .*holds code, which was not run"):
        convert_refcoco(tmp_path / "refer", tmp_path / "coco", ["refcoco"])
    assert not (tmp_path / "hacked").exists()
    assert nothing_was_left(tmp_path / "coco")


def test_a_registered_extension_is_refused_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "system", 5)
    try:
        write_refer(tmp_path / "refer", b"\x80\x02\x82\x05U\x0ctouch hacked\x85R.")
        with pytest.raises(UserError, match="holds code"):
            convert_refcoco(tmp_path / "refer", tmp_path / "coco", ["refcoco"])
    finally:
        copyreg.remove_extension("os", "system", 5)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        (b"", "damaged or not a pickle"),
        (b"GIF89a", "damaged or not a pickle"),
        (pickle.dumps(REFS, 2)[:-40], "damaged or not a pickle"),
        ({"a": 1}, "must hold a list of refs"),
        ([], "must hold sentences"),
        ([3], "ref 0: an entry lacks the key 'split'"),
        ([ref(7, "test", "a")], "ref 0: 'split' must be one of train, val, testA, testB, got 'test'"),
        ([ref(8, "train", "a")], "ann_id 8 must be in both"),
        ([ref(7, "train", "a", image=1)], "image_id 1 must be in both"),
        ([{**ref(7, "train"), "sentences": [{"sent": 4}]}], "'sent' must be a text"),
        ([{**ref(7, "train", "a"), "ann_id": "7"}], "'ann_id' must be a whole number"),
    ],
)
def test_damaged_refs_are_named(tmp_path, refs, message):
    with pytest.raises(UserError, match=message):
        convert_refcoco(write_refer(tmp_path / "refer", refs), tmp_path / "coco", ["refcoco"])
    assert nothing_was_left(tmp_path / "coco")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({**BOX, "image_id": 4}, "image 581857 must be that of annotation 1719310"),
        ({**BOX, "segmentation": "x"}, "annotation 1719310: 'segmentation' must be a list or an object"),
        ({key: value for key, value in BOX.items() if key != "iscrowd"}, "lacks the key 'iscrowd'"),
    ],
)
def test_damaged_instances_are_named(tmp_path, annotation, message):
    root = write_refer(tmp_path / "refer", [ref(1719310, "train", "a")], annotations=[annotation])
    with pytest.raises(UserError, match=message):
        convert_refcoco(root, tmp_path / "coco", ["refcoco"])


def test_one_missing_dataset_leaves_none_of_them(tmp_path):
    write_refer(tmp_path / "refer")
    with pytest.raises(UserError, match=r"refcocog.instances.json is missing"):
        convert_refcoco(tmp_path / "refer", tmp_path / "coco", ["refcoco", "refcocog"])
    assert not (tmp_path / "coco").exists()


def test_an_existing_folder_is_kept_and_its_neighbours_too(tmp_path):
    write_refer(tmp_path / "refer")
    kept = tmp_path / "coco" / "train2014" / "a.jpg"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    convert_refcoco(tmp_path / "refer", tmp_path / "coco", ["refcoco"])
    with pytest.raises(UserError, match="already holds refcoco; give another folder or remove it"):
        convert_refcoco(tmp_path / "refer", tmp_path / "coco", ["refcoco"])
    assert kept.read_text() == "x"
    assert sorted(path.name for path in (tmp_path / "coco").iterdir()) == ["refcoco", "train2014"]


# -- Ref-DAVIS17 -------------------------------------------------------------------------------------------------

SEQUENCES = {"train": ["dogs-scale"], "val": ["motorbike", "classic-car"]}
SEMANTICS = {
    "dogs-scale": {"1": "dog", "2": "scale"},
    "motorbike": {"1": "motorbike"},
    "clasic-car": {"1": "car", "2": "person"},
}
TEXTS = {
    "Davis17_annot1.txt": 'dog-scale 1 "a dog"\ndog-scale 2 "a scale"\nmotor-bike 1 "a bike"\nclasic-car 1 "a car"\n',
    "Davis17_annot1_full_video.txt": 'clasic-car 1 "car driving"\nmotor-bike 1 "bike “riding”"\n'
    'dog-scale 2 "scale that stays"\ndog-scale 1 "dog that jumps"\n',
    "Davis17_annot2.txt": 'dog-scale 1 "caf\u00e9 dog"\r\ndog-scale 2 "the \x85 scale"\r\nmotor-bike 1 "the "big" bike"'
    '\r\n\r\nclasic-car 1 "the car"\r\n',
    "Davis17_annot2_full_video.txt": 'dog-scale 1 "d"\ndog-scale 2 "s"\nmotor-bike 1 "m"\nclasic-car 1 " c "',
}


def write_davis(root, texts=TEXTS):
    davis = root / "DAVIS"
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    for split, names in SEQUENCES.items():
        (davis / "ImageSets" / "2017" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pictures, masks = (davis / kind / "480p" / name for kind in ("JPEGImages", "Annotations_unsupervised"))
            pictures.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number in range(3):
                cv2.imwrite(str(pictures / f"{number:05d}.jpg"), np.full((16, 24, 3), 20 * number, np.uint8))
                write_palette(masks / f"{number:05d}.png", davis_mask(number))
    (davis / "davis_semantics.json").write_text(json.dumps(SEMANTICS))
    (root / "davis_text_annotations").mkdir()
    for name, text in texts.items():
        encoding = "latin-1" if "annot2" in name else "utf-8"
        (root / "davis_text_annotations" / name).write_bytes(text.encode(encoding))
    return root


def davis_mask(number):
    """Object 1 throughout, object 2 in the last frame only, and void."""
    mask = np.zeros((16, 24), np.uint8)
    mask[2 : 5 + number, 3:9] = 1
    mask[0, 0] = 255
    if number == 2:
        mask[10:14, 10:20] = 2
    return mask


def write_palette(file, values):
    image = Image.fromarray(values, "P")
    image.putpalette([level for level in range(256) for _ in "rgb"])  # of fewer colours Pillow would cut the bits
    image.save(file)


def test_davis_is_written_key_by_key(tmp_path):
    convert_davis(write_davis(tmp_path / "raw"), tmp_path / "out")
    out = tmp_path / "out"
    frames = ["00000", "00001", "00002"]
    train = json.loads((out / "meta_expressions" / "train" / "meta_expressions.json").read_text())
    assert train == {
        "videos": {
            "dogs-scale": {
                "expressions": {
                    "0": {"exp": "a dog", "obj_id": "1"},
                    "1": {"exp": "dog that jumps", "obj_id": "1"},
                    "2": {"exp": "caf\u00e9 dog", "obj_id": "1"},
                    "3": {"exp": "d", "obj_id": "1"},
                    "4": {"exp": "a scale", "obj_id": "2"},
                    "5": {"exp": "scale that stays", "obj_id": "2"},
                    "6": {"exp": "the \x85 scale", "obj_id": "2"},
                    "7": {"exp": "s", "obj_id": "2"},
                },
                "frames": frames,
            }
        }
    }
    valid = json.loads((out / "meta_expressions" / "valid" / "meta_expressions.json").read_text())["videos"]
    assert list(valid) == ["motorbike", "classic-car"]
    assert [fields["exp"] for fields in valid["motorbike"]["expressions"].values()] == [
        "a bike", "bike “riding”", 'the "big" bike', "m",
    ]  # fmt: skip
    assert json.loads((out / "valid" / "meta.json").read_text()) == {
        "videos": {
            "motorbike": {"objects": {"1": {"category": "motorbike", "frames": frames}}},
            "classic-car": {
                "objects": {
                    "1": {"category": "car", "frames": frames},
                    "2": {"category": "person", "frames": ["00002"]},
                }
            },
        }
    }
    assert sorted(path.name for path in (out / "train").iterdir()) == ["Annotations", "JPEGImages", "meta.json"]


def test_davis_pictures_are_the_same_files_and_the_originals_stay(tmp_path):
    raw = write_davis(tmp_path / "raw")
    convert_davis(raw, tmp_path / "out")
    source = raw / "DAVIS" / "JPEGImages" / "480p" / "motorbike" / "00001.jpg"
    assert (tmp_path / "out" / "valid" / "JPEGImages" / "motorbike" / "00001.jpg").samefile(source)
    with Image.open(tmp_path / "out" / "valid" / "Annotations" / "motorbike" / "00002.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == davis_mask(2)).all()


def test_without_hard_links_pictures_are_copies(tmp_path, monkeypatch):
    raw = write_davis(tmp_path / "raw")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not on this disk")))
    convert_davis(raw, tmp_path / "out")
    source = raw / "DAVIS" / "JPEGImages" / "480p" / "motorbike" / "00001.jpg"
    copy = tmp_path / "out" / "valid" / "JPEGImages" / "motorbike" / "00001.jpg"
    assert not copy.samefile(source)
    assert copy.read_bytes() == source.read_bytes()


def test_object_ids_are_sorted_as_texts(tmp_path):
    texts = {name: text + '\nclasic-car 10 "ten"\nclasic-car 2 "two"\n' for name, text in TEXTS.items()}
    convert_davis(write_davis(tmp_path / "raw", texts), tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta_expressions" / "valid" / "meta_expressions.json").read_text())
    objects = [fields["obj_id"] for fields in meta["videos"]["classic-car"]["expressions"].values()]
    assert objects == ["1"] * 4 + ["10"] * 4 + ["2"] * 4


def test_a_sentence_about_what_no_mask_shows_is_reported(tmp_path, capsys):
    texts = {name: text + '\nclasic-car 10 "ten"\n' for name, text in TEXTS.items()}
    convert_davis(write_davis(tmp_path / "raw", texts), tmp_path / "out")
    assert "10 of classic-car" in capsys.readouterr().out


def test_the_reader_of_davis_reads_it(tmp_path, capsys):
    raw = write_davis(tmp_path / "raw")
    (raw / "DAVIS" / "davis_semantics.json").rename(tmp_path / "names.json")
    (raw / "davis_text_annotations").rename(tmp_path / "texts")
    options = ["--semantics", str(tmp_path / "names.json"), "--text_annotations", str(tmp_path / "texts")]
    main(["davis", "--davis_path", str(raw / "DAVIS"), "--out", str(raw), *options])
    assert "valid: 2 sequences, 8 sentences" in capsys.readouterr().out
    split = RefDAVIS17(raw, "train")
    scale = split.expressions[4]
    assert (scale.caption, scale.object_ids) == ("a scale", ("2",))
    assert (split.masks(scale, [0, 2], (16, 24)) == np.stack([davis_mask(0) == 2, davis_mask(2) == 2])).all()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Davis17_annot2.txt", 'dog-scale 1 "a"', r"annot2.txt: must have a sentence for object 1 of sequence classic"),
        ("Davis17_annot1.txt", TEXTS["Davis17_annot1.txt"] + "x y z", "line 5 must be: sequence object"),
        ("Davis17_annot1.txt", 'dogs-scale 1 "a"\ndog-scale 1 "b"', "line 2 must be the only one for object 1"),
        ("Davis17_annot1.txt", None, r"annot1.txt is missing"),
    ],
)
def test_texts_that_lack_something_are_named(tmp_path, file, text, message):
    texts = {name: content for name, content in {**TEXTS, file: text}.items() if content is not None}
    with pytest.raises(UserError, match=message):
        convert_davis(write_davis(tmp_path / "raw", texts), tmp_path / "out")
    assert nothing_was_left(tmp_path / "out")


def test_a_text_of_the_first_annotator_that_is_no_utf_8_is_named(tmp_path):
    raw = write_davis(tmp_path / "raw")
    (raw / "davis_text_annotations" / "Davis17_annot1.txt").write_bytes(b'dog-scale 1 "caf\xe9"')
    with pytest.raises(UserError, match=r"annot1.txt: must be utf-8"):
        convert_davis(raw, tmp_path / "out")


def remove_mask(davis):
    (davis / "Annotations_unsupervised" / "480p" / "motorbike" / "00001.png").unlink()


def remove_pictures(davis):
    for file in (davis / "JPEGImages" / "480p" / "motorbike").iterdir():
        file.unlink()


def forget_sequence(davis):
    (davis / "ImageSets" / "2017" / "val.txt").write_text("motorbike\n")


def add_sequence(davis):
    (davis / "ImageSets" / "2017" / "val.txt").write_text("motorbike classic-car camel")


def forget_category(davis):
    (davis / "davis_semantics.json").write_text(json.dumps({"dogs-scale": {"1": "dog"}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_mask, "motorbike must have a mask for every frame, got 3 frames and 2 masks, 00001"),
        (remove_pictures, "must hold the .jpg files of a sequence, got none"),
        (forget_sequence, "sequence classic-car must be in ImageSets"),
        (add_sequence, "must have sentences for camel"),
        (forget_category, "must have the objects of sequence classic-car"),
        (lambda davis: (davis / "davis_semantics.json").unlink(), "davis_semantics.json is missing"),
        (lambda davis: (davis / "davis_semantics.json").write_text("[1]"), "must be an object of sequences"),
        (lambda davis: (davis / "ImageSets" / "2017" / "val.txt").unlink(), "val.txt is missing"),
        (lambda davis: (davis / "ImageSets" / "2017" / "val.txt").write_text("../x"), "is not a valid file name"),
    ],
)
def test_a_damaged_davis_is_named(tmp_path, damage, message):
    raw = write_davis(tmp_path / "raw")
    damage(raw / "DAVIS")
    with pytest.raises(UserError, match=message):
        convert_davis(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- your own videos ---------------------------------------------------------------------------------------------

SIZE = (16, 24)


def object_map(frame):
    """Object 1 in every frame, object 3 in the last of three."""
    values = np.zeros(SIZE, np.uint8)
    values[2:6, frame + 1 : frame + 8] = 1
    if frame == 2:
        values[8:12, 4:20] = 3
    return values


def write_own(root):
    """Video a: images and palette masks. Video b: a file and binary masks per object. Video c: not in the CSV."""
    rng = np.random.default_rng(0)
    for folder in ("videos/a", "masks/a", "masks/b/1", "masks/b/3"):
        (root / folder).mkdir(parents=True)
    names = ["frame2", "frame10", "frame9"]  # in no order at all; the right one is 2, 9, 10
    for name, suffix in zip(names, (".jpg", ".png", ".JPEG"), strict=True):
        cv2.imwrite(str(root / "videos" / "a" / f"{name}{suffix}"), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    for frame, name in enumerate(("frame2", "frame9", "frame10")):
        write_palette(root / "masks" / "a" / f"{name}.png", object_map(frame))
    with VideoWriter(root / "videos" / "b.mp4", Fraction(10)) as video:
        for frame in range(3):
            video.write(np.full((*SIZE, 3), 40 + 60 * frame, np.uint8))
    for frame in range(3):
        for number in (1, 3):
            if (object_map(frame) == number).any():
                file = root / "masks" / "b" / str(number) / f"mask{frame + 8}.png"
                cv2.imwrite(str(file), (object_map(frame) == number).astype(np.uint8) * 255)
    (root / "videos" / "c.mp4").write_text("no video, but nobody asks for it")
    (root / "videos" / "notes.txt").write_text("passed over")
    write_csv(
        root,
        "video,objects,sentence,split\n"
        'b,1;3,"both, moving",valid_u\na,3,late one,train\n\nb,,nothing at all,valid_u\n'
        "a,1 3,tous les caf\u00e9s,train\na,1,the first,train\n",
    )
    return root


def write_csv(root, text, encoding="utf-8-sig"):
    (root / "sentences.csv").write_bytes(text.encode(encoding))


def convert_own(root, **options):
    convert_folder(root / "videos", root / "masks", root / "sentences.csv", root / "out", **options)


def maps(number):
    return np.stack([object_map(frame) == number for frame in range(3)])


def test_own_videos_load_as_mevis_with_their_masks(tmp_path):
    convert_own(write_own(tmp_path))
    train, valid = (MeViS(tmp_path / "out", split) for split in ("train", "valid_u"))
    assert [(e.key, e.caption) for e in train.expressions] == [
        (("a", "0"), "late one"), (("a", "1"), "tous les caf\u00e9s"), (("a", "2"), "the first"),
    ]  # fmt: skip
    assert [(e.key, e.caption) for e in valid.expressions] == [
        (("b", "0"), "both, moving"), (("b", "1"), "nothing at all"),
    ]  # fmt: skip
    union, none = maps(1) | maps(3), np.zeros((3, *SIZE), bool)
    for split, truths in ((train, [maps(3), union, maps(1)]), (valid, [union, none])):
        for expression, truth in zip(split.expressions, truths, strict=True):
            assert expression.frames == ("00000", "00001", "00002")
            assert (split.masks(expression, [0, 1, 2], SIZE) == truth).all(), expression
            assert split.source_size(expression) == SIZE


def test_own_annotations_are_written_key_by_key(tmp_path):
    convert_own(write_own(tmp_path))
    meta = json.loads((tmp_path / "out" / "train" / "meta_expressions.json").read_text())
    assert meta == {
        "videos": {
            "a": {
                "vid_id": 0,
                "frames": ["00000", "00001", "00002"],
                "expressions": {
                    "0": {"exp": "late one", "obj_id": [3], "anno_id": [1]},
                    "1": {"exp": "tous les caf\u00e9s", "obj_id": [1, 3], "anno_id": [0, 1]},
                    "2": {"exp": "the first", "obj_id": [1], "anno_id": [0]},
                },
            }
        }
    }
    mask_dict = json.loads((tmp_path / "out" / "train" / "mask_dict.json").read_text())
    assert list(mask_dict) == ["0", "1"]
    assert mask_dict["1"][:2] == [None, None]
    assert mask_dict["1"][2]["size"] == list(SIZE)
    assert isinstance(mask_dict["1"][2]["counts"], str)


def test_jpegs_are_linked_in_the_order_of_their_numbers_and_the_rest_is_encoded(tmp_path):
    convert_own(write_own(tmp_path))
    source, frames = tmp_path / "videos" / "a", tmp_path / "out" / "train" / "JPEGImages" / "a"
    assert (frames / "00000.jpg").samefile(source / "frame2.jpg")
    assert (frames / "00001.jpg").samefile(source / "frame9.JPEG")
    encoded = cv2.imencode(".jpg", cv2.imread(str(source / "frame10.png")), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    assert (frames / "00002.jpg").read_bytes() == encoded.tobytes()
    for index, frame in enumerate(open_frames(str(tmp_path / "videos" / "b.mp4"))):
        written = read_image(tmp_path / "out" / "valid_u" / "JPEGImages" / "b" / f"{index:05d}.jpg")
        assert np.abs(written.astype(int) - frame).max() <= 3  # a flat colour at quality 95


def test_a_jpeg_reached_by_a_symbolic_link_is_linked_itself(tmp_path):
    write_own(tmp_path)
    link = tmp_path / "videos" / "a" / "frame2.jpg"
    link.rename(tmp_path / "elsewhere.jpg")
    link.symlink_to("../../elsewhere.jpg")
    convert_own(tmp_path)
    written = tmp_path / "out" / "train" / "JPEGImages" / "a" / "00000.jpg"
    assert not written.is_symlink()
    assert written.samefile(tmp_path / "elsewhere.jpg")


def test_binary_masks_of_a_folder_of_images_may_lack_any_frame(tmp_path):
    write_own(tmp_path)
    for file in (tmp_path / "masks" / "a").iterdir():
        file.unlink()
    (tmp_path / "masks" / "a" / "07").mkdir()
    Image.fromarray(object_map(2) == 3).save(tmp_path / "masks" / "a" / "07" / "frame9.png")  # of one bit
    write_csv(tmp_path, "sentence,video,objects\nhere,a,7\n")
    convert_own(tmp_path, val_share=0)
    split = MeViS(tmp_path / "out", "train")
    masks = split.masks(split.expressions[0], [0, 1, 2], SIZE)
    assert (masks[1] == (object_map(2) == 3)).all()
    assert not masks[[0, 2]].any()


def test_a_split_without_any_target_needs_no_masks_and_loads(tmp_path):
    write_own(tmp_path)
    write_csv(tmp_path, "video,objects,sentence\nb,,a bird\n")
    (tmp_path / "masks" / "b").rename(tmp_path / "away")
    convert_own(tmp_path)
    split = MeViS(tmp_path / "out", "train")
    assert not split.masks(split.expressions[0], [0, 1, 2], SIZE).any()
    assert not (tmp_path / "out" / "valid_u").exists()


def rows(*videos):
    return [Row("file: row 2", video, (), "x", None) for video in videos]


def test_the_draw_is_by_video_reproducible_and_of_the_asked_share():
    names = [f"v{number}" for number in range(40)]
    split_of = splits_of(rows(*names, *names), 0.25, seed=3)
    assert list(split_of) == names
    assert list(split_of.values()).count("valid_u") == 10
    assert split_of == splits_of(rows(*names), 0.25, seed=3)
    assert split_of != splits_of(rows(*names), 0.25, seed=4)
    drawn = {name for name, split in splits_of(rows(*reversed(names)), 0.25, seed=3).items() if split == "valid_u"}
    assert drawn == {name for name, split in split_of.items() if split == "valid_u"}


@pytest.mark.parametrize(("share", "number"), [(0, 0), (0.1, 1), (0.5, 2), (0.9, 2), (0.99, 2), (1, 3)])
def test_the_draw_leaves_no_split_empty_unless_asked(share, number):
    assert list(splits_of(rows("a", "b", "c"), share, 0).values()).count("valid_u") == number


HEAD = "video,objects,sentence\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty file"),
        (HEAD, "must hold sentences below its header"),
        ("video;objects;sentence\n", "row 1 must name the columns .* separated by commas"),
        ("video,objects,sentense\n", "row 1 .*got 'sentense'; did you mean 'sentence'"),
        ("video,sentence\n", "row 1 must name the column objects"),
        ("video,video,objects,sentence\n", "row 1 must name each column once, got video twice"),
        (HEAD + "a,1,one, two\n", "row 2 must have 3 cells .*got 4; put a sentence with a comma"),
        (HEAD + 'a,1,"one\n', "must be CSV"),
        (HEAD + "\na,1,x\nd,1,x\n", "row 4: 'video' must name a folder of images or a video file"),
        (HEAD + "../a,1,x\n", "row 2: 'video' must name"),
        (HEAD + "a,one,x\n", "row 2: 'objects' must hold numbers from 1 .*got 'one'"),
        (HEAD + "a,0,x\n", "row 2: 'objects' must hold numbers from 1"),
        (HEAD + "a,1,\n", "row 2: 'sentence' must not be empty"),
        (HEAD + "a,1,x\na,1 2,x\n", "row 3: every object must appear in a mask, but none in .*a shows object 2"),
        (HEAD + "b,1,x\nb,300,x\n", "row 3: every object must appear in a mask, but none in .*b shows object 300"),
        ("video,objects,sentence,split\na,1,x,test\n", "row 2: 'split' must be train or valid_u, got 'test'"),
        (
            "video,objects,sentence,split\na,1,x,train\na,1,x,valid_u\n",
            "row 3: a video belongs to one split, got valid_u for a after train",
        ),
        (HEAD + "c,1,x\n", r"c.mp4: cannot be read as a video.*; convert it to H.264"),
    ],
)
def test_mistakes_in_the_csv_are_named_with_their_row(tmp_path, text, message):
    write_own(tmp_path)
    write_csv(tmp_path, text, "utf-8")
    with pytest.raises(UserError, match=message) as caught:
        convert_own(tmp_path)
    assert "--input_path" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_csv_that_is_no_utf_8_is_named_with_its_row(tmp_path):
    write_own(tmp_path)
    write_csv(tmp_path, HEAD + "a,1,x\na,1,caf\u00e9\n", "latin-1")
    with pytest.raises(UserError, match=r"sentences.csv: row 3 must be UTF-8 text, got the byte 0xe9"):
        convert_own(tmp_path)


def add_mask_picture(root, file, values):
    (root / file).parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(root / file)


MISTAKES = {
    "too few masks for images": (
        lambda root: (root / "masks" / "a" / "frame9.png").unlink(),
        "masks/a: must hold a mask for every frame of video a, got 2 masks for 3 frames",
    ),
    "masks of other names": (
        lambda root: (root / "masks" / "a" / "frame9.png").rename(root / "masks" / "a" / "frame09.png"),
        "masks/a: a mask must have the name of a frame of video a, as frame2.png, got frame09.png",
    ),
    "too few masks for a file": (
        lambda root: (root / "masks" / "b" / "1" / "mask9.png").unlink(),
        "masks/b: must hold a mask for every frame of video b, got 2 masks for 3 frames",
    ),
    "too many masks for a file": (
        lambda root: add_mask_picture(root, "masks/b/2/mask11.png", np.zeros(SIZE, np.uint8)),
        "video b, got 4 masks for 3 frames",
    ),
    "mask of another size": (
        lambda root: add_mask_picture(root, "masks/a/frame9.png", np.zeros((24, 16), np.uint8)),
        "masks/a/frame9.png: must have the size of the frames of video a, 24 x 16, got 16 x 24",
    ),
    "smoothed binary mask": (
        lambda root: add_mask_picture(root, "masks/b/1/mask8.png", np.full(SIZE, 128, np.uint8)),
        "masks/b/1/mask8.png: the mask of one object must hold 0 and 255 alone, got 128",
    ),
    "coloured mask": (
        lambda root: add_mask_picture(root, "masks/a/frame9.png", np.zeros((*SIZE, 3), np.uint8)),
        "masks/a/frame9.png: must be a palette or grey image",
    ),
    "both layouts": (
        lambda root: add_mask_picture(root, "masks/a/1/frame2.png", np.zeros(SIZE, np.uint8)),
        "masks/a: must hold either .png files or a folder of them per object number, got both",
    ),
    "object folder without a number": (
        lambda root: (root / "masks" / "b" / "dog").mkdir(),
        "masks/b/dog: folders of masks must be called by object numbers",
    ),
    "object folder twice": (
        lambda root: (root / "masks" / "b" / "01").mkdir(),
        "masks/b/1: folders of masks must be called by object numbers, each once",
    ),
    "no masks": (
        lambda root: (root / "masks" / "a").rename(root / "away"),
        "masks/a: no such folder; put the masks of video a there",
    ),
    "frame of another size": (
        lambda root: cv2.imwrite(str(root / "videos" / "a" / "frame9.JPEG"), np.zeros((8, 8, 3), np.uint8)),
        "videos/a/frame9.JPEG: frames must share one size, got 8 x 8 after 24 x 16",
    ),
    "cut frame": (
        lambda root: os.truncate(root / "videos" / "a" / "frame9.JPEG", 400),
        "videos/a/frame9.JPEG: damaged or not an image",
    ),
    "folder without images": (
        lambda root: (root / "videos" / "a").rename(root / "away") and (root / "videos" / "a").mkdir(),
        "videos/a: holds no images",
    ),
    "two videos of one name": (
        lambda root: (root / "videos" / "b.avi").write_bytes(b""),
        "videos/b.mp4: shares its name with b.avi",
    ),
    "unfit name": (
        lambda root: (root / "videos" / "c\\d").mkdir(),
        "readers take no name with a backslash",
    ),
    "no videos": (
        lambda root: (root / "videos").rename(root / "away"),
        "videos: no such folder",
    ),
    "no csv": (
        lambda root: (root / "sentences.csv").unlink(),
        "sentences.csv: no such file",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_folders_are_named(tmp_path, name):
    write_own(tmp_path)
    damage, message = MISTAKES[name]
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        convert_own(tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_existing_split_is_an_error_before_any_work(tmp_path):
    write_own(tmp_path)
    (tmp_path / "out" / "valid_u").mkdir(parents=True)
    with pytest.raises(UserError, match="already holds valid_u"):
        convert_own(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["valid_u"]


def test_of_several_folders_all_arrive_or_none(tmp_path):
    with pytest.raises(OSError), new_folders(tmp_path / "out", ["a", "b"]) as staging:
        for name in ("a", "b"):
            (staging / name).mkdir()
        (tmp_path / "out" / "b").write_text("someone else's, meanwhile")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_converts_and_ends_with_one_line_on_a_mistake(tmp_path, capsys):
    write_own(tmp_path)
    options = ["--videos", "videos", "--masks", "masks", "--sentences", "sentences.csv", "--out", "out"]
    args = [str(tmp_path / option) if number % 2 else option for number, option in enumerate(options)]
    main(["folder", *args, "--val_share", "0.3", "--seed", "4"])
    out = capsys.readouterr().out
    assert "train: 1 videos, 3 sentences" in out
    assert "1 videos of" in out
    with pytest.raises(SystemExit) as ended:
        main(["folder", *args])
    assert str(ended.value).startswith("python -m datasets.convert folder: error: --out ")


@pytest.mark.parametrize("what", ["refcoco", "davis", "folder"])
def test_each_has_a_help(what, capsys):
    with pytest.raises(SystemExit) as ended:
        main([what, "--help"])
    assert ended.value.code == 0
    assert f"python -m datasets.convert {what}" in capsys.readouterr().out


@pytest.mark.parametrize("args", [[], ["mevis"], ["folder", "--vidoes", "x"], ["refcoco", "--dataset", "refclef"]])
def test_what_it_does_not_know_ends_with_code_2(args):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2


def test_conversion_needs_no_torch():
    script = "import sys, datasets.convert.__main__; assert 'torch' not in sys.modules"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", script) == 0
