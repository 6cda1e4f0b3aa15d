"""Which device and number format a run uses."""

import argparse

import torch

from util.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device_name(text: str) -> str:
    """An argparse type: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    kind, _, index = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got '{text}'")


def select_device(name: str) -> torch.device:
    """The device for ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: if a CUDA device is asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return device


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    """``fp32``, ``bf16``, or for ``auto`` bf16 on CUDA and float32 elsewhere."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return DTYPES[name]
