"""Flags that several scripts share, each defined once. Free of torch until those of the model are added."""

import argparse

from util.options import float_in, int_in

DATASET_PATHS = {
    "mevis": "datasets/MeViS",
    "ytvos": "datasets/refer_youtube_vos",
    "davis": "datasets/refer_davis",
    "coco": "datasets/coco",
    "long_rvos": "datasets/long_rvos",
    "a2d": "datasets/a2d_sentences",
    "jhmdb": "datasets/jhmdb_sentences",
    "toy": "runs/toy-mevis",
}
REMOVED_FROM_INFERENCE = {
    "--use_dvi": "direct video injection is read off the weights; leave the flag out",
    "--save_eval_vis": "masks are always written; leave the flag out",
    "--ngpu": "start with torchrun --nproc_per_node=N",
}
DEFAULT_WAN_PATH = "Wan2.1-T2V-1.3B-Diffusers"
MAX_SEED = 2**32 - 1  # what every library takes
MAX_STEPS = 300  # beyond it two steps of the grid would share one of the 1000 timesteps
VRAM_CHOICES = ("auto", "24", "16", "12", "8")
TEXT_PLACES = ("gpu", "layers", "cpu")
MIN_BOX, MAX_BOX = 8, 8192  # pixels; the model's own multiple is checked when it is known

# The decoder's logits are clamped to [-1, 1]: a threshold outside their sigmoids would decide nothing.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.27, 0.73


def add_weight_flags(parser: argparse.ArgumentParser) -> None:
    """Which weights."""
    from util.weight_files import WEIGHT_CHOICES  # noqa: PLC0415, torch comes with it

    group = parser.add_argument_group("weights")
    group.add_argument(
        "--wan_path",
        metavar="PATH",
        help=f"Wan2.1-T2V-*-Diffusers folder, saved FlowRVS folder, or hub id of one; by default {DEFAULT_WAN_PATH}",
    )
    group.add_argument("--dit_ckpt", metavar="PATH", help="DiT weights: .pth, .safetensors, a run or a saved folder")
    group.add_argument("--vae_ckpt", metavar="PATH", help="tuned VAE weights; without them the stock decoder serves")
    group.add_argument(
        "--weights",
        choices=WEIGHT_CHOICES,
        default="auto",
        help="which of a checkpoint with averaged (ema) and raw (model) DiT weights; auto prefers ema",
    )


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """Where the datasets lie."""
    group = parser.add_argument_group("datasets")
    for flag, default in DATASET_PATHS.items():
        group.add_argument(f"--{flag}_path", default=default, metavar="DIR", help=f"folder of {flag}")
    group.add_argument("--cache_dir", metavar="DIR", help="for converted masks; by default beside their source")


def add_evaluation_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """What of a benchmark is segmented, and where the results go.

    Args:
        output_dir: the default folder.
    """
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--output_dir", default=output_dir, metavar="DIR",
        help="where masks and metrics go; an evaluation that was stopped there goes on",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="remove earlier results in --output_dir first")
    add_selection_flags(group)
    group.add_argument(
        "--text_cache", metavar="DIR", help="keep embedded captions here, for other runs; by default in --output_dir"
    )
    group.add_argument(
        "--num_workers", type=int_in(1), metavar="N",
        help="processes that write and score masks; by default as the cores allow, up to 4",
    )  # fmt: skip


def add_selection_flags(parser: argparse._ActionsContainer) -> None:
    """Which videos of a split."""
    parser.add_argument("--limit", type=int_in(1), metavar="N", help="only the first videos of the split")
    parser.add_argument("--videos", nargs="+", metavar="NAME", help="only these videos")


def add_video_list_flag(parser: argparse.ArgumentParser) -> None:
    """Which videos make up a split of Refer-YouTube-VOS."""
    parser.add_argument(
        "--video_list", metavar="FILE",
        help="of ytvos: a text file of video ids, one a line, where no meta_expressions/test tells valid's 202 apart",
    )  # fmt: skip


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Where the model runs, and in which number format."""
    from util.device import DTYPES, device_name  # noqa: PLC0415, torch comes with it

    group = parser.add_argument_group("device")
    group.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="auto is bf16 on CUDA and fp32 on the CPU"
    )
    group.add_argument(
        "--compile", action="store_true",
        help="compile the DiT's blocks and the VAE's norms; costs minutes at the start, pays on a GPU and many videos",
    )  # fmt: skip


def add_segment_flags(parser: argparse.ArgumentParser) -> None:
    """How to segment."""
    group = parser.add_argument_group("segmentation")
    group.add_argument("--num_steps", type=int_in(1, MAX_STEPS), default=1, help="Euler steps from video to mask")
    group.add_argument(
        "--reso_h", type=int_in(MIN_BOX, MAX_BOX), metavar="PIXELS",
        help="height of the box into which frames are fitted; the model's own by default",
    )  # fmt: skip
    group.add_argument("--reso_w", type=int_in(MIN_BOX, MAX_BOX), metavar="PIXELS", help="width of that box")
    group.add_argument(
        "--threshold",
        type=float_in(LOWEST_THRESHOLD, HIGHEST_THRESHOLD),
        default=0.5,
        help="foreground where the sigmoid of the mask logit exceeds it; logits end at -1 and 1, hence the range",
    )
    group.add_argument(
        "--prompt_batch", type=int_in(1), default=4, help="prompts per evaluation of the DiT; lower it to save memory"
    )
    group.add_argument(
        "--seed",
        type=int_in(0, MAX_SEED),
        default=0,
        help="of the noise, for weights that start from it; others draw nothing",
    )
    group.add_argument(
        "--window", type=int_in(0), default=0, metavar="FRAMES",
        help="frames that the model sees at once, 4n+1, such as 81; 0 is the whole video, as the weights are evaluated",
    )  # fmt: skip
    group.add_argument(
        "--overlap", type=int_in(0), metavar="FRAMES",
        help="frames that successive windows share and are blended over; by default a fifth of the window, 16 of 81",
    )  # fmt: skip


def add_memory_flags(parser: argparse.ArgumentParser) -> None:
    """How to fit into a GPU; what is not given, --vram decides. To be called after ``add_segment_flags``."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--vram", choices=VRAM_CHOICES, default="auto",
        help="GB of the GPU: sets --window, --prompt_batch, --tiling and --text_on where they are not given; auto goes "
        "by its free memory, and where that is ample, or on a CPU, the whole video is segmented at once",
    )  # fmt: skip
    group.add_argument(
        "--text_on", choices=TEXT_PLACES,
        help="where the text encoder (11 GB) computes: gpu, cpu, or on the gpu layer by layer",
    )  # fmt: skip
    group.add_argument(
        "--tiling", action=argparse.BooleanOptionalAction, help="VAE decodes in tiles, which changes masks a little"
    )
    parser.set_defaults(window=None, prompt_batch=None)
