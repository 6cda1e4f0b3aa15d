"""The folder of an evaluation: whose it is, which units are done, which videos are taken. Free of torch.

manifest.json                            what the results depend on; another run is refused
Annotations/<video>/<exp_id>/<frame>.png masks of 0 and 255
anno_<a>/<video>/<frame>.png             Ref-DAVIS17: object numbers by annotator, see write_and_score.py
units/<video>/<exp_id>.json              scores of a unit, or null; written once all its masks are
captions/                                embeddings, where --text_cache names no other folder
metrics.json                             at the end, where there is a truth
.claims/<video>                          taken by a process; gone at the end
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
from util.files import write_text_whole
from util.metrics import Score

FORMAT = 1  # of the folder
MAX_LISTED = 5  # differences that an error names


class EvaluationFolder:
    """A folder that holds one evaluation, finished or not.

    Args:
        path: made when the run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.annotations = path / "Annotations"
        self.captions = path / "captions"
        self._units = path / "units"
        self._claims = path / ".claims"
        self._manifest = path / "manifest.json"

    def merged(self, annotator: int) -> Path:
        """Where the object numbers of an annotator's sentences go."""
        return self.path / ANNOTATOR_FOLDERS[annotator]

    # -- whose it is -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other programs out of the folder, which is made if absent.

        Raises:
            UserError: if it cannot be written, or another evaluation is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"--output_dir {self.path}: another evaluation is at work in it; wait for its end, or give another"
            ) from None
        except OSError as error:
            raise UserError(
                f"--output_dir {self.path}: cannot be written ({error.strerror}); choose a folder where you may write"
            ) from None
        with lock:
            yield

    def begin(self, identity: dict[str, Any], overwrite: bool) -> None:
        """Begins a run, or goes on with it.

        Args:
            identity: whatever the results depend on; JSON values.
            overwrite: whether to remove the results of another run.

        Raises:
            UserError: if the folder holds results of another run, and shall keep them, or masks of unknown origin.
        """
        identity = json.loads(json.dumps({"format": FORMAT} | identity))
        earlier = self._earlier_identity()
        if earlier != identity:
            if earlier is not None and not overwrite:
                raise UserError(
                    f"--output_dir {self.path}: holds another run ({_differences(earlier, identity)}); give another "
                    "folder, or --overwrite to remove that run"
                )
            if earlier is None and self.annotations.exists():  # perhaps those of a dataset: never ours to remove
                raise UserError(f"--output_dir {self.path}: holds Annotations of unknown origin; give another folder")
            self.clear()
            content = {"identity": identity, "command": sys.argv}
            write_text_whole(self._manifest, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        elif overwrite:
            self.clear()
        self.release()

    def clear(self) -> None:
        """Removes all results; the records first, so that an interruption leaves none without its masks."""
        for folder in (self._units, self.annotations, *(self.path / name for name in ANNOTATOR_FOLDERS)):
            if folder.is_dir():
                shutil.rmtree(folder)
        (self.path / "metrics.json").unlink(missing_ok=True)
        self.release()

    def _earlier_identity(self) -> dict[str, Any] | None:
        """None where no run is known; a damaged manifest equals none."""
        try:
            identity = json.loads(self._manifest.read_text(encoding="utf-8"))["identity"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return {}
        return identity if isinstance(identity, dict) else {}

    # -- which units are done ----------------------------------------------------------------------------------------

    def write_unit(self, expression: Expression, score: Score | None) -> None:
        """Records that all masks of an expression are written."""
        file = self._unit_file(expression)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(file, json.dumps(None if score is None else asdict(score)) + "\n")

    def is_done(self, expression: Expression) -> bool:
        """Whether it is recorded; a damaged record is none."""
        try:
            self.read_unit(expression)
        except UserError:
            return False
        return True

    def read_unit(self, expression: Expression) -> Score | None:
        """The scores of an expression; None where there is no truth.

        Raises:
            UserError: if there is no record, or it is damaged.
        """
        file = self._unit_file(expression)
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            return None if fields is None else Score(**fields)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{file}: missing or damaged ({error}); start again, and this unit is done once more. All processes "
                "must see one --output_dir"
            ) from None

    def _unit_file(self, expression: Expression) -> Path:
        return self._units / expression.video / f"{expression.exp_id}.json"

    # -- which videos are taken --------------------------------------------------------------------------------------

    def claim(self, video: str) -> bool:
        """Takes a video for this process; false where another has it.

        By making a file that must not exist: all processes share the folder anyway, so this needs neither a message
        between them nor torch's private store, and a process that died holds nothing once ``release`` was called.
        """
        self._claims.mkdir(exist_ok=True)
        try:
            (self._claims / video).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def claimed(self) -> set[str]:
        """The videos that some process has taken."""
        return {file.name for file in self._claims.iterdir()} if self._claims.is_dir() else set()

    def release(self) -> None:
        """Gives all videos back; to be called while no process takes any."""
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
