"""Finds everything that is wrong with the captions, frames and masks of a split."""

import functools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from datasets.check.report import Finding, SplitReport
from datasets.split import Expression, MaskCountError, MaskSizeError, Split
from util.errors import MissingFileError, UserError
from util.images import lacks_end
from util.workers import ordered_map

Size = tuple[int, int]

# Splits that are always published with masks.
ALWAYS_WITH_MASKS = ("train", "valid_u")


def check_content(split: Split, name: str, report: SplitReport) -> None:
    """Adds to ``report`` what is wrong with a split that could be read.

    Args:
        name: name of the split.
    """
    # By their first image: RefCOCO has one video per caption, several of one image.
    videos: dict[Path, list[Expression]] = {}
    for expression in split.expressions:
        videos.setdefault(split.frame_file(expression, 0), []).append(expression)
    report.videos, report.expressions = len(videos), len(split.expressions)
    report.frames = sum(len(_longest(expressions).frames) for expressions in videos.values())
    report.findings += check_sentences(split) + _check_order(split) + _check_presence_of_masks(split, name)
    checked = ordered_map(functools.partial(check_video, split), videos.values(), max_pending=os.cpu_count() or 1)
    for findings in tqdm(checked, desc=f"check {name}", total=len(videos), unit="video"):
        report.findings += findings


def check_sentences(split: Split) -> list[Finding]:
    """Finds captions that are blank, repeated in their video, or without a target."""
    findings = []
    first_use: dict[tuple[str, tuple[int, ...] | None, str], Expression] = {}
    for expression in split.expressions:
        place = f"{split.source}: {expression.video}/{expression.exp_id}"
        words = " ".join(expression.caption.lower().split())
        first = first_use.setdefault((expression.video, expression.annotated, words), expression)
        if not words:
            findings.append(
                Finding("empty expression", place, f"{expression.caption!r} says nothing; correct the file")
            )
        elif first is not expression:
            findings.append(Finding("repeated sentence", place, f"{words!r} is that of {first.exp_id} too"))
        if expression.object_ids == ():
            findings.append(Finding("no target", place, f"{words!r} means no object"))
    return findings


def check_video(split: Split, expressions: list[Expression]) -> list[Finding]:
    """Finds what is wrong with the frames of a video, and with the masks of its objects."""
    longest = _longest(expressions)
    findings, size = _check_frames(split, longest)
    if not split.has_masks:
        return findings
    if size is None:
        place = f"{split.source}: {longest.video}"
        return [*findings, Finding("masks not checked", place, "no frame tells which size they must have")]
    said: dict[str, Finding] = {}  # once for a file with several objects, or an object with several frames
    for target in _targets(expressions):
        for finding in _check_masks(split, target, size):
            said.setdefault(finding.message, finding)
    return findings + list(said.values())


def _longest(expressions: list[Expression]) -> Expression:
    return max(expressions, key=lambda expression: len(expression.frames))


def _check_order(split: Split) -> list[Finding]:
    message = "its frames are not listed in the order of their names; our readers sort them, and the masks with them"
    return [Finding("frame order", f"{split.source}: {video}", message) for video in split.unsorted_videos]


def _check_presence_of_masks(split: Split, name: str) -> list[Finding]:
    if split.has_masks:
        return []
    if name in ALWAYS_WITH_MASKS:
        message = "the masks of its objects are missing; download or unpack the dataset again"
        return [Finding("missing mask", str(split.source), message)]
    return [Finding("masks not checked", str(split.source), "this split comes without masks")]


def _check_frames(split: Split, expression: Expression) -> tuple[list[Finding], Size | None]:
    """Finds what is wrong with the frames; returns the (H, W) that most have, None if no frame can be read."""
    findings = []
    sizes: dict[Path, Size] = {}
    for file, positions in _positions_by_file(split, expression).items():
        try:
            frames = split.read_frames(expression, positions)
        except MissingFileError:
            findings.append(Finding("missing frame", str(file), "is missing; download or unpack the dataset again"))
            continue
        except UserError as error:
            findings.append(Finding("broken frame", str(file), str(error).removeprefix(f"{file}: ")))
            continue
        sizes[file] = frames[0].shape[:2]
        if lacks_end(file):
            findings.append(Finding("broken frame", str(file), "has no end, its data are lost; replace the file"))
    if not sizes:
        return findings, None
    height, width = usual = Counter(sizes.values()).most_common(1)[0][0]
    for file, size in sizes.items():
        if size != usual:
            message = f"is {size[1]} x {size[0]}, most frames of its video are {width} x {height}; replace the file"
            findings.append(Finding("frame size", str(file), message))
    return findings, usual


def _positions_by_file(split: Split, expression: Expression) -> dict[Path, list[int]]:
    """Groups all frames by file: an image holds one, a clip holds all."""
    positions: dict[Path, list[int]] = {}
    for index in range(len(expression.frames)):
        positions.setdefault(split.frame_file(expression, index), []).append(index)
    return positions


def _targets(expressions: list[Expression]) -> list[Expression]:
    """Returns an expression of one object for each object of some expressions, at each of its annotated frames."""
    targets: dict[tuple[str, str | None, tuple[int, ...] | None], Expression] = {}
    for expression in expressions:
        for number in (None,) if expression.object_ids is None else expression.object_ids:
            alone = expression if number is None else replace(expression, object_ids=(number,))
            targets.setdefault((expression.video, number, expression.annotated), alone)
    return list(targets.values())


def _check_masks(split: Split, target: Expression, size: Size) -> list[Finding]:
    """Finds what is wrong with the masks of an object, frame by frame."""
    findings = []
    is_seen = False
    for index in range(len(target.frames)) if target.annotated is None else target.annotated:
        try:
            is_seen |= bool(split.masks(target, [index], size).any())
        except UserError as error:
            place = f"{target.video}/{target.frames[index]}"
            findings.append(Finding(_mask_kind(error), place, str(error).removeprefix(f"{split.origin}: ")))
    if not findings and not is_seen:
        what = "the object" if target.object_ids is None else f"object {target.object_ids[0]}"
        where = "no frame shows" if target.annotated is None else f"frame {target.frames[target.annotated[0]]} hides"
        place = f"{split.source}: {target.video}/{target.exp_id}"
        findings.append(Finding("unseen object", place, f"{where} {what} that it means"))
    return findings


def _mask_kind(error: UserError) -> str:
    kinds = {MissingFileError: "missing mask", MaskCountError: "number of masks", MaskSizeError: "mask size"}
    return kinds.get(type(error), "broken mask")
