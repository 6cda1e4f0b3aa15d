"""Checkpoints of a run: folders ``step_<n>/``, written aside and renamed, the newest named in ``latest``.

transformer/ or vae/          the network as the library saves it
transformer_ema/ or vae_ema/  its running average
training_state.pt             optimizer, step and what the run was started with; loads weights-only
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from util.checkpoint import SAFETENSORS_NAME, load_plain, read_sharded_folder
from util.errors import MissingFileError, UserError
from util.files import staged_folder, write_text_whole
from util.run_folder import LATEST, checkpoint_name, checkpoints, latest_checkpoint

STATE_FILE = "training_state.pt"


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint folder that ``--resume`` means: ``auto`` is the latest of this run, or none yet.

    Raises:
        UserError: if another value names neither a run nor a checkpoint.
    """
    place = run_dir if resume == "auto" else Path(resume)
    if (place / STATE_FILE).is_file():
        return place
    latest = latest_checkpoint(place)
    if latest is not None or resume == "auto":
        return latest
    if place.exists():
        raise UserError(
            f"--resume {resume}: holds weights but no state of a run; start a new run from them with --init_from"
        )
    raise MissingFileError(f"--resume {resume}: neither a run nor a checkpoint of one; give its folder, or auto")


def write_checkpoint(
    run_dir: Path, step: int, save_networks: Callable[[Path], None], state: dict[str, Any], keep_last: int
) -> Path:
    """Writes a checkpoint whole or not at all, then points ``latest`` at it, then removes the oldest.

    Args:
        save_networks: writes the network's folders into a folder.
        state: tensors and plain values.
    """
    target = run_dir / checkpoint_name(step)
    with staged_folder(run_dir, target.name) as staging:
        save_networks(staging)
        torch.save(state, staging / STATE_FILE)
        if target.exists():
            shutil.rmtree(target)
        staging.replace(target)
    write_text_whole(run_dir / LATEST, target.name + "\n")
    for old in checkpoints(run_dir)[:-keep_last]:
        shutil.rmtree(old)
    return target


def read_state(checkpoint: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The training state of a checkpoint.

    Args:
        expected: entries that must be the same in it, by the name of their option.

    Raises:
        UserError: if it is damaged, or an entry differs.
    """
    state = load_plain(checkpoint / STATE_FILE, f"--resume {checkpoint}")
    for name, value in expected.items():
        if state.get(name) != value:
            raise UserError(
                f"--resume {checkpoint}: was started with --{name} {state.get(name)}, got {value}; use that one"
            )
    return state


def read_network(checkpoint: Path, part: str, model: nn.Module, into: list[Tensor]) -> None:
    """Copies the weights in ``<checkpoint>/<part>`` into tensors that lie in the order of ``model``'s parameters.

    Raises:
        UserError: if they are of another network.
    """
    source = f"--resume {checkpoint}"
    tensors = read_sharded_folder(checkpoint / part, source).tensors
    names = [name for name, _ in model.named_parameters()]
    if tensors.keys() != set(names):
        raise UserError(f"{source}: {part}/{SAFETENSORS_NAME} is of another network; give a run of this model")
    for name, target in zip(names, into, strict=True):
        if target.shape != tensors[name].shape:
            raise UserError(f"{source}: {name} has another shape; give a run of this model")
        target.data.copy_(tensors[name])
