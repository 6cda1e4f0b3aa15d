"""Converts DAVIS 2017 and its annotators' files to Ref-DAVIS17 in the layout of Ref-YouTube-VOS."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.annotations import entry, plain_name, read_annotations
from util.errors import MissingFileError, UserError, did_you_mean
from util.files import link_or_copy, new_folders, read_text
from util.images import read_palette

SPLITS = {"train": "train", "val": "valid"}  # DAVIS's list to our folder
EXPRESSIONS = "meta_expressions"

Sentences = dict[str, dict[str, list[str]]]

# In the order of expression ids: annotator 1 by the first frame and by the full video, then annotator 2.
TEXT_FILES = (
    ("Davis17_annot1.txt", "utf-8-sig"),
    ("Davis17_annot1_full_video.txt", "utf-8-sig"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
LINE = re.compile(r'(\S+)\s+(\d+)\s+"(.*)"\s*')
# Misspelt names in the text files to DAVIS's folders.
RENAMED = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}

Key = tuple[str, str]  # sequence, object id


def convert_davis(
    davis_path: Path, out: Path, semantics: Path | None = None, text_annotations: Path | None = None
) -> None:
    """Writes ``train``, ``valid`` and ``meta_expressions`` in ``out``; images are linked.

    Args:
        davis_path: the folder of ``DAVIS/``, as DAVIS-2017-Unsupervised-trainval-480p unpacks.
        semantics: {sequence: {object id: category}}; by default ``davis_semantics.json`` in ``davis_path`` or
            ``DAVIS``.
        text_annotations: the folder of the annotators' files; by default ``davis_text_annotations`` in either.

    Raises:
        UserError: if files are missing, damaged or disagree, or a folder to write exists.
    """
    davis = davis_path / "DAVIS" if (davis_path / "DAVIS").is_dir() else davis_path
    lists = {split: _sequences(davis, split, davis_path) for split in SPLITS}
    texts = text_annotations or _default(davis_path, davis, "davis_text_annotations")
    sentences = read_sentences(texts)
    _check_sequences(lists, sentences, texts)
    categories = _categories(semantics or _default(davis_path, davis, "davis_semantics.json"), list(sentences))
    notes: list[str] = []
    unseen: list[str] = []
    with new_folders(out, (*SPLITS.values(), EXPRESSIONS)) as staging:
        for split, name in SPLITS.items():
            videos: dict[str, Any] = {}
            objects: dict[str, Any] = {}
            for sequence in tqdm(lists[split], desc=f"convert {name}", unit="sequence"):
                frames = _link_frames(davis, sequence, staging / name)
                seen = _seen(staging / name / "Annotations" / sequence, frames)
                videos[sequence] = {"expressions": _expressions(sentences[sequence]), "frames": frames}
                objects[sequence] = {"objects": _objects(categories[sequence], seen)}
                unseen += [f"{number} of {sequence}" for number in sentences[sequence] if number not in seen]
            _write_json(staging / name / "meta.json", {"videos": objects})
            _write_json(staging / EXPRESSIONS / name / "meta_expressions.json", {"videos": videos})
            count = sum(len(video["expressions"]) for video in videos.values())
            notes.append(f"{out / name}: {len(videos)} sequences, {count} sentences")
    if unseen:
        notes.append(f"note: objects with sentences that no mask shows: {', '.join(unseen)}; their masks are empty")
    print(*notes, sep="\n")


# -- what is read ------------------------------------------------------------------------------------------------


def _default(davis_path: Path, davis: Path, name: str) -> Path:
    """Returns the path in ``DAVIS`` if it exists there, else the path beside it."""
    return davis / name if (davis / name).exists() else davis_path / name


def _sequences(davis: Path, split: str, davis_path: Path) -> list[str]:
    file = davis / "ImageSets" / "2017" / f"{split}.txt"
    if not file.is_file():
        raise MissingFileError(
            f"--davis_path {davis_path}: {file} is missing; give the folder of DAVIS-2017-Unsupervised-trainval-480p"
        )
    try:
        sequences = read_text(file).split()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: must be UTF-8 text ({error.reason}); download the file again") from None
    return [plain_name(sequence, file) for sequence in sequences]


def _check_sequences(lists: dict[str, list[str]], sentences: Sentences, texts: Path) -> None:
    known = [sequence for sequences in lists.values() for sequence in sequences]
    for sequence in sentences:
        if sequence not in known:
            raise UserError(
                f"{texts}: sequence {sequence} must be in ImageSets/2017/train.txt or val.txt"
                f"{did_you_mean(sequence, known)}; take all files from one distribution"
            )
    for sequence in known:
        if sequence not in sentences:
            raise UserError(f"{texts}: must have sentences for {sequence}, got none; download them again")


def _categories(file: Path, sequences: list[str]) -> dict[str, dict[str, str]]:
    content = read_annotations(file, f"--semantics {file}")
    if not isinstance(content, dict):
        raise UserError(f"{file}: must be an object of sequences, got {str(content)[:60]!r}; download the file again")
    categories: dict[str, dict[str, str]] = {}
    for sequence in map(str, content):
        objects = entry(content, sequence, dict, file)
        categories[RENAMED.get(sequence, sequence)] = {
            number: entry(objects, number, str, f"{file}: {sequence}") for number in objects
        }
    for sequence in sequences:
        if sequence not in categories:
            raise UserError(f"{file}: must have the objects of sequence {sequence}, got none; download the file again")
    return categories


def _link_frames(davis: Path, sequence: str, target: Path) -> list[str]:
    """Links the images and masks of a sequence; returns the sorted names of its frames."""
    names: list[list[str]] = []
    for kind, folder, suffix in (
        ("JPEGImages", davis / "JPEGImages" / "480p" / sequence, ".jpg"),
        ("Annotations", davis / "Annotations_unsupervised" / "480p" / sequence, ".png"),
    ):
        files = sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))
        if not files:
            raise MissingFileError(
                f"{folder}: must hold the {suffix} files of a sequence, got none; unpack DAVIS again"
            )
        linked = target / kind / sequence
        linked.mkdir(parents=True)
        for file in files:
            link_or_copy(file, linked / file.name)
        names.append([file.stem for file in files])
    images, masks = names
    if images != masks:
        lone = sorted(set(images) ^ set(masks))[0]
        raise UserError(
            f"{davis}: sequence {sequence} must have a mask for every frame, got {len(images)} frames and "
            f"{len(masks)} masks, {lone} being in one only; unpack DAVIS again"
        )
    return images


def _seen(folder: Path, frames: list[str]) -> dict[str, list[str]]:
    """Returns {object id: names of the frames whose masks show it}."""
    seen: dict[str, list[str]] = {}
    for frame in frames:
        for number in np.unique(read_palette(folder / f"{frame}.png")).tolist():
            seen.setdefault(str(number), []).append(frame)
    return seen


# -- what is written ---------------------------------------------------------------------------------------------


def _expressions(objects: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Returns the expressions: number 4 n + a is annotation a of the n-th object."""
    said = [(number, sentence) for number, sentences in objects.items() for sentence in sentences]
    return {str(exp_id): {"exp": sentence, "obj_id": number} for exp_id, (number, sentence) in enumerate(said)}


def _objects(categories: dict[str, str], seen: dict[str, list[str]]) -> dict[str, Any]:
    return {number: {"category": category, "frames": seen.get(number, [])} for number, category in categories.items()}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def read_sentences(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Reads {sequence: {object id: its four captions}}; object ids sorted as text, as expression ids count them.

    Raises:
        UserError: if a file is missing or damaged, or lacks a caption that another has.
    """
    by_file = [_read_file(folder / name, encoding) for name, encoding in TEXT_FILES]
    keys = sorted(set().union(*by_file))
    for (name, _), sentences in zip(TEXT_FILES, by_file, strict=True):
        for sequence, number in keys:
            if (sequence, number) not in sentences:
                raise UserError(
                    f"{folder / name}: must have a sentence for object {number} of sequence {sequence} as the other "
                    "files of the annotators have, got none; download the files again"
                )
    expressions: dict[str, dict[str, list[str]]] = {}
    for sequence, number in keys:
        expressions.setdefault(sequence, {})[number] = [sentences[sequence, number] for sentences in by_file]
    return expressions


def _read_file(file: Path, encoding: str) -> dict[Key, str]:
    if not file.is_file():
        raise MissingFileError(f"--text_annotations {file.parent}: {file} is missing; give the folder of the texts")
    try:
        text = file.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: must be {encoding} text ({error.reason} at byte {error.start}); download it again"
        ) from None
    sentences: dict[Key, str] = {}
    # Not splitlines: byte 0x85 is an ellipsis on Windows, but a line end in Latin-1.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f'{file}: line {number} must be: sequence object "sentence", got {line.strip()[:60]!r}; '
                "download the file again"
            )
        key = (RENAMED.get(match[1], match[1]), str(int(match[2])))
        if key in sentences:
            raise UserError(
                f"{file}: line {number} must be the only one for object {key[1]} of sequence {key[0]}; remove one"
            )
        sentences[key] = match[3].strip()
    return sentences
