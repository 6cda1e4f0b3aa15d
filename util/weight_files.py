"""Reads tensors from weight files safely: nothing in a file is ever executed.

Formats: safetensors (one file, or several with an index), and torch pickles, which load with weights-only on. An
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

SAFETENSORS_NAME = "diffusion_pytorch_model.safetensors"  # file name of diffusers' save_pretrained
ADAPTER_NAME = "adapter.safetensors"  # low-rank adapters only; they need the weights they were trained on
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
PROFILER_SUFFIXES = ("total_ops", "total_params")  # a FLOP counter left these in the original's VAE file


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
    if path.suffix == ".safetensors":
        if weights == "ema":
            raise UserError(f"{source}: a safetensors file holds one set of weights; leave --weights at auto")
        tensors: dict[str, Any] = _read_safetensors(path, source)
    elif path.suffix in PICKLE_SUFFIXES:
        tensors = _pick_weights(_read_pickle(path, source), source, weights)
    else:
        raise UserError(f"{source}: unknown file type; give .safetensors or one of {', '.join(PICKLE_SUFFIXES)}")
    return StateDict(_checked_tensors(tensors, source), (path,), source)


def _checked_tensors(tensors: dict[Any, Any], source: str) -> dict[str, Tensor]:
    """Returns named weights without the leftovers of a profiler; refuses anything else."""
    kept = {name: value for name, value in tensors.items() if not str(name).endswith(PROFILER_SUFFIXES)}
    if not kept:
        raise UserError(f"{source}: holds no tensors; it is empty or of another type; download it again")
    for name, value in kept.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{source}: must map names to tensors, but {name!r} does not; give a state dict")
        if value.is_meta or value.layout != torch.strided or not value.is_floating_point():
            raise UserError(f"{source}: weights must be dense floating-point tensors, {name} is {value.dtype}")
    return kept


def read_saved_folder(folder: Path, source: str) -> StateDict:
    """Reads the tensors of a folder that diffusers' ``save_pretrained`` wrote: one file, or several with an index.

    Raises:
        UserError: if files are missing or damaged.
    """
    index = folder / f"{SAFETENSORS_NAME}.index.json"
    shards = [SAFETENSORS_NAME]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise UserError(f"{index}: 'weight_map' must map names to files; download the folder again")
        shards = sorted(set(weight_map.values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise MissingFileError(f"{source}: {folder / shard} is missing; download the folder again")
        tensors |= _read_safetensors(folder / shard, source)
    return StateDict(_checked_tensors(tensors, source), tuple(folder / shard for shard in shards), source)


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


def _read_safetensors(path: Path, source: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{source}: {path.name} is damaged or not a safetensors file ({error}); download it again"
        ) from None


def _read_pickle(path: Path, source: str) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                # Memory-mapped: the optimizer state beside the weights is never read from disk.
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # torch's format before 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        stranger = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and stranger:
            raise UserError(
                f"{source}: refused, it holds {stranger[1]} beside tensors and plain values; nothing in it was "
                "executed; get weights from a source you trust"
            ) from None
        raise UserError(
            f"{source}: damaged or not a torch file ({type(error).__name__}); nothing in it was run; download it again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: must hold a dictionary of weights, got a {type(content).__name__}")
    return content


def _pick_weights(content: dict[str, Any], source: str, weights: str) -> dict[str, Any]:
    """Returns the raw or EMA weights of a file as the original released or its trainer wrote it."""
    if weights == "model" or (weights == "auto" and "ema_model" not in content):
        model = content.get("model", content)
        if not isinstance(model, dict):
            raise UserError(f"{source}: 'model' must be a state dict, got a {type(model).__name__}")
        return model
    if "ema_model" not in content:
        raise UserError(f"{source}: holds no EMA weights ('ema_model'); use --weights auto or model")
    return _name_ema_weights(content, source)


def _name_ema_weights(content: dict[str, Any], source: str) -> dict[str, Any]:
    """Names the tensors of the EMA list by the keys of ``model``.

    The list is in parameter order. That order differs between versions of the library (query and key norms moved
    behind the
    projections), with shapes that fit all the same. So only the raw weights beside the list, saved by the same
    network, can
    name its tensors.
    """
    raw = content.get("model", {})
    if not isinstance(raw, dict):
        raise UserError(f"{source}: 'model' must be a state dict, got a {type(raw).__name__}")
    averaged = content["ema_model"].get("shadow_params") if isinstance(content["ema_model"], dict) else None
    if not isinstance(averaged, list):
        raise UserError(f"{source}: 'ema_model' must hold the list 'shadow_params'; use --weights model")
    raw = {name: value for name, value in raw.items() if not str(name).endswith(PROFILER_SUFFIXES)}
    if len(averaged) != len(raw):
        raise UserError(
            f"{source}: 'ema_model' lists {len(averaged)} tensors and 'model' {len(raw)}, so the EMA weights "
            "cannot be named; use --weights model"
        )
    named = dict(zip(raw, averaged, strict=True))
    for name, tensor in named.items():
        shapes = [getattr(value, "shape", None) for value in (tensor, raw[name])]
        if shapes[0] is None or shapes[0] != shapes[1]:
            raise UserError(
                f"{source}: EMA weight {name} has shape {shapes[0]}, the raw one {shapes[1]}: the list is in "
                "another order; use --weights model"
            )
    return named
