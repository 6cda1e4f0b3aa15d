"""Curves and pictures of a run: TensorBoard, or Weights & Biases when asked for."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator

from util.errors import UserError
from util.images import Frame

TRACKERS = ("tensorboard", "wandb", "none")
FOLDER = "tensorboard"  # in the run's


def check_tracker(name: str) -> None:
    """Refuses a tracker whose package is absent, before any work.

    Raises:
        UserError: if it is.
    """
    if name != "none" and find_spec(name) is None:
        raise UserError(f"--report_to {name}: the package is not installed; pip install {name}, or --report_to none")


def start_tracker(accelerator: Accelerator, name: str, run_dir: Path, options: argparse.Namespace, step: int) -> None:
    """Begins to track; of a resumed run, curves beyond ``step`` are dropped, as those steps come again.

    Args:
        accelerator: made with this tracker and with the run's folder.
    """
    if name == "tensorboard":
        accelerator.init_trackers(FOLDER, init_kwargs={name: {"purge_step": step + 1}})
    elif name == "wandb":
        accelerator.init_trackers("flowrvs", vars(options), {name: {"name": run_dir.name, "resume": "allow"}})


def log_pictures(accelerator: Accelerator, pictures: dict[str, Frame], step: int) -> None:
    """Logs pictures [H, W, 3], each under its name; for the main process alone."""
    for tracker in accelerator.trackers:
        for name, picture in pictures.items():
            if tracker.name == "tensorboard":
                tracker.writer.add_image(name, picture, global_step=step, dataformats="HWC")
            else:
                tracker.log_images({name: [picture]}, step=step)
