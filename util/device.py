"""Selects the device and the number format of a run."""

import torch

from util.errors import UserError
from util.flags import DTYPE_NAMES

DTYPES = dict(zip(DTYPE_NAMES, (torch.float32, torch.bfloat16), strict=True))


def select_device(name: str) -> torch.device:
    """Returns the device of ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: if a GPU is asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use cpu, cuda, cuda:0 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "--device mps: needs a Mac with an Apple GPU, its macOS and a torch built for it, got none; use cpu or auto"
        )
    return device


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of ``fp32``, ``bf16`` or ``auto``: bf16 on CUDA and where MPS has it, float32 elsewhere."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" or (device.type == "mps" and _has_bf16(device)) else "fp32"
    return DTYPES[name]


def _has_bf16(device: torch.device) -> bool:
    try:
        torch.zeros(1, dtype=torch.bfloat16, device=device)
    except (TypeError, RuntimeError):  # macOS before 14
        return False
    return True
