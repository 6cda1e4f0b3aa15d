"""The folder of a demo run: filled beside its final place, moved there when complete, continued after a stop.

<output_dir>/.<name>.partial/
    run.json                    what the masks depend on, and the preset of engine/demo/vram.py in use
    progress.safetensors        windows done so far; ``tail``: [P, overlap, h, w] logits to blend with the next window
    masks/<k>/<frame>.png       masks of finished frames, and perhaps of some more
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.demo.inputs import Job
from models.text import clean_caption
from models.windows import Joint
from util.errors import UserError
from util.files import missing_folders, move_over, read_json, remove_empty, write_text_whole
from util.frames import place_of

RECORD = "result.json"
RUN = "run.json"
PROGRESS = "progress.safetensors"
LOCK = ".lock"
OVERLAY = "result.mp4"
# What a run may write beside the record; a new result removes those of the earlier one.
PRODUCTS = (
    *("masks", "overlay", "mask_video", "mask_video_exact", "cutout"),
    *("side_by_side.mp4", "rle.json", "masks.csv"),
)
# 2: mask k is that of frame k of the file. Before, frames were put on a grid in time first.
NUMBERING = 2


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        joint: state after the windows so far.
        spans: frames of each window, [start, stop).
        agreements: per distinct caption, see ``Blend``.
        size, model_size: source size and model size, (H, W) in pixels.
        seconds: wall-clock time per stage.
    """

    joint: Joint
    spans: list[tuple[int, int]]
    agreements: list[list[float]]
    size: tuple[int, int]
    model_size: tuple[int, int]
    seconds: dict[str, float] = field(default_factory=dict)


class PartialResult:
    """The folder of an unfinished result; see the top of this file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def has_progress(self) -> bool:
        """Whether an earlier run left progress."""
        return (self.folder / PROGRESS).is_file()

    @property
    def can_continue(self) -> bool:
        """Whether that progress is of this version."""
        try:
            return self.has_progress and read_json(self.folder / RUN).get("numbering") == NUMBERING
        except UserError:
            return False

    def begin(self, identity: dict[str, Any], presets: Container[str], *, overwrite: bool = False) -> str | None:
        """Continues an earlier run of the same identity, or clears the folder.

        Args:
            identity: everything that the masks depend on, as JSON values.
            presets: names of the known presets.
            overwrite: clear also what cannot be continued because an earlier version numbered its frames otherwise.

        Returns:
            The preset of the earlier run; None if there is none.

        Raises:
            UserError: if an earlier version left masks that may belong to other frames.
        """
        identity = json.loads(json.dumps(identity))
        if self.has_progress:
            try:
                earlier = read_json(self.folder / RUN)
            except UserError:
                earlier = {}
            if "identity" in earlier and earlier.get("numbering") != NUMBERING and not overwrite:
                raise UserError(
                    f"{self.folder}: an earlier version left an unfinished result here, whose masks may belong to "
                    "other frames; it cannot be continued: remove it, or add --overwrite"
                )
            if earlier.get("identity") == identity and earlier.get("preset") in presets:
                return str(earlier["preset"])
            print(
                "Starting again: the earlier run that was stopped here had other arguments or inputs.", file=sys.stderr
            )
        self.clear()
        return None

    def clear(self) -> None:
        """Removes what an earlier run left, progress first: it never remains without its masks."""
        (self.folder / PROGRESS).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def describe(self, identity: dict[str, Any], preset: str) -> None:
        """Records what ``begin`` compares, before any progress."""
        content = {"numbering": NUMBERING, "identity": identity, "preset": preset}
        write_text_whole(self.folder / RUN, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def save(self, progress: Progress) -> None:
        """Records that all masks of the finished frames are written."""
        values = asdict(progress) | {"joint": [progress.joint.start, progress.joint.stop]}
        aside = self.folder / f".{PROGRESS}"
        save_file({"tail": progress.joint.tail.contiguous()}, aside, metadata={"progress": json.dumps(values)})
        aside.replace(self.folder / PROGRESS)

    def load(self) -> Progress | None:
        """Returns what ``save`` recorded last; None if there is nothing.

        Raises:
            UserError: if it is damaged.
        """
        if not self.has_progress:
            return None
        file = self.folder / PROGRESS
        try:
            with safe_open(file, framework="pt") as content:
                values = json.loads(content.metadata()["progress"])
                start, stop = values["joint"]
                joint = Joint(start, stop, content.get_tensor("tail"))
            spans = [(first, last) for first, last in values["spans"]]
            size, model_size = ((values[name][0], values[name][1]) for name in ("size", "model_size"))
            return Progress(joint, spans, values["agreements"], size, model_size, values["seconds"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: damaged ({error}); remove {self.folder} to start again") from None


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
    partial = PartialResult(output_dir / f".{job.name}.partial")
    with _locked(partial.folder, made):
        try:
            yield partial
            (partial.folder / PROGRESS).unlink(missing_ok=True)  # no run can continue from masks that moved away
            _deliver(partial.folder, target)
        except BaseException:
            if partial.can_continue:
                print(
                    f"Finished masks stay in {partial.folder}: the same command continues there; remove the folder to "
                    "start again.", file=sys.stderr,
                )  # fmt: skip
            raise
        finally:
            if not partial.has_progress:
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


def _deliver(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    (target / RECORD).unlink(missing_ok=True)  # the result counts only once everything is in place
    for name in PRODUCTS:
        if (folder / name).exists():
            move_over(folder / name, target / name)
        elif (target / name).is_dir():
            shutil.rmtree(target / name)
        else:
            (target / name).unlink(missing_ok=True)
    overlay = _overlay_of(target)
    if (folder / OVERLAY).exists():
        move_over(folder / OVERLAY, overlay)
    else:
        overlay.unlink(missing_ok=True)
    move_over(folder / RECORD, target / RECORD)


def _overlay_of(target: Path) -> Path:
    return target.with_name(f"{target.name}_result.mp4")


def is_done(output_dir: Path, job: Job) -> bool:
    """Whether the folder holds the finished result of this input and these prompts."""
    earlier = _earlier(output_dir / job.name / RECORD)
    return earlier.get("input") == place_of(job.path) and _same_prompts(earlier, job)


def check_target(output_dir: Path, job: Job, *, overwrite: bool = False) -> None:
    """Refuses to write where something else lies. Call it before any work.

    Args:
        overwrite: replace the result of other prompts or of another input; never files of another origin.

    Raises:
        UserError: if the target holds anything but the result of this input and these prompts, or is in the input.
    """
    target = output_dir / job.name
    if job.path.is_dir() and job.path.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(
            f"--output_dir {target.parent}: results would land in the input folder {target}; choose another"
        )
    is_ours = (target / RECORD).is_file()
    video = _overlay_of(target)
    if video.is_dir() or (video.exists() and not is_ours):
        raise UserError(f"--output_dir {target.parent}: {video} is not a result of this program; choose another folder")
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not is_ours):
        raise UserError(
            f"--output_dir {target.parent}: {target} exists and is not a result of this program; choose another folder"
        )
    if not is_ours or overwrite:
        return
    earlier = _earlier(target / RECORD)
    if earlier.get("input") != place_of(job.path):
        raise UserError(
            f"--output_dir {target.parent}: {target} holds the result of another input ({earlier.get('input')}); "
            "choose another folder, or add --overwrite to replace it"
        )
    if not _same_prompts(earlier, job):
        raise UserError(
            f"--output_dir {target.parent}: {target} holds the result of other prompts "
            f"({', '.join(map(repr, earlier.get('prompts', [])))}); choose another folder, or add --overwrite to "
            "replace it"
        )


def _earlier(record: Path) -> dict[str, Any]:
    """Returns the record of an earlier result; empty if it is damaged, so it counts as another input's."""
    try:
        return read_json(record)
    except UserError:
        return {}


def _same_prompts(earlier: dict[str, Any], job: Job) -> bool:
    prompts = earlier.get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        return False
    return [clean_caption(prompt) for prompt in prompts] == [clean_caption(prompt) for prompt in job.prompts]
