"""Checkpoints of a run: folders ``step_<n>/``, written aside and renamed, the newest named in ``latest``.

transformer/ or vae/          the network as the library saves it
transformer_ema/ or vae_ema/  its running average
training_state.pt             step, place in the data and what the run was started with
optimizer.pt                  moments, whole also where the network was sharded

All of it loads weights-only.
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
from util.weight_files import ADAPTER_NAME, load_plain, read_sharded_folder, write_sharded_folder

STATE_FILE = "training_state.pt"
OPTIMIZER_FILE = "optimizer.pt"


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


def commit_checkpoint(run_dir: Path, step: int, staging: Path, keep_last: int) -> Path:
    """Moves a whole checkpoint to its place, then points ``latest`` at it, then removes the oldest."""
    target = run_dir / checkpoint_name(step)
    move_over(staging, target)
    write_text_whole(run_dir / LATEST, target.name + "\n")
    for old in checkpoints(run_dir)[:-keep_last]:
        if old != target:  # the newest may not have the highest step: a run may go on from an older one
            shutil.rmtree(old)
    return target


def saved_parameters(model: ModelMixin) -> dict[str, Tensor]:
    """What a checkpoint holds, by name: the whole network, or of one with adapters those parameters that train."""
    keeps_all = not has_lora(model)
    return {name: parameter for name, parameter in model.named_parameters() if keeps_all or parameter.requires_grad}


def write_network(model: ModelMixin, tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes weights with the model's config, as the library's ``from_pretrained`` reads them.

    Args:
        tensors: on the CPU; those of ``saved_parameters``, or their averages.
    """
    model.save_config(folder)
    if has_lora(model):
        save_file(tensors, folder / ADAPTER_NAME)
    else:
        write_sharded_folder(folder, tensors)


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


def read_network(checkpoint: Path, part: str, targets: dict[str, Tensor]) -> None:
    """Copies the weights in ``<checkpoint>/<part>`` into tensors of the same names.

    Raises:
        UserError: if they are of another network.
    """
    source, folder = f"--resume {checkpoint}", checkpoint / part
    is_lora = (folder / ADAPTER_NAME).is_file()
    tensors = load_file(folder / ADAPTER_NAME) if is_lora else read_sharded_folder(folder, source).tensors
    if tensors.keys() != targets.keys():
        raise UserError(f"{source}: {part} is of another network; give a run of this model and --lora_rank")
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise UserError(f"{source}: {name} in {part} has another shape; give a run of this model")
        copy_whole(target, tensors[name])
