"""Finds weights by name: a path here, or a repository of the Hugging Face hub, which is downloaded and cached.

A name of the hub is ``owner/name``, or ``owner/name/path`` for a file or folder in the repository. A path that exists
here is never looked up there. What a repository holds is listed, not guessed from its description. Without a
network, what was downloaded before is used.
"""

import glob
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from util.errors import MissingFileError, UserError, did_you_mean
from util.recipes import how_to_make
from util.weight_files import WEIGHT_SUFFIXES, is_saved_name

try:  # the library's own connections
    from httpx2 import HTTPError
except ImportError:  # its versions before 2
    from httpx import HTTPError  # type: ignore[import-not-found, no-redef]

MAX_LISTED = 20  # most names of files in an error
SMALL_FILE = ".gitattributes"  # every repository has it
VAE_WORD = "vae"  # in the name of each file or folder with weights of a VAE, and of no other
OTHER_WORDS = ("text_encoder", "t5", "clip", "optimizer", "scheduler")  # neither DiT nor VAE
NOT_LISTED = getattr(huggingface_hub.errors, "CachedRepoTreeNotFoundError", OSError)
HUB_ERRORS = (HTTPError, OSError)  # of huggingface_hub are OSErrors, of its connections HTTPErrors


def local_weights(name: str, network: str, flag: str) -> Path:
    """Returns the file or folder of a network's weights, from ``--dit_ckpt`` or ``--vae_ckpt``; downloads if needed.

    Args:
        name: a path, or a name of the hub. With ``owner/name`` alone, the one file or folder of the repository is
            taken that fits the network by its name.
        network: ``transformer`` or ``vae``.
        flag: for errors.

    Raises:
        UserError: if the name is neither, the hub cannot be reached, or no file of the repository, or several, fit.
    """
    source = f"{flag} {name}"
    if Path(name).exists():
        return Path(name)
    parts = name.rstrip("/").split("/")
    if len(parts) < 2 or parts[0] in ("", ".", "..", "~"):
        raise MissingFileError(
            f"{source}: no such file or folder; give a .pth or .safetensors file, a saved folder, or owner/name or "
            "owner/name/file of the hub"
        )
    repository, inner = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        snapshot = Path(snapshot_download(repository, allow_patterns=[SMALL_FILE]))
        names = _listing(repository, snapshot)
        place = _named(inner, names, source) if inner else _fitting(repository, names, network, source)
        wanted = [
            name for name in names if name == place or (name.startswith(f"{place}/") if place else "/" not in name)
        ]
        folder = snapshot_download(repository, revision=snapshot.name, allow_patterns=list(map(glob.escape, wanted)))
    except UserError:
        raise
    except (HFValidationError, *HUB_ERRORS) as error:
        raise MissingFileError(
            f"{source}: no such file or folder here, and {_reason(error, repository)}; give a path that exists, or "
            "owner/name or owner/name/file of the hub"
        ) from None
    return Path(folder) / place


def download_wan_folder(hub_id: str, networks: Sequence[str], skipped: Sequence[str]) -> Path:
    """Returns the folder with the networks of a repository of the hub, for ``--wan_path``; downloads it if needed.

    Args:
        networks: folders to download.
        skipped: those of them without their weights.

    Raises:
        UserError: if there is no such repository, or the hub cannot be reached. The message says how to get the
            folder.
    """
    source = f"--wan_path {hub_id}"
    if "/" not in hub_id:
        raise MissingFileError(f"{source}: no such folder; {how_to_get(hub_id)}")
    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["model_index.json", *(f"{network}/*" for network in networks)],
                ignore_patterns=[f"{network}/*{suffix}" for network in skipped for suffix in WEIGHT_SUFFIXES],
            )
        )
    except (HFValidationError, *HUB_ERRORS) as error:
        reason = _reason(error, hub_id)
    raise MissingFileError(f"{source}: no such folder here, and {reason}; {how_to_get(hub_id)}")


def how_to_get(wan_path: str) -> str:
    """Returns the advice that gives a user the folder ``wan_path``: how a recipe makes it, or a download of Wan2.1."""
    name = wan_path.rstrip("/").split("/")[-1]
    if not name.endswith("-Diffusers"):
        name = "Wan2.1-T2V-1.3B-Diffusers"
    return how_to_make(wan_path) or f"download it with: hf download Wan-AI/{name} --local-dir {name}"


def _listing(repository: str, snapshot: Path) -> list[str]:
    """Returns the names of all files of a repository; without a network perhaps only of those downloaded before."""
    read_cached = getattr(huggingface_hub, "get_cached_repo_tree", None)  # since version 2: works without a network
    try:
        if read_cached is not None:
            return sorted(file.path for file in read_cached(repository, revision=snapshot.name))
        return sorted(huggingface_hub.HfApi().list_repo_files(repository, revision=snapshot.name))
    except (*HUB_ERRORS, NOT_LISTED):  # the repository was downloaded by a program that does not list
        return sorted(file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file())


def _named(inner: str, names: list[str], source: str) -> str:
    """Returns the file or folder ``inner`` of a repository."""
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents[:-1]}
    if inner in names or inner in folders:
        return inner
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    raise MissingFileError(
        f"{source}: the repository of the hub has no '{inner}'; its weight files are {_listed(weights)}"
        f"{did_you_mean(inner, weights)}"
    )


def _fitting(repository: str, names: list[str], network: str, source: str) -> str:
    """Returns the one file or folder with weights of a network; a folder of ``save_pretrained`` counts as one."""
    paths = [PurePosixPath(name) for name in names]
    saved = {path.parent for path in paths if is_saved_name(path.name)}
    weights = [path for path in paths if path.name.endswith(WEIGHT_SUFFIXES)]
    fitting = set()
    for path in weights:
        place = path.parent if path.parent in saved else path
        word = (place.name or repository.split("/")[1]).lower()
        is_vae = VAE_WORD in word
        if is_vae == (network == "vae") and not any(other in word for other in OTHER_WORDS):
            fitting.add(str(place))
    if len(fitting) == 1:
        (place_name,) = fitting
        return "" if place_name == "." else place_name
    weight_files = [str(path) for path in weights]
    if not fitting:
        raise MissingFileError(
            f"{source}: no weight file of the repository of the hub is for the {network} by its name; it has "
            f"{_listed(weight_files)}; add the one to use: {repository}/file"
        )
    raise UserError(
        f"{source}: several weights of the repository of the hub fit, {_listed(sorted(fitting))}; add the one to use: "
        f"{repository}/{min(fitting)}"
    )


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return (", ".join(names[:MAX_LISTED]) or "none") + (f" and {more} more" if more > 0 else "")


def _reason(error: Exception, repository: str) -> str:
    """Says why a repository cannot be had."""
    if isinstance(error, HFValidationError):
        return f"'{repository}' is no name of the hub, which are owner/name"
    if isinstance(error, GatedRepoError):
        return f"the hub opens '{repository}' only to those who accept its terms: do so there, and run hf auth login"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return f"the hub has no repository '{repository}', or it is private (then run hf auth login)"
    if status is not None:
        return f"the hub answered with error {status} when asked for '{repository}'; try again later"
    return f"the hub cannot be reached to look for '{repository}' ({type(error).__name__})"
