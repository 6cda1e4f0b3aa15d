"""Ref-YouTube-VOS."""

from pathlib import Path
from typing import Any

from datasets.annotations import read_videos
from datasets.readers.png_masks import PngMasks
from util.errors import MissingFileError, UserError, did_you_mean
from util.files import read_text

NUM_VALID = 202  # videos of valid; its file lists the 305 of test too


class RefYouTubeVOS(PngMasks):
    """One split of Ref-YouTube-VOS.

    The targets of train are in every download; those of valid only if its masks and object numbers were added.

    Args:
        root: the folder of ``meta_expressions``, ``train`` and ``valid``.
        split: see ``datasets.registry``.
        videos: text file of video ids, one per line, to choose from the split. By default all videos, without those
            of test
            if ``meta_expressions/test`` names these.
        flag: the flag that named ``root``, for errors.

    Attributes:
        selection: describes which videos were chosen.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, split: str, videos: Path | None = None, flag: str = "--ytvos_path") -> None:
        source = _meta_file(root, split)
        origin = f"{flag} {root}"
        records = read_videos(source, origin)
        if videos is not None:
            chosen = _listed(videos, records, source)
            self.selection = f"{len(chosen)} videos listed in {videos}"
        elif split == "valid":
            chosen, self.selection = _without_test(records, _meta_file(root, "test"), origin)
        else:
            chosen = records
            self.selection = f"{len(chosen)} videos: all of {split}"
        folder = root / split
        super().__init__(
            root,
            folder / "JPEGImages",
            folder / "Annotations",
            chosen,
            source,
            flag=flag,
            needs_masks=split == "train",
        )


def _meta_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"


def _without_test(records: dict[str, Any], test_file: Path, origin: str) -> tuple[dict[str, Any], str]:
    """Returns the videos of valid proper, as far as they can be told from those of test, and a description."""
    if not test_file.is_file():
        which = f"with those of test ({test_file}, which tells them apart, is missing)"
        is_proper = len(records) <= NUM_VALID
        return records, f"{len(records)} videos: all of valid" + ("" if is_proper else f", {which}")
    test = set(read_videos(test_file, origin))
    chosen = {video: record for video, record in records.items() if video not in test}
    if not chosen:
        raise UserError(f"{test_file}: lists every video of valid; download the file again, or remove it")
    return chosen, f"{len(chosen)} videos: those of valid without the {len(records) - len(chosen)} of test"


def _listed(file: Path, records: dict[str, Any], source: Path) -> dict[str, Any]:
    """Returns the videos that a text file names, in the order of ``records``."""
    if not file.is_file():
        raise MissingFileError(f"--video_list {file}: no such file; give a text file with one video id a line")
    try:
        wanted = dict.fromkeys(read_text(file).split())
    except UnicodeDecodeError:
        raise UserError(f"--video_list {file}: no text; give a text file with one video id a line") from None
    if not wanted:
        raise UserError(f"--video_list {file}: names no video; give one video id a line")
    for video in wanted:
        if video not in records:
            raise UserError(
                f"--video_list {file}: {video[:60]!r} is no video of {source}{did_you_mean(video, records)}"
            )
    return {video: record for video, record in records.items() if video in wanted}
