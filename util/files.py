"""Writes results whole or not at all: under another name first, renamed at the end."""

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
    """Yields a folder ``.<name>.partial-<pid>`` in ``parent``; removes it at the end with everything still in it.

    Creates ``parent`` if needed, and removes it again if the block fails and nothing else is in it.

    Raises:
        UserError: if the folder cannot be created, before any work is done.
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
    """Yields a folder in which to create ``names``; at the end of the block these move into ``out``, all or none.

    ``out`` may hold other files already.

    Raises:
        UserError: if ``out`` holds one of ``names``, or cannot be written.
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
    """Hard-links ``target`` to ``source``, or copies the file if the disk has no hard links.

    Raises:
        OSError: if neither works.
    """
    try:
        os.link(
            source.resolve(), target
        )  # the file behind a symbolic link: a relative link may point nowhere from the new folder
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def move_over(source: Path, target: Path) -> None:
    """Renames ``source`` to ``target``; replaces a folder or file that is there."""
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
    """Returns ``path`` and its parents that do not exist, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Removes those folders that are empty, innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty: it holds results
            folder.rmdir()


def write_text_whole(path: Path, text: str) -> None:
    """Writes a UTF-8 file under another name and renames it: readers never see half of it."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_text(path: Path, errors: str = "strict") -> str:
    """Reads a UTF-8 file, without the byte-order mark that some editors of Windows put first.

    Args:
        errors: as of ``bytes.decode``.

    Raises:
        OSError: if the file cannot be read.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return path.read_text(encoding="utf-8-sig", errors=errors)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        UserError: if the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; download the folder again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore it or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, got a {type(content).__name__}")
    return content
