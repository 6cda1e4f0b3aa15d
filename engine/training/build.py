"""Builds the objects of a training run from the options of ``main.py``."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from datasets.clip import collate
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import Source
from datasets.sampling import Batches
from datasets.transforms import NO_AUGMENTATION, Augmentation, Box
from engine.training.fsdp import shard_network
from engine.training.latent_cache import CachedLatents, collate_latents
from engine.training.signals import ignore_signals
from engine.training.tasks import FlowOptions, FlowTask, MaskVAEOptions, MaskVAETask, Task
from engine.training.trainer import TrainerOptions
from models.dit import checkpoint_blocks, has_injection, with_injection
from models.flowrvs import FlowRVS
from models.lora import add_lora
from models.mask_vae import with_mask_head
from models.text import Captions
from models.weights import LoadedFlowRVS, load_flowrvs
from util.device import DTYPES, select_dtype
from util.errors import UserError
from util.hashes import sha256_of
from util.options import from_flags


def load_weights(options: argparse.Namespace, device: torch.device) -> LoadedFlowRVS:
    """Loads the pipeline to start from, on the CPU and without its text encoder.

    The network that trains gets ``--weights_dtype`` and the weights of ``--init_from``; the frozen one is bfloat16 if
    the device is a GPU, else float32.
    """
    dit_ckpt, vae_ckpt = options.dit_ckpt, options.vae_ckpt
    if options.init_from:
        if options.task == "flow":
            dit_ckpt = options.init_from
        else:
            vae_ckpt = options.init_from
    trained, frozen = DTYPES[options.weights_dtype], select_dtype("auto", device)
    return load_flowrvs(
        options.wan_path, dit_ckpt, vae_ckpt, options.weights,
        {"transformer": trained if options.task == "flow" else frozen,
         "vae": frozen if options.task == "flow" else trained},
        text=False, is_start=True,
    )  # fmt: skip


def clip_options(options: argparse.Namespace, pipeline: FlowRVS) -> ClipOptions:
    """Returns how clips are cut from videos.

    Raises:
        UserError: if ``--latent_cache`` is given, but clips would differ between epochs.
    """
    augmentation = Augmentation(0.5 if options.augm_resize else 0, options.flip_prob, options.jitter)
    if options.latent_cache and (options.sampling != "dense" or augmentation != NO_AUGMENTATION):
        raise UserError(
            "--latent_cache: needs the same clips in every epoch; "
            "add --sampling dense --no-augm_resize --flip_prob 0 --jitter 0"
        )
    sides = options.reso_h or pipeline.config.box_height, options.reso_w or pipeline.config.box_width
    pipeline.fitted_size(*sides, *sides)  # raises if the box is smaller than a token
    box = Box(min(sides), max(sides), math.lcm(*pipeline.size_multiple))
    return from_flags(ClipOptions, options, box=box, augmentation=augmentation)


def training_clips(options: argparse.Namespace, sources: list[Source], pipeline: FlowRVS) -> ReferringClips:
    """Builds the dataset of clips to train on.

    Raises:
        UserError: if it is empty, or the options do not fit it.
    """
    if options.task == "flow" and options.latent_cache and len(sources) > 1:
        raise UserError(f"--latent_cache: works with one dataset, got {len(sources)}; leave it out, or train on one")
    clips = ReferringClips(sources, clip_options(options, pipeline))
    if len(clips.items_of(0)) == 0:
        names = ", ".join(source.name for source in sources)
        raise UserError(f"--dataset_file: {names} holds no clip to train on; check its folder and its --mixture weight")
    return clips


def prepare_network(options: argparse.Namespace, pipeline: FlowRVS, device: torch.device, base: str = "") -> None:
    """Prepares a pipeline for training, in place, and moves the networks that a step needs to the device.

    The pipeline holds the very network that trains, so that validation always has its current weights.

    Args:
        base: file or folder of the DiT's weights; a checkpoint of adapters records it.

    Raises:
        UserError: if ``--no-use_dvi`` is given for a DiT that has direct video injection.
    """
    if options.task == "mask_vae":
        vae = pipeline.vae if pipeline.vae.config.out_channels == 1 else with_mask_head(pipeline.vae)
        pipeline.register_modules(vae=vae.to(device))
        if options.eval_steps:
            pipeline.transformer.to(device)
        return
    if has_injection(pipeline.transformer) and not options.use_dvi:
        raise UserError(
            "--no-use_dvi: the DiT already has direct video injection; leave the flag out, or give other weights"
        )
    dit = with_injection(pipeline.transformer) if options.use_dvi else pipeline.transformer
    pipeline.register_modules(transformer=dit.requires_grad_(True))
    if options.lora_rank:
        add_lora(dit, options.lora_rank, options.seed, base)
    checkpoint_blocks(dit, options.checkpoint_every)
    if options.compile:
        dit.compile_repeated_blocks()
    if options.fsdp:
        shard_network(dit, device.type)
    else:
        dit.to(device)
    pipeline.vae.to(device)
    pipeline.register_to_config(objective=options.objective)


def build_task(options: argparse.Namespace, pipeline: FlowRVS, captions: Captions | None) -> Task:
    """Builds the task of ``--task`` for a pipeline that ``prepare_network`` has prepared.

    Args:
        captions: embeddings of the clips' captions; not needed by ``--task mask_vae``.
    """
    if options.task == "mask_vae":
        return MaskVAETask(pipeline.vae, from_flags(MaskVAEOptions, options))
    assert captions is not None, "--task flow needs the captions of its clips"
    return FlowTask(pipeline.transformer, pipeline.vae, captions, from_flags(FlowOptions, options))


def build_loader(
    options: argparse.Namespace,
    clips: ReferringClips,
    batches: Batches,
    loaded: LoadedFlowRVS,
    accelerator: Accelerator,
) -> DataLoader[Any]:
    """Builds the loader of this process's batches; with ``--latent_cache`` of latents, after caching missing ones."""
    if options.task == "flow" and options.latent_cache:
        data = str(clips.sources[0].split.root.resolve())
        identity = {"vae": sha256_of(loaded.files["vae"]), "data": data}
        cached = CachedLatents(Path(options.latent_cache), clips, identity)
        cached.fill(loaded.pipeline.vae, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        return DataLoader(
            cached, batch_sampler=batches, collate_fn=collate_latents, num_workers=options.num_workers,
            worker_init_fn=ignore_signals,
        )  # fmt: skip
    return DataLoader(
        clips, batch_sampler=batches, collate_fn=collate, num_workers=options.num_workers,
        worker_init_fn=ignore_signals,
    )  # fmt: skip


def steps_per_epoch(options: argparse.Namespace, batches: Batches) -> int:
    """Returns the number of optimizer steps in an epoch."""
    return max(1, batches.steps_per_epoch // options.accumulate)


def trainer_options(options: argparse.Namespace, steps_per_epoch: int, device: torch.device) -> TrainerOptions:
    """Returns how to train: lengths in epochs become steps, and flags that were not given get their values."""
    return from_flags(
        TrainerOptions,
        options,
        max_steps=options.max_steps or options.epochs * steps_per_epoch,
        lr_drop_steps=options.lr_drop * steps_per_epoch,
        ema_device=options.ema_device or device.type,
        amp=device.type == "cuda" if options.amp is None else options.amp,
        save_at=(options.save_steps, steps_per_epoch),
    )


def base_of(loaded: LoadedFlowRVS) -> str:
    """Returns the file or folder from which the DiT's weights were read."""
    first = loaded.files["transformer"][0].resolve()
    return str(first.parent if first.suffix == ".safetensors" and (first.parent / "config.json").is_file() else first)
