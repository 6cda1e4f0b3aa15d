"""Converts the refer toolkit's files of RefCOCO, RefCOCO+ and RefCOCOg to COCO's JSON, one image entry per caption."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.annotations import entry, plain_name, read_annotations
from datasets.convert.plain_pickle import read_plain_pickle
from util.errors import UserError
from util.files import new_folders

REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
UNC_SPLITS = ("train", "val", "testA", "testB")
SPLITS = {"refcoco": UNC_SPLITS, "refcoco+": UNC_SPLITS, "refcocog": ("train", "val", "test")}
NUMBER = (int, float)

Coco = dict[str, list[dict[str, Any]]]


def convert_refcoco(refer_path: Path, out: Path, names: Sequence[str]) -> None:
    """Writes ``out/<name>/instances_<name>_<split>.json`` for every split that has captions.

    Args:
        refer_path: the folder of ``<name>/instances.json`` and ``<name>/refs(unc).p`` or ``refs(umd).p``.
        out: where the folders are created; COCO's folder ``train2014`` belongs beside them.
        names: of ``refcoco``, ``refcoco+`` and ``refcocog``.

    Raises:
        UserError: if files are missing, damaged or disagree, or a folder to write exists.
    """
    names = list(dict.fromkeys(names))
    notes = []
    with new_folders(out, names) as staging:
        for name in names:
            (staging / name).mkdir()
            for split, content in _read(refer_path, name).items():
                file = staging / name / f"instances_{name}_{split}.json"
                file.write_text(json.dumps(content), encoding="utf-8")
                notes.append(f"{out / name / file.name}: {len(content['images'])} sentences")
    print(*notes, sep="\n")
    print(f"The images stay where they are; link them: ln -s COCO/train2014 {out / 'train2014'}")


def _read(refer_path: Path, name: str) -> dict[str, Coco]:
    """Returns every split that has captions."""
    instances = refer_path / name / "instances.json"
    content = read_annotations(instances, f"--refer_path {refer_path}")
    images = _by_id(content, "images", instances)
    annotations = _by_id(content, "annotations", instances)
    refs = refer_path / name / REFS[name]
    splits: dict[str, Coco] = {split: {"images": [], "annotations": []} for split in SPLITS[name]}
    for place, ref in _refs(refs, name):
        split = entry(ref, "split", str, place)
        if split not in splits:
            raise UserError(f"{place}: 'split' must be one of {', '.join(splits)}, got {split!r}; give {REFS[name]}")
        annotation = _named(annotations, ref, "ann_id", f"{place} and {instances}")
        image = _named(images, ref, "image_id", f"{place} and {instances}")
        if entry(annotation, "image_id", int, instances) != ref["image_id"]:
            raise UserError(
                f"{place}: image {ref['image_id']} must be that of annotation {ref['ann_id']} in {instances}, which "
                f"has image {annotation['image_id']}; download both files from one source"
            )
        for sentence in entry(ref, "sentences", list, place):
            caption = entry(sentence, "sent", str, place)
            number = len(splits[split]["images"])
            splits[split]["images"].append(_image_entry(number, image, caption, name, instances))
            splits[split]["annotations"].append(_annotation_entry(number, annotation, instances))
    filled = {split: content for split, content in splits.items() if content["images"]}
    if not filled:
        raise UserError(f"{refs}: must hold sentences, got none; download the file again")
    return filled


def _refs(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name for errors, ref) of every referred object."""
    refs = read_plain_pickle(file)
    if not isinstance(refs, list):
        raise UserError(f"{file}: must hold a list of refs, got {str(refs)[:60]!r}; download the file again")
    for position, ref in enumerate(tqdm(refs, desc=f"convert {name}", unit="ref")):
        yield f"{file}: ref {position}", ref


def _by_id(content: Any, key: str, file: Path) -> dict[int, dict[str, Any]]:
    return {entry(record, "id", int, f"{file}: {key}"): record for record in entry(content, key, list, file)}


def _named(records: dict[int, dict[str, Any]], ref: Any, key: str, place: str) -> dict[str, Any]:
    number = entry(ref, key, int, place)
    if number not in records:
        raise UserError(f"{place}: {key} {number} must be in both, got none; download both files from one source")
    return records[number]


def _image_entry(number: int, image: dict[str, Any], caption: str, name: str, file: Path) -> dict[str, Any]:
    place = f"{file}: image {image['id']}"
    return {
        "id": number,
        "file_name": plain_name(
            entry(image, "file_name", str, place), place
        ),  # the ref's own file name ends with the annotation's number
        "height": entry(image, "height", int, place),
        "width": entry(image, "width", int, place),
        "original_id": image["id"],
        "caption": caption,
        "dataset_name": name,
    }


def _annotation_entry(number: int, annotation: dict[str, Any], file: Path) -> dict[str, Any]:
    place = f"{file}: annotation {annotation['id']}"
    return {
        "id": number,
        "image_id": number,
        "bbox": entry(annotation, "bbox", list, place),
        "segmentation": entry(annotation, "segmentation", (list, dict), place),
        "area": entry(annotation, "area", NUMBER, place),
        "iscrowd": entry(annotation, "iscrowd", int, place),
        "category_id": entry(annotation, "category_id", int, place),
        "original_id": annotation["id"],
    }
