"""Results appear whole or not at all: written beside their place, renamed at the end."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from util.errors import MissingFileError, UserError


@contextlib.contextmanager
def staged_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder ``.<name>.partial-<pid>`` in ``parent``, gone at the end with whatever was not moved out of it.

    ``parent`` is made if absent, and removed again if the block fails and nothing else is in it.

    Raises:
        UserError: if the folder cannot be made, before any work is done.
    """
    made = missing_folders(parent)
    staging = parent / f".{name}.partial-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        remove_empty(made)
        raise UserError(
            f"{parent}: cannot be written ({error.strerror}); choose a folder where you may write"
        ) from None
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        remove_empty(made)


@contextlib.contextmanager
def new_folders(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder to make the folders ``names`` in; at the end of the block they move into ``out``, all or none.

    ``out`` may hold other things already.

    Raises:
        UserError: if it holds one of ``names``, or cannot be written.
    """
    for name in names:
        if os.path.lexists(out / name):
            raise UserError(f"--out {out}: already holds {name}; give another folder or remove it")
    with staged_folder(out, "new") as staging:
        yield staging
        moved: list[Path] = []
        try:
            for name in names:
                moved.append((staging / name).rename(out / name))
        except BaseException:
            for folder in moved:
                shutil.rmtree(folder)
            raise


def link_or_copy(source: Path, target: Path) -> None:
    """Makes ``target`` the same file as ``source``, or a copy of it where the disk has no hard links.

    Raises:
        OSError: if neither can be done.
    """
    try:
        os.link(source.resolve(), target)  # of a symbolic link the file: a link to a link may lead nowhere from there
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def move_over(source: Path, target: Path) -> None:
    """Renames ``source`` to ``target``; a folder or file already there is replaced."""
    if not target.is_dir() and not source.is_dir():
        source.replace(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.replace(old)
    source.replace(target)
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)


def missing_folders(path: Path) -> list[Path]:
    """``path`` and those of its parents that do not exist, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Removes those folders that hold nothing, innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty: something was delivered
            folder.rmdir()


def write_text_whole(path: Path, text: str) -> None:
    """Writes a UTF-8 file beside its place and renames it: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: if the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; download the folder again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore it or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, got a {type(content).__name__}")
    return content
