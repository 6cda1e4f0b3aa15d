"""Writes and reads checkpoints: folders ``step_<n>/``, written aside and then renamed; ``latest`` names the newest.

transformer/ or vae/          the network as the library saves it
transformer_ema/ or vae_ema/  its EMA weights
training_state.pt             step, position in the data, seed and optimizer
optimizer.pt                  moments; complete also if the network was sharded

All files load with ``weights_only=True``.
"""

import shutil
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.training.fsdp import copy_whole
from models.lora import has_lora
from util.errors import MissingFileError, UserError
from util.files import move_over, write_text_whole
from util.run_folder import LATEST, checkpoint_name, checkpoints, latest_checkpoint
from util.weight_files import ADAPTER_NAME, load_plain, read_saved_folder, write_saved_folder

STATE_FILE = "training_state.pt"
OPTIMIZER_FILE = "optimizer.pt"


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """Returns the checkpoint folder that ``--resume`` names; for ``auto`` None if this run has none yet.

    Raises:
        UserError: if ``resume`` is neither ``auto``, nor a run folder with a checkpoint, nor a checkpoint.
    """
    folder = run_dir if resume == "auto" else Path(resume)
    if (folder / STATE_FILE).is_file():
        return folder
    latest = latest_checkpoint(folder)
    if latest is not None or resume == "auto":
        return latest
    if folder.exists():
        raise UserError(
            f"--resume {resume}: must hold a training state, got a folder without one; to start a new run from its "
            "weights use --init_from"
        )
    raise MissingFileError(f"--resume {resume}: does not exist; give a run folder, a checkpoint, or auto")


def commit_checkpoint(run_dir: Path, step: int, staging: Path, keep_last: int) -> Path:
    """Renames a complete checkpoint, then updates ``latest``, then removes the oldest checkpoints."""
    target = run_dir / checkpoint_name(step)
    move_over(staging, target)
    write_text_whole(run_dir / LATEST, target.name + "\n")
    for old in checkpoints(run_dir)[:-keep_last]:
        if old != target:  # it may not have the highest step: a run may resume from an older one
            shutil.rmtree(old)
    return target


def saved_parameters(network: ModelMixin) -> dict[str, Tensor]:
    """Returns the parameters that a checkpoint holds: all of the network, or with adapters those that train."""
    keeps_all = not has_lora(network)
    return {name: parameter for name, parameter in network.named_parameters() if keeps_all or parameter.requires_grad}


def write_network(network: ModelMixin, tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes weights and config such that the library's ``from_pretrained`` reads them.

    Args:
        tensors: on the CPU, with the names of ``saved_parameters``.
    """
    network.save_config(folder)
    if has_lora(network):
        save_file(tensors, folder / ADAPTER_NAME)
    else:
        write_saved_folder(folder, tensors)


def read_state(checkpoint: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Reads the training state of a checkpoint.

    Args:
        expected: options of this run, by name, that must equal those of the checkpoint.

    Raises:
        UserError: if the file is damaged, or an option differs.
    """
    state = load_plain(checkpoint / STATE_FILE, f"--resume {checkpoint}")
    for name, value in expected.items():
        if state.get(name) != value:
            raise UserError(
                f"--resume {checkpoint}: needs --{name} {state.get(name)} as at its start, got --{name} {value}"
            )
    return state


def find_optimizer_file(checkpoint: Path, rank: int, num_shards: int | None) -> Path:
    """Returns the file that holds the optimizer's state.

    Args:
        rank: of this process.
        num_shards: the number of processes over which the network is sharded; None without --fsdp.

    Raises:
        UserError: if there is only ``optimizer_<i>of<n>.pt``, which --fsdp wrote until November 2026, for another
            number of processes.
    """
    file = checkpoint / OPTIMIZER_FILE
    slices = sorted(checkpoint.glob("optimizer_*of*.pt"))
    if file.is_file() or not slices:
        return file
    saved = slices[0].stem.rpartition("of")[2]
    if saved != str(num_shards):
        raise UserError(
            f"--resume {checkpoint}: its optimizer state is split over {saved} processes, got "
            f"{num_shards or 'a run without --fsdp'}; resume with --fsdp on {saved} processes once, "
            "then on any number from the next checkpoint"
        )
    return checkpoint / f"optimizer_{rank}of{saved}.pt"


def read_network(checkpoint: Path, name: str, targets: dict[str, Tensor]) -> None:
    """Copies the weights in the folder ``name`` of a checkpoint into tensors, which may be sharded.

    Raises:
        UserError: if names or shapes differ.
    """
    source, folder = f"--resume {checkpoint}", checkpoint / name
    is_lora = (folder / ADAPTER_NAME).is_file()
    tensors = load_file(folder / ADAPTER_NAME) if is_lora else read_saved_folder(folder, source).tensors
    if tensors.keys() != targets.keys():
        raise UserError(f"{source}: {name} holds another network; give a checkpoint of the same model and --lora_rank")
    for parameter, target in targets.items():
        value = tensors[parameter]
        if target.shape != value.shape:
            raise UserError(
                f"{source}: {parameter} in {name} must have shape {tuple(target.shape)}, got {tuple(value.shape)}; "
                "give a checkpoint of the same model"
            )
        copy_whole(target, value)
