"""The parts of a training run, each from the options of ``main.py``."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from datasets.clip import collate
from datasets.referring import ClipOptions, ReferringClips
from datasets.sampling import Batches
from datasets.split import Source
from datasets.transforms import NO_AUGMENTATION, Augmentation, Box
from engine.training.fsdp import shard_network
from engine.training.latent_cache import CachedLatents, collate_latents
from engine.training.signals import ignore_signals
from engine.training.tasks import FlowTask, MaskVAETask, Task
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


def load_weights(options: argparse.Namespace, device: torch.device) -> LoadedFlowRVS:
    """The pipeline to start from, on the CPU, without text encoder; what does not train is bfloat16 on a GPU.

    ``--init_from`` replaces the weights of the network that the task trains.
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
    """How clips are cut from videos."""
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


def training_clips(options: argparse.Namespace, sources: list[Source], pipeline: FlowRVS) -> ReferringClips:
    """The clips to train on.

    Raises:
        UserError: if there are none, or the options do not fit them.
    """
    if options.task == "flow" and options.latent_cache and len(sources) > 1:
        raise UserError("--latent_cache: belongs to one dataset; leave it out, or train on one")
    clips = ReferringClips(sources, clip_options(options, pipeline))
    if len(clips.items_of(0)) == 0:
        names = ", ".join(source.name for source in sources)
        raise UserError(f"--dataset_file: {names} holds no clip to train on; look at the folder and weights")
    return clips


def prepare_network(options: argparse.Namespace, pipeline: FlowRVS, device: torch.device, base: str = "") -> None:
    """Turns the pipeline's network into the one to train and moves what a step needs to the device.

    The pipeline holds the trained network itself, so that validation sees what is trained.

    Args:
        base: file or folder of the DiT's weights, which a checkpoint of adapters names.
    """
    if options.task == "mask_vae":
        vae = pipeline.vae if pipeline.vae.config.out_channels == 1 else with_mask_head(pipeline.vae)
        pipeline.register_modules(vae=vae.to(device))
        if options.eval_steps:
            pipeline.transformer.to(device)
        return
    if has_injection(pipeline.transformer) and not options.use_dvi:
        raise UserError("--no-use_dvi: the given DiT has direct video injection; leave the flag out, or give another")
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
    """The task around the prepared network.

    Args:
        captions: of the clips; the decoder learns without.
    """
    if captions is None:
        return MaskVAETask(pipeline.vae, crop=options.crop, latent_noise=options.latent_noise)
    return FlowTask(
        pipeline.transformer,
        pipeline.vae,
        captions,
        bbs_prob=options.bbs_prob,
        start_point_augmentation=options.use_spa,
        objective=options.objective,
        timestep_beta=options.timestep_beta,
    )


def build_loader(
    options: argparse.Namespace,
    clips: ReferringClips,
    batches: Batches,
    loaded: LoadedFlowRVS,
    accelerator: Accelerator,
) -> DataLoader[Any]:
    """This process's batches, of pictures or of cached latents, which are computed now if they are not there."""
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


def trainer_options(options: argparse.Namespace, steps_per_epoch: int, device: torch.device) -> TrainerOptions:
    """How to train; lengths in epochs become steps."""
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
        ema_device=options.ema_device or device.type,
        amp=device.type == "cuda" if options.amp is None else options.amp,
        seed=options.seed,
        max_bad_steps=options.max_bad_steps,
        save_at=(options.save_steps, steps_per_epoch),
        keep_last=options.keep_last,
        print_freq=options.print_freq,
    )


def base_of(loaded: LoadedFlowRVS) -> str:
    """The file or folder that the DiT's weights came from."""
    first = loaded.files["transformer"][0].resolve()
    return str(first.parent if first.suffix == ".safetensors" and (first.parent / "config.json").is_file() else first)
