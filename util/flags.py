"""Flags that several programs share, each defined once. Imports nothing heavy, so that ``--help`` answers at once."""

import argparse

from util.options import add_flag, float_in, int_in

REMOVED_FROM_INFERENCE = {
    "--use_dvi": "direct video injection is read from the weights; leave the flag out",
    "--save_eval_vis": "masks are always written; leave the flag out",
    "--ngpu": "start with torchrun --nproc_per_node=N",
}
DEFAULT_WAN_PATH = "Wan2.1-T2V-1.3B-Diffusers"
MAX_SEED = 2**32 - 1  # the largest that every library takes
MAX_STEPS = 300  # with more solver steps two of them would share one of the 1000 timesteps
MIN_BOX, MAX_BOX = 8, 8192  # pixels; the model's own multiple is checked once it is known
# The decoder's logits are clamped to [-1, 1]: a threshold outside their sigmoids would make all pixels the same.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.27, 0.73
# Choices of flags, read by the modules that implement them.
WEIGHT_CHOICES = ("auto", "ema", "model")
DTYPE_NAMES = ("fp32", "bf16")
VRAM_CHOICES = ("auto", "24", "16", "12", "8")
TEXT_PLACES = ("gpu", "layers", "cpu")
DEVICE_HELP = "auto, cpu, cuda, cuda:N, or mps, the GPU of a Mac (untested); auto takes cuda, else mps, else cpu"
OBJECTIVES = ("flow", "velocity1", "noise", "direct", "rem")
OPTIMIZERS = ("adamw", "adamw8bit")
TRACKERS = ("tensorboard", "wandb", "none")
OUTPUT_CHOICES = ("overlay", "mask_video", "mask_video_exact", "cutout", "side_by_side", "rle", "csv")
CUTOUT_FORMATS = ("mov", "webm")
SAMPLINGS = ("sparse", "dense", "mixed")
OVERLAY_STYLES = ("fill", "contour", "spotlight")
LEGEND_PLACES = ("top", "bottom", "off")


def device_name(text: str) -> str:
    """An argparse type: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    kind, _, index = text.partition(":")
    if text in ("auto", "cpu", "cuda", "mps") or (kind == "cuda" and index.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, got '{text}'")


def add_weight_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose the weights."""
    group = parser.add_argument_group("weights")
    group.add_argument(
        "--wan_path",
        metavar="PATH",
        help=f"Wan2.1-T2V-*-Diffusers folder, saved FlowRVS folder, or hub id of one (default: {DEFAULT_WAN_PATH})",
    )
    group.add_argument(
        "--dit_ckpt",
        metavar="PATH",
        help="DiT weights: .pth, .safetensors, run folder, saved folder, or owner/name or owner/name/file of the hub",
    )
    group.add_argument(
        "--vae_ckpt",
        metavar="PATH",
        help="tuned VAE weights, named in the same ways; the stock decoder is used if this is not given",
    )
    group.add_argument(
        "--weights",
        choices=WEIGHT_CHOICES,
        default="auto",
        help="EMA weights (ema) or raw weights (model) of a checkpoint that has both; auto prefers ema",
    )


def add_inference_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Adds the flags that choose what is segmented and where results go.

    Args:
        output_dir: the default folder.
    """
    group = parser.add_argument_group("inference")
    group.add_argument(
        "--output_dir", default=output_dir, metavar="DIR",
        help="folder for masks and metrics; a stopped run in it is continued",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="remove earlier results in --output_dir first")
    add_selection_flags(group)
    group.add_argument(
        "--text_cache", metavar="DIR",
        help="folder for embedded captions, which several runs may share; by default inside --output_dir",
    )  # fmt: skip
    group.add_argument(
        "--num_workers", type=int_in(1), metavar="N",
        help="worker processes that write and score masks; by default one per core, at most 4",
    )  # fmt: skip


def add_selection_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags that choose videos of a split."""
    parser.add_argument("--limit", type=int_in(1), metavar="N", help="use only the first N videos of the split")
    parser.add_argument("--videos", nargs="+", metavar="NAME", help="use only these videos")


def add_video_list_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag that names the videos of a split of Ref-YouTube-VOS."""
    parser.add_argument(
        "--video_list", metavar="FILE",
        help="ytvos: text file with the video ids of the split, one per line; needed if there is no "
        "meta_expressions/test, which tells the 202 videos of valid from those of test",
    )  # fmt: skip


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose device and number format."""
    group = parser.add_argument_group("device")
    group.add_argument("--device", type=device_name, default="auto", help=DEVICE_HELP)
    group.add_argument(
        "--dtype", choices=("auto", *DTYPE_NAMES), default="auto",
        help="number format of the weights; auto is bf16 on a GPU that has it and fp32 elsewhere",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true",
        help="compile the blocks of the DiT and the norms of the VAE; takes minutes at the start, saves time over many "
        "videos on a GPU",
    )  # fmt: skip


def add_segment_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that set how to segment."""
    group = parser.add_argument_group("segmentation")
    group.add_argument(
        "--num_steps", type=int_in(1, MAX_STEPS), default=1, metavar="N", help="solver steps from video to mask"
    )
    group.add_argument(
        "--reso_h", type=int_in(MIN_BOX, MAX_BOX), metavar="PIXELS",
        help="height of the box into which frames are fitted; by default the model's own",
    )  # fmt: skip
    group.add_argument(
        "--reso_w",
        type=int_in(MIN_BOX, MAX_BOX),
        metavar="PIXELS",
        help="width of that box; by default the model's own",
    )
    group.add_argument(
        "--threshold",
        type=float_in(LOWEST_THRESHOLD, HIGHEST_THRESHOLD),
        default=0.5,
        help=f"a pixel is foreground if the sigmoid of its logit exceeds this; {LOWEST_THRESHOLD} to "
        f"{HIGHEST_THRESHOLD}, because logits are clamped to [-1, 1]",
    )
    group.add_argument(
        "--prompt_batch", type=int_in(1), default=4, metavar="N",
        help="prompts that run through the networks together; lower it to save memory",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int_in(0, MAX_SEED), default=0,
        help="random seed of the noise; only weights trained with --objective noise use it",
    )  # fmt: skip
    group.add_argument(
        "--window", type=int_in(0), default=0, metavar="FRAMES",
        help="frames that the model sees at once, 4n+1, for instance 81; 0 is the whole video, as in the paper",
    )  # fmt: skip
    group.add_argument(
        "--overlap", type=int_in(0), metavar="FRAMES",
        help="frames that successive windows share; by default a fifth of the window, 16 of 81",
    )  # fmt: skip


def add_memory_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that fit a run into a GPU's memory. Call it after ``add_segment_flags``."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--vram", choices=VRAM_CHOICES, default="auto",
        help="memory of the GPU in GB: sets those of --window, --prompt_batch, --tiling and --text_on that are not "
        "given; auto goes by the free memory, and segments the whole video at once if there is enough, or on a CPU",
    )  # fmt: skip
    group.add_argument(
        "--text_on", choices=TEXT_PLACES,
        help="where the text encoder (11 GB) runs: gpu, cpu, or layers (on the GPU, one layer at a time)",
    )  # fmt: skip
    add_flag(group, "--tiling", None, "decode in tiles; needs less memory and changes masks a little")
    parser.set_defaults(window=None, prompt_batch=None)
