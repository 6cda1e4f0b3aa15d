"""The folder of a demo run: filled beside its final place, moved there when complete, continued after a stop.

<output_dir>/.<name>.partial/
    run.json                    what the masks depend on, and the preset of engine/demo/vram.py in use
    progress.safetensors        windows done so far; ``tail``: [P, overlap, h, w] logits to blend with the next window
    masks/<k>/<frame>.png       masks of finished frames, and perhaps of some more
"""

import json
import shutil
import sys
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.windows import Joint
from util.errors import UserError
from util.files import read_json, write_text_whole

RUN = "run.json"
PROGRESS = "progress.safetensors"
LOCK = ".lock"
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
