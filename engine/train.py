"""From the options of ``main.py`` to a trained network: builds the parts, then lets the trainer run."""

import argparse
import json
import math
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch.utils.data import DataLoader

from datasets.clip import collate
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import DatasetPaths, training_sources, validation_split
from datasets.sampling import Batches
from datasets.transforms import NO_AUGMENTATION, Augmentation, Box
from engine.checkpoints import find_checkpoint
from engine.latents import CachedLatents, collate_latents
from engine.steps import FlowTask, MaskVAETask, Task
from engine.trainer import Trainer, TrainerOptions
from engine.validation import Validator
from models.dit import has_injection, with_injection
from models.flowrvs import FlowRVS
from models.mask_vae import check_num_frames, with_mask_head
from models.text import CaptionTable
from models.weights import LoadedFlowRVS, load_flowrvs
from util.checkpoint import sha256_of
from util.device import select_device
from util.errors import UserError
from util.files import write_text_whole
from util.run_folder import LATEST, OPTIONS_FILE, checkpoint_name

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


def train(options: argparse.Namespace) -> None:
    """Trains the network that ``--task`` names.

    Raises:
        UserError: if options, data or weights cannot work together.
    """
    check_num_frames(options.num_frames)
    device = select_device(options.device)
    run_dir = Path(options.output_dir)
    checkpoint = find_checkpoint(options.resume, run_dir) if options.resume else None
    if options.resume is None and (run_dir / LATEST).exists():
        raise UserError(f"--output_dir {run_dir}: holds a run; go on with --resume auto, or give another folder")
    accelerator = _start_processes(options, device)
    names = dict(options.mixture or [(options.dataset_file, 1.0)])
    paths = DatasetPaths.from_flags(options)
    sources = training_sources(names, paths)
    loaded = _load_weights(options)
    pipeline = loaded.pipeline.to(accelerator.device)
    clips = ReferringClips(sources, _clip_options(options, pipeline))
    if len(clips.items_of(0)) == 0:
        raise UserError(f"--dataset_file: {', '.join(names)} holds no clip to train on; look at the folder and weights")
    task = _build_task(options, pipeline, clips)
    batches = Batches(
        clips.items_of, clips.bucket_of, options.batch_size, options.seed,
        rank=accelerator.process_index, num_ranks=accelerator.num_processes,
    )  # fmt: skip
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_origin(run_dir, options)
    accelerator.wait_for_everyone()
    trainer = Trainer(task, _trainer_options(options, batches, accelerator), run_dir, accelerator)
    if checkpoint is not None:
        trainer.load(checkpoint)
    batches.start_step = trainer.num_samples // (options.batch_size * accelerator.num_processes)
    loader = _build_loader(options, clips, batches, loaded, accelerator)
    validator = Validator(validation_split(names, paths), pipeline, task, run_dir) if options.eval_steps else None
    for step in trainer.run(loader):
        if validator is not None and (step % options.eval_steps == 0 or step == trainer.options.max_steps):
            with trainer.averaged_weights():
                accelerator.log(validator.run(step), step=step)
    _end(trainer)


def _start_processes(options: argparse.Namespace, device: torch.device) -> Accelerator:
    """This process's place among those that torchrun started; alone where it did not."""
    return Accelerator(
        cpu=device.type == "cpu",
        gradient_accumulation_steps=options.accumulate,
        kwargs_handlers=[
            # A save or the filling of a cache by one process must not end the others' wait.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )


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


def _load_weights(options: argparse.Namespace) -> LoadedFlowRVS:
    """The pipeline to start from; ``--init_from`` replaces the weights of the network that the task trains."""
    dit_ckpt, vae_ckpt = options.dit_ckpt, options.vae_ckpt
    if options.init_from:
        replaced = "dit_ckpt" if options.task == "flow" else "vae_ckpt"
        if getattr(options, replaced):
            raise UserError(f"--init_from and --{replaced}: both name the weights to start from; give one of them")
        if options.task == "flow":
            dit_ckpt = options.init_from
        else:
            vae_ckpt = options.init_from
    return load_flowrvs(options.wan_path, dit_ckpt, vae_ckpt, options.weights)


def _clip_options(options: argparse.Namespace, pipeline: FlowRVS) -> ClipOptions:
    augmentation = Augmentation(0.5 if options.augm_resize else 0, options.flip_prob, options.jitter)
    if options.latent_cache and (options.sampling != "dense" or augmentation != NO_AUGMENTATION):
        raise UserError(
            "--latent_cache: keeps whole clips of consecutive frames; "
            "add --sampling dense --no-augm_resize --flip_prob 0 --jitter 0"
        )
    sides = options.reso_h or pipeline.config.box_height, options.reso_w or pipeline.config.box_width
    pipeline.fitted_size(*sides, *sides)  # refuses a box smaller than a token
    box = Box(min(sides), max(sides), math.lcm(*pipeline.size_multiple))
    return ClipOptions(options.num_frames, box, options.sampling, augmentation, options.no_target_prob, options.seed)


def _build_task(options: argparse.Namespace, pipeline: FlowRVS, clips: ReferringClips) -> Task:
    """The task; its network replaces the pipeline's, so that validation sees what is trained."""
    if options.task == "mask_vae":
        vae = pipeline.vae if pipeline.vae.config.out_channels == 1 else with_mask_head(pipeline.vae)
        pipeline.register_modules(vae=vae)
        return MaskVAETask(vae, crop=options.crop, latent_noise=options.latent_noise)
    if has_injection(pipeline.transformer) and not options.use_dvi:
        raise UserError("--no-use_dvi: the given DiT has direct video injection; leave the flag out, or give another")
    dit = with_injection(pipeline.transformer) if options.use_dvi else pipeline.transformer
    pipeline.register_modules(transformer=dit.requires_grad_(True))
    captions = CaptionTable(
        pipeline.text_encoder,
        pipeline.tokenizer,
        clips.captions(),
        pipeline.config.max_sequence_length,
    )
    if not options.eval_steps:  # 11 GB that nothing needs any more
        pipeline.text_encoder.to("cpu")
    pipeline.register_to_config(objective=options.objective)
    return FlowTask(
        dit,
        pipeline.vae,
        captions,
        bbs_prob=options.bbs_prob,
        start_point_augmentation=options.use_spa,
        objective=options.objective,
        timestep_beta=options.timestep_beta,
    )


def _build_loader(
    options: argparse.Namespace,
    clips: ReferringClips,
    batches: Batches,
    loaded: LoadedFlowRVS,
    accelerator: Accelerator,
) -> DataLoader[Any]:
    if options.task == "flow" and options.latent_cache:
        if len(clips.sources) > 1:
            raise UserError("--latent_cache: belongs to one dataset; leave it out, or train on one")
        data = str(clips.sources[0].split.root.resolve())
        identity = {"vae": sha256_of(loaded.files["vae"]), "data": data}
        cached = CachedLatents(Path(options.latent_cache), clips, identity)
        cached.fill(loaded.pipeline.vae, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        return DataLoader(cached, batch_sampler=batches, collate_fn=collate_latents, num_workers=options.num_workers)
    return DataLoader(
        clips, batch_sampler=batches, collate_fn=collate, num_workers=options.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )  # fmt: skip


def _trainer_options(options: argparse.Namespace, batches: Batches, accelerator: Accelerator) -> TrainerOptions:
    steps_per_epoch = max(1, batches.steps_per_epoch // options.accumulate)
    return TrainerOptions(
        max_steps=options.max_steps or options.epochs * steps_per_epoch,
        optimizer=options.optimizer,
        lr=options.lr,
        weight_decay=options.weight_decay,
        lr_schedule=options.lr_schedule,
        warmup_steps=options.warmup_steps,
        lr_drop_steps=options.lr_drop * steps_per_epoch,
        clip_max_norm=options.clip_max_norm,
        ema_decay=options.ema_decay,
        ema_device=options.ema_device or accelerator.device.type,
        amp=accelerator.device.type == "cuda" if options.amp is None else options.amp,
        seed=options.seed,
        max_bad_steps=options.max_bad_steps,
        save_at=(options.save_steps, steps_per_epoch),
        keep_last=options.keep_last,
        print_freq=options.print_freq,
    )


def _write_origin(run_dir: Path, options: argparse.Namespace) -> None:
    """The resolved options, the command and the library versions of this run."""
    origin = {
        "command": sys.argv,
        "options": vars(options),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    write_text_whole(run_dir / OPTIONS_FILE, json.dumps(origin, indent=1) + "\n")
