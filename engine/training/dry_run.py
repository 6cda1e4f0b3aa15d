"""``main.py --dry_run``: checks options, data and configs, and says what a run would take, without weights or GPU."""

import argparse
import os
from collections.abc import Iterable

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from datasets.sampling import Batches
from datasets.split import Source
from engine.training.build import prepare_network, trainer_options, training_clips
from engine.training.memory_estimate import GIB, Choices, Clips, LiveBytes, Network, peak, training_memory
from models.dit import has_injection
from models.flowrvs import FlowRVS
from models.mask_vae import encode_masks
from models.objectives import OBJECTIVE_ENTRY, check_objective
from models.vae_layers import use_fast_layers
from models.weights import PIPELINE_ENTRIES, resolve_wan_folder
from util.files import read_json
from util.flags import DEFAULT_WAN_PATH


def dry_run(options: argparse.Namespace, sources: list[Source], num_processes: int) -> None:
    """Prints clips, steps and each GPU's memory; of several processes one prints.

    Raises:
        UserError: for whatever ends a run at its start, except missing or damaged weights.
    """
    pipeline = _meta_pipeline(options)
    clips = training_clips(options, sources, pipeline)
    batches = Batches(clips.items_of, clips.bucket_of, options.batch_size, options.seed, num_ranks=num_processes)
    steps_per_epoch = max(1, batches.steps_per_epoch // options.accumulate)
    how = trainer_options(options, steps_per_epoch, torch.device("cuda"))
    if os.environ.get("RANK", "0") != "0":
        return
    num_clips, per_step = len(clips.items_of(0)), options.batch_size * options.accumulate * num_processes
    print(f"clips       {num_clips:,} in an epoch, of {', '.join(source.name for source in sources)}")
    print(f"steps       {steps_per_epoch:,} in an epoch, {how.max_steps:,} in all, of {per_step} clips each")
    print(f"processes   {num_processes}")
    if options.task == "mask_vae":
        print("memory      is not estimated for --task mask_vae; it grows with the square of --crop")
        return
    dit = pipeline.transformer
    print(f"parameters  {_count(dit.parameters()):,}, of which {_count(_trained(dit)):,} train")
    memory = _memory(options, pipeline, num_processes)
    for name, size in memory.items():
        if size:
            print(f"{size / GIB:10.2f} GiB  {name}")
    print(f"{peak(memory) / GIB:10.2f} GiB  at most on each GPU: of what comes one after the other, the largest")
    print("                without what CUDA, its kernels and fragments take, and validation")


def _meta_pipeline(options: argparse.Namespace) -> FlowRVS:
    """The pipeline of a run without its weights, prepared for training."""
    folder = resolve_wan_folder(options.wan_path or DEFAULT_WAN_PATH, skip_transformer=True, skip_vae=True)
    configs = {part: read_json(folder / part / "config.json") for part in ("transformer", "vae")}
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
    network = Network(
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
    choices = Choices(
        has_float32_weights=options.weights_dtype == "fp32",
        optimizer=options.optimizer,
        average_on_gpu=options.ema_device != "cpu",
        checkpoint_every=options.checkpoint_every,
        num_shards=num_processes if options.fsdp else 1,
    )
    return training_memory(network, clips, choices, _count(vae.parameters()))


def _itemsize(options: argparse.Namespace, dit: WanTransformer3DModel, name: str) -> int:
    """Bytes of each number of a weight, as loading and ``add_lora`` leave it."""
    kept = set(dit._keep_in_fp32_modules or []) & set(name.split("."))
    is_adapter = bool(options.lora_rank) and dit.get_parameter(name).requires_grad
    return 4 if options.weights_dtype == "fp32" or kept or is_adapter else 2


def _encoding_bytes(options: argparse.Namespace, pipeline: FlowRVS, rows: int, columns: int) -> int:
    """What the VAE holds at most while it encodes a batch: for masks a little more than for the video before them."""
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
