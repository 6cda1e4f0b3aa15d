"""Names of the files in a folder of results.

<output_dir>/<name>/result.json     the record; a folder with one is a result
<output_dir>/<name>_result.mp4      the overlay
"""

from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import read_json

RECORD = "result.json"
OVERLAY_ENDING = "_result.mp4"
NEEDED_ENTRIES = ("input", "prompts", "num_frames")


def overlay_of(target: Path) -> Path:
    """Returns the overlay video of a result folder."""
    return target.with_name(f"{target.name}{OVERLAY_ENDING}")


def is_overlay(file: Path) -> bool:
    """Whether a video is the overlay of a result beside it, so no input."""
    if not file.name.endswith(OVERLAY_ENDING):
        return False
    return read_record(file.with_name(file.name.removesuffix(OVERLAY_ENDING))) is not None


def read_record(folder: Path) -> dict[str, Any] | None:
    """Reads the record of a result; None if the folder is no result of the demo."""
    try:
        record = read_json(folder / RECORD)
    except (UserError, OSError):
        return None
    return record if all(entry in record for entry in NEEDED_ENTRIES) else None
