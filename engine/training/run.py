"""Trains the network that ``main.py`` names: checks the options, builds what a run needs, runs the trainer."""

import argparse
import contextlib
import json
import os
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from datasets.referring import ReferringClips
from datasets.registry import DatasetPaths, Source, training_sources, validation_split
from datasets.sampling import Batches
from datasets.split import Split
from engine.captions import embed_once
from engine.training.build import (
    base_of,
    build_loader,
    build_task,
    load_weights,
    prepare_network,
    steps_per_epoch,
    trainer_options,
    training_clips,
)
from engine.training.checkpoints import find_checkpoint
from engine.training.dry_run import dry_run
from engine.training.log import check_tracker, log_images, start_tracker
from engine.training.optimizer import check_optimizer
from engine.training.trainer import Trainer
from engine.training.validation import Validator, first_videos
from models.mask_vae import check_num_frames
from models.text import Captions
from models.weights import LoadedFlowRVS
from util.device import select_device, select_dtype
from util.errors import UserError
from util.files import write_text_whole
from util.run_folder import LATEST, OPTIONS_FILE, checkpoint_name
from util.run_sources import sources_of

RECORDED_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")  # their versions go into options.json


def run(options: argparse.Namespace) -> None:
    """Trains the network that ``--task`` names.

    Raises:
        UserError: if options, data or weights do not fit together.
    """
    device = torch.device("cuda") if options.dry_run else select_device(options.device)
    num_processes = _count_processes(options.dry_run)
    _check(options, device, num_processes)
    checkpoint = _find_checkpoint(options)
    sources, validation = _open_data(options)
    if options.dry_run:
        dry_run(options, sources, num_processes)
        return
    accelerator = _start_processes(options, device)
    loaded = load_weights(options, accelerator.device)
    clips = training_clips(options, sources, loaded.pipeline)
    _create_run_folder(options, accelerator)
    captions = _embed(options, loaded, clips, validation, accelerator)
    trainer, batches = _build_trainer(options, loaded, clips, captions, accelerator)
    if checkpoint is not None:
        trainer.load(checkpoint)
    batches.start_step = trainer.num_samples // (options.batch_size * accelerator.num_processes)
    loader = build_loader(options, clips, batches, loaded, accelerator)
    start_tracker(accelerator, options.report_to, trainer.run_dir, options, trainer.step)
    validator = None
    if validation and captions:
        validator = Validator(
            validation, captions, loaded.pipeline, trainer.task, trainer.run_dir, trainer.options.amp
        )  # fmt: skip
    with contextlib.closing(trainer.run(loader)) as steps:
        for step in steps:
            if validator is not None and (step % options.eval_steps == 0 or step == trainer.options.max_steps):
                _validate(validator, trainer, step)
    accelerator.end_training()
    _report_end(trainer)


def _count_processes(is_dry_run: bool) -> int:
    """Returns how many processes torchrun started; for a dry run a user may set WORLD_SIZE."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"WORLD_SIZE: must be the number of processes, got '{text}'; unset it, or start with torchrun")
    if int(text) > 1 and not is_dry_run and "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"WORLD_SIZE: must be set by torchrun, got {text} without LOCAL_RANK; unset it, or start with torchrun"
        )
    return int(text)


def _check(options: argparse.Namespace, device: torch.device, num_processes: int) -> None:
    """Checks that the options fit together, before anything is read."""
    check_num_frames(options.num_frames)
    check_tracker(options.report_to)
    check_optimizer(options.optimizer, options.weights_dtype == "bf16")
    replaced = "dit_ckpt" if options.task == "flow" else "vae_ckpt"
    if options.init_from and getattr(options, replaced):
        raise UserError(f"--init_from and --{replaced}: both name the weights to start from; give only one of them")
    if device.index is not None and num_processes > 1:
        raise UserError(
            f"--device {device}: names one GPU, but torchrun started {num_processes} processes; use --device cuda"
        )
    _check_fsdp(options, device, num_processes)
    if options.lora_rank and options.task == "mask_vae":
        raise UserError("--lora_rank: adapts the DiT, but --task mask_vae trains the decoder; leave it out")
    if options.ema_device == "cuda" and device.type != "cuda":
        raise UserError("--ema_device cuda: needs weights on a GPU, got --device cpu; leave it out")


def _check_fsdp(options: argparse.Namespace, device: torch.device, num_processes: int) -> None:
    conflicts = {
        "--device": device.type != "cuda",
        "--task mask_vae": options.task == "mask_vae",
        "--weights_dtype bf16": options.weights_dtype == "bf16",
        "--lora_rank": options.lora_rank > 0,
        "--ema_device cpu": options.ema_device == "cpu",
        "--optimizer adamw8bit": options.optimizer == "adamw8bit",
        "--eval_steps": options.eval_steps > 0,
    }
    given = [flag for flag, is_set in conflicts.items() if is_set]
    if options.fsdp and given:
        raise UserError(
            f"--fsdp: trains all weights of the DiT in float32 on several GPUs and cannot validate, got {given[0]}; "
            "leave one of the two out"
        )
    if options.fsdp and num_processes == 1:
        raise UserError(
            "--fsdp: needs several processes, got one; start with torchrun --nproc_per_node=N, or a dry run with "
            "WORLD_SIZE=N before the command"
        )


def _find_checkpoint(options: argparse.Namespace) -> Path | None:
    """Returns the checkpoint to resume; None for a new run, whose folder must not hold another one."""
    run_dir = Path(options.output_dir)
    if options.resume:
        return find_checkpoint(options.resume, run_dir)
    if (run_dir / LATEST).exists():
        raise UserError(f"--output_dir {run_dir}: already holds a run; add --resume auto, or give another folder")
    return None


def _open_data(options: argparse.Namespace) -> tuple[list[Source], Split | None]:
    """Opens the datasets to train on, and the videos to validate on; None without validation."""
    weights = dict(options.mixture or [(options.dataset_file, 1.0)])
    paths = DatasetPaths.from_flags(options)
    sources = training_sources(weights, paths)
    return sources, first_videos(validation_split(weights, paths)) if options.eval_steps else None


def _start_processes(options: argparse.Namespace, device: torch.device) -> Accelerator:
    """Joins the processes that torchrun started; without torchrun this process is alone."""
    if device.type == "cuda":
        local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise UserError(
                f"--nproc_per_node: each process needs its own GPU, got process {local_rank + 1} on a machine "
                f"that shows {num_gpus}; start fewer"
            )
        torch.cuda.set_device(device.index or local_rank)  # accelerate takes the current one
    return Accelerator(
        cpu=device.type == "cpu",
        gradient_accumulation_steps=options.accumulate,
        log_with=None if options.report_to == "none" else options.report_to,
        project_dir=options.output_dir,
        kwargs_handlers=[
            # The others wait while one process saves a checkpoint or fills a cache, which may take hours.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )


def _create_run_folder(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Creates the run folder and records the resolved options, the command and the library versions in it."""
    if accelerator.is_main_process:
        run_dir = Path(options.output_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        origin = {
            "command": sys.argv,
            "options": vars(options),
            "sources": sources_of(vars(options)),
            "libraries": {name: version(name) for name in RECORDED_LIBRARIES},
        }
        write_text_whole(run_dir / OPTIONS_FILE, json.dumps(origin, indent=1) + "\n")
    accelerator.wait_for_everyone()


def _embed(
    options: argparse.Namespace,
    loaded: LoadedFlowRVS,
    clips: ReferringClips,
    validation: Split | None,
    accelerator: Accelerator,
) -> Captions | None:
    """Embeds all captions that training and validation need; returns None if they need none."""
    wanted = set(clips.captions()) if options.task == "flow" else set()
    wanted |= {expression.caption for expression in validation.expressions} if validation else set()
    if not wanted:
        return None
    cache = Path(options.text_cache or Path(options.output_dir) / "text_cache")
    device = accelerator.device
    return embed_once(wanted, loaded, cache, device, select_dtype("auto", device))


def _build_trainer(
    options: argparse.Namespace,
    loaded: LoadedFlowRVS,
    clips: ReferringClips,
    captions: Captions | None,
    accelerator: Accelerator,
) -> tuple[Trainer, Batches]:
    """Builds the trainer, and the order in which this process visits the clips."""
    prepare_network(options, loaded.pipeline, accelerator.device, base_of(loaded))
    task = build_task(options, loaded.pipeline, captions)
    batches = Batches(
        clips.items_of, clips.bucket_of, options.batch_size, options.seed,
        rank=accelerator.process_index, num_ranks=accelerator.num_processes,
    )  # fmt: skip
    settings = trainer_options(options, steps_per_epoch(options, batches), accelerator.device)
    return Trainer(task, settings, Path(options.output_dir), accelerator), batches


def _validate(validator: Validator, trainer: Trainer, step: int) -> None:
    with trainer.ema.in_network():
        scores, images = validator.run(step)
    trainer.accelerator.log(scores, step=step)
    log_images(trainer.accelerator, images, step)


def _report_end(trainer: Trainer) -> None:
    """Prints how the run ended. After a signal the process exits as if the signal had ended it."""
    checkpoint = trainer.run_dir / checkpoint_name(trainer.step)
    if trainer.stopped_by is None:
        trainer.accelerator.print(f"Done: {trainer.step} steps; the last checkpoint is {checkpoint}")
        return
    if trainer.accelerator.is_main_process:
        print(
            f"Stopped by {trainer.stopped_by.name} after {trainer.step} steps, saved in {checkpoint}; "
            "continue with --resume auto",
            file=sys.stderr,
        )
    sys.exit(128 + trainer.stopped_by)
