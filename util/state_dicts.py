"""Finds the weights in the content of a file: raw or EMA weights, under the names that the networks have."""

from typing import Any

import torch
from torch import Tensor

from util.errors import UserError

PROFILER_SUFFIXES = ("total_ops", "total_params")  # a FLOP counter left these in the original's VAE file
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def pick_weights(content: dict[str, Any], source: str, weights: str) -> dict[str, Any]:
    """Returns the raw or EMA weights of a file as the original released or its trainer wrote it.

    Args:
        content: a state dict, bare or under ``model``, and perhaps EMA weights under ``ema_model``.
        source: argument and file, for errors.
        weights: ``auto`` prefers EMA weights, ``ema`` requires them, ``model`` takes the raw weights.

    Raises:
        UserError: if these weights are missing, or cannot be named.
    """
    if weights == "model" or (weights == "auto" and "ema_model" not in content):
        model = content.get("model", content)
        if not isinstance(model, dict):
            raise UserError(f"{source}: 'model' must be a state dict, got a {type(model).__name__}")
        return model
    if "ema_model" not in content:
        raise UserError(f"{source}: holds no EMA weights ('ema_model'); use --weights auto or model")
    averaged = content["ema_model"]
    if isinstance(averaged, dict) and averaged and all(isinstance(value, Tensor) for value in averaged.values()):
        return averaged
    return _name_ema_weights(content, source)


def checked_tensors(tensors: dict[Any, Any], source: str) -> dict[str, Tensor]:
    """Returns named weights without the leftovers of a profiler and the prefixes of wrappers; refuses anything else.

    Raises:
        UserError: if there are none, or one is no dense floating-point tensor.
    """
    kept = {name: value for name, value in tensors.items() if not str(name).endswith(PROFILER_SUFFIXES)}
    if not kept:
        raise UserError(f"{source}: holds no tensors; it is empty or of another type; download it again")
    for name, value in kept.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{source}: must map names to tensors, but {name!r} does not; give a state dict")
        if value.is_meta or value.layout != torch.strided or not value.is_floating_point():
            raise UserError(f"{source}: weights must be dense floating-point tensors, {name} is {value.dtype}")
    return _without_wrappers(kept)


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes prefixes that all names have; wrappers may be nested in either order."""
    while shared := [prefix for prefix in WRAPPER_PREFIXES if all(name.startswith(prefix) for name in tensors)]:
        tensors = {name.removeprefix(shared[0]): value for name, value in tensors.items()}
    return tensors


def _name_ema_weights(content: dict[str, Any], source: str) -> dict[str, Any]:
    """Names the tensors of the EMA list by the keys of ``model``.

    The list is in parameter order. That order differs between versions of the library (query and key norms moved
    behind the projections), with shapes that fit all the same. So only the raw weights beside the list, saved by the
    same network, can name its tensors.
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
