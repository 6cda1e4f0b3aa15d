"""Moves a complete result into place, whole, and replaces only an earlier result.

A result is complete in ``<output_dir>/.<name>.partial/``; then its files move one by one. ``delivery.json`` lists them
from the first move to the last, so a stopped delivery is finished by the next start.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from engine.demo.inputs import Job
from engine.demo.names import RECORD, overlay_of, read_record
from engine.demo.result_folder import LOCK, PROGRESS, PartialResult
from models.text import clean_caption
from util.errors import UserError
from util.files import missing_folders, move_over, remove_empty, write_text_whole
from util.frames import place_of

DELIVERY = "delivery.json"
OVERLAY = "result.mp4"  # before it is moved beside the folder
# What a run may write beside record and overlay; a new result removes those of the earlier one.
PRODUCTS = (
    *("masks", "overlay", "mask_video", "mask_video_exact", "cutout"),
    *("side_by_side.mp4", "rle.json", "masks.csv"),
)


@contextlib.contextmanager
def staged_result(output_dir: Path, job: Job, *, overwrite: bool = False) -> Iterator[PartialResult]:
    """Yields a folder to fill with ``masks/``, ``result.json`` and perhaps more of ``PRODUCTS``, and ``result.mp4``.

    If the block succeeds, they move to ``<output_dir>/<name>/`` and ``<output_dir>/<name>_result.mp4`` and replace an
    earlier result. If it fails after some progress, the folder stays for the next start, and a line says so. Otherwise
    nothing is left.

    Raises:
        UserError: if the folder cannot be written or is in use, or ``check_target`` refuses it.
    """
    check_target(output_dir, job, overwrite=overwrite)
    target = output_dir / job.name
    made = missing_folders(output_dir)
    partial = PartialResult(_partial_of(target))
    with _locked(partial.folder, made):
        try:
            if (partial.folder / DELIVERY).is_file():
                _move(partial.folder, target)
                partial.clear()
                check_target(output_dir, job, overwrite=overwrite)
            yield partial
            (partial.folder / PROGRESS).unlink(missing_ok=True)  # no run can continue from masks that moved away
            names = [name for name in (*PRODUCTS, OVERLAY) if (partial.folder / name).exists()]
            write_text_whole(partial.folder / DELIVERY, json.dumps(names) + "\n")
            _move(partial.folder, target)
        except BaseException:
            if partial.can_continue:
                print(
                    f"Finished masks stay in {partial.folder}: the same command continues there; remove the folder to "
                    "start again.", file=sys.stderr,
                )  # fmt: skip
            raise
        finally:
            if not partial.has_progress and not (partial.folder / DELIVERY).is_file():
                shutil.rmtree(partial.folder, ignore_errors=True)
                remove_empty(made)


@contextlib.contextmanager
def _locked(folder: Path, made: list[Path]) -> Iterator[None]:
    """Creates the folder and locks it against other processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--output_dir {folder.parent}: another run works on {folder.name}; wait until it ends, or choose another"
        ) from None
    except OSError as error:
        remove_empty(made)
        raise UserError(
            f"{folder.parent}: cannot be written ({error.strerror}); choose a folder where you may write"
        ) from None
    with lock:
        yield


def _move(folder: Path, target: Path) -> None:
    """Moves what ``delivery.json`` lists and is not moved yet, then the record; removes an earlier result."""
    content: Any = json.loads((folder / DELIVERY).read_bytes())
    target.mkdir(exist_ok=True)
    earlier = read_record(target)
    if earlier is not None and OVERLAY not in content and _saved_overlay(earlier):
        overlay_of(target).unlink(missing_ok=True)
    (target / RECORD).unlink(missing_ok=True)  # the result counts only once everything is in place
    remove_products(target, but=content)
    for name in content:
        if (folder / name).exists():
            move_over(folder / name, overlay_of(target) if name == OVERLAY else target / name)
    move_over(folder / RECORD, target / RECORD)
    (folder / DELIVERY).unlink()


def remove_products(folder: Path, but: Collection[str]) -> None:
    """Removes the ``PRODUCTS`` and the overlay that a run wrote into a folder, except those named."""
    for name in {*PRODUCTS, OVERLAY} - set(but):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def is_done(output_dir: Path, job: Job) -> bool:
    """Whether the folder holds the finished result of this input and these prompts."""
    earlier = read_record(output_dir / job.name)
    return earlier is not None and earlier["input"] == place_of(job.path) and _same_prompts(earlier, job)


def check_target(output_dir: Path, job: Job, *, overwrite: bool = False) -> None:
    """Refuses to write where something else lies. Call it before any work.

    Args:
        overwrite: replace the result of other prompts or of another input; never a folder without such a result.

    Raises:
        UserError: if the target holds anything but the result of this input and these prompts, or is in the input.
    """
    target = output_dir / job.name
    if job.path.is_dir() and job.path.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(
            f"--output_dir {target.parent}: results would land in the input folder {target}; choose another"
        )
    if (_partial_of(target) / DELIVERY).is_file():  # what lies there is half of a result; the rest is moved first
        return
    earlier = read_record(target) if target.is_dir() else None
    video = overlay_of(target)
    if video.is_dir() or (video.exists() and (earlier is None or not _saved_overlay(earlier))):
        raise UserError(f"--output_dir {target.parent}: {video} is not a result of this program; choose another folder")
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and earlier is None):
        raise UserError(
            f"--output_dir {target.parent}: {target} exists and is not a result of this program; choose another folder"
        )
    if earlier is None or overwrite:
        return
    if earlier["input"] != place_of(job.path):
        raise UserError(
            f"--output_dir {target.parent}: {target} holds the result of another input ({earlier['input']}); "
            "choose another folder, or add --overwrite to replace it"
        )
    if not _same_prompts(earlier, job):
        prompts = ", ".join(map(repr, earlier["prompts"])) if isinstance(earlier["prompts"], list) else "unknown"
        raise UserError(
            f"--output_dir {target.parent}: {target} holds the result of other prompts ({prompts}); choose another "
            "folder, or add --overwrite to replace it"
        )


def _partial_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _saved_overlay(record: dict[str, Any]) -> bool:
    return "overlay" in record.get("save", ["overlay"])  # earlier versions always wrote it


def _same_prompts(earlier: dict[str, Any], job: Job) -> bool:
    prompts = earlier["prompts"]
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        return False
    return [clean_caption(prompt) for prompt in prompts] == [clean_caption(prompt) for prompt in job.prompts]
