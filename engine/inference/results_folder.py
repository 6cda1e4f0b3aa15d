"""The output folder of ``inference_*.py``: which run it belongs to, which expressions are done, who works on what.

manifest.json                            what the masks depend on; a run with other values is refused
Annotations/<video>/<exp_id>/<frame>.png masks of 0 and 255
anno_<a>/<video>/<frame>.png             Ref-DAVIS17: object numbers per annotator, see write_and_score.py
units/<video>/<exp_id>.json              scores of an expression, or null; written after all its masks
captions/                                caption embeddings, unless --text_cache names another folder
metrics.json                             written at the end, if the split has ground truth
.claims/<video>                          marks a video that a process works on; removed at the end
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datasets.readers.davis import ANNOTATOR_FOLDERS
from datasets.split import Expression
from util.errors import UserError
from util.files import read_text, write_text_whole
from util.metrics import Score

FORMAT = 1  # version of this layout
MAX_LISTED = 5  # most differences that an error names


class ResultsFolder:
    """The results of one inference run, finished or not.

    Args:
        path: created when the run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.annotations = path / "Annotations"
        self.captions = path / "captions"
        self._units = path / "units"
        self._claims = path / ".claims"
        self._manifest = path / "manifest.json"

    def merged(self, annotator: int) -> Path:
        """Returns the folder of an annotator's merged object numbers."""
        return self.path / ANNOTATOR_FOLDERS[annotator]

    # -- the run -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Creates the folder if needed and locks it against other programs.

        Raises:
            UserError: if it cannot be written, or another program works in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"--output_dir {self.path}: another run writes to this folder; wait until it ends, or give another one"
            ) from None
        except OSError as error:
            raise UserError(
                f"--output_dir {self.path}: cannot be written ({error.strerror}); choose a folder where you may write"
            ) from None
        with lock:
            yield

    def begin(self, identity: dict[str, Any], overwrite: bool) -> None:
        """Starts a run, or continues it.

        Args:
            identity: everything that the masks depend on, as JSON values.
            overwrite: remove the results of an earlier run.

        Raises:
            UserError: if the folder holds another run and ``overwrite`` is false, or masks without a manifest.
        """
        identity = json.loads(json.dumps({"format": FORMAT} | identity))
        earlier = self._earlier_identity()
        if earlier != identity:
            if earlier is not None and not overwrite:
                raise UserError(
                    f"--output_dir {self.path}: holds another run ({_differences(earlier, identity)}); give another "
                    "folder, or add --overwrite to remove that run"
                )
            if earlier is None and self.annotations.exists():  # may be ground truth: never remove it
                raise UserError(
                    f"--output_dir {self.path}: holds Annotations but no manifest.json of a run; give another folder"
                )
            self.clear()
            content = {"identity": identity, "command": sys.argv}
            write_text_whole(self._manifest, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        elif overwrite:
            self.clear()
        self.release()

    def clear(self) -> None:
        """Removes all results, records first: an interruption never leaves a record without its masks."""
        for folder in (self._units, self.annotations, *(self.path / name for name in ANNOTATOR_FOLDERS)):
            if folder.is_dir():
                shutil.rmtree(folder)
        (self.path / "metrics.json").unlink(missing_ok=True)
        self.release()

    def _earlier_identity(self) -> dict[str, Any] | None:
        """Returns None if there is no manifest, and {}, which equals no run, if it is damaged."""
        try:
            identity = json.loads(read_text(self._manifest))["identity"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return {}
        return identity if isinstance(identity, dict) else {}

    # -- finished expressions ----------------------------------------------------------------------------------------

    def write_unit(self, expression: Expression, score: Score | None) -> None:
        """Records that all masks of an expression are written."""
        file = self._unit_file(expression)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(file, json.dumps(None if score is None else asdict(score)) + "\n")

    def is_done(self, expression: Expression) -> bool:
        """Whether an expression is recorded as done; a damaged record does not count."""
        try:
            self.read_unit(expression)
        except UserError:
            return False
        return True

    def read_unit(self, expression: Expression) -> Score | None:
        """Returns the scores of an expression, None if the split has no ground truth.

        Raises:
            UserError: if the record is missing or damaged.
        """
        file = self._unit_file(expression)
        try:
            fields = json.loads(read_text(file))
            return None if fields is None else Score(**fields)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{file}: missing or damaged ({error}); run the same command again to redo this expression. All "
                "processes must see the same --output_dir"
            ) from None

    def _unit_file(self, expression: Expression) -> Path:
        return self._units / expression.video / f"{expression.exp_id}.json"

    # -- sharing videos out ------------------------------------------------------------------------------------------

    def claim(self, video: str) -> bool:
        """Takes a video for this process; returns False if another process has it.

        Creates a file that must not exist yet: all processes share the folder anyway, so they need no messages and not
        torch's private store, and after ``release`` a dead process holds nothing.
        """
        self._claims.mkdir(exist_ok=True)
        try:
            (self._claims / video).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def claimed(self) -> set[str]:
        """Returns the videos that any process has taken."""
        return {file.name for file in self._claims.iterdir()} if self._claims.is_dir() else set()

    def release(self) -> None:
        """Gives all videos back. Call it while no process takes any."""
        shutil.rmtree(self._claims, ignore_errors=True)


def _differences(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """``options.threshold was 0.5, is 0.6``."""
    old, new = dict(_flat(earlier)), dict(_flat(now))
    changed = [name for name in old | new if old.get(name) != new.get(name)]
    listed = [f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}" for name in changed[:MAX_LISTED]]
    more = len(changed) - MAX_LISTED
    return "; ".join(listed) + (f"; and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
