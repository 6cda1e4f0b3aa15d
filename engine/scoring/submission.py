"""Writes submission zips for the servers of MeViS and Ref-YouTube-VOS: checks every mask, same bytes each time."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from datasets.split import Expression, Split
from engine.scoring.prediction_folder import PredictionFolder
from util.errors import UserError, did_you_mean
from util.files import staged_folder
from util.mask_files import GREY, read_mask
from util.workers import ordered_map

TOP_FOLDERS = {"mevis": "", "toy": "", "ytvos": "Annotations/"}  # top folder of the names in a zip
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of a zip: the same masks make the same bytes
READABLE = 0o644 << 16


def write_zip(split: Split, dataset: str, pred: Path, file: Path) -> str:
    """Writes the masks of a whole split as its server expects them; reads and checks every mask.

    Args:
        dataset: one of ``TOP_FOLDERS``.
        pred: see ``PredictionFolder``.

    Returns:
        A description of the content.

    Raises:
        UserError: if the dataset has no server; if masks are missing, too many, or not grey PNGs of 0 and 255 at
            source
            size; or if the zip cannot be written.
    """
    if dataset not in TOP_FOLDERS:
        raise UserError(
            f"--zip: only {', '.join(TOP_FOLDERS)} have a server that takes zips, got {dataset}"
            f"{did_you_mean(dataset, TOP_FOLDERS)}; score it here instead"
        )
    if file.suffix != ".zip":
        raise UserError(f"--zip {file}: must end in .zip; rename it")
    predictions = PredictionFolder(pred, split, split.expressions)
    with staged_folder(file.parent, file.name) as staging:
        complete = predictions.check(allow_partial=False)
        num_masks = _write(staging / file.name, predictions, complete, TOP_FOLDERS[dataset])
        (staging / file.name).replace(file)
    videos = {expression.video for expression in complete}
    return f"{len(videos)} videos, {len(complete)} expressions, {num_masks} masks"


def _write(file: Path, predictions: PredictionFolder, expressions: list[Expression], top: str) -> int:
    """Writes the zip; returns the number of masks."""
    count = 0
    ordered = sorted(expressions, key=lambda expression: expression.key)

    def checked(expression: Expression) -> list[tuple[str, bytes]]:
        return list(_entries(predictions, expression, top))

    # PNGs are compressed already.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entries in tqdm(ordered_map(checked, ordered), desc="zip", unit="expression", total=len(ordered)):
            for name, data in entries:
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = READABLE
                entry.create_system = 3  # Unix, on any system
                archive.writestr(entry, data)
                count += 1
    return count


def _entries(predictions: PredictionFolder, expression: Expression, top: str) -> Iterator[tuple[str, bytes]]:
    for path in predictions.files(expression):
        read_mask(path, predictions.size(expression), (GREY,))
        yield f"{top}{expression.video}/{expression.exp_id}/{path.name}", path.read_bytes()
