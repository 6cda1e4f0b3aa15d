"""From the options of ``main.py`` to a trained network: builds the parts, then lets the trainer run."""

import argparse
import json
import math
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader

from datasets.clip import collate
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import DatasetPaths, training_sources, validation_split
from datasets.sampling import Batches
from datasets.split import Split
from datasets.transforms import NO_AUGMENTATION, Augmentation, Box
from engine.evaluate import evaluate
from engine.latents import CachedLatents, collate_latents
from engine.segment import SegmentOptions
from engine.steps import FlowTask, MaskVAETask, Task
from engine.trainer import Trainer, TrainerOptions, find_checkpoint
from models.dit import has_injection, with_injection
from models.flowrvs import FlowRVS
from models.mask_vae import check_num_frames, with_mask_head
from models.text import CaptionTable
from models.weights import LoadedFlowRVS, load_flowrvs
from util.checkpoint import read_json, sha256_of
from util.device import select_device
from util.errors import UserError
from util.files import write_text_whole

VALIDATION_VIDEOS = 20
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


def train(options: argparse.Namespace) -> None:
    """Trains the network that ``--task`` names.

    Raises:
        UserError: if options, data or weights cannot work together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: main.py trains in one process so far; start it without torchrun"
        )
    check_num_frames(options.num_frames)
    device = select_device(options.device)
    run_dir = Path(options.output_dir)
    checkpoint = find_checkpoint(options.resume, run_dir) if options.resume else None
    if options.resume is None and (run_dir / "latest").exists():
        raise UserError(f"--output_dir {run_dir}: holds a run; go on with --resume auto, or give another folder")
    names = dict(options.mixture or [(options.dataset_file, 1.0)])
    paths = DatasetPaths.from_flags(options)
    sources = training_sources(names, paths)
    loaded = load_flowrvs(options.wan_path, options.dit_ckpt, options.vae_ckpt, options.weights)
    pipeline = loaded.pipeline.to(device)
    clips = ReferringClips(sources, _clip_options(options, pipeline))
    task = _build_task(options, pipeline, clips)
    if options.use_gradient_ckpt and options.task == "flow":
        task.model.enable_gradient_checkpointing()
    if len(clips.items_of(0)) == 0:
        raise UserError(f"--dataset_file: {', '.join(names)} holds no clip to train on; look at the folder and weights")
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_origin(run_dir, options)
    batches = Batches(clips.items_of, clips.bucket_of, options.batch_size, options.seed)
    trainer = Trainer(task, _trainer_options(options, batches.steps_per_epoch, device), run_dir)
    if checkpoint is not None:
        trainer.load(checkpoint)
    batches.start_step = trainer.step
    loader = _build_loader(options, clips, batches, loaded)
    validator = _Validator(validation_split(names, paths), pipeline, task, run_dir) if options.eval_steps else None
    for step in trainer.run(loader):
        if validator is not None and (step % options.eval_steps == 0 or step == trainer.options.max_steps):
            with trainer.averaged_weights():
                validator.run(step)
    print(f"Done: {trainer.step} steps; the last checkpoint is {run_dir / f'step_{trainer.step:07d}'}")


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
    options: argparse.Namespace, clips: ReferringClips, batches: Batches, loaded: LoadedFlowRVS
) -> DataLoader[Any]:
    if options.task == "flow" and options.latent_cache:
        if len(clips.sources) > 1:
            raise UserError("--latent_cache: belongs to one dataset; leave it out, or train on one")
        data = str(clips.sources[0].split.root.resolve())
        identity = {"vae": sha256_of(loaded.files["vae"]), "data": data}
        cached = CachedLatents(Path(options.latent_cache), clips, loaded.pipeline.vae, identity)
        return DataLoader(cached, batch_sampler=batches, collate_fn=collate_latents, num_workers=options.num_workers)
    return DataLoader(clips, batch_sampler=batches, collate_fn=collate, num_workers=options.num_workers)


def _trainer_options(options: argparse.Namespace, steps_per_epoch: int, device: torch.device) -> TrainerOptions:
    return TrainerOptions(
        max_steps=options.max_steps or options.epochs * steps_per_epoch,
        lr=options.lr,
        weight_decay=options.weight_decay,
        lr_schedule=options.lr_schedule,
        warmup_steps=options.warmup_steps,
        lr_drop_steps=options.lr_drop * steps_per_epoch,
        clip_max_norm=options.clip_max_norm,
        ema_decay=options.ema_decay,
        amp=device.type == "cuda" if options.amp is None else options.amp,
        seed=options.seed,
        save_steps=options.save_steps,
        keep_last=options.keep_last,
        print_freq=options.print_freq,
    )


class _Validator:
    """Scores the network on the first videos of a split and keeps the best, through the pipeline that users call."""

    def __init__(self, split: Split, pipeline: FlowRVS, task: Task, run_dir: Path) -> None:
        videos = set(list(dict.fromkeys(expression.video for expression in split.expressions))[:VALIDATION_VIDEOS])
        split.expressions = [expression for expression in split.expressions if expression.video in videos]
        self.split = split
        self.pipeline = pipeline
        self.task = task
        self.run_dir = run_dir
        self.best = -math.inf
        best_file = run_dir / "best" / "metrics.json"
        if best_file.is_file():
            self.best = read_json(best_file)["J&F"]

    def run(self, step: int) -> None:
        """Called while the network holds its averaged weights."""
        folder = self.run_dir / "validation"
        folder.mkdir(exist_ok=True)
        metrics = evaluate(self.pipeline, self.split, folder, SegmentOptions(prompt_batch=8), PartialState(cpu=True))
        assert metrics is not None, "one process, and valid_u has masks"
        means = {"step": step, "J": metrics["J"], "F": metrics["F"], "J&F": metrics["J&F"]}
        kinds = {kind: entry["J&F"] for kind, entry in metrics.get("kinds", {}).items()}
        with (self.run_dir / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**means, **kinds}) + "\n")
        if means["J&F"] > self.best:
            self.best = means["J&F"]
            self.task.model.save_pretrained(self.run_dir / "best" / self.task.part)
            write_text_whole(self.run_dir / "best" / "metrics.json", json.dumps(means) + "\n")


def _write_origin(run_dir: Path, options: argparse.Namespace) -> None:
    """The resolved options, the command and the library versions of this run."""
    origin = {
        "command": sys.argv,
        "options": vars(options),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    write_text_whole(run_dir / "options.json", json.dumps(origin, indent=1) + "\n")
