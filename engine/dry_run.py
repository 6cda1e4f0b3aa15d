"""``main.py --dry_run``: checks options, data and configs, and says what a run would take, without weights or GPU."""

import argparse
import os

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from datasets.referring import ReferringClips
from datasets.sampling import Batches
from datasets.source import Source
from engine.build import clip_options, prepare_network, trainer_options
from engine.memory import GIB, Choices, Clips, Network, training_memory
from models.flowrvs import FlowRVS
from models.objectives import OBJECTIVE_ENTRY
from models.weights import PIPELINE_ENTRIES, resolve_wan_folder
from util.checkpoint import read_json
from util.device import DTYPES


def dry_run(options: argparse.Namespace, sources: list[Source]) -> None:
    """Prints clips, steps and each GPU's memory for as many processes as torchrun started; one of them prints.

    Raises:
        UserError: for whatever ends a run at its start, except missing or damaged weights.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    pipeline = _meta_pipeline(options)
    clips = ReferringClips(sources, clip_options(options, pipeline))
    batches = Batches(clips.items_of, clips.bucket_of, options.batch_size, options.seed, num_ranks=num_processes)
    steps_per_epoch = max(1, batches.steps_per_epoch // options.accumulate)
    how = trainer_options(options, steps_per_epoch, torch.device("cuda"))
    if os.environ.get("RANK", "0") != "0":
        return
    model = pipeline.transformer if options.task == "flow" else pipeline.vae
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"clips       {len(clips.items_of(0)):,} in an epoch, of {len(sources)} datasets")
    print(f"steps       {steps_per_epoch:,} in an epoch of {num_processes} processes, {how.max_steps:,} in all")
    if options.task == "mask_vae":
        print("memory      is not estimated for --task mask_vae; it grows with the square of --crop")
        return
    print(f"parameters  {_count(model):,}, of which {num_trained:,} train")
    memory = _memory(options, pipeline, num_processes)
    for name, size in memory.items():
        print(f"{size / GIB:10.2f} GiB  {name}")
    print(f"{sum(memory.values()) / GIB:10.2f} GiB  in all, on each GPU, without what CUDA and fragments take")


def _meta_pipeline(options: argparse.Namespace) -> FlowRVS:
    """The pipeline of a run without its weights, prepared for training."""
    folder = resolve_wan_folder(options.wan_path, skip_transformer=True, skip_vae=True)
    configs = {part: read_json(folder / part / "config.json") for part in ("transformer", "vae")}
    configs["transformer"].pop(OBJECTIVE_ENTRY, None)
    index = read_json(folder / "model_index.json")
    with init_empty_weights():
        dit = WanTransformer3DModel.from_config(configs["transformer"])
        vae = AutoencoderKLWan.from_config(configs["vae"]).requires_grad_(False)
        own_entries = {name: index[name] for name in PIPELINE_ENTRIES if name in index}
        pipeline = FlowRVS(dit, vae, None, None, **own_entries)
        unsharded = argparse.Namespace(**vars(options) | {"fsdp": False, "compile": False})
        prepare_network(unsharded, pipeline, torch.device("meta"))
    return pipeline


def _memory(options: argparse.Namespace, pipeline: FlowRVS, num_processes: int) -> dict[str, int]:
    dit, vae = pipeline.transformer, pipeline.vae
    height = options.reso_h or pipeline.config.box_height
    width = options.reso_w or pipeline.config.box_width
    stride = vae.config.scale_factor_temporal
    rows, columns = (side // multiple for side, multiple in zip((height, width), pipeline.size_multiple, strict=True))
    network = Network(
        num_parameters=_count(dit),
        num_trained=sum(parameter.numel() for parameter in dit.parameters() if parameter.requires_grad),
        block_parameters=_count(dit.blocks[0]),
        num_blocks=len(dit.blocks),
        width=dit.config.num_attention_heads * dit.config.attention_head_dim,
        feed_forward_width=dit.config.ffn_dim,
    )
    clips = Clips(
        batch_size=options.batch_size,
        num_tokens=(1 + (options.num_frames - 1) // stride) * rows * columns,
        num_text_tokens=pipeline.config.max_sequence_length,
        vae_values=0 if options.latent_cache else options.batch_size * stride * height * width * vae.config.base_dim,
    )
    choices = Choices(
        weights_bytes=DTYPES[options.weights_dtype].itemsize,
        optimizer=options.optimizer,
        average_on_gpu=options.ema_device != "cpu",
        checkpoint_every=options.checkpoint_every,
        num_shards=num_processes if options.fsdp else 1,
    )
    return training_memory(network, clips, choices, _count(vae))


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
