"""Reading tensors from weight files, safely: nothing in a file is ever executed.

Formats: safetensors (one file, or shards with an index), and torch pickles, which load with
weights-only on. An ``argparse.Namespace`` inside a pickle is expected (the original's trainer
stores its options) and harmless; any other object is refused.
"""

import argparse
import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from util.errors import MissingFileError, UserError

SAFETENSORS_NAME = "diffusion_pytorch_model.safetensors"  # as diffusers' save_pretrained names it
WEIGHT_CHOICES = ("auto", "ema", "model")  # which weights of a checkpoint that holds averaged and raw ones
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
PROFILER_SUFFIXES = ("total_ops", "total_params")  # left in the original's VAE file by a FLOP counter


@dataclass(frozen=True)
class StateDict:
    """Named tensors and the files they came from. ``source`` is how errors call them."""

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    source: str


def read_state_dict(path: Path, source: str, weights: str = "auto") -> StateDict:
    """The tensors of one weight file.

    Args:
        path: a ``.safetensors`` file, or a torch pickle holding a state dict, bare or under ``model``,
            and perhaps ``ema_model``, the averaged weights of the original's trainer.
        source: the argument and file, as errors shall name them.
        weights: ``auto`` takes the averaged weights where there are some, ``ema`` insists on them,
            ``model`` takes the raw ones.

    Raises:
        UserError: if the file is missing, damaged, empty, holds anything but tensors and plain
            values, or lacks the weights asked for.
    """
    if not path.is_file():
        raise MissingFileError(f"{source}: no such file; give a .pth or .safetensors file, or a saved folder")
    if path.suffix == ".safetensors":
        if weights == "ema":
            raise UserError(f"{source}: a safetensors file holds one set of weights; leave --weights at auto")
        tensors: dict[str, Any] = _read_safetensors(path, source)
    elif path.suffix in PICKLE_SUFFIXES:
        tensors = _pick_weights(_read_pickle(path, source), source, weights)
    else:
        raise UserError(f"{source}: unknown kind of file; give .safetensors or one of {', '.join(PICKLE_SUFFIXES)}")
    tensors = {name: value for name, value in tensors.items() if not name.endswith(PROFILER_SUFFIXES)}
    if not tensors:
        raise UserError(f"{source}: holds no tensors; the file is empty or of another kind, download it again")
    strangers = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strangers:
        raise UserError(f"{source}: must map names to tensors, but '{strangers[0]}' is none; give a state dict")
    return StateDict(tensors, (path,), source)


def read_sharded_folder(folder: Path, source: str) -> StateDict:
    """The tensors of a folder written by diffusers' ``save_pretrained``: its index decides, or one file.

    Raises:
        UserError: if files are missing or damaged.
    """
    index = folder / f"{SAFETENSORS_NAME}.index.json"
    shards = [SAFETENSORS_NAME]
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise MissingFileError(f"{source}: {folder / shard} is missing; download the folder again")
        tensors |= _read_safetensors(folder / shard, source)
    if not tensors:
        raise UserError(f"{source}: {folder} holds no tensors; download the folder again")
    return StateDict(tensors, tuple(folder / shard for shard in shards), source)


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
        raise UserError(f"{path}: not valid JSON ({error}); download the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, got a {type(content).__name__}")
    return content


def sha256_of(files: tuple[Path, ...]) -> str:
    """Hexadecimal SHA-256 over the bytes of the files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def load_plain(path: Path, source: str) -> dict[str, Any]:
    """Tensors and plain values from a file of ``torch.save``; anything else in it is refused, never executed.

    Raises:
        UserError: if the file is missing, damaged, or holds more.
    """
    if not path.is_file():
        raise MissingFileError(f"{source}: {path.name} is missing; give a checkpoint folder that main.py wrote")
    return _read_pickle(path, source)


def _read_safetensors(path: Path, source: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{source}: {path.name} is damaged or no safetensors file ({error}); download it again"
        ) from None


def _read_pickle(path: Path, source: str) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                # Memory-mapped: the optimizer state beside the weights is never read from disk.
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # torch's format before 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{source}: refused: it holds more than tensors and plain values, or is damaged ({reason}); "
            "nothing in it was executed; get the weights from a source you trust"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{source}: damaged or no torch file ({str(error)[:200]}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: must hold a dictionary of weights, got a {type(content).__name__}")
    return content


def _pick_weights(content: dict[str, Any], source: str, weights: str) -> dict[str, Any]:
    """The raw or averaged weights of a file in the original's released or trainer form."""
    if weights == "model" or (weights == "auto" and "ema_model" not in content):
        model = content.get("model", content)
        if not isinstance(model, dict):
            raise UserError(f"{source}: 'model' must be a state dict, got a {type(model).__name__}")
        return model
    if "ema_model" not in content:
        raise UserError(f"{source}: holds no averaged weights ('ema_model'); use --weights auto or model")
    return _name_averaged_weights(content, source)


def _name_averaged_weights(content: dict[str, Any], source: str) -> dict[str, Any]:
    """The EMA list under the names of ``model``.

    The list is in parameter order, and that order differs between versions of the library (query and
    key norms moved behind the projections), with shapes that would fit all the same. So only the
    raw weights saved beside the list, by the same network, can name its entries.
    """
    names = [name for name in content.get("model", {}) if not name.endswith(PROFILER_SUFFIXES)]
    averaged = content["ema_model"].get("shadow_params") if isinstance(content["ema_model"], dict) else None
    if not isinstance(averaged, list):
        raise UserError(f"{source}: 'ema_model' must hold the list 'shadow_params'; use --weights model")
    if len(averaged) != len(names):
        raise UserError(
            f"{source}: 'ema_model' lists {len(averaged)} tensors and 'model' {len(names)}, so the averaged weights "
            "cannot be named; use --weights model"
        )
    for name, tensor in zip(names, averaged, strict=True):
        if tensor.shape != content["model"][name].shape:
            raise UserError(
                f"{source}: averaged weight {name} has shape {list(tensor.shape)}, the raw one "
                f"{list(content['model'][name].shape)}: the list is in another order; use --weights model"
            )
    return dict(zip(names, averaged, strict=True))
