"""Reads tensors from weight files safely: nothing in a file is ever executed.

Formats: safetensors and torch pickles, one file or several with an index. Pickles load with weights-only on. An
``argparse.Namespace`` inside a pickle is accepted and harmless (the original's trainer stores its options); any other
object is refused.
"""

import argparse
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from util.errors import MissingFileError, UserError
from util.files import read_json
from util.memory import is_out_of_memory, too_little_to_load
from util.state_dicts import checked_tensors, pick_weights
from util.wrong_files import refuse_wrong_file

SAFETENSORS_NAME = "diffusion_pytorch_model.safetensors"  # file name of diffusers' save_pretrained
ADAPTER_NAME = "adapter.safetensors"  # low-rank adapters only; they need the weights they were trained on
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
# As diffusers and transformers name them: variant, format, and whether it is an index, in two orders.
SAVED_NAME = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)(\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(\.(?P<index_variant>\w+))?\.json)?"
)
PREFERRED_VARIANTS = ("", "bf16", "fp16")


@dataclass(frozen=True)
class StateDict:
    """Named tensors and the files that they came from. ``source`` names them in errors."""

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    source: str


def read_state_dict(path: Path, source: str, weights: str = "auto") -> StateDict:
    """Reads the tensors of one weight file.

    Args:
        path: a ``.safetensors`` file, or a torch pickle with a state dict, bare or under ``model``, and perhaps
            ``ema_model``, the EMA weights of the original's trainer.
        source: argument and file, for errors.
        weights: ``auto`` prefers EMA weights, ``ema`` requires them, ``model`` takes the raw weights.

    Raises:
        UserError: if the file is missing, damaged, empty, holds anything but tensors and plain values, or lacks the
            weights asked for.
    """
    if not path.is_file():
        raise MissingFileError(f"{source}: no such file; give a .pth or .safetensors file, or a saved folder")
    refuse_wrong_file(path, source)
    if path.suffix == ".safetensors":
        if weights == "ema":
            raise UserError(f"{source}: a safetensors file holds one set of weights; leave --weights at auto")
        tensors: dict[str, Any] = read_safetensors(path, source)
    elif path.suffix in PICKLE_SUFFIXES:
        tensors = pick_weights(_read_pickle(path, source), source, weights)
    else:
        raise UserError(f"{source}: unknown file type; give .safetensors or one of {', '.join(PICKLE_SUFFIXES)}")
    return StateDict(checked_tensors(tensors, source), (path,), source)


@dataclass(frozen=True)
class SavedFile:
    """The file, or index of files, from which a saved folder loads.

    Attributes:
        variant: ``bf16`` of ``diffusion_pytorch_model.bf16.safetensors``; empty for most.
        is_safe: safetensors; otherwise torch pickles.
        is_index: a JSON that names the files.
    """

    path: Path
    variant: str
    is_safe: bool
    is_index: bool


def is_saved_name(name: str) -> bool:
    """Whether ``save_pretrained`` of diffusers or transformers calls a file, or an index of files, like this."""
    return SAVED_NAME.fullmatch(name) is not None


def find_saved(folder: Path) -> SavedFile | None:
    """Finds the weights that ``save_pretrained`` of diffusers or transformers wrote into a folder; None without any.

    Of several it takes safetensors before pickles, no variant before bf16 before fp16, an index before one file.
    """
    found: list[tuple[tuple[Any, ...], SavedFile]] = []
    for path in sorted(folder.glob("*model.*")):
        match = SAVED_NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        variant = match["variant"] or match["index_variant"] or ""
        preferred = PREFERRED_VARIANTS.index(variant) if variant in PREFERRED_VARIANTS else len(PREFERRED_VARIANTS)
        saved = SavedFile(path, variant, match["kind"] == "safetensors", match["index"] is not None)
        found.append(((not saved.is_safe, preferred, not saved.is_index, path.name), saved))
    return min(found, key=lambda entry: entry[0])[1] if found else None


def files_of(saved: SavedFile, source: str) -> tuple[Path, ...]:
    """Returns the files with the tensors; they exist and are neither empty nor web pages nor Git LFS pointers.

    Raises:
        UserError: if one is missing or wrong, or the index is damaged.
    """
    names = [saved.path.name]
    if saved.is_index:
        refuse_wrong_file(saved.path, source)
        weight_map = read_json(saved.path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{saved.path}: 'weight_map' must map names to files; download the folder again")
        names = sorted(set(weight_map.values()))
    files = tuple(saved.path.parent / name for name in names)
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{source}: {file} is missing; download the folder again")
        refuse_wrong_file(file, source)
    return files


def read_saved_folder(folder: Path, source: str) -> StateDict:
    """Reads the tensors of a folder that diffusers' ``save_pretrained`` wrote.

    Raises:
        UserError: if files are missing or damaged.
    """
    saved = find_saved(folder)
    if saved is None:
        raise MissingFileError(f"{source}: {folder / SAFETENSORS_NAME} is missing; download the folder again")
    files = files_of(saved, source)
    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= read_safetensors(file, source) if saved.is_safe else _read_pickle(file, f"{source}: {file.name}")
    return StateDict(checked_tensors(tensors, source), files, source)


def write_saved_folder(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors so that ``read_saved_folder`` and diffusers' ``from_pretrained`` read them."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = SAFETENSORS_NAME.replace(".safetensors", "{suffix}.safetensors")
    save_torch_state_dict(tensors, folder, filename_pattern=pattern, max_shard_size="10GB")


def load_plain(path: Path, source: str) -> dict[str, Any]:
    """Reads tensors and plain values from a file of ``torch.save``; anything else in it is refused, never executed.

    Raises:
        UserError: if the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise MissingFileError(f"{source}: {path.name} is missing; give a checkpoint folder that main.py wrote")
    return _read_pickle(path, source)


def read_safetensors(path: Path, source: str) -> dict[str, Tensor]:
    """Reads the tensors of one safetensors file.

    Raises:
        UserError: if the file is damaged, or memory is too small.
    """
    try:
        return load_file(path)
    except (SafetensorError, ValueError, RuntimeError, MemoryError, OSError) as error:
        raise unreadable(error, source, f"{path.name} is damaged or not a safetensors file ({error})") from None


def _read_pickle(path: Path, source: str) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                # Memory-mapped: the optimizer state beside the weights is never read from disk.
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:  # torch's format before 1.6 cannot be mapped
                if is_out_of_memory(error):
                    raise
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        kind = type(error).__name__
        raise unreadable(error, source, f"damaged or not a torch file ({kind}); nothing in it was run") from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: must hold a dictionary of weights, got a {type(content).__name__}")
    return content


def unreadable(error: Exception, source: str, damage: str, remedy: str = "download it again") -> UserError:
    """Returns the error for weights that a library could not read: refused, too large for the memory, or damaged.

    Args:
        error: of the library.
        source: argument and file or folder.
        damage: what to say unless the error is one of the first two.
        remedy: what then helps.
    """
    if is_out_of_memory(error):
        return too_little_to_load(error, source)
    stranger = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and stranger:
        return UserError(
            f"{source}: refused, it holds {stranger[1]} beside tensors and plain values; nothing in it was executed; "
            "get weights from a source you trust"
        )
    return UserError(f"{source}: {damage}; {remedy}")
