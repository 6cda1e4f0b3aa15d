"""Recognises what is often saved under the name of a weight file: a web page, a Git LFS pointer, nothing."""

import re
from pathlib import Path

from util.errors import UserError

HEAD_BYTES = 1024  # a pointer is shorter; a page says in its first tag what it is
PAGE = re.compile(rb"\s*<(!doctype|html|head|body|script|meta|title|\?xml|!--)", re.IGNORECASE)
POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/")
POINTER_SIZE = re.compile(rb"^size (\d+)\s*$", re.MULTILINE)


def refuse_wrong_file(file: Path, source: str) -> None:
    """Checks the first bytes of a file that should hold weights. A damaged weight file is left to its reader.

    Args:
        source: argument and file, for errors.

    Raises:
        UserError: if the file is empty, a web page or a Git LFS pointer.
        OSError: if it cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        raise UserError(f"{source}: {file.name} is empty, 0 bytes; its download did not finish: download it again")
    if PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        raise UserError(
            f"{source}: {file.name} is a web page, not weights: a link to the page of the file was saved; open that "
            "page in a browser and download the file itself"
        )
    if POINTER.match(head):
        size = POINTER_SIZE.search(head)
        meant = f"for a file of {int(size[1]):,} bytes" if size else "without a size"
        raise UserError(
            f"{source}: {file.name} is a Git LFS pointer {meant}, not the file itself; run git lfs pull in its "
            "repository, or download it with hf download"
        )
