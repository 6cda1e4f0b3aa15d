"""Carries out ``main.py --dry_run``: checks options, data and configs, and estimates GPU memory, without weights."""

import argparse
import os
from collections.abc import Iterable

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from datasets.registry import Source
from datasets.sampling import Batches
from engine.training.build import prepare_network, steps_per_epoch, trainer_options, training_clips
from engine.training.memory_estimate import GIB, Choices, Clips, DiTSize, LiveBytes, peak, training_memory
from models.dit import has_injection
from models.flowrvs import FlowRVS
from models.mask_vae import encode_masks
from models.objectives import OBJECTIVE_ENTRY, check_objective
from models.vae_layers import use_fast_layers
from models.weights import PIPELINE_ENTRIES, resolve_wan_folder
from util.files import read_json
from util.flags import DEFAULT_WAN_PATH
from util.options import from_flags


def dry_run(options: argparse.Namespace, sources: list[Source], num_processes: int) -> None:
    """Prints the number of clips and steps, and the memory on each GPU.

    Raises:
        UserError: for the same reasons as a run at its start, except missing or damaged weights.
    """
    pipeline = _meta_pipeline(options)
    clips = training_clips(options, sources, pipeline)
    batches = Batches(clips.items_of, clips.bucket_of, options.batch_size, options.seed, num_ranks=num_processes)
    num_steps = steps_per_epoch(options, batches)
    num_steps_in_all = trainer_options(options, num_steps, torch.device("cuda")).max_steps
    if os.environ.get("RANK", "0") != "0":
        return  # one process prints
    num_clips, per_step = len(clips.items_of(0)), options.batch_size * options.accumulate * num_processes
    print(f"clips       {num_clips:,} per epoch, from {', '.join(source.name for source in sources)}")
    print(f"steps       {num_steps:,} per epoch, {num_steps_in_all:,} in total, {per_step} clips per step")
    print(f"processes   {num_processes}")
    if options.task == "mask_vae":
        print("memory      not estimated for --task mask_vae; it grows with the square of --crop")
        return
    dit = pipeline.transformer
    print(f"parameters  {_count(dit.parameters()):,}, of which {_count(_trained(dit)):,} train")
    memory = _memory(options, pipeline, num_processes)
    for name, size in memory.items():
        if size:
            print(f"{size / GIB:10.2f} GiB  {name}")
    print(f"{peak(memory) / GIB:10.2f} GiB  peak per GPU: the phases do not overlap, so only the largest counts")
    print("                not counted: CUDA context, kernel workspaces, fragmentation, validation")


def _meta_pipeline(options: argparse.Namespace) -> FlowRVS:
    """Builds the pipeline of a run on the meta device, prepared for training."""
    folder = resolve_wan_folder(options.wan_path or DEFAULT_WAN_PATH, skip_transformer=True, skip_vae=True)
    configs = {name: read_json(folder / name / "config.json") for name in ("transformer", "vae")}
    configs["transformer"].pop(OBJECTIVE_ENTRY, None)
    index = read_json(folder / "model_index.json")
    with init_empty_weights():
        dit = WanTransformer3DModel.from_config(configs["transformer"])
        vae = AutoencoderKLWan.from_config(configs["vae"]).requires_grad_(False)
        own_entries = {name: index[name] for name in PIPELINE_ENTRIES if name in index}
        use_fast_layers(vae)
        pipeline = FlowRVS(dit, vae, None, None, **own_entries)
        unsharded = argparse.Namespace(**vars(options) | {"fsdp": False, "compile": False})
        prepare_network(unsharded, pipeline, torch.device("meta"))
        if options.task == "flow":
            check_objective(options.objective, has_injection(pipeline.transformer))
    return pipeline


def _memory(options: argparse.Namespace, pipeline: FlowRVS, num_processes: int) -> dict[str, int]:
    dit, vae = pipeline.transformer, pipeline.vae
    num_parameters, per_block = _count(dit.parameters()), _count(dit.blocks[0].parameters())
    bytes_each = {name: parameter.numel() * _itemsize(options, dit, name) for name, parameter in dit.named_parameters()}
    size = DiTSize(
        weight_bytes=sum(bytes_each.values()),
        trained_bytes=sum(bytes_each[name] for name, parameter in dit.named_parameters() if parameter.requires_grad),
        num_trained=_count(_trained(dit)),
        block_parameters=per_block,
        outer_parameters=num_parameters - per_block * len(dit.blocks),
        num_blocks=len(dit.blocks),
        width=dit.config.num_attention_heads * dit.config.attention_head_dim,
        feed_forward_width=dit.config.ffn_dim,
    )
    sides = options.reso_h or pipeline.config.box_height, options.reso_w or pipeline.config.box_width
    rows, columns = (side // multiple for side, multiple in zip(sides, pipeline.size_multiple, strict=True))
    clips = Clips(
        batch_size=options.batch_size,
        num_tokens=(1 + (options.num_frames - 1) // vae.config.scale_factor_temporal) * rows * columns,
        num_text_tokens=pipeline.config.max_sequence_length,
        encoding_bytes=0 if options.latent_cache else _encoding_bytes(options, pipeline, rows, columns),
    )
    choices = from_flags(
        Choices,
        options,
        has_float32_weights=options.weights_dtype == "fp32",
        ema_on_gpu=options.ema_device != "cpu",
        num_shards=num_processes if options.fsdp else 1,
    )
    return training_memory(size, clips, choices, _count(vae.parameters()))


def _itemsize(options: argparse.Namespace, dit: WanTransformer3DModel, name: str) -> int:
    """Returns the bytes per element of a weight, in the dtype that loading and ``add_lora`` give it."""
    kept = set(dit._keep_in_fp32_modules or []) & set(name.split("."))
    is_adapter = bool(options.lora_rank) and dit.get_parameter(name).requires_grad
    return 4 if options.weights_dtype == "fp32" or kept or is_adapter else 2


def _encoding_bytes(options: argparse.Namespace, pipeline: FlowRVS, rows: int, columns: int) -> int:
    """Returns the peak memory of the VAE while it encodes a batch of masks, which is a little more than for video."""
    height, width = rows * pipeline.size_multiple[0], columns * pipeline.size_multiple[1]
    masks = torch.zeros(options.batch_size, 1, options.num_frames, height, width, device="meta")
    vae = pipeline.vae.bfloat16()
    with torch.no_grad(), LiveBytes() as live:
        encode_masks(vae, masks)
    return live.peak


def _trained(dit: WanTransformer3DModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in dit.parameters() if parameter.requires_grad]


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
