"""Selects the device and the number format of a run."""

import torch

from util.errors import UserError
from util.flags import DTYPE_NAMES

DTYPES = dict(zip(DTYPE_NAMES, (torch.float32, torch.bfloat16), strict=True))


def select_device(name: str) -> torch.device:
    """Returns the device of ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

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
    """Returns the dtype of ``fp32``, ``bf16`` or ``auto``: bf16 on CUDA, float32 elsewhere."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return DTYPES[name]
