"""From the options of ``main.py`` to a trained network: builds the parts, then lets the trainer run."""

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
from datasets.registry import DatasetPaths, training_sources, validation_split
from datasets.sampling import Batches
from datasets.split import Split
from engine.captions import embed_once
from engine.training.build import (
    base_of,
    build_loader,
    build_task,
    load_weights,
    prepare_network,
    trainer_options,
    training_clips,
)
from engine.training.checkpoints import find_checkpoint
from engine.training.dry_run import dry_run
from engine.training.log import check_tracker, log_pictures, start_tracker
from engine.training.optimizer import check_optimizer
from engine.training.trainer import Trainer
from engine.training.validation import Validator, validation_part
from models.mask_vae import check_num_frames
from models.text import Captions
from models.weights import LoadedFlowRVS
from util.device import select_device, select_dtype
from util.errors import UserError
from util.files import write_text_whole
from util.run_folder import LATEST, OPTIONS_FILE, checkpoint_name

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


def train(options: argparse.Namespace) -> None:
    """Trains the network that ``--task`` names.

    Raises:
        UserError: if options, data or weights cannot work together.
    """
    names = dict(options.mixture or [(options.dataset_file, 1.0)])
    paths = DatasetPaths.from_flags(options)
    device = torch.device("cuda") if options.dry_run else select_device(options.device)
    num_processes = _count_processes(options.dry_run)
    _check(options, device, num_processes)
    run_dir = Path(options.output_dir)
    checkpoint = find_checkpoint(options.resume, run_dir) if options.resume else None
    if options.resume is None and (run_dir / LATEST).exists():
        raise UserError(f"--output_dir {run_dir}: holds a run; go on with --resume auto, or give another folder")
    sources = training_sources(names, paths)
    validated = validation_part(validation_split(names, paths)) if options.eval_steps else None
    if options.dry_run:
        dry_run(options, sources, num_processes)
        return
    accelerator = _start_processes(options, device)
    loaded = load_weights(options, accelerator.device)
    pipeline = loaded.pipeline
    clips = training_clips(options, sources, pipeline)
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_origin(run_dir, options)
    accelerator.wait_for_everyone()
    captions = _embed(options, loaded, clips, validated, accelerator)
    prepare_network(options, pipeline, accelerator.device, base_of(loaded))
    task = build_task(options, pipeline, captions if options.task == "flow" else None)
    batches = Batches(
        clips.items_of, clips.bucket_of, options.batch_size, options.seed,
        rank=accelerator.process_index, num_ranks=accelerator.num_processes,
    )  # fmt: skip
    steps_per_epoch = max(1, batches.steps_per_epoch // options.accumulate)
    trainer = Trainer(task, trainer_options(options, steps_per_epoch, accelerator.device), run_dir, accelerator)
    if checkpoint is not None:
        trainer.load(checkpoint)
    batches.start_step = trainer.num_samples // (options.batch_size * accelerator.num_processes)
    loader = build_loader(options, clips, batches, loaded, accelerator)
    start_tracker(accelerator, options.report_to, run_dir, options, trainer.step)
    validator = (
        Validator(validated, captions, pipeline, task, run_dir, trainer.options.amp) if validated and captions else None
    )
    with contextlib.closing(trainer.run(loader)) as steps:
        for step in steps:
            if validator is not None and (step % options.eval_steps == 0 or step == trainer.options.max_steps):
                with trainer.average.in_model():
                    scores, pictures = validator.run(step)
                accelerator.log(scores, step=step)
                log_pictures(accelerator, pictures, step)
    accelerator.end_training()
    _end(trainer)


def _count_processes(is_dry_run: bool) -> int:
    """How many processes torchrun started; for a dry run WORLD_SIZE may be set by hand."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"WORLD_SIZE: must be the number of processes, got '{text}'; unset it, or start with torchrun")
    if int(text) > 1 and not is_dry_run and "LOCAL_RANK" not in os.environ:
        raise UserError(f"WORLD_SIZE {text}: is set, but not by torchrun; unset it, or start with torchrun")
    return int(text)


def _check(options: argparse.Namespace, device: torch.device, num_processes: int) -> None:
    """Refuses options that cannot work together, before anything is read."""
    check_num_frames(options.num_frames)
    check_tracker(options.report_to)
    check_optimizer(options.optimizer, options.weights_dtype == "bf16")
    replaced = "dit_ckpt" if options.task == "flow" else "vae_ckpt"
    if options.init_from and getattr(options, replaced):
        raise UserError(f"--init_from and --{replaced}: both name the weights to start from; give one of them")
    if device.index is not None and num_processes > 1:
        raise UserError(
            f"--device {device}: names one GPU, and torchrun started {num_processes} processes; use --device cuda"
        )
    sharding_conflicts = {
        "--device": device.type != "cuda",
        "--task mask_vae": options.task == "mask_vae",
        "--weights_dtype bf16": options.weights_dtype == "bf16",
        "--lora_rank": options.lora_rank > 0,
        "--ema_device cpu": options.ema_device == "cpu",
        "--optimizer adamw8bit": options.optimizer == "adamw8bit",
        "--eval_steps": options.eval_steps > 0,
    }
    conflicts = [flag for flag, is_set in sharding_conflicts.items() if is_set]
    if options.fsdp and conflicts:
        raise UserError(
            f"--fsdp: trains float32 weights of the whole DiT on several GPUs, without validation; got {conflicts[0]}: "
            "leave one of the two out"
        )
    if options.fsdp and num_processes == 1:
        raise UserError(
            "--fsdp: shards over several processes, got one; start with torchrun --nproc_per_node=N, a dry run with "
            "WORLD_SIZE=N before the command"
        )
    if options.lora_rank and options.task == "mask_vae":
        raise UserError("--lora_rank: adapts the DiT, and --task mask_vae trains the decoder; leave it out")
    if options.ema_device == "cuda" and device.type != "cuda":
        raise UserError("--ema_device cuda: the weights are on the CPU; leave it out")


def _start_processes(options: argparse.Namespace, device: torch.device) -> Accelerator:
    """This process's place among those that torchrun started; alone where it did not."""
    if device.type == "cuda":
        local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise UserError(
                f"--nproc_per_node: each process needs a GPU of its own, got process {local_rank + 1} on a machine "
                f"that shows {num_gpus}; start fewer"
            )
        torch.cuda.set_device(device.index or local_rank)  # accelerate takes the current one
    return Accelerator(
        cpu=device.type == "cpu",
        gradient_accumulation_steps=options.accumulate,
        log_with=None if options.report_to == "none" else options.report_to,
        project_dir=options.output_dir,
        kwargs_handlers=[
            # A save or the filling of a cache by one process must not end the others' wait.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )


def _embed(
    options: argparse.Namespace,
    loaded: LoadedFlowRVS,
    clips: ReferringClips,
    validated: Split | None,
    accelerator: Accelerator,
) -> Captions | None:
    """Embeddings of all captions that training and validation meet; None where there are none."""
    wanted = set(clips.captions()) if options.task == "flow" else set()
    wanted |= {expression.caption for expression in validated.expressions} if validated else set()
    if not wanted:
        return None
    cache = Path(options.text_cache or Path(options.output_dir) / "text_cache")
    device = accelerator.device
    return embed_once(wanted, loaded, cache, device, select_dtype("auto", device))


def _end(trainer: Trainer) -> None:
    """Says how the run ended; one that a signal stopped ends as the signal would have ended it."""
    place = trainer.run_dir / checkpoint_name(trainer.step)
    if trainer.stopped_by is None:
        trainer.accelerator.print(f"Done: {trainer.step} steps; the last checkpoint is {place}")
        return
    if trainer.accelerator.is_main_process:
        print(
            f"Stopped by {trainer.stopped_by.name} after {trainer.step} steps, saved in {place}; "
            "go on with --resume auto",
            file=sys.stderr,
        )
    sys.exit(128 + trainer.stopped_by)


def _write_origin(run_dir: Path, options: argparse.Namespace) -> None:
    """The resolved options, the command and the library versions of this run."""
    origin = {
        "command": sys.argv,
        "options": vars(options),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    write_text_whole(run_dir / OPTIONS_FILE, json.dumps(origin, indent=1) + "\n")
