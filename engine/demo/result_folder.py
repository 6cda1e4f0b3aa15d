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

from models.windows import Joint
from util.errors import UserError
from util.files import missing_folders, move_over, read_json, remove_empty, write_text_whole
from util.video import FrameSource

RECORD = "result.json"
RUN = "run.json"
PROGRESS = "progress.safetensors"
LOCK = ".lock"


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
        """Whether the next start can continue here."""
        return (self.folder / PROGRESS).is_file()

    def begin(self, identity: dict[str, Any], presets: Container[str]) -> str | None:
        """Continues an earlier run of the same identity, or clears the folder.

        Args:
            identity: everything that the masks depend on, as JSON values.
            presets: names of the known presets.

        Returns:
            The preset of the earlier run; None if there is none.
        """
        identity = json.loads(json.dumps(identity))
        if self.has_progress:
            try:
                earlier = read_json(self.folder / RUN)
            except UserError:
                earlier = {}
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
        content = {"identity": identity, "preset": preset}
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
def staged_result(output_dir: Path, source: FrameSource) -> Iterator[PartialResult]:
    """Yields a folder to fill with ``masks/``, ``result.mp4``, ``result.json`` and perhaps ``overlay/``.

    If the block succeeds, they move to ``<output_dir>/<name>/`` and ``<output_dir>/<name>_result.mp4`` and replace an
    earlier result of the same input. If it fails after some progress, the folder stays for the next start, and a line
    says
    so. Otherwise nothing is left.

    Raises:
        UserError: if the folder cannot be written, is in use, or the target holds anything but such a result.
    """
    target = output_dir / source.name
    _check_target(target, source)
    made = missing_folders(output_dir)
    partial = PartialResult(output_dir / f".{source.name}.partial")
    with _locked(partial.folder, made):
        try:
            yield partial
            (partial.folder / PROGRESS).unlink(missing_ok=True)  # no run can continue from masks that moved away
            _deliver(partial.folder, target)
        except BaseException:
            if partial.has_progress:
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
    for name in ("masks", "overlay"):
        if (folder / name).exists() or (target / name).exists():
            (folder / name).mkdir(exist_ok=True)
            move_over(folder / name, target / name)
        with contextlib.suppress(OSError):
            (target / name).rmdir()  # removes a folder of the earlier result that this one does not have
    move_over(folder / "result.mp4", target.with_name(f"{target.name}_result.mp4"))
    move_over(folder / RECORD, target / RECORD)


def _check_target(target: Path, source: FrameSource) -> None:
    if source.path.is_dir() and source.path.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(
            f"--output_dir {target.parent}: results would land in the input folder {target}; choose another"
        )
    video = target.with_name(f"{target.name}_result.mp4")
    if video.is_dir() or (video.exists() and not (target / RECORD).is_file()):
        raise UserError(f"--output_dir {target.parent}: {video} is not a result of this program; choose another folder")
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / RECORD).is_file()):
        raise UserError(
            f"--output_dir {target.parent}: {target} exists and is not a result of this program; choose another folder"
        )
    if (target / RECORD).is_file():
        earlier = _earlier_input(target / RECORD)
        if earlier != source.place:
            raise UserError(
                f"--output_dir {target.parent}: {target} holds the result of another input ({earlier}); "
                "choose another folder"
            )


def _earlier_input(record: Path) -> str | None:
    """Returns the input of an earlier result; None if the record is damaged, so it counts as another input."""
    try:
        return read_json(record).get("input")
    except UserError:
        return None
