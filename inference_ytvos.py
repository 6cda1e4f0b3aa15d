"""Segment a split of Refer-YouTube-VOS, and score it where its masks were added.

    python inference_ytvos.py --ytvos_path datasets/refer_youtube_vos --dit_ckpt dit.pth --vae_ckpt vae.pth

Writes <output_dir>/Annotations/<video>/<exp_id>/<frame>.png. Stopped, it goes on where it was. Under torchrun processes
take video after video, each on a GPU of its own.
"""

import argparse
from pathlib import Path

from datasets.readers.ytvos import SPLITS, RefYouTubeVOS
from engine.inference.run import run_inference
from util.errors import exit_on_user_error
from util.flags import (
    DATASET_PATHS,
    REMOVED_FROM_INFERENCE,
    add_device_flags,
    add_evaluation_flags,
    add_segment_flags,
    add_video_list_flag,
    add_weight_flags,
)
from util.options import OptionParser

PROGRAM = "inference_ytvos.py"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM, description="Segment a split of Refer-YouTube-VOS.", removed=REMOVED_FROM_INFERENCE
    )
    parser.add_argument(
        "--ytvos_path", default=DATASET_PATHS["ytvos"], metavar="DIR", help="holds meta_expressions, train and valid"
    )
    parser.add_argument("--split", choices=SPLITS, default="valid", help="valid is the benchmark")
    add_video_list_flag(parser)
    add_evaluation_flags(parser, "output/ytvos")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


def run(options: argparse.Namespace) -> None:
    split = RefYouTubeVOS(
        Path(options.ytvos_path), options.split, Path(options.video_list) if options.video_list else None
    )
    run_inference(options, f"ytvos {options.split}", split, remark=f"Of the split were taken: {split.selection}")


if __name__ == "__main__":
    main()
