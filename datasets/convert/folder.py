"""Converts a user's own videos, masks and captions to MeViS's layout."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.convert.folder_frames import Frames, find_videos, write_frames
from datasets.convert.folder_masks import Masks, read_masks
from datasets.convert.folder_sentences import SPLITS, Row, read_rows, splits_of
from util.errors import UserError
from util.files import new_folders


def convert_folder(
    videos: Path, masks: Path, sentences: Path, out: Path, *, val_share: float = 0.1, seed: int = 0
) -> None:
    """Writes ``out/train`` and ``out/valid_u``, each if it has videos, for the reader ``MeViS``.

    Args:
        videos: folder of video files and folders of images.
        masks: folder of ``<video>/<frame>.png`` or ``<video>/<object>/<frame>.png``; see ``read_masks``.
        sentences: a CSV; see ``read_rows``. Videos that it does not name are left out.
        val_share: share of the videos that go to valid_u if the CSV does not assign them.
        seed: random seed of that choice.

    Raises:
        UserError: if something is missing, damaged or does not match, or a folder to write exists.
    """
    sources = find_videos(videos)
    rows = read_rows(sentences, sources)
    split_of = splits_of(rows, val_share, seed)
    rows_of: dict[str, list[Row]] = {video: [] for video in split_of}
    for row in rows:
        rows_of[row.video].append(row)
    names = [split for split in SPLITS if split in split_of.values()]
    writers = {name: _SplitWriter() for name in names}
    with new_folders(out, names) as staging:
        for video, split in tqdm(split_of.items(), desc="convert", unit="video"):
            frames = write_frames(video, sources[video], staging / split / "JPEGImages" / video)
            writers[split].add(frames, rows_of[video], _masks(masks / video, frames, rows_of[video]))
        for name, writer in writers.items():
            writer.write(staging / name)
    for name, writer in writers.items():
        print(f"{out / name}: {len(writer.videos)} videos, {writer.num_sentences} sentences")
    left_out = len(sources) - len(split_of)
    if left_out:
        print(f"note: {left_out} videos of {videos} have no sentence in {sentences} and were left out")


class _SplitWriter:
    """Collects a split until its JSON is written."""

    def __init__(self) -> None:
        self.videos: dict[str, Any] = {}
        self.mask_dict: dict[str, Masks] = {}
        self.num_sentences = 0

    def add(self, frames: Frames, rows: list[Row], masks: dict[int, Masks]) -> None:
        annotations = {number: len(self.mask_dict) + index for index, number in enumerate(masks)}
        self.mask_dict |= {str(annotations[number]): listed for number, listed in masks.items()}
        expressions = {
            str(exp_id): {
                "exp": row.sentence,
                "obj_id": list(row.objects),
                "anno_id": [annotations[number] for number in row.objects],
            }
            for exp_id, row in enumerate(rows)
        }
        self.videos[frames.video] = {
            "vid_id": len(self.videos), "frames": frames.written_names, "expressions": expressions
        }  # fmt: skip
        self.num_sentences += len(rows)

    def write(self, folder: Path) -> None:
        (folder / "meta_expressions.json").write_text(json.dumps({"videos": self.videos}), encoding="utf-8")
        (folder / "mask_dict.json").write_text(json.dumps(self.mask_dict), encoding="utf-8")


def _masks(folder: Path, frames: Frames, rows: list[Row]) -> dict[int, Masks]:
    """Returns the masks of the objects that the captions mean; each must appear in some frame."""
    first_row: dict[int, Row] = {}
    for row in rows:
        for number in row.objects:
            first_row.setdefault(number, row)
    if not first_row:
        return {}
    masks = read_masks(folder, frames, sorted(first_row))
    for number, row in first_row.items():
        if not any(masks[number]):
            raise UserError(
                f"{row.place}: every object must appear in a mask, but none in {folder} shows object {number}; "
                "correct the number, or leave 'objects' empty for no target"
            )
    return masks
