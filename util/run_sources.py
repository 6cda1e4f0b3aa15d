"""What a run was started from: ``--dit_ckpt RUN`` needs neither ``--wan_path`` nor ``--vae_ckpt`` again.

``options.json`` has the flags as they were given, which may be relative to a folder that only the run knew, and under
``sources`` what they named: an absolute path, or a name of the hub. Runs of earlier versions have no ``sources``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.errors import MissingFileError
from util.files import read_json
from util.flags import DEFAULT_WAN_PATH
from util.run_folder import OPTIONS_FILE

SOURCE_FLAGS = ("wan_path", "dit_ckpt", "vae_ckpt")


def sources_of(options: Mapping[str, Any]) -> dict[str, str | None]:
    """Returns what a run records of its flags: absolute paths of what exists; else the flag, a name of the hub."""
    given = {flag: options[flag] for flag in SOURCE_FLAGS} | {"wan_path": options["wan_path"] or DEFAULT_WAN_PATH}
    return {flag: str(Path(name).absolute()) if name and Path(name).exists() else name for flag, name in given.items()}


def with_sources_of_run(
    wan_path: str | None, dit_ckpt: str | None, vae_ckpt: str | None
) -> tuple[str | None, str | None]:
    """Returns ``--wan_path`` and ``--vae_ckpt``: as given, else from the run that the other weights are of.

    A line on stderr says what was taken.

    Raises:
        UserError: if what the run recorded does not exist any more.
    """
    run = _run_of(dit_ckpt) or _run_of(vae_ckpt)
    if run is None:
        return wan_path, vae_ckpt
    taken = {
        "wan_path": None if wan_path else recorded_source(run, "wan_path"),
        "vae_ckpt": None if vae_ckpt else recorded_source(run, "vae_ckpt"),
    }
    words = [f"--{flag} {name}" for flag, name in taken.items() if name]
    if words:
        print(f"Taken from the run {run}: {' '.join(words)}", file=sys.stderr)
    return wan_path or taken["wan_path"], vae_ckpt or taken["vae_ckpt"]


def recorded_source(run: Path, flag: str) -> str | None:
    """Returns what a flag of ``main.py`` named for a run: a path that exists, or a name of the hub; None if nothing.

    Args:
        flag: ``wan_path``, ``dit_ckpt`` or ``vae_ckpt``.

    Raises:
        UserError: if it does not exist any more.
    """
    record = read_json(run / OPTIONS_FILE)
    given = record["options"].get(flag)
    sources = record.get("sources")
    source = (sources.get(flag) if isinstance(sources, dict) else None) or given
    for name in (source, given):
        if name and Path(name).exists():
            return str(name)
    # Earlier versions took names of the hub for --wan_path alone, and did not tell them from paths.
    may_be_on_hub = "sources" in record or (flag == "wan_path" and source and source.count("/") == 1)
    if source is None or (may_be_on_hub and not Path(source).is_absolute()):
        return source
    remedy = "restore it" if flag == "dit_ckpt" else f"give --{flag}"
    raise MissingFileError(f"{run}: its --{flag} was {source}, which does not exist any more; {remedy}")


def _run_of(name: str | None) -> Path | None:
    """Returns the run that a folder is, or that it is a checkpoint or a network of; None for other weights."""
    if name is None or not Path(name).is_dir():
        return None
    place = Path(name).absolute()
    for folder in (place, *place.parents[:2]):
        if (folder / OPTIONS_FILE).is_file() and isinstance(read_json(folder / OPTIONS_FILE).get("options"), dict):
            return folder
    return None
